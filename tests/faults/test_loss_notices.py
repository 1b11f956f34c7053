"""The bank's half of a loss report under faults, each with a control: nothing is forgotten, overtaken or waited for."""

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.faults.waiting import gone, send, tree
from tests.losses import ENDS_S, PATH, Desk, body_of, desk_at
from tests.running import eventually

THINKS = {"kind": "delay", "ms": 60_000}
CARDS = 12
"""Each is told in either order, by chance: all in the right one, once in thousands."""
AT_ONCE = 20
"""Twice as many as these have no place at the partner (tests/losses.py)."""


@contextlib.asynccontextmanager
async def reporting(desk: Desk, key: str) -> Any:
    """A report that is committed and stands at the bank: (its card, its reference, the task)."""
    card = await desk.card()
    task = asyncio.create_task(desk.kiosk.effect(PATH, body_of(card), key=key))
    known = "SELECT reference FROM operation WHERE kind = 'loss_report' ORDER BY recorded_at DESC LIMIT 1"
    reference = await eventually(lambda: desk.fetch(known), ENDS_S, "the report is committed")
    try:
        yield card, str(reference), task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, aiohttp.ClientError):
            await task


# --- controls of tests/partners/test_loss_notices.py --------------------------------------------------------------


async def test_control_a_bank_that_is_not_told_again_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_at(tmp_path, postgres, "notices_not_repeated") as desk:
        lost = await desk.pending(await desk.card(), {"kind": "drop_after"})
        await desk.close_bank()
        closed = await desk.kiosk.report_loss(await desk.card())
        assert closed["bank"] == {"status": "pending"}
        await desk.open_bank()
        for report in (lost, closed):
            with pytest.raises(AssertionError, match="the bank's half is decided"):
                await desk.came_to(report["reference"], within_s=2)


async def test_control_a_release_that_overtakes_its_loss_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_at(tmp_path, postgres, "notices_out_of_order") as desk:
        await desk.close_bank()
        told = []
        for card in [await desk.card() for _ in range(CARDS)]:
            lost = await desk.kiosk.report_loss(card)
            found = await desk.kiosk.release_loss(lost["reference"])
            told.append((lost["reference"], found["reference"]))
        await desk.open_bank()
        for reference in (reference for both in told for reference in both):
            assert await desk.came_to(reference) == {"status": "accepted"}
        assert [await desk.told(*both) for both in told] != [["2", "4"]] * CARDS


async def test_control_an_answer_that_is_replaced_is_noticed(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with desk_at(tmp_path, postgres, "answers_replaced") as desk:
        card = await desk.card()
        await desk.bank.faults({"kind": "drop_before"})
        _, first, _ = await desk.kiosk.effect(PATH, body_of(card), key="once")
        assert json.loads(first)["bank"] == {"status": "pending"}
        await desk.bank.heal()
        assert await desk.came_to(json.loads(first)["reference"]) == {"status": "accepted"}
        _, again, headers = await desk.kiosk.effect(PATH, body_of(card), key="once")
        assert headers["Idempotency-Replayed"] == "true" and again != first


# --- the social security side does not wait ----------------------------------------------------------------------


@pytest.mark.parametrize("bug", ["", "bank_inside_the_transaction"], ids=["as it is", "control"])
async def test_no_verify_says_valid_while_the_bank_thinks(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str
) -> None:
    async with desk_at(tmp_path, postgres, bug, deadline_ms=10_000) as desk:
        card = await desk.card()
        await desk.bank.faults(THINKS)
        task = asyncio.create_task(desk.kiosk.effect(PATH, body_of(card)))

        async def is_lost() -> bool:
            answer = await desk.kiosk.verify(card.number, card.identifier, "kiosk.service")
            return bool(answer["reason"] == "lost_temporary")

        if bug:
            with pytest.raises(AssertionError, match="the card is lost"):
                await eventually(is_lost, 1.5, "the card is lost")
        else:
            await eventually(is_lost, ENDS_S, "the card is lost")
        assert not await desk.bank.book(), "the bank has not done anything"
        await desk.close_bank()
        status, raw, _ = await task
        assert bug or (status, json.loads(raw)["bank"]) == (200, {"status": "pending"})
        await desk.open_bank()


@pytest.mark.parametrize("bug", ["", "losses_wait_too"], ids=["as it is", "control"])
async def test_a_loss_is_taken_however_many_wait_for_the_bank(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str
) -> None:
    async with desk_at(tmp_path, postgres, bug, deadline_ms=3000) as desk:
        cards = [await desk.card() for _ in range(3 * AT_ONCE)]
        await desk.bank.faults(THINKS)
        waiting = [asyncio.create_task(desk.kiosk.effect(PATH, body_of(card))) for card in cards[:AT_ONCE]]

        async def all_wait() -> bool:
            return bool(await desk.fetch("SELECT count(*) FROM loss_notice") == AT_ONCE)

        await eventually(all_wait, ENDS_S, "the first of them stand at the bank")
        more = [asyncio.create_task(desk.kiosk.effect(PATH, body_of(card))) for card in cards[AT_ONCE:]]
        statuses = [status for status, _, _ in await asyncio.gather(*waiting, *more)]
        assert (set(statuses) == {200}) == (not bug), statuses
        assert set(statuses) <= {200, 503}


# --- nobody is there any more ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bug", ["", "notice_not_recorded"], ids=["as it is", "control"])
async def test_killed_between_commit_and_notice_the_bank_is_told_by_the_resolver(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str
) -> None:
    async with desk_at(tmp_path, postgres, bug) as desk:
        await desk.bank.faults(THINKS)
        async with reporting(desk, "killed") as (card, reference, _):
            processes = tree(desk.running.pid)
            send(processes, signal.SIGKILL)
            await gone(processes, 5)
        await desk.close_bank()
        await desk.open_bank()
        await desk.running.start()
        assert await desk.came_to(reference) == {"status": "not_connected" if bug else "accepted"}
        assert await desk.told(reference) == ([] if bug else ["2"])
        if not bug:
            status, raw, headers = await desk.kiosk.effect(PATH, body_of(card), key="killed")
            assert (status, headers["Idempotency-Replayed"]) == (200, "true")
            answer = json.loads(raw)
            assert (answer["reference"], answer["social_security"]["status"]) == (reference, "accepted")


@pytest.mark.parametrize("bug", ["", "notice_dropped_on_hang_up"], ids=["as it is", "control"])
async def test_a_caller_that_hangs_up_changes_nothing(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str
) -> None:
    """The bank is told by the request itself: no resolver has to take it up."""
    async with desk_at(tmp_path, postgres, bug, deadline_ms=3000) as desk:
        await desk.bank.faults({"kind": "late", "ms": 1000})
        async with reporting(desk, "hung-up") as (card, reference, task):
            line = eventually(desk.bank.book, ENDS_S, "the bank has it")
            await line
            task.cancel()
        assert await desk.came_to(reference) == {"status": "accepted"}
        tries = await desk.fetch("SELECT tries FROM loss_notice WHERE reference = $1", reference)
        assert (tries == 0) == (not bug), tries
        status, raw, _ = await desk.kiosk.effect(PATH, body_of(card), key="hung-up")
        assert status == 200 and json.loads(raw)["bank"] == {"status": "accepted"}
