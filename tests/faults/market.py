"""A market: a gateway and both simulated banks, customers of either, and whoever kills any of them."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from gateway.crypto.key_files import open_folder
from tests.faults.home import Home, configured
from tests.faults.payments import Findings, Sale, check, nothing_is_left, shop_at
from tests.faults.waiting import gone, named, send, tree, until
from tests.simulated_banks import QUICK, Banks, Customer, add_customers, banks

KILLED = ("gateway", "workers", "postgres", "banks")
"""In the course of a round, one after the other."""
SETTLED_S = 60.0
FAULTS = {
    "drop_before": 0.06, "drop_after": 0.08, "late": 0.04, "delay": 0.03, "half_close": 0.02, "garbage": 0.02,
    "duplicate": 0.1, "bad_signature": 0.05,
}  # fmt: skip
"""Of every message of either bank, questions and reversals too; two in five meet one."""
LATE_MS = 900
"""More than the banks are given for an answer."""

_random = random.Random(20261126)


class Market(NamedTuple):
    home: Home
    banks: Banks
    bug: str | None = None
    faults: Mapping[str, float] = FAULTS

    async def start(self) -> None:
        await self.home.start(self.bug)

    async def customers(self) -> list[Customer]:
        return await add_customers(self.home.dsn, open_folder(self.home.data_dir / "keys"), 16)

    async def misbehave(self) -> None:
        await self.banks.faults(
            *({"kind": kind, "probability": share, "ms": LATE_MS} for kind, share in self.faults.items())
        )

    async def kill(self, what: str) -> None:
        """At one blow; whatever is not started again by its keeper is started again by us."""
        if what == "banks":
            await self.banks.kill()
            await self.banks.start()
            await self.misbehave()
            return
        processes = self._processes(what)
        send(processes, signal.SIGKILL)
        await gone(processes, 5)
        if what == "gateway":
            await self.home.ended(5)
            await self.start()

    def _processes(self, what: str) -> list[psutil.Process]:
        if what == "postgres":
            return tree(self.home.postmaster)
        everything = tree(self.home.running.pid)
        return everything if what == "gateway" else named(everything, "serve-worker") + named(everything, "worker")

    async def round(self, customers: list[Customer], count: int, killed: Sequence[str] = KILLED) -> list[Sale]:
        """So many sales while the banks misbehave, with kills in the midst of them."""
        await self.misbehave()
        async with shop_at(self.home, customers) as shop:
            selling = asyncio.create_task(shop.sell(count))
            for number, what in enumerate(killed):
                answered = int(count * (number + _random.random()) / (len(killed) + 1))
                await until(lambda: shop.answered >= answered or selling.done(), 60, f"{answered} sales answered")  # noqa: B023
                await self.kill(what)
            await selling
        return shop.sales

    async def settled(self, sales: list[Sale]) -> Findings:
        """When the banks answer again, and nothing is left to do."""
        await self.banks.faults()
        await until(lambda: nothing_is_left(self.home), SETTLED_S, "everything is decided")
        return await check(self.home, self.banks, sales)


@pytest.fixture
async def market(home: Home, tmp_path: Path) -> AsyncIterator[Market]:
    configured(home, tmp_path / "config", **QUICK)
    async with banks(tmp_path / "banks") as both:
        (tmp_path / "config" / "partners.toml").write_text(both.blocks())
        yield Market(home, both)
        await home.end()
