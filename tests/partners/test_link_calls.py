"""A long-lived link behind partners.toml and call.py: the same outcomes, timestamps and transcript as over HTTP."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import metrics
from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.partners import link
from gateway.partners.call import Partners
from gateway.partners.link import LinkExchange
from gateway.partners.phases import Why
from gateway.partners.transport_iso8583 import LinkCounts
from tests.faults.relay import framed, relay
from tests.faults.waiting import until
from tests.partners.iso_bank import ACCOUNT, KEY, Bank, block, purchase, reverse
from tests.partners.peers import configure, partners

MANY = 2000


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


def repeated(times: int, message: bytes) -> bytes:
    return framed(message) * times


def has_had(counts: LinkCounts, late: int) -> bool:
    return counts.late == late


async def told_of_thousands(bank: Bank, folder: Path) -> tuple[list[Any], float]:
    """Of a reply that comes MANY times, and one that comes twice: the lines about late ones, and the metric's count."""
    before = link_events("late")
    patient = block(bank.port, "timeout_ms = 20_000")
    async with relay(bank.port) as between:
        blocks = patient.replace(f"port = {bank.port}", f"port = {between.port}")
        with capture_logs() as lines:
            async with partners(folder, blocks) as made:
                working = made.registry.get("iso")
                assert working is not None and isinstance(working.transport, LinkExchange)
                counts = working.transport._link.counts
                for times, late in ((MANY, MANY - 1), (2, MANY)):
                    between.change = partial(repeated, times)
                    outcome = await made.call("iso", purchase(), time.monotonic() + 20)
                    assert isinstance(outcome, Approved), "the first counts"
                    await until(partial(has_had, counts, late), 20, "all have come")
                    await asyncio.sleep(0)  # the last ones are handed on
                    made.measure()
                assert counts.opened == 1
    return [line for line in lines if line["event"].startswith("late repl")], link_events("late") - before


async def test_thousands_of_late_replies_are_two_lines_and_all_in_the_metric(bank: Bank, tmp_path: Path) -> None:
    lines, counted = await told_of_thousands(bank, tmp_path)
    assert counted == MANY
    assert [line.get("count") for line in lines] == [None, MANY - 1, None]
    assert "39=00" in lines[0]["reply"] and "39=00" in lines[2]["reply"] and ACCOUNT not in str(lines)


def _tells_of_each(self: LinkExchange, body: bytes) -> None:
    """Planted: a line for each."""
    link.log.warning("late reply", partner=self._name, reply=self._adapter.redact(body)[:500])


async def test_control_a_line_for_each_late_reply_is_noticed(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LinkExchange, "_take_late", _tells_of_each)
    lines, counted = await told_of_thousands(bank, tmp_path)
    assert counted == MANY < len(lines)


def link_events(event: str) -> float:
    return float(metrics.PARTNER_LINK_EVENTS.labels("iso", event)._value.get())


async def test_a_bank_that_is_gone_was_sent_nothing(bank: Bank, tmp_path: Path) -> None:
    async with partners(tmp_path, block(bank.port)) as made:
        assert isinstance((await call(made, purchase()))[0], Approved)
        await bank.stop()
        outcomes = [await call(made, purchase()) for _ in range(8)]
        assert all(isinstance(outcome, NotSent | Unknown) and seconds < 0.75 for outcome, seconds in outcomes)
        assert outcomes[-1][0] == NotSent(Why.BREAKER_OPEN)
