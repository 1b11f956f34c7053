"""A subscriber of the outward feed in a process of its own, usage events by the thousand, and a relay in steps."""

import datetime as dt
import sqlite3
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple, Self
from uuid import uuid4

import aiohttp
import asyncpg

from gateway.crypto.pseudonym import Pseudonyms
from gateway.domain.masking import Secret
from gateway.domain.operations import DeliverUsage
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.flows.deliver_held import DeliverHeld
from gateway.flows.deliver_usage import IDLE_S, DeliverPages, Delivery, Send, Subscriber
from gateway.partners.phases import Why
from gateway.settings import Settings, load
from gateway.store import outbox
from gateway.store.pool import Pool
from tests.partners.hosts import Host
from tests.partners.peers import configure

BLOCK = """
[partners.{name}]
name = "示范订阅方(合成)"
adapter = "usage_feed_http"
operations = ["deliver_usage"]
timeout_ms = {timeout_ms}
breaker = {{ failures = 5, open_s = 1 }}
http = {{ base_url = "http://127.0.0.1:{port}" }}
[partners.{name}.keys]
sign = {{ kind = "{kind}", file = "{name}/sign.key" }}
partner = {{ kind = "{kind}", file = "{name}/partner.key" }}
[partners.{name}.dialect]
subscriber = "yikatong-330424"
signature = "{signature}"
"""


class Peer(Host):
    """A simulated subscriber; its keys and book are in <folder>/<name>."""

    def __init__(self, folder: Path, name: str, signature: str = "hmac") -> None:
        super().__init__(folder / name, "usage_feed_host", "--keys", str(folder / name), "--signature", signature)
        self.name, self.signature = name, signature

    def block(self, timeout_ms: int = 2000) -> str:
        kind = "sm2" if self.signature == "sm2" else "hmac-sm3"
        return BLOCK.format(
            name=self.name, port=self.port, kind=kind, signature=self.signature, timeout_ms=timeout_ms
        )  # fmt: skip

    async def figures(self) -> dict[str, int]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.control}/figures") as answer:
            counted: dict[str, int] = await answer.json()
            return counted

    def arrivals(self) -> list[tuple[str, str, int, float]]:
        """(event_id, card_ref, position, arrived_at) of what it accepted, in the order of arrival."""
        with closing(sqlite3.connect(self.folder / "book.ndjson")) as book:
            return book.execute("SELECT event_id, card, position, arrived_at FROM event ORDER BY arrival").fetchall()


@asynccontextmanager
async def subscriber(folder: Path, name: str = "bureau", signature: str = "hmac") -> AsyncIterator[Peer]:
    peer = Peer(folder, name, signature)
    await peer.start()
    try:
        yield peer
    finally:
        await peer.kill()


class Events(NamedTuple):
    """How many, on how many cards."""

    total: int
    cards: int
    scene: str = "parking.exit"


async def add_events(dsn: str, events: Events, transactions: int = 10, start: int = 0) -> None:
    """As verifies leave them: spread over cards, a chunk a transaction; one in a hundred has no card."""
    connection = await asyncpg.connect(dsn)
    chunk = -(-events.total // transactions)
    try:
        for first in range(start, start + events.total, chunk):
            await connection.execute(
                "INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, card_id, medium,"
                " region, scene, terminal_id, reason)"
                " SELECT md5('e' || i)::uuid, pg_current_xact_id()::text::bigint"
                "   + (SELECT xid_offset FROM feed_origin), clock_timestamp(), now(), 'verify', 'demo-merchant',"
                "   CASE WHEN i % 100 > 0 THEN md5('c' || hashint4(i) % $3)::uuid END, 'third_gen', '330424',"
                "   $4, 'P-0001', 'ok' FROM generate_series($1::int, $2::int) i",
                first, min(first + chunk, start + events.total) - 1, events.cards, events.scene,
            )  # fmt: skip
    finally:
        await connection.close()


async def logged(dsn: str) -> list[tuple[str, str]]:
    """(event_id, card) of every event, in the feed's order; of an event without a card its own id."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT event_id, coalesce(card_id, event_id) FROM usage_event ORDER BY position, event_id"
        )
        return [(str(row[0]), str(row[1])) for row in rows]
    finally:
        await connection.close()


def by_card(events: list[tuple[str, str]]) -> set[tuple[str, ...]]:
    """The events of each card in order, whatever the card is called."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for event_id, card in events:
        found[card].append(event_id)
    return {tuple(of_one) for of_one in found.values()}


async def whole(dsn: str, peer: Peer) -> dict[str, int]:
    """All is there, once, in order per card; what came twice said so. The figures."""
    log = await logged(dsn)
    arrivals = [(event_id, card) for event_id, card, *_ in peer.arrivals()]
    assert by_card(arrivals) == by_card(log)
    assert len({event_id for event_id, _ in arrivals}) == len(arrivals) == len(log)
    figures = await peer.figures()
    assert figures["disorder"] == figures["unmarked"] == 0
    return figures


def settings_for(folder: Path, *peers: Peer, timeout_ms: int = 2000) -> Settings:
    """A configuration in <folder>/config that knows these subscribers."""
    return configure(folder, *(peer.block(timeout_ms) for peer in peers))


class Relay:
    """What a worker does for a subscriber, in the test's process and in a time of its own: no rest is waited for."""

    def __init__(self, dsn: str, send: Send, name: str = "bureau", batch_max: int = 100, lanes_max: int = 4) -> None:
        self.pool = Pool(Secret(dsn), load({}).gateway.database, "test relay")
        self.now = dt.datetime.now(dt.UTC)
        self.name = name
        self._subscriber, self._holder, self._send = Subscriber(name, name, batch_max, lanes_max), uuid4(), send
        self.restart()

    def restart(self) -> None:
        """In its place comes one that knows what is in the database, and no more."""
        self.delivery = Delivery(
            self.pool, self._subscriber, self._holder, self._send, Pseudonyms([Secret(bytes(32))]),
            now=lambda: self.now, chance=lambda: 0.5,
        )  # fmt: skip
        self.pages, self.held = DeliverPages(self.delivery), DeliverHeld(self.delivery)

    async def __aenter__(self) -> Self:
        await self.pool.open()
        async with self.pool.acquire() as connection:
            await outbox.subscribe(connection, self.name)
            assert await outbox.take_lease(connection, self.name, self.delivery.holder, 60)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.pool.close()

    async def next_time(self) -> dt.datetime | None:
        """When there is something to do that is not done now."""
        async with self.pool.acquire() as connection:
            time: dt.datetime | None = await connection.fetchval(
                "SELECT min(t) FROM (SELECT next_try_at AS t FROM outbox_subscriber WHERE name = $1"
                " UNION ALL SELECT min(next_try_at) FROM outbox_held WHERE subscriber = $1) AS times",
                self.name,
            )
        return time

    async def rests_until(self) -> dt.datetime | None:
        """Before that no turn does anything, whatever its process remembers; None: it may try at any time."""
        async with self.pool.acquire() as connection:
            time: dt.datetime | None = await connection.fetchval(
                "SELECT CASE WHEN next_try_at IS NOT NULL THEN least(next_try_at,"
                " (SELECT min(next_try_at) FROM outbox_held WHERE subscriber = $1)) END"
                " FROM outbox_subscriber WHERE name = $1",
                self.name,
            )
        return time

    async def rows_of(self, table: str) -> int:
        async with self.pool.acquire() as connection:
            count: int = await connection.fetchval(f"SELECT count(*) FROM {table}")  # noqa: S608 - a test's own name
        return count

    async def run(self, turns_max: int = 2000) -> int:
        """Until nothing is left to do, however far ahead that is; returns the turns."""
        for turn in range(turns_max):
            rests = [await self.pages.turn(), await self.held.turn()]
            if min(rests) > 0 and rests[0] == IDLE_S:
                time = await self.next_time()
                if time is None:
                    return turn
                self.now = max(self.now, time)
        raise AssertionError(f"not done in {turns_max} turns")


class Receiver:
    """A subscriber in the test's own process. `poison`: a batch with such an event is not answered; `refuses` one;
    `unbuilt`: our own end cannot send it; `full`: what is new is poison; `silent`: its answers are lost."""

    def __init__(self) -> None:
        self.arrived: list[tuple[str, str, bool, bool]] = []
        """(event_id, card_ref, redelivery, replayed) of what it took, in order."""
        self.calls: list[list[str]] = []
        self.poison: set[str] = set()
        self.refuses: set[str] = set()
        self.unbuilt: set[str] = set()
        self.reached, self.full, self.silent = True, False, False

    async def __call__(self, op: DeliverUsage) -> Outcome:
        ids = [item.event.event_id for item in op.items]
        unbuilt = not self.unbuilt.isdisjoint(ids)
        if not (unbuilt or self.reached):
            return NotSent(Why.NO_CONNECTION)
        self.calls.append(ids)
        if unbuilt:
            return NotSent(Why.CANNOT_BUILD)
        known = {one[0] for one in self.arrived}
        if self.poison.intersection(ids) or (self.full and not known.issuperset(ids)):
            return Unknown("HTTP 500")
        barred, refused, duplicates = set(), [], 0
        for item in op.items:
            event = item.event
            card = event.card_ref if isinstance(event.card_ref, str) else event.event_id
            if event.event_id in known:
                assert item.redelivery
                duplicates += 1
            elif event.event_id in self.refuses or card in barred:
                barred.add(card)
                refused.append([event.event_id, "unknown_scene" if event.event_id in self.refuses else "behind"])
            else:
                self.arrived.append((event.event_id, card, item.redelivery, item.replayed))
        return Unknown("lost") if self.silent else Approved(facts={"duplicates": duplicates, "refused": refused})

    def cards(self) -> set[tuple[str, ...]]:
        return by_card([(event_id, card) for event_id, card, *_ in self.arrived])


async def turn_through(relay: Relay) -> dt.datetime | None:
    """All that can be done now; returns the time when there is more."""
    while 0.0 in (await relay.pages.turn(), await relay.held.turn()):
        pass
    return await relay.next_time()
