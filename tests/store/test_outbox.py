"""The outward feed: complete, in order per card, what may come twice says so."""

import datetime as dt
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from gateway import operators_outbox
from gateway.crypto.pseudonym import Pseudonyms
from gateway.domain.errors import CannotStart
from gateway.domain.masking import Secret
from gateway.domain.operations import DeliverUsage
from gateway.domain.outbox import TRIES_MAX
from gateway.domain.outcome import Outcome
from gateway.domain.times import CHINA
from gateway.flows import deliver_usage
from gateway.flows.deliver_usage import DeliverPages, Send
from gateway.operators_outbox import dead_letters, outbox_status, replay
from gateway.partners.call import Partners
from gateway.settings import load
from gateway.store import outbox, outbox_figures
from gateway.store.outbox import LeaseLost
from gateway.store.usage_events import Cursor
from tests.conftest import Database
from tests.subscribers import (
    Events,
    Peer,
    Receiver,
    Relay,
    add_events,
    by_card,
    logged,
    settings_for,
    subscriber,
    turn_through,
    whole,
)

MANY = Events(2000, 150)


@asynccontextmanager
async def sends(folder: Path, peer: Peer, timeout_ms: int = 2000) -> AsyncIterator[Send]:
    """By the partner engine, as in a worker."""
    partners = Partners(settings_for(folder, peer, timeout_ms=timeout_ms))
    await partners.open()

    async def send(op: DeliverUsage) -> Outcome:
        return await partners.call(peer.name, op, time.monotonic() + 10)

    try:
        yield send
    finally:
        await partners.close()


async def test_all_is_brought_once_and_in_order(database: Database, tmp_path: Path) -> None:
    await add_events(database.dsn, MANY)
    async with (
        subscriber(tmp_path, signature="sm2") as peer, sends(tmp_path, peer) as send,
        Relay(database.dsn, send) as relay,
    ):  # fmt: skip
        await relay.run()
        assert (await whole(database.dsn, peer))["duplicates"] == 0
        async with relay.pool.acquire() as connection:
            (figures,) = await outbox_figures.figures(connection)
        assert figures[:5] == ("bureau", 0, 0, 0, 0)
        assert figures.at_work


async def test_lost_answers_lose_and_change_nothing(database: Database, tmp_path: Path) -> None:
    await add_events(database.dsn, Events(600, 40))
    async with (
        subscriber(tmp_path) as peer, sends(tmp_path, peer) as send, Relay(database.dsn, send) as relay
    ):  # fmt: skip
        kinds = ("drop_before", "drop_after", "bad_signature", "garbage", "duplicate", "half_close")
        await peer.faults(*({"kind": kind, "probability": 0.1} for kind in kinds))
        await relay.run(4000)
        assert (await whole(database.dsn, peer))["duplicates"] > 0


async def test_what_is_refused_waits_with_its_card_and_the_others_go_on(database: Database, tmp_path: Path) -> None:
    await add_events(database.dsn, MANY)
    async with (
        subscriber(tmp_path) as peer, sends(tmp_path, peer) as send, Relay(database.dsn, send) as relay
    ):  # fmt: skip
        await peer.faults({"kind": "decline", "code": "unknown_scene", "probability": 0.5})
        for _ in range(30):
            await relay.pages.turn()
        waiting = await relay.rows_of("outbox_held")
        assert 0 < waiting < MANY.total
        assert (await peer.figures())["accepted"] == MANY.total - waiting
        await peer.faults()
        await relay.run()
        assert (await whole(database.dsn, peer))["refused"] > 0


async def test_a_subscriber_that_is_away_for_long_uses_up_no_try(database: Database, tmp_path: Path) -> None:
    async with (
        subscriber(tmp_path) as peer, sends(tmp_path, peer) as send, Relay(database.dsn, send) as relay
    ):  # fmt: skip
        await peer.kill()
        await add_events(database.dsn, MANY)
        for _ in range(TRIES_MAX + 1):
            assert 0 < await relay.pages.turn() <= 30
            relay.now += dt.timedelta(hours=12)
        await peer.start()
        await relay.run()
        await whole(database.dsn, peer)


async def test_more_than_so_many_do_not_wait_aside(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed waits instead, and goes on when they are taken."""
    monkeypatch.setattr(deliver_usage, "HELD_MAX", 5)
    await add_events(database.dsn, Events(300, 10))
    receiver = Receiver()
    receiver.refuses = {event_id for event_id, _ in await logged(database.dsn)}
    async with Relay(database.dsn, receiver, batch_max=5, lanes_max=1) as relay:
        for _ in range(20):
            await turn_through(relay)
        assert await relay.rows_of("outbox_held") < 15
        receiver.refuses = set()
        await relay.run()
        assert receiver.cards() == by_card(await logged(database.dsn))


async def test_an_idle_subscriber_costs_no_write(database: Database) -> None:
    async with Relay(database.dsn, Receiver()) as relay, relay.pool.acquire(10) as connection:
        row = "SELECT ctid::text, xmin::text, xmax::text FROM outbox_subscriber"
        before = await connection.fetchrow(row)
        for _ in range(5):
            await turn_through(relay)
        assert await connection.fetchrow(row) == before
        await add_events(database.dsn, Events(1, 1))
        await turn_through(relay)
        assert await connection.fetchrow(row) != before


async def test_cards_are_the_subscribers_own_pseudonyms(database: Database) -> None:
    await add_events(database.dsn, Events(3, 3))
    seen = []
    for name in ("bureau", "province"):
        receiver = Receiver()
        async with Relay(database.dsn, receiver, name) as relay:
            await relay.run()
        seen.append({card for _, card, *_ in receiver.arrived})
    pseudonyms = Pseudonyms([Secret(bytes(32))])
    cards = {card for event_id, card in await logged(database.dsn) if card != event_id}
    assert {pseudonyms.card_ref("bureau", UUID(card).bytes) for card in cards} <= seen[0]
    shared = seen[0] & seen[1]
    assert len(shared) == 1, "of the event that has no card: its own id"


async def test_one_process_at_a_time(database: Database) -> None:
    receiver = Receiver()
    await add_events(database.dsn, Events(10, 3))
    async with Relay(database.dsn, receiver) as relay, relay.pool.acquire(10) as connection:
        other = uuid4()
        assert not await outbox.take_lease(connection, "bureau", other, 60)
        assert await outbox.take_lease(connection, "bureau", relay.delivery.holder, -1)
        assert await outbox.take_lease(connection, "bureau", other, 60)
        for turn in (relay.pages.turn, relay.held.turn):
            with pytest.raises(LeaseLost):
                await turn()
        assert receiver.calls == []
        await outbox.end_lease(connection, "bureau", other)
        assert await outbox.take_lease(connection, "bureau", uuid4(), 60)


async def test_control_a_cursor_moved_before_the_acknowledgement_loses_events(database: Database) -> None:
    class MovesFirst(DeliverPages):
        async def _deliver(self, page):  # type: ignore[no-untyped-def]
            async with self._delivery.transaction() as (connection, _):
                last = page.rows[-1]
                await outbox.acknowledged(connection, "bureau", Cursor(last.position, last.event_id))
            return await super()._deliver(page)

    await add_events(database.dsn, Events(400, 30))
    receiver = Receiver()
    async with Relay(database.dsn, receiver) as relay:
        relay.pages = MovesFirst(relay.delivery)
        receiver.reached = False
        await relay.pages.turn()
        receiver.reached = True
        await relay.run()
        assert receiver.cards() != by_card(await logged(database.dsn))


async def test_control_a_held_card_that_is_overtaken_is_noticed(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def none_is_held(*_: object) -> set[UUID]:
        return set()

    monkeypatch.setattr(outbox, "cards_held", none_is_held)
    await add_events(database.dsn, MANY)
    async with (
        subscriber(tmp_path) as peer, sends(tmp_path, peer) as send, Relay(database.dsn, send) as relay
    ):  # fmt: skip
        await peer.faults({"kind": "decline", "code": "unknown_scene"})
        await relay.pages.turn()
        await peer.faults()
        await relay.run()
        assert (await peer.figures())["disorder"] > 0


async def test_a_replay_leaves_the_feed_its_place_aside(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (deliver_usage, operators_outbox):
        monkeypatch.setattr(module, "HELD_MAX", 6)
    monkeypatch.setattr(operators_outbox, "_REPLAYED_AT_ONCE", 2)
    settings = load({"DATABASE_URL": database.dsn})
    await add_events(database.dsn, Events(8, 8))
    receiver = Receiver()
    receiver.poison = {event_id for event_id, _ in await logged(database.dsn)}
    today, a_day = dt.datetime.now(CHINA).replace(tzinfo=None), dt.timedelta(days=1)
    async with Relay(database.dsn, receiver) as relay:
        await relay.run()
        assert await replay(settings, "bureau", today - a_day, today + a_day) == (3, 5)
        for held_max in (4, 6):  # 3 are more than half of 4
            monkeypatch.setattr(operators_outbox, "HELD_MAX", held_max)
            assert await replay(settings, "bureau", today - a_day, today + a_day) == (0, 5)
        await add_events(database.dsn, Events(20, 20), start=1000)
        for _ in range(60):
            await relay.held.turn()
            await relay.pages.turn()
        behind = (await outbox_status(settings))[1].split()[1]
        assert behind == "0", "the feed goes on while the replayed are not taken"
        receiver.poison = set()
        await relay.run()
        assert await replay(settings, "bureau", today - a_day, today + a_day) == (3, 2)


async def test_what_operators_see_and_send_again(database: Database) -> None:
    settings = load({"DATABASE_URL": database.dsn})
    assert (await outbox_status(settings))[0].startswith("there are no subscribers")
    await add_events(database.dsn, Events(3, 3))
    receiver = Receiver()
    receiver.poison = {event_id for event_id, _ in await logged(database.dsn)}
    async with Relay(database.dsn, receiver) as relay:
        assert (await outbox_status(settings))[1].split()[1] == "3"
        await relay.run()
        assert (await outbox_status(settings))[1].split()[1:7] == ["0", "0", "s", "0", "3", "0"]
        lines = await dead_letters(settings, "bureau", None, None)
        assert [line.split()[-2:] for line in lines[1:]] == [["no", "answer"]] * 3
        today = dt.datetime.now(CHINA).replace(tzinfo=None)
        a_day = dt.timedelta(days=1)
        assert await replay(settings, "bureau", today - 2 * a_day, today - a_day) == (0, 0)
        assert await replay(settings, "bureau", today - a_day, today + a_day) == (3, 0)
        assert await dead_letters(settings, "bureau", today - a_day, today + a_day) == ["there are none"]
        receiver.poison = set()
        await relay.run()
        assert len(receiver.arrived) == 3
    with pytest.raises(CannotStart, match="no subscriber 'nobody'"):
        await dead_letters(settings, "nobody", None, None)
