"""Banks whose answers are made to hurt, behind a whole gateway: `pending`, then decided, and bounded memory."""

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.faults.home import Figure, Home, configured
from tests.faults.market import Market
from tests.faults.payments import Sale, shop_at
from tests.faults.relay import Change, framed, relay
from tests.faults.waiting import named, tree, until
from tests.partners.peers import Behaviour, peer
from tests.partners.test_faults import (
    announced,
    endless_continues,
    endless_headers,
    endless_line,
    huge,
    huge_chunks,
    zipped,
)
from tests.simulated_banks import HAIYAN, JIAXING, QUICK, banks, of_bank

TIMEOUT_MS, PATIENT_MS = 2000, 40_000
GROWS_MAX_KIB = 64 * 1024
"""Of the peak of each process: two thirds of one of the answers."""
HTTP: tuple[Behaviour, ...] = (
    huge, huge_chunks, announced, endless_headers, endless_line, endless_continues,
)  # fmt: skip
LINK: dict[str, Change] = {
    "a length that is too long": lambda message: framed(message, len(message) + 40),
    "a length that is too short": lambda message: framed(message, len(message) - 40),
    "a length of nothing": lambda message: framed(message, 0),
    "the longest length": lambda message: framed(message, 0xFFFF),
    "endless nonsense": lambda message: b"\xff" * (100 << 20),
    "another charset": lambda message: framed(bytes(byte ^ 0x80 for byte in message)),
    "other fields": lambda message: framed(message[:2] + b"\xff" * (len(message) - 2)),
}


def again_and_again(message: bytes) -> bytes:
    """The right answer, which counts once."""
    return framed(message) * 20_000


def peaks_kib(market: Market) -> dict[int, int]:
    """The most that each process was in memory since it began."""
    everything, peaks = tree(market.home.running.pid), {}
    for process in named(everything, "serve-worker") + named(everything, "worker"):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        assert found is not None
        peaks[process.pid] = int(found[1])
    return peaks


def most_grown_kib(market: Market, before: dict[int, int]) -> int:
    after = peaks_kib(market)
    assert after.keys() == before.keys(), "none has ended"
    return max(after[pid] - before[pid] for pid in before)


@pytest.fixture
async def street(tenant: Home, tmp_path: Path) -> AsyncIterator[Market]:
    """A gateway of one worker, whose partners have their own time for an answer."""
    configured(tenant, tmp_path / "config", **(QUICK | {"payments.deadline_ms": PATIENT_MS}))
    async with banks(tmp_path / "banks") as both:
        yield Market(tenant, both)
        await tenant.end()


async def pay_at_a_stranger(
    market: Market, config: Path, behaviours: Sequence[Behaviour], timeout_ms: int = TIMEOUT_MS
) -> int:
    """KiB by which the gateway grew over one payment for each."""
    async with peer(zipped) as stranger:
        (config / "partners.toml").write_text(market.banks.blocks(timeout_ms, jiaxing=stranger.port))
        await market.start()
        customers = of_bank(await market.customers(), JIAXING)
        async with shop_at(market.home, customers) as shop:
            await shop.until_answered(Sale(customers[0], 100).payment)
            before = peaks_kib(market)
            for behaviour in behaviours:
                stranger.behaviour = behaviour
                payment = Sale(customers[0], 100).payment
                await shop.until_answered(payment)
                assert payment.status == "pending", behaviour
            grown = most_grown_kib(market, before)
        await market.home.end()  # before the stranger: what it is still at breaks off
    return grown


async def test_answers_that_hurt_are_pending_and_bounded(street: Market, tmp_path: Path, figure: Figure) -> None:
    grown = await pay_at_a_stranger(street, tmp_path / "config", HTTP)
    figure(answers=len(HTTP), grown_kib=grown)
    assert grown < GROWS_MAX_KIB


async def test_control_an_answer_that_is_read_to_its_end_is_noticed(
    street: Market, tmp_path: Path, figure: Figure
) -> None:
    grown = await pay_at_a_stranger(street._replace(bug="unbounded_answers"), tmp_path / "config", (huge,), PATIENT_MS)
    figure(answers=1, grown_kib=grown)
    assert grown > GROWS_MAX_KIB


async def test_messages_that_hurt_are_pending_then_decided_and_bounded(
    street: Market, tmp_path: Path, figure: Figure
) -> None:
    """The link is opened anew as often as it must, and what it carried is found out."""
    async with relay(street.banks.haiyan.port) as between:
        blocks = street.banks.blocks(TIMEOUT_MS, haiyan=between.port)
        (tmp_path / "config" / "partners.toml").write_text(blocks)
        await street.start()
        customers = of_bank(await street.customers(), HAIYAN)
        async with shop_at(street.home, customers) as shop:

            async def told() -> str:
                shop.sales.append(Sale(customers[0], 100))
                await shop.until_answered(shop.sales[-1].payment)
                return shop.sales[-1].payment.status

            async def is_approved() -> bool:
                return await told() == "approved"

            await until(is_approved, 30, "a payment before")
            before = peaks_kib(street)
            for name, change in LINK.items():
                between.change = change
                assert await told() == "pending", name
            between.change = again_and_again
            await told()
            between.change = framed
            await until(is_approved, 30, "all is well again")
        findings = await street.settled(shop.sales)
        grown = most_grown_kib(street, before)
    figure(messages=len(LINK) + 1, grown_kib=grown, **findings._asdict())
    assert findings.reversed >= len(LINK) and findings.clean, findings
    assert grown < GROWS_MAX_KIB
