"""The tries of the outward feed: twelve over 72 hours, none used up by an outage, or by what fails beside it."""

import datetime as dt
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.outbox import SET_ASIDE_TRIES, TRIES_MAX
from gateway.flows import deliver_usage
from gateway.flows.deliver_usage import ASIDE_IN_A_ROW
from gateway.store import outbox, outbox_figures
from tests.conftest import Database
from tests.subscribers import Events, Receiver, Relay, add_events, by_card, logged, turn_through


async def test_twelve_tries_over_72_hours_then_a_dead_letter_that_can_be_sent_again(database: Database) -> None:
    await add_events(database.dsn, Events(50, 4))
    log = await logged(database.dsn)
    receiver = Receiver()
    bad, card = log[20]
    receiver.refuses = {bad}
    behind = [event_id for event_id, other in log[21:] if other == card]
    async with Relay(database.dsn, receiver) as relay:
        began = relay.now
        while (at := await turn_through(relay)) and await relay.rows_of("outbox_dead_letter") == 0:
            assert not set(behind) & {one[0] for one in receiver.arrived}
            assert len(receiver.arrived) == len(log) - 1 - len(behind)
            relay.now = at
        assert sum(bad in call for call in receiver.calls) == TRIES_MAX
        assert relay.now - began == dt.timedelta(hours=72)
        await relay.run()
        assert {one[0] for one in receiver.arrived} == {event_id for event_id, _ in log} - {bad}
        async with relay.pool.acquire() as connection:
            (letter,) = await outbox_figures.dead_letters(connection, "bureau", None, None, 10)
            assert letter[0] == UUID(bad) and letter[2:4] == ("unknown_scene", TRIES_MAX)
            at = letter.recorded_at
            assert await outbox_figures.replay(connection, "bureau", at + dt.timedelta(1), at, relay.now, 100) == 0
            assert await outbox_figures.replay(connection, "bureau", at, at, relay.now, 100) == 0
            until = at + dt.timedelta(seconds=1)
            assert await outbox_figures.replay(connection, "bureau", at, until, relay.now, 100) == 1
            assert await outbox_figures.dead_letters(connection, "bureau", None, None, 10) == []
        receiver.refuses = set()
        await relay.run()
        assert receiver.arrived[-1][0] == bad and receiver.arrived[-1][2:] == (True, True)


async def hours_until_one_is_given_up(dsn: str) -> tuple[float, int]:
    """With fifteen events among many that are never answered, each of which looks like the end of an outage; and how
    often one of them was tried alone."""
    await add_events(dsn, Events(600, 200))
    log, receiver = await logged(dsn), Receiver()
    receiver.poison = {log[37 * n][0] for n in range(1, 16)}
    async with Relay(dsn, receiver) as relay:
        began, soon = relay.now, dt.timedelta(seconds=40)
        while await relay.rows_of("outbox_dead_letter") == 0:
            at = await turn_through(relay)
            relay.now = max(at or began, relay.now + soon)
        assert not receiver.poison & {one[0] for one in receiver.arrived}
        hours = (relay.now - began) / dt.timedelta(hours=1)
        return hours, max(receiver.calls.count([event_id]) for event_id in receiver.poison)


async def test_those_without_an_answer_have_their_72_hours_too(database: Database) -> None:
    hours, tries = await hours_until_one_is_given_up(database.dsn)
    assert hours >= 72 and TRIES_MAX < tries <= 2 * TRIES_MAX


async def test_control_each_of_them_wakes_all_before_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """And an early try is one of the twelve."""

    async def wake(connection: "asyncpg.Connection[asyncpg.Record]", name: str, now: dt.datetime) -> None:
        await connection.execute(
            "UPDATE outbox_held SET next_try_at = $2 WHERE subscriber = $1 AND next_try_at > $2 AND code IS NULL",
            name, now,
        )  # fmt: skip

    monkeypatch.setattr(outbox, "wake", wake)
    hours, _ = await hours_until_one_is_given_up(database.dsn)
    assert hours < 12


async def test_an_event_that_is_never_answered_is_found_and_set_aside(database: Database) -> None:
    """Whatever comes with it fails; the others are brought all the same, and its card's later ones wait."""
    await add_events(database.dsn, Events(600, 20))
    log = await logged(database.dsn)
    receiver = Receiver()
    bad, card = log[333]
    receiver.poison = {bad}
    async with Relay(database.dsn, receiver) as relay:
        for _ in range(200):
            await relay.pages.turn()
            relay.now += dt.timedelta(minutes=10)
        behind = [event_id for event_id, other in log[334:] if other == card]
        assert {one[0] for one in receiver.arrived} == {event_id for event_id, _ in log} - {bad, *behind}
        assert sum([bad] == call for call in receiver.calls) == SET_ASIDE_TRIES
        receiver.poison = set()
        await relay.run()
        assert receiver.cards() == by_card(log)


async def test_what_only_lacked_an_answer_is_due_when_there_are_answers_again(database: Database) -> None:
    """However often it was tried, and for however long it had to wait."""
    await add_events(database.dsn, Events(200, 20))
    log = await logged(database.dsn)
    receiver = Receiver()
    receiver.poison = {event_id for event_id, _ in log}
    async with Relay(database.dsn, receiver) as relay:
        for _ in range(100):
            await turn_through(relay)
            relay.now += dt.timedelta(seconds=40)
        assert await relay.rows_of("outbox_held WHERE next_try_at IS NOT NULL") > 3
        at = relay.now + dt.timedelta(minutes=10)
        waits_long = f"outbox_held WHERE tries > {SET_ASIDE_TRIES} AND next_try_at > '{at.isoformat()}'"
        receiver.poison = set()
        relay.now = at  # the feed itself is tried again
        assert await relay.rows_of(waits_long) > 0
        await turn_through(relay)
        assert receiver.cards() == by_card(log)


async def days_of_errors(dsn: str) -> tuple[int, int]:
    """Everything is answered with an error for 80 hours, then all is well: (events given up, events that waited)."""
    await add_events(dsn, Events(150, 150))
    log, receiver = await logged(dsn), Receiver()
    receiver.poison = {event_id for event_id, _ in log}
    async with Relay(dsn, receiver) as relay:
        for _ in range(160):
            await turn_through(relay)
            relay.now += dt.timedelta(minutes=30)
        dead, aside = await relay.rows_of("outbox_dead_letter"), await relay.rows_of("outbox_held")
        receiver.poison = set()
        await relay.run()
        assert len(receiver.arrived) == len(log) - dead
        assert dead or receiver.cards() == by_card(log)
    return dead, aside


async def test_an_outage_that_is_answered_with_errors_gives_nothing_up(database: Database) -> None:
    """And what leaves its place in the feed for it is one event an hour."""
    dead, aside = await days_of_errors(database.dsn)
    assert dead == 0
    assert ASIDE_IN_A_ROW <= aside <= ASIDE_IN_A_ROW + 80


async def test_control_events_that_are_blamed_for_an_outage_are_given_up(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver_usage, "ASIDE_IN_A_ROW", 1_000_000)
    dead, _ = await days_of_errors(database.dsn)
    assert dead > 0


async def test_bad_events_in_a_row_do_not_stop_the_feed(database: Database) -> None:
    """More of them than look like an outage: what is behind them is brought, within hours."""
    await add_events(database.dsn, Events(60, 60))
    log, receiver = await logged(database.dsn), Receiver()
    receiver.poison = {event_id for event_id, _ in log[: ASIDE_IN_A_ROW + 2]}
    behind = {card for _, card in log[: ASIDE_IN_A_ROW + 2]}
    others = sum(card not in behind for _, card in log)
    async with Relay(database.dsn, receiver, batch_max=5, lanes_max=1) as relay:
        for _ in range(60):
            await turn_through(relay)
            relay.now += dt.timedelta(minutes=5)
        assert len(receiver.arrived) == others > 0


@pytest.mark.parametrize("shrinks", [True, False], ids=["as it is", "control"])
async def test_of_a_page_that_is_not_answered_nothing_is_blamed(
    database: Database, monkeypatch: pytest.MonkeyPatch, shrinks: bool
) -> None:
    """After a rest the next is an eighth, until the bad one is alone."""
    if not shrinks:
        monkeypatch.setattr(deliver_usage, "_SHRINK", 1)
    receiver = Receiver()
    async with Relay(database.dsn, receiver, lanes_max=1) as relay:
        await add_events(database.dsn, Events(200, 200), transactions=1)
        await turn_through(relay)  # pages are full
        await add_events(database.dsn, Events(100, 1000), transactions=1, start=200)
        new = [event_id for event_id, _ in (await logged(database.dsn))[200:]]
        receiver.poison = {new[0]}
        untouched = "outbox_subscriber WHERE tries = 0 AND next_try_at IS NULL"
        for page in (new, new[:12]):
            assert await relay.pages.turn() > 0
            assert set(receiver.calls[-1]) == set(page if shrinks else new)
            assert (await relay.rows_of(untouched), await relay.rows_of("outbox_held")) == (1, 0)
        await relay.pages.turn()
        assert (receiver.calls[-1] == new[:1]) == shrinks
        assert await relay.rows_of(untouched) == (0 if shrinks else 1)


async def one_aside(relay: Relay, receiver: Receiver, dsn: str) -> str:
    """For want of an answer, with an hour to wait: it is found in this table as long as it is not woken."""
    await add_events(dsn, Events(1, 1000), start=1)
    receiver.poison = {event_id for event_id, _ in await logged(dsn)}
    while await relay.rows_of("outbox_held") == 0:
        await relay.pages.turn()
        relay.now += dt.timedelta(minutes=3)
    at = relay.now + dt.timedelta(hours=1)
    async with relay.pool.acquire() as connection:
        await connection.execute("UPDATE outbox_held SET next_try_at = $1", at)
        await connection.execute("UPDATE outbox_subscriber SET asides = 0")
    return f"outbox_held WHERE next_try_at = '{at.isoformat()}'"


async def test_duplicates_alone_wake_nothing_and_what_is_new_does(database: Database) -> None:
    receiver = Receiver()
    async with Relay(database.dsn, receiver) as relay:
        asleep = await one_aside(relay, receiver, database.dsn)
        await add_events(database.dsn, Events(1, 1000), start=2)
        receiver.silent = True
        await relay.pages.turn()
        receiver.silent = False
        relay.now += dt.timedelta(minutes=1)
        await relay.pages.turn()
        assert receiver.calls[-1] == receiver.calls[-2]
        assert await relay.rows_of("outbox_subscriber WHERE tries = 0") == 1, "it is acknowledged"
        assert await relay.rows_of(asleep) == 1
        await add_events(database.dsn, Events(1, 1000), start=3)
        await relay.pages.turn()
        assert await relay.rows_of(asleep) == 0


@pytest.mark.parametrize(("tries", "asides"), [(1, 0), (0, 1), (0, 0)])
async def test_what_failed_in_other_hands_is_made_good_too(database: Database, tries: int, asides: int) -> None:
    receiver = Receiver()
    async with Relay(database.dsn, receiver) as relay:
        asleep = await one_aside(relay, receiver, database.dsn)
        relay.restart()
        async with relay.pool.acquire() as connection:
            await connection.execute("UPDATE outbox_subscriber SET tries = $1, asides = $2", tries, asides)
        await add_events(database.dsn, Events(1, 1000), start=2)
        await relay.pages.turn()
        assert len(receiver.arrived) == 1
        assert await relay.rows_of(asleep) == (0 if tries or asides else 1)
        assert await relay.rows_of("outbox_subscriber WHERE asides = 0") == 1
