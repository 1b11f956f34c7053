"""Visits while gateways are killed, each with a control: what acts acts once, in time, or never."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.api.test_evidence import show
from tests.faults.canaries import forms
from tests.faults.refusing import refuse_steps
from tests.faults.waiting import gone, send, tree
from tests.running import eventually
from tests.visits import CHEAP, DEAR, ENDS_S, PATH, Street, barriers, body_of, street_at

KNOWN = "SELECT reference FROM visit ORDER BY created_at DESC LIMIT 1"
Streets = Callable[[str], Awaitable[Street]]


@pytest.fixture(scope="module")
async def streets(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Streets]:
    """A street for each plant, made when it is first asked for; nothing fails there at first."""
    made: dict[str, Street] = {}
    async with contextlib.AsyncExitStack() as stack:

        async def at(bug: str) -> Street:
            if bug not in made:
                made[bug] = await stack.enter_async_context(street_at(tmp_path_factory.mktemp("street"), postgres, bug))
            await made[bug].breaker_is_closed()
            return made[bug]

        yield at


@pytest.mark.parametrize("bug", ["dies_before_it_tells", "tells_again"], ids=["as it is", "control"])
async def test_killed_between_intent_and_message_no_barrier_opens_later(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, bug: str
) -> None:
    environment = {"DIED": str(tmp_path / "died")}
    async with street_at(tmp_path, postgres, bug, environment) as street:
        card = await street.card()
        with pytest.raises((OSError, aiohttp.ClientError)):
            await street.visit(card, "parking.exit", "L-2", key="killed", plate=CHEAP)
        reference = str(await eventually(lambda: street.fetch(KNOWN), ENDS_S, "it is committed"))
        assert await street.came_to(reference) == ("refused" if bug == "dies_before_it_tells" else "opened")
        assert barriers(await street.book(reference)) == ([] if bug == "dies_before_it_tells" else ["out"])
        if bug == "dies_before_it_tells":
            assert (await street.operation(reference))["reason"] == "not_found"
            claimed = await street.fetch(
                "SELECT coalesce(sum(delta), 0) FROM benefit_claim WHERE source = $1", reference
            )
            assert claimed == 0
            status, answer = await street.visit(card, "parking.exit", "L-2", key="killed", plate=CHEAP)
            assert (status, answer["reference"], answer["status"]) == (200, reference, "refused")


async def test_killed_while_the_lot_answers_the_key_gets_what_it_came_to(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with street_at(tmp_path, postgres) as street:
        card = await street.card()
        await street.host.faults({"kind": "late", "ms": 60_000})
        body = body_of(card, "parking.entry", "L-1")
        task = asyncio.create_task(street.merchant.effect(PATH, body, key="killed"))
        reference = str(await eventually(lambda: _in_book(street), ENDS_S, "the lot has opened"))
        processes = tree(street.running.pid)
        send(processes, signal.SIGKILL)
        await gone(processes, 5)
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await task
        await street.host.faults()
        await street.running.start()
        assert await street.came_to(reference) == "opened"
        assert barriers(await street.book(reference)) == ["in"]
        status, answer = await street.visit(card, "parking.entry", "L-1", key="killed")
        assert status in (200, 202) and answer["reference"] == reference


@pytest.mark.parametrize("bug", ["commit_unheard", "pending_in_doubt"], ids=["as it is", "control"])
async def test_what_was_not_told_is_not_said_to_be_pending(streets: Streets, bug: str) -> None:
    """That the lot was not told is committed, which nobody heard of: the key is free, so nothing else may be said."""
    street = await streets(bug)
    card = await street.card()
    (street.running.data_dir / "unheard").write_text("2")
    await street.host.kill()
    status, _ = await street.visit(card, "parking.entry", "L-1", key="unheard")
    assert status == (503 if bug == "commit_unheard" else 202)
    assert await street.fetch("SELECT state FROM visit ORDER BY created_at DESC LIMIT 1") == "not_sent"
    await street.host.start()
    status, answer = await street.visit(card, "parking.entry", "L-1", key="unheard")
    assert (status, answer["status"]) == (200, "opened")


@pytest.mark.parametrize(
    ("bug", "unheard", "refused", "answers"),
    [
        ("commit_unheard", 1, 0, (503, 200)),
        ("commit_unheard", 2, 0, (503, 200)),
        ("", 0, 1, (503, 200)),
        ("", 0, 2, (503, 409)),
        ("pending_in_doubt", 2, 0, (202, 200)),
    ],
    ids=["unheard once", "unheard", "refused once", "control: refused", "control: said to be pending"],
)
async def test_a_paid_exit_that_was_not_told_is_due_again(
    streets: Streets, bug: str, unheard: int, refused: int,
    answers: tuple[int, int],
) -> None:  # fmt: skip
    """However the database takes the word for it: the driver stands there, and has paid."""
    street = await streets(bug)
    card = await street.card(account=True)
    key = f"paid-{unheard}-{refused}"
    due, payment = await street.due(card), await street.pay(card, 1000)
    await refuse_steps(street.dsn, "visit", "due", refused)
    (street.running.data_dir / "unheard").write_text(str(unheard))
    await street.host.kill()
    first, _ = await street.open(due["reference"], payment, key=key)
    await street.host.start()
    then, answer = await street.open(due["reference"], payment, key=key)
    assert (first, then) == answers, answer
    if then == 200:
        assert answer["status"] == "opened"
        assert await street.steps(due["reference"]) == ["asking", "due", "intent", "due", "intent", "done"]
    else:  # taken for told: the lot knows nothing of it, and the payment is used up
        assert await street.came_to(due["reference"]) == "refused"
    assert barriers(await street.book(due["reference"])) == (["out"] if then == 200 else [])


@pytest.mark.parametrize("bug", ["", "told_anew"], ids=["as it is", "control"])
async def test_a_lost_answer_opens_once(streets: Streets, bug: str) -> None:
    street = await streets(bug)
    before = len(barriers(await street.host.lines()))
    await street.host.faults({"kind": "drop_after"})
    _, answer = await street.visit(await street.card(), "parking.entry", "L-1")
    await street.host.faults()
    assert await street.came_to(answer["reference"]) == "opened"
    assert (len(barriers(await street.host.lines())) == before + 1) == (not bug)


@pytest.mark.parametrize("bug", ["", "merchants_believed"], ids=["as it is", "control"])
async def test_a_forged_answer_is_none(streets: Streets, bug: str) -> None:
    street = await streets(bug)
    await street.host.faults({"kind": "bad_signature"}, {"kind": "decline"})
    _, answer = await street.visit(await street.card(), "parking.entry", "L-1")
    assert answer["status"] == ("refused" if bug else "pending")


PLATES = "浙F9K7X3", "浙F9K7X4"
TICKET, BOOKING, BILL = "TICKET-Q7Z5", "BOOKING-K8W3", "BILL-M5V1"


@pytest.mark.parametrize("bug", ["", "bodies_kept"], ids=["as it is", "control"])
async def test_of_a_visit_that_has_ended_nothing_says_whose_it_was(streets: Streets, bug: str) -> None:
    """Not with all keys; what was signed can be proved all the same."""

    async def found() -> set[str]:
        held = await street.stored()
        return {value for value in (*PLATES, TICKET, BOOKING, BILL) if any(form in held for form in forms(value))}

    street = await streets(bug)
    card = await street.card(account=True)
    _, entry = await street.visit(card, "parking.entry", "L-1", plate=PLATES[0], ticket=TICKET)
    await street.visit(card, "hotel.checkin", "H-1", booking=BOOKING)
    await street.visit(card, "dining.till", "D-1", ticket=BILL, amount_fen=2000)
    due = await street.due(card, PLATES[1])
    assert PLATES[1] in await found(), "while it is due it is sealed"
    status, opened = await street.open(due["reference"], await street.pay(card, 1000))
    assert (status, opened["status"]) == (200, "opened")
    assert await found() == ({*PLATES, TICKET, BOOKING, BILL} if bug else set())
    code, said = await show(street.running, entry["reference"], "--body")
    assert code == 0 and "WRONG" not in said and said.count("\ngood ") == (6 if bug else 5), said
    assert ("not kept" in said) == (not bug) == (TICKET not in said)
    code, said = await show(street.running, opened["operation"], "--body")
    assert code == 0 and opened["payment"] in said, "an opening names a payment alone"


async def _in_book(street: Street) -> str:
    """The reference of what a lot has done."""
    lines = await street.host.lines()
    return str(lines[0]["reference"]) if lines else ""


async def test_a_fee_that_comes_when_the_visit_was_given_up_is_due_nowhere(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str
) -> None:
    async with street_at(tmp_path, postgres, deadline_ms=4000) as street:
        card = await street.card()
        await street.host.faults({"kind": "delay", "ms": 2500})
        asking = asyncio.create_task(street.visit(card, "parking.exit", "L-2", key="given-up", plate=DEAR))
        # as if whoever is at it stood still: its lease is over
        overtake = "UPDATE visit SET next_try_at = now() WHERE state = 'asking' RETURNING reference"
        reference = str(await eventually(lambda: street.fetch(overtake), ENDS_S, "the fee is being asked"))
        status, answer = await asking
        assert (status, answer["code"]) == (503, "unavailable"), answer
        assert await street.steps(reference) == ["asking", "not_sent"]
        await street.host.faults()
        status, answer = await street.visit(card, "parking.exit", "L-2", key="given-up", plate=DEAR)
        assert (status, answer["status"]) == (200, "due"), "the key was given back"
