"""Promise 6, whole: the running gateway and both simulated banks, answers lost at every step, everything killed.

In the end every payment is approved, declined or reversed, nobody paid twice, and the banks' books are ours, reference
by reference and fen by fen. What a dialect cannot find out (a refund by ISO 8583 without an answer) stays open.
"""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from gateway.crypto.key_files import open_folder
from tests.faults.home import Figure, Home, configured
from tests.faults.payments import Findings, Sale, check, nothing_is_left, shop_at, steps_of
from tests.faults.test_effects_kill import set_hold, until_it_stands
from tests.faults.waiting import gone, named, send, tree, until
from tests.market import QUICK, Banks, Customer, add_customers, banks

KILLED = ("gateway", "workers", "postgres", "banks")
"""In the course of a round, one after the other."""
PER_ROUND = 250
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

    async def start(self) -> None:
        await self.home.start(self.bug)

    async def customers(self) -> list[Customer]:
        return await add_customers(self.home.dsn, open_folder(self.home.data_dir / "keys"), 16)

    async def misbehave(self) -> None:
        await self.banks.faults(
            *({"kind": kind, "probability": share, "ms": LATE_MS} for kind, share in FAULTS.items())
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


async def test_every_payment_ends_and_the_banks_books_are_ours(market: Market, cycles: int, figure: Figure) -> None:
    await market.start()
    customers, sales = await market.customers(), list[Sale]()
    rounds = max(1, cycles * 100 // PER_ROUND)
    for _ in range(rounds):
        sales += await market.round(customers, PER_ROUND)
    findings = await market.settled(sales)
    steps = await steps_of(market.home)
    told = Counter(sale.payment.status for sale in sales)
    cut = sum(sale.payment.cut > 0 for sale in sales)
    figure(kills=rounds * len(KILLED), told_pending=told["pending"], cut=cut, **findings._asdict())
    figure(**{name.replace(" ", "_"): count for name, count in sorted(steps.items())})
    assert findings.clean, findings
    # the faults did reach every step
    reached = {"payment unknown", "payment reversing", "payment reversed", "reversal unknown", "refund unknown"}
    assert reached <= steps.keys() and told["pending"] and told["approved"] and cut


@pytest.mark.parametrize(("bug", "column"), [("reversal_sent_once", "unlike"), ("doubt_is_not_sent", "doubled")])
async def test_control_the_check_notices(market: Market, bug: str, column: str) -> None:
    market = market._replace(bug=bug)
    await market.start()
    sales = await market.round(await market.customers(), 60, killed=[])

    async def noticed() -> bool:
        return bool(getattr(await check(market.home, market.banks, sales), column))

    await until(noticed, SETTLED_S, f"{bug} is noticed")


async def killed_before_the_commit(market: Market) -> Findings:
    """The workers, while an intent is recorded and not committed; then the customer asks again with the same key."""
    await market.start()
    customers = (await market.customers())[:1]
    await set_hold(market.home, True)
    async with shop_at(market.home, customers) as shop:
        selling = asyncio.create_task(shop.sell(1))
        await until_it_stands(market.home)
        await market.kill("workers")
        await set_hold(market.home, False)
        await selling
    return await market.settled(shop.sales)


async def test_the_bank_hears_nothing_before_the_intent_is_committed(market: Market) -> None:
    findings = await killed_before_the_commit(market)
    assert findings.clean and findings.approved + findings.reversed == 1, findings


async def test_control_a_message_before_the_commit_is_noticed(market: Market) -> None:
    findings = await killed_before_the_commit(market._replace(bug="sent_before_the_intent"))
    assert findings.unheard == 1, findings
