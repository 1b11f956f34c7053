"""An outage of a subscriber is told from events that it never answers, whoever has it in hand, and whenever it ends."""

import datetime as dt
from typing import TYPE_CHECKING

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.domain.operations import DeliverUsage
from gateway.domain.outbox import SET_ASIDE_TRIES, TRIES_MAX
from gateway.domain.outcome import Approved, NotSent, Outcome
from gateway.flows import deliver_held, deliver_usage
from gateway.flows.deliver_held import HELD_IDLE_S, DeliverHeld
from gateway.flows.deliver_usage import ASIDE_IN_A_ROW, DeliverPages
from gateway.partners.breaker import Breaker
from gateway.partners.phases import Why
from gateway.store import outbox, usage_events
from gateway.store.outbox import Standing
from gateway.store.usage_events import Cursor, Row
from tests.conftest import Database
from tests.subscribers import Events, Receiver, Relay, add_events, by_card, logged, turn_through

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

MINUTE, HOUR = dt.timedelta(minutes=1), dt.timedelta(hours=1)
BAD = 200


class Guarded:
    """A receiver behind a breaker, as in the partner engine, in the relay's time."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.relay: Relay
        self._breaker = Breaker(failures=5, open_s=30, clock=lambda: self.relay.now.timestamp())

    async def __call__(self, op: DeliverUsage) -> Outcome:
        ticket = self._breaker.enter()
        if ticket is None:
            return NotSent(Why.BREAKER_OPEN)
        outcome = await self._receiver(op)
        self._breaker.report(ticket, isinstance(outcome, Approved))
        return outcome


async def go(relay: Relay, time: dt.timedelta, step: dt.timedelta = MINUTE) -> None:
    end = relay.now + time
    while relay.now < end:
        await turn_through(relay)
        rests_until = await relay.rests_until()
        relay.now += step
        while rests_until is not None and relay.now < min(end, rests_until):  # turns that would come to nothing
            relay.now += step


async def an_hour_behind_a_bad_scene(dsn: str) -> tuple[int, int, list[str]]:
    """A bulk of events of a scene that is never answered, and good ones behind it: (brought, to be brought, errors)."""
    await add_events(dsn, Events(BAD, BAD, "library.entry"), transactions=1)
    bad = await logged(dsn)
    await add_events(dsn, Events(100, 1000), start=BAD)
    behind = {card for _, card in bad}
    good = [(event_id, card) for event_id, card in (await logged(dsn))[BAD:] if card not in behind]
    receiver = Receiver()
    receiver.poison = {event_id for event_id, _ in bad}
    guarded = Guarded(receiver)
    with capture_logs() as lines:
        async with Relay(dsn, guarded) as guarded.relay:
            await go(guarded.relay, HOUR, MINUTE / 2)
            assert await guarded.relay.rows_of("outbox_dead_letter") == 0
    brought = len(receiver.arrived)
    assert brought < len(good) or receiver.cards() == by_card(good)
    return brought, len(good), [line["event"] for line in lines if line["log_level"] == "error"]


async def test_a_scene_that_is_never_answered_holds_the_others_up_for_less_than_an_hour(database: Database) -> None:
    brought, good, errors = await an_hour_behind_a_bad_scene(database.dsn)
    assert brought == good > 50
    assert errors == []


async def test_control_without_another_event_it_is_taken_for_an_outage(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def another(connection: object, name: str, first: Row, standing: Standing, _: int) -> Row | None:
        return None

    monkeypatch.setattr(outbox, "another", another)
    brought, _, errors = await an_hour_behind_a_bad_scene(database.dsn)
    assert brought == 0
    assert errors == ["the subscriber takes nothing: its events wait"]


async def aside_behind_a_breaker(dsn: str) -> int:
    """Four hours of an outage, behind a breaker that is open for longer than the feed rests: events aside since."""
    await add_events(dsn, Events(60, 1000))
    receiver = Receiver()
    receiver.full = True
    guarded = Guarded(receiver)
    async with Relay(dsn, guarded) as guarded.relay:
        while await guarded.relay.rows_of("outbox_held") < ASIDE_IN_A_ROW:
            await go(guarded.relay, MINUTE)
        await go(guarded.relay, 4 * HOUR + 5 * MINUTE, MINUTE / 6)
        return await guarded.relay.rows_of("outbox_held") - ASIDE_IN_A_ROW


async def test_the_first_event_has_its_turn_behind_a_breaker_that_is_open_for_long(database: Database) -> None:
    assert 2 <= await aside_behind_a_breaker(database.dsn) <= 4


async def test_control_its_turn_is_over_before_it_has_left(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def another(self: DeliverPages, first: Row) -> Outcome | None:
        was = self._firsts_turn
        outcome = await ask(self, first)
        self._firsts_turn = self._firsts_turn and not was
        return outcome

    ask = DeliverPages._another
    monkeypatch.setattr(DeliverPages, "_another", another)
    assert await aside_behind_a_breaker(database.dsn) == 0


async def back_after(dsn: str, out: dt.timedelta, *events: int) -> list[float]:
    """An outage without answers, behind a breaker: the seconds from its end until so many events have come."""
    receiver = Receiver()
    await add_events(dsn, Events(400, 1000))
    receiver.full = True
    guarded = Guarded(receiver)
    async with Relay(dsn, guarded) as guarded.relay:
        await go(guarded.relay, out, MINUTE / 6)
        receiver.full, back = False, guarded.relay.now
        taken: list[float] = []
        for wanted in events:
            while len(receiver.arrived) < wanted:
                assert guarded.relay.now < back + HOUR
                await go(guarded.relay, MINUTE / 6, MINUTE / 6)
            taken.append((guarded.relay.now - back).total_seconds())
    return taken


OUT = [pytest.param(minutes * MINUTE, id=f"{minutes} min") for minutes in (50, 65)]


@pytest.mark.parametrize("out", OUT)
async def test_after_an_outage_the_feed_goes_on_within_minutes(database: Database, out: dt.timedelta) -> None:
    first_s, all_s = await back_after(database.dsn, out, 1, 400)
    assert first_s <= 150
    assert all_s <= first_s + 20


async def test_control_the_feed_waits_for_its_own_try_though_an_outage_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def as_before(connection: "AnyConnection", name: str, ended: bool) -> None:
        await answered(connection, name, ended=False)

    answered = outbox.answered
    monkeypatch.setattr(outbox, "answered", as_before)
    first_s, all_s = await back_after(database.dsn, HOUR, 1, 400)
    assert all_s > first_s + 20


@pytest.mark.parametrize("alone", [SET_ASIDE_TRIES, TRIES_MAX], ids=["as it is", "control: it rests ever longer"])
async def test_its_first_one_alone_shows_within_minutes_that_an_outage_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch, alone: int
) -> None:
    async def nothing_is_due(self: DeliverHeld) -> float:
        return HELD_IDLE_S

    monkeypatch.setattr(DeliverHeld, "turn", nothing_is_due)
    monkeypatch.setattr(deliver_usage, "SET_ASIDE_TRIES", alone)
    (first_s,) = await back_after(database.dsn, HOUR, 1)
    assert (first_s <= 150) == (alone == SET_ASIDE_TRIES)


async def in_order_behind_bad_cards(dsn: str) -> bool:
    """All events of the first cards are bad, among the others some are refused: what has come after an hour."""
    await add_events(dsn, Events(300, 60))
    log, receiver = await logged(dsn), Receiver()
    bad = {card for _, card in log[:40]}
    receiver.poison = {event_id for event_id, card in log if card in bad}
    receiver.refuses = {event_id for event_id, card in log[40::7] if card not in bad}
    async with Relay(dsn, receiver) as relay:
        await go(relay, HOUR)
        assert receiver.arrived
        came = receiver.cards()
        receiver.poison, receiver.refuses = set(), set()
        await relay.run()
    whole = by_card(log)
    return receiver.cards() == whole and all(any(all_of[: len(one)] == one for all_of in whole) for one in came)


async def test_the_other_event_overtakes_none_of_its_card(database: Database) -> None:
    assert await in_order_behind_bad_cards(database.dsn)


async def test_control_any_other_event_overtakes_some(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def another(connection: "AnyConnection", name: str, first: Row, standing: Standing, _: int) -> Row | None:
        ahead = await usage_events.page(connection, Cursor(first.position, first.event_id), 1000)
        return ahead[-1 - standing.sequence % len(ahead)] if ahead else None

    monkeypatch.setattr(outbox, "another", another)
    assert not await in_order_behind_bad_cards(database.dsn)


async def unbuilt_in_a_row(dsn: str) -> int:
    """Twice as many events that we cannot build as make an outage: how many of them are aside in time."""
    await add_events(dsn, Events(2 * ASIDE_IN_A_ROW, 1000))
    receiver = Receiver()
    receiver.unbuilt = {event_id for event_id, _ in await logged(dsn)}
    async with Relay(dsn, receiver) as relay:
        await go(relay, 2 * ASIDE_IN_A_ROW * 5 * MINUTE, MINUTE / 2)
        return await relay.rows_of("outbox_held")


async def test_what_we_cannot_build_is_no_outage_of_the_subscriber(database: Database) -> None:
    assert await unbuilt_in_a_row(database.dsn) == 2 * ASIDE_IN_A_ROW


async def test_control_what_we_cannot_build_is_taken_for_one(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver_usage, "was_no_answer", lambda outcome: True)
    assert await unbuilt_in_a_row(database.dsn) <= ASIDE_IN_A_ROW + 1


async def given_up_in_an_outage(dsn: str) -> tuple[int, list[int]]:
    """Days of errors, with an event that we cannot build: (the tries of that one, the tries of those given up)."""
    await add_events(dsn, Events(150, 150))
    log, receiver = await logged(dsn), Receiver()
    receiver.poison = {event_id for event_id, _ in log}
    receiver.unbuilt = {log[2][0]}
    async with Relay(dsn, receiver) as relay:
        await go(relay, 84 * HOUR, HOUR / 2)
        async with relay.pool.acquire() as connection:
            dead = [row[0] for row in await connection.fetch("SELECT tries FROM outbox_dead_letter")]
    return receiver.calls.count([log[2][0]]), dead


async def test_what_we_cannot_build_uses_up_its_tries_in_an_outage_too(database: Database) -> None:
    assert await given_up_in_an_outage(database.dsn) == (TRIES_MAX, [TRIES_MAX])


async def test_control_what_we_cannot_build_is_tried_as_if_it_had_been_sent(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver_held, "was_no_answer", lambda outcome: True)
    _, dead = await given_up_in_an_outage(database.dsn)
    assert dead == []


async def forget(relay: Relay) -> None:
    """The planted bug: what is known of an outage ends with the process."""
    async with relay.pool.acquire() as connection:
        await connection.execute("UPDATE outbox_subscriber SET asides = 0, tries = 0")


async def aside_with_restarts(dsn: str, *, forgets: bool) -> int:
    """A restart every hour of a long outage: how many events left their places in the feed."""
    await add_events(dsn, Events(150, 150))
    receiver = Receiver()
    receiver.poison = {event_id for event_id, _ in await logged(dsn)}
    async with Relay(dsn, receiver) as relay:
        for _ in range(12):
            await go(relay, HOUR, 2 * MINUTE)
            relay.restart()
            if forgets:
                await forget(relay)
        aside = await relay.rows_of("outbox_held")
        receiver.poison = set()
        await relay.run()
        assert receiver.cards() == by_card(await logged(dsn))
    return aside


async def test_restarts_in_an_outage_take_nothing_more_from_the_feed(database: Database) -> None:
    assert ASIDE_IN_A_ROW <= await aside_with_restarts(database.dsn, forgets=False) <= ASIDE_IN_A_ROW + 12


async def test_control_each_restart_begins_anew(database: Database) -> None:
    assert await aside_with_restarts(database.dsn, forgets=True) > 2 * (ASIDE_IN_A_ROW + 12)


async def test_an_outage_ends_with_what_waits_aside_too(database: Database) -> None:
    """The rest of the feed is still not answered: from then on that may be its own fault."""
    await add_events(database.dsn, Events(50, 1000))
    log, receiver = await logged(database.dsn), Receiver()
    receiver.poison = {event_id for event_id, _ in log}
    async with Relay(database.dsn, receiver) as relay:
        await go(relay, 2 * HOUR)
        assert await relay.rows_of(f"outbox_subscriber WHERE asides >= {ASIDE_IN_A_ROW}") == 1
        receiver.poison -= {event_id for event_id, _ in log[:ASIDE_IN_A_ROW]}
        while not receiver.arrived:
            relay.now += MINUTE
            await relay.held.turn()
        assert await relay.rows_of("outbox_subscriber WHERE asides = 0") == 1


async def held_for_long(relay: Relay, receiver: Receiver, dsn: str) -> set[str]:
    """Events that wait for hours for their next try, because nothing was ever answered."""
    await add_events(dsn, Events(5, 1000), start=1)
    held = {event_id for event_id, _ in await logged(dsn)}
    receiver.poison = set(held)
    await go(relay, 36 * HOUR, 10 * MINUTE)
    soon = (relay.now + HOUR).isoformat()
    assert await relay.rows_of(f"outbox_held WHERE next_try_at > '{soon}'") == len(held)
    return held


async def one_more(relay: Relay, receiver: Receiver, dsn: str, number: int) -> None:
    """A new event that is not answered at first; then it is, as soon as it is tried again."""
    before = {event_id for event_id, _ in await logged(dsn)}
    await add_events(dsn, Events(1, 1000), start=number)
    new = {event_id for event_id, _ in await logged(dsn)} - before
    receiver.poison |= new
    await turn_through(relay)
    receiver.poison -= new
    relay.now += MINUTE


async def brought_after_a_restart(dsn: str, *, forgets: bool) -> tuple[int, int]:
    receiver = Receiver()
    async with Relay(dsn, receiver) as relay:
        held = await held_for_long(relay, receiver, dsn)
        await one_more(relay, receiver, dsn, 10)
        relay.restart()
        if forgets:
            await forget(relay)
        receiver.poison = set()
        await turn_through(relay)
    return len(held & {one[0] for one in receiver.arrived}), len(held)


async def test_what_waits_is_brought_at_once_also_by_the_next_process(database: Database) -> None:
    brought, held = await brought_after_a_restart(database.dsn, forgets=False)
    assert brought == held


async def test_control_the_next_process_knows_of_no_failure(database: Database) -> None:
    brought, _ = await brought_after_a_restart(database.dsn, forgets=True)
    assert brought == 0


async def brought_after_flaps(dsn: str) -> tuple[int, int]:
    """It is back, fails again, and is back for good."""
    receiver = Receiver()
    async with Relay(dsn, receiver) as relay:
        held = await held_for_long(relay, receiver, dsn)
        for number in range(10, 13):  # within minutes: one early try, not three
            await one_more(relay, receiver, dsn, number)
            before = len(receiver.calls)
            await turn_through(relay)
            tried = [call for call in receiver.calls[before:] if held.intersection(call)]
            assert len(tried) == (len(held) if number == 10 else 0)
        await one_more(relay, receiver, dsn, 13)
        receiver.poison = set()
        await go(relay, HOUR / 2)
    return len(held & {one[0] for one in receiver.arrived}), len(held)


async def test_what_was_woken_for_nothing_is_woken_again(database: Database) -> None:
    brought, held = await brought_after_flaps(database.dsn)
    assert brought == held


async def test_control_each_is_woken_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wake(connection: "asyncpg.Connection[asyncpg.Record]", name: str, now: dt.datetime) -> None:
        await connection.execute(
            "UPDATE outbox_held SET regular_at = next_try_at, next_try_at = $2, woken_at = $2"
            " WHERE subscriber = $1 AND next_try_at > $2 AND code IS NULL AND woken_at IS NULL",
            name, now,
        )  # fmt: skip

    monkeypatch.setattr(outbox, "wake", wake)
    brought, _ = await brought_after_flaps(database.dsn)
    assert brought == 0
