"""Promise 18 at the gateway's door: a bank that does not answer holds its own places, and no other's."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.home import Home, configured
from tests.faults.market import Market
from tests.faults.payments import Effect, Sale, shop_at
from tests.faults.waiting import until
from tests.running import labelled
from tests.simulated_banks import HAIYAN, JIAXING, QUICK, banks, of_bank

PATIENT_MS = 50_000
"""For an answer: longer than the test, so that what waits for the silent bank waits to its end."""
OTHERS = 64


@pytest.fixture
async def street(tenant: Home, tmp_path: Path) -> AsyncIterator[Market]:
    """A gateway of one worker, without a deadline to speak of."""
    configured(tenant, tmp_path / "config", **(QUICK | {"payments.deadline_ms": PATIENT_MS}))
    async with banks(tmp_path / "banks") as both:
        yield Market(tenant, both)
        await tenant.end()


async def told_beside_a_silent_bank(market: Market, folder: Path, places: int) -> Counter[str]:
    """What the other bank's customers are told while as many as possible wait for this one."""
    (folder / "config" / "partners.toml").write_text(market.banks.blocks(timeout_ms=PATIENT_MS, places=places))
    await market.start()
    customers = await market.customers()
    await market.banks.haiyan.faults({"kind": "drop_before"})

    async def all_taken() -> bool:
        metrics = await market.home.running.metrics()
        return labelled(metrics, "yikatong_partner_in_flight").get((HAIYAN,)) == places

    def payments(bank: str, of_each: int) -> list[Effect]:
        return [Sale(customer, 100).payment for customer in of_bank(customers, bank) for _ in range(of_each)]

    async with shop_at(market.home, customers) as shop:
        waiting = [asyncio.create_task(shop.send(payment, PATIENT_MS)) for payment in payments(HAIYAN, 26)]
        # who finds no place is told so at once; all others wait
        await until(all_taken, 20, "all places of the silent bank are taken")
        others = payments(JIAXING, 4)
        await asyncio.gather(*(shop.ask(payment, PATIENT_MS) for payment in others))
        assert await all_taken(), "to the end"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return Counter(payment.status or "refused" for payment in others)


FEW, MANY = 64, 200
"""Places of the silent bank, and as many to wait: what it is asked at once is more than both, and with MANY of them it
is also more than may wait for one bank."""


@pytest.mark.parametrize("places", [FEW, MANY])
async def test_a_silent_bank_takes_no_place_of_another(street: Market, places: int, tmp_path: Path) -> None:
    assert await told_beside_a_silent_bank(street, tmp_path, places) == {"approved": OTHERS}


@pytest.mark.parametrize(("bug", "places"), [("one_bulkhead", FEW), ("one_limit_of_waiting", MANY)])
async def test_control_shared_places_are_noticed(street: Market, bug: str, places: int, tmp_path: Path) -> None:
    told = await told_beside_a_silent_bank(street._replace(bug=bug), tmp_path, places)
    assert told["refused"], told
