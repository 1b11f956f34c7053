"""Promise 18, measured by `make faults`: what customers of one bank wait while another is silent, slow or broken.

The figures are printed, not judged: they depend on what else the machine does. What does not depend on it is asserted.
"""

import asyncio
import itertools
import statistics
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.faults.home import Figure, Home, configured
from tests.faults.market import Market
from tests.faults.payments import Effect, Sale, Shop, shop_at
from tests.running import MANY
from tests.simulated_banks import BANKS, HAIYAN, JIAXING, QUICK, Customer, banks, of_bank

pytestmark = pytest.mark.skipif(not MANY, reason="a measurement: make faults")

PER_SECOND = 40
"""Payments at each bank."""
SECONDS = 6
PAIRS = 5
"""So often in turn with the bank well and with it bad."""
SLOW_S = 30
FIRST_MESSAGE = "singletrans"

Told = tuple[float, Effect]


class Front:
    """Stands before the open bank, and is bad in its stead."""

    def __init__(self, bank_port: int) -> None:
        self._url = f"http://127.0.0.1:{bank_port}"
        self._session: aiohttp.ClientSession | None = None
        self._never = asyncio.Event()
        self.way = "well"
        self.seen: Counter[str] = Counter()
        """Requests by service."""

    async def handle(self, request: web.Request) -> web.Response:
        self.seen[request.match_info["name"]] += 1
        if self.way == "black hole":
            await self._never.wait()
        if self.way == "30 s slow":
            await asyncio.sleep(SLOW_S)
        if self.way == "half 5xx" and self.seen.total() % 2:
            return web.Response(status=503, text="<html>503</html>")
        assert self._session is not None
        async with self._session.post(
            self._url + request.path, data=await request.read(), headers=request.headers
        ) as answer:
            headers = {name: text for name, text in answer.headers.items() if name.lower().startswith("x-aob")}
            return web.Response(status=answer.status, body=await answer.read(), headers=headers)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        """The port."""
        app = web.Application()
        app.router.add_post("/V1/{service}/S01/{name}", self.handle)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        async with aiohttp.ClientSession() as self._session:
            yield runner.addresses[0][1]
            await runner.cleanup()


@pytest.fixture
async def street(tenant: Home, tmp_path: Path) -> AsyncIterator[tuple[Market, Front]]:
    """A gateway of one worker, with the times that are shipped but for a breaker that soon closes again."""
    configured(tenant, tmp_path / "config", **(QUICK | {"payments.deadline_ms": 8000, "payments.retry_base_ms": 1000}))
    async with banks(tmp_path / "banks") as both:
        front = Front(both.jiaxing.port)
        async with front.open() as port:
            blocks = both.blocks(timeout_ms=3000, open_s=1, jiaxing=port)
            (tmp_path / "config" / "partners.toml").write_text(blocks)
            yield Market(tenant, both), front
            await tenant.end()


async def pay_steadily(shop: Shop, customers: list[Customer], seconds: float) -> dict[str, list[Told]]:
    """Payments at both banks at a steady rate; of each the seconds since its intended start, and what it was told."""
    began = asyncio.get_running_loop().time()
    told: dict[str, list[Told]] = {bank: [] for bank in BANKS}
    asking: list[asyncio.Task[None]] = []

    async def pay(customer: Customer, at: float) -> None:
        payment = Sale(customer, 100).payment
        await shop.send(payment, 20)
        told[customer.bank].append((asyncio.get_running_loop().time() - at, payment))

    for number in range(int(PER_SECOND * seconds)):
        at = began + number / PER_SECOND
        await asyncio.sleep(max(0.0, at - asyncio.get_running_loop().time()))
        for bank in BANKS:
            of_this = of_bank(customers, bank)
            asking.append(asyncio.create_task(pay(of_this[number % len(of_this)], at)))
    await asyncio.gather(*asking)
    return told


@pytest.mark.parametrize("way", ["black hole", "30 s slow", "half 5xx"])
async def test_the_customers_of_another_bank(street: tuple[Market, Front], way: str, figure: Figure) -> None:
    market, front = street
    await market.start()
    customers = await market.customers()
    waited: dict[str, list[float]] = {"well": [], way: []}
    begun = 0
    async with shop_at(market.home, customers) as shop:
        for _, front.way in itertools.product(range(PAIRS), ["well", way]):
            begun += len((await pay_steadily(shop, customers, 2))[JIAXING])  # the breaker learns of it
            told = await pay_steadily(shop, customers, SECONDS)
            assert Counter(payment.status for _, payment in told[HAIYAN]) == {"approved": PER_SECOND * SECONDS}
            waited[front.way] += [seconds for seconds, _ in told[HAIYAN]]
            begun += len(told[JIAXING])
    well, bad = (statistics.quantiles(waited[each], n=100) for each in ("well", way))
    figure(
        payments=len(waited[way]), **{f"p{n}_{each}_ms": 1000 * cuts[n - 1] for n in (50, 95, 99)
                                      for each, cuts in (("well", well), ("bad", bad))},
        asked=begun, first_messages_seen=front.seen[FIRST_MESSAGE], all_seen=front.seen.total(),
    )  # fmt: skip
    assert front.seen[FIRST_MESSAGE] <= begun * 1.1
