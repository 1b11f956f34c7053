"""A long-lived link behind partners.toml and call.py: the same outcomes, timestamps and transcript as over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway import metrics
from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.partners.call import Partners
from gateway.partners.phases import Why
from tests.partners.iso_bank import ACCOUNT, KEY, Bank, block, purchase, reverse
from tests.partners.peers import configure, partners


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Bank]:
    bank = await Bank(tmp_path / "bank").start()
    configure(tmp_path)
    (tmp_path / "iso.key").write_text(KEY)
    (tmp_path / "iso.key").chmod(0o600)
    yield bank
    with suppress(ProcessLookupError):  # a test may have stopped it
        await bank.stop()


async def call(made: Partners, op: Operation) -> tuple[Outcome, float]:
    began = time.monotonic()
    return await made.call("iso", op, began + 5), time.monotonic() - began


async def test_calls_over_a_link(bank: Bank, tmp_path: Path) -> None:
    async with partners(tmp_path, block(bank.port)) as made:
        outcomes = await asyncio.gather(*(call(made, purchase()) for _ in range(20)))
        assert all(isinstance(outcome, Approved) for outcome, _ in outcomes), outcomes
        entry = made.transcript("iso")[-1]
        assert set(entry.seconds) == {"before", "partner", "reading"}
        assert ACCOUNT not in str(made.transcript("iso"))

        await bank.faults({"kind": "drop_after"})
        lost = purchase()
        outcome, seconds = await call(made, lost)
        assert isinstance(outcome, Unknown)
        assert seconds < 0.75
        await bank.faults()
        assert isinstance((await call(made, reverse(lost)))[0], Approved)


async def test_an_answer_that_comes_late_is_handed_on_once(bank: Bank, tmp_path: Path) -> None:
    handed: asyncio.Queue[tuple[Operation, Outcome]] = asyncio.Queue()

    async def on_late(op: Operation, outcome: Outcome) -> None:
        await handed.put((op, outcome))

    late_before = link_events("late")
    async with partners(tmp_path, block(bank.port), on_late=on_late) as made:
        await bank.faults({"kind": "late", "ms": 600}, {"kind": "duplicate"})
        bought = purchase()
        outcome, _ = await call(made, bought)
        assert isinstance(outcome, Unknown)
        op, outcome = await asyncio.wait_for(handed.get(), 5)
        assert op == bought and isinstance(outcome, Approved)
        made.measure()
        assert metrics.PARTNER_LINK_UP.labels("iso")._value.get() == 1
        assert link_events("late") - late_before == 2, "the duplicate was one more"
        assert handed.empty()


def link_events(event: str) -> float:
    return float(metrics.PARTNER_LINK_EVENTS.labels("iso", event)._value.get())


async def test_a_bank_that_is_gone_was_sent_nothing(bank: Bank, tmp_path: Path) -> None:
    async with partners(tmp_path, block(bank.port)) as made:
        assert isinstance((await call(made, purchase()))[0], Approved)
        await bank.stop()
        outcomes = [await call(made, purchase()) for _ in range(8)]
        assert all(isinstance(outcome, NotSent | Unknown) and seconds < 0.75 for outcome, seconds in outcomes)
        assert outcomes[-1][0] == NotSent(Why.BREAKER_OPEN)
