"""Bring a subscriber the usage events in pages of the feed; deliver_held.py brings, one by one, what it did not take.

At least once: the cursor moves when the subscriber has acknowledged, in the transaction that also keeps what it did not
take. In order per card: all of a card in one lane, and behind an event that was not taken the later ones wait.
"""

import asyncio
import datetime as dt
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import structlog

from gateway.crypto.pseudonym import Pseudonyms
from gateway.domain.ids import uuid7
from gateway.domain.operations import DeliverUsage
from gateway.domain.outbox import (
    SET_ASIDE_TRIES,
    Acknowledgement,
    FeedItem,
    acknowledgement,
    knock_s,
    lanes,
    next_try,
)
from gateway.domain.outcome import NotSent, Outcome
from gateway.flows.show_usage import shown
from gateway.metrics import OUTBOX_EVENTS, OUTBOX_FAILURES
from gateway.partners.phases import Why
from gateway.store import outbox, usage_events
from gateway.store.outbox import Held, Standing, card_of
from gateway.store.pool import Pool
from gateway.store.usage_events import Cursor, Row

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection

log = structlog.get_logger()

IDLE_S = 0.5
"""Between looks for new events."""
HELD_MAX = 100_000
"""So many may wait aside; then the feed waits too."""
ASIDE_IN_A_ROW = 8
"""Events set aside while the subscriber took none as new: it may be the subscriber's fault, not theirs.

From so many on another event, from further ahead, is sent to see."""
ASIDE_WHILE_OUT = dt.timedelta(hours=1)
"""Between one and the next then: should they be at fault after all, the feed still comes past them."""
PROOF_HOLDS, PROOF_MAX = dt.timedelta(minutes=1), 16
"""So long after it took another event as new, and for so many first events, it is up if it acknowledges the same one as
a duplicate: else each bad event would need a good card of its own ahead."""
_UNBUILT_MAX = 4
"""So many other events in a row that we cannot build, and the first one has its own try."""
_SHRINK = 8
_TURN_MAX_S = 30.0

Send = Callable[[DeliverUsage], Awaitable[Outcome]]


class Subscriber(NamedTuple):
    name: str
    card_refs_of: str
    """Whose pseudonyms of cards it gets."""
    batch_max: int
    lanes_max: int
    """Batches that are at the subscriber at once."""


class Delivery:
    """One subscriber in the hands of one process, as long as its lease lasts."""

    def __init__(
        self, pool: Pool, subscriber: Subscriber, holder: UUID, send: Send, pseudonyms: Pseudonyms,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC), chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._pool = pool
        self.subscriber = subscriber
        self.holder = holder
        self._send = send
        self._pseudonyms = pseudonyms
        self.now = now
        self.chance = chance
        self.held = 0
        """Events that wait aside, as of late."""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[tuple["PooledConnection", Standing]]:
        """All that is written for the subscriber, one after the other. Raises LeaseLost, Problem 503."""
        async with self._pool.acquire(_TURN_MAX_S) as connection, connection.transaction():
            yield connection, await outbox.standing(connection, self.subscriber.name, self.holder)

    @asynccontextmanager
    async def look(self) -> AsyncIterator[tuple["PooledConnection", Standing]]:
        """To read, without a lock. Raises LeaseLost, Problem 503."""
        async with self._pool.acquire(_TURN_MAX_S) as connection:
            yield connection, await outbox.standing(connection, self.subscriber.name, self.holder, lock=False)

    async def send(self, sequence: int, items: Iterable[FeedItem]) -> Outcome:
        now = self.now()
        reference = UUID(bytes=uuid7(int(now.timestamp() * 1000), secrets.token_bytes(10)))
        outcome = await self._send(DeliverUsage(reference=reference, at=now, sequence=sequence, items=tuple(items)))
        if acknowledgement(outcome) is None:
            OUTBOX_FAILURES.labels(self.subscriber.name, "not_sent" if was_no_try(outcome) else "no_answer").inc()
        return outcome

    def item(self, row: Row, redelivery: bool, replayed: bool = False) -> FeedItem:
        event = shown(row, self._pseudonyms, self.subscriber.card_refs_of)
        return FeedItem(row.position, event, redelivery, replayed)

    def count(self, acknowledgement: Acknowledgement, events: int) -> None:
        for result, number in (
            ("accepted", acknowledgement.accepted(events)), ("duplicate", acknowledgement.duplicates),
            ("refused", len(acknowledgement.refused)),
        ):  # fmt: skip
            OUTBOX_EVENTS.add((self.subscriber.name, result), number)


def was_no_try(outcome: Outcome) -> bool:
    """Nothing left, and it was not for what should have left."""
    return isinstance(outcome, NotSent) and outcome.why != Why.CANNOT_BUILD


def was_no_answer(outcome: Outcome) -> bool:
    """It may have arrived, and was not acknowledged: that may be for the event or for the subscriber.

    What cannot be built is our own fault: it says nothing of the subscriber.
    """
    return acknowledgement(outcome) is None and not isinstance(outcome, NotSent)


def is_out(standing: Standing) -> bool:
    """It is reached and takes nothing as new: an outage, unless it takes another event so."""
    return standing.asides >= ASIDE_IN_A_ROW


class _Other(NamedTuple):
    """The other event that goes again, if there is one: it did not leave, or was taken as new at `proved_at`."""

    row: Row | None = None
    proved_at: dt.datetime | None = None
    at_fault: int = 0
    """First events since."""

    def may_go(self, first: Row, now: dt.datetime) -> bool:
        holds = self.proved_at is None or (now < self.proved_at + PROOF_HOLDS and self.at_fault < PROOF_MAX)
        return holds and self.row is not None and _place(self.row) > _place(first)


class _Page(NamedTuple):
    standing: Standing
    rows: list[Row]
    lanes: list[list[list[Row]]]
    """Of the rows those that go, in batches: the others wait behind an earlier event of their card."""


class _Sent(NamedTuple):
    rows: list[Row]
    outcome: Outcome

    @property
    def accepted(self) -> int:
        """So many were taken as new."""
        told = acknowledgement(self.outcome)
        return 0 if told is None else told.accepted(len(self.rows))


class DeliverPages:
    """turn() after turn(): a page goes in lanes at once, then the cursor moves past it."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        subscriber = delivery.subscriber
        self._name = subscriber.name
        self._page_max = subscriber.batch_max * subscriber.lanes_max
        self._limit = 1
        """Of the next page: small at first and after a failure, so that one event that cannot be taken is found."""
        self._failures = 0
        """Turns since a page was taken, with something new in it."""
        self._firsts_turn = False
        """No other event goes until the first one has left: the last was not acknowledged, or several not built."""
        self._other = _Other()
        self._in_vain = 0
        """Other events since one was taken as new: they could not be built, or came to nothing else that counts."""

    async def turn(self) -> float:
        """The seconds to rest. Raises LeaseLost, Problem 503."""
        if self._delivery.held >= HELD_MAX:
            return IDLE_S
        # nobody else moves the cursor: what is read here holds in the transaction below
        async with self._delivery.look() as (connection, standing):
            if standing.next_try_at is not None and standing.next_try_at > self._delivery.now():
                return IDLE_S
            rows = await usage_events.page(connection, standing.cursor, self._limit)
        if not rows:
            return IDLE_S
        another = None
        if is_out(standing):
            another = await self._another(rows[0])
        else:  # whatever has ended the outage
            self._other = _Other()
        if another is not None and acknowledgement(another) is None:
            return await self._none_taken(another, standing)
        is_up = another is not None and self._other.proved_at is not None
        page = await self._prepare(rows)
        sent = await self._deliver(page)
        # its turn is over when it has left: while a breaker is open for longer than the rest, nothing does
        self._firsts_turn = self._firsts_turn and all(was_no_try(one.outcome) for one in sent)
        if any(acknowledgement(one.outcome) is None for one in sent):
            return await self._not_taken(page, sent, is_up)
        await self._taken(page, sent, is_up)
        return 0.0

    async def _another(self, first: Row) -> Outcome | None:
        """Whether it is the first event's fault: what another one comes to, which stays in its place in the feed.

        It goes before the first one, lest a breaker that is to be closed again never sees it. None: the first one will
        not be sent, there is no other that may go or that we can build, or the last one was not acknowledged: it is
        the first one's turn.
        """
        if self._firsts_turn:
            return None
        for _ in range(_UNBUILT_MAX):
            async with self._delivery.transaction() as (connection, standing):
                if await outbox.cards_held(connection, self._name, {card_of(first)}):
                    return None
                if not self._other.may_go(first, self._delivery.now()):
                    self._other = _Other()
                row = self._other.row or await outbox.another(connection, self._name, first, standing, self._in_vain)
                if row is None:
                    return None
                await outbox.sending(connection, self._name, max(standing.sent, _place(row)), 1)
            item = self._delivery.item(row, _place(row) <= standing.sent)
            outcome = await self._delivery.send(standing.sequence + 1, [item])
            self._learn(row, outcome)
            if outcome != NotSent(Why.CANNOT_BUILD):
                self._firsts_turn = was_no_answer(outcome)
                return outcome
        self._firsts_turn = True
        return None

    def _learn(self, row: Row, outcome: Outcome) -> None:
        """From what the other event came to: whether the subscriber is up, and which one goes next."""
        told = acknowledgement(outcome)
        if told is not None:
            self._delivery.count(told, 1)
        if was_no_try(outcome):  # it surely was not sent, and is kept: each that is chosen marks all up to it
            self._other = _Other(row)
        elif told is not None and told.accepted(1):
            self._other, self._in_vain = _Other(row, self._delivery.now()), 0
        elif told is None or told.refused or self._other.proved_at is None:
            self._other, self._in_vain = _Other(), self._in_vain + 1

    async def _none_taken(self, another: Outcome, standing: Standing) -> float:
        """The other event came to nothing either; the first one was not sent."""
        self._failures += 1
        if was_no_try(another):
            return knock_s(self._failures, self._delivery.chance())
        at = next_try(max(standing.tries, 1), self._delivery.now(), self._delivery.chance())
        assert at is not None
        async with self._delivery.transaction() as (connection, _):
            await outbox.failed(connection, self._name, standing.tries, at)
        return 0.0

    async def _prepare(self, rows: list[Row]) -> _Page:
        subscriber = self._delivery.subscriber
        async with self._delivery.transaction() as (connection, standing):
            held = await outbox.cards_held(connection, self._name, {card_of(row) for row in rows})
            going = [(card_of(row), row) for row in rows if card_of(row) not in held]
            page = _Page(standing, rows, lanes(going, subscriber.batch_max, subscriber.lanes_max))
            if going:
                # before anything leaves: who sends these events again, after us, must say so
                through = max(standing.sent, _place(going[-1][1]))
                await outbox.sending(connection, self._name, through, sum(map(len, page.lanes)))
        return page

    async def _deliver(self, page: _Page) -> list[_Sent]:
        """What each batch came to; the first of a lane that was not acknowledged is its last."""
        sequence = iter(range(page.standing.sequence + 1, page.standing.sequence + 1 + len(page.rows)))

        async def one(lane: list[list[Row]]) -> list[_Sent]:
            sent: list[_Sent] = []
            barred: set[UUID] = set()
            for batch in lane:
                rows = [row for row in batch if card_of(row) not in barred]
                items = [self._delivery.item(row, _place(row) <= page.standing.sent) for row in rows]
                if not items:
                    continue
                sent.append(_Sent(rows, await self._delivery.send(next(sequence), items)))
                told = acknowledgement(sent[-1].outcome)
                if told is None:
                    break
                barred |= {card_of(row) for row in rows if row.event_id in told.refused}
            return sent

        return [one_sent for lane in await asyncio.gather(*map(one, page.lanes)) for one_sent in lane]

    async def _taken(self, page: _Page, sent: list[_Sent], is_up: bool) -> None:
        """`is_up`: it took another event as new just before."""
        now = self._delivery.now()
        is_up |= any(one.accepted for one in sent)
        refused: dict[UUID, str] = {}
        went: set[UUID] = set()
        for batch, outcome in sent:
            told = acknowledgement(outcome)
            assert told is not None
            self._delivery.count(told, len(batch))
            refused |= told.refused
            went |= {row.event_id for row in batch}
        aside = self._aside([row for row in page.rows if row.event_id in refused or row.event_id not in went],
                            refused, page.standing.sent, now)  # fmt: skip
        async with self._delivery.transaction() as (connection, standing):
            await outbox.hold(connection, self._name, aside, now)
            await outbox.acknowledged(connection, self._name, _place(page.rows[-1]))
            # or failures of who had it in hand before
            if is_up and (self._failures or standing.tries or standing.asides):
                await outbox.answered(connection, self._name, ended=is_out(standing))
                await outbox.wake(connection, self._name, now)
        if aside:
            log.warning("usage events wait aside", subscriber=self._name, events=len(aside), refused=len(refused))
        if is_up:
            self._failures = self._in_vain = 0
        if sent:
            self._limit = min(self._page_max, self._limit * 2)

    def _aside(self, rows: list[Row], refused: dict[UUID, str], sent: Cursor, now: dt.datetime) -> list[Held]:
        """The first refused event of a card has had its try; those behind it, refused or not, have not."""
        cards: set[UUID] = set()
        aside = []
        for row in rows:
            code = refused.get(row.event_id)
            tried = code is not None and card_of(row) not in cards
            cards.add(card_of(row))
            at = next_try(1, now, self._delivery.chance()) if tried else None
            maybe_sent = code is not None or _place(row) <= sent
            aside.append(_held(row, code if tried else None, int(tried), at, maybe_sent))
        return aside

    async def _not_taken(self, page: _Page, sent: list[_Sent], is_up: bool) -> float:
        self._failures += 1
        if page.standing.asides and any(one.accepted for one in sent):
            async with self._delivery.transaction() as (connection, standing):
                await outbox.answered(connection, self._name, ended=is_out(standing))
        failed = [one.outcome for one in sent if acknowledgement(one.outcome) is None]
        if all(map(was_no_try, failed)):
            return knock_s(self._failures, self._delivery.chance())
        self._limit = max(1, len(page.rows) // _SHRINK)
        if len(page.rows) > 1:
            return knock_s(self._failures, self._delivery.chance())
        await self._failed_alone(page, was_no_answer(failed[0]), is_up)
        return 0.0

    async def _failed_alone(self, page: _Page, no_answer: bool, is_up: bool) -> None:
        """`is_up`: it took another event as new just before, so this one is at fault."""
        row, tries, now = page.rows[0], page.standing.tries + 1, self._delivery.now()
        async with self._delivery.transaction() as (connection, standing):
            waits = no_answer and is_out(standing) and not _long_ago(standing, now)
            stays = not is_up and (waits or tries < SET_ASIDE_TRIES)
            if stays:  # and in an outage it is tried as often as before, or the feed would sleep long past its end
                tries = min(tries, SET_ASIDE_TRIES - 1)
            at = next_try(tries, now, self._delivery.chance())
            assert at is not None
            if stays:
                await outbox.failed(connection, self._name, tries, at)
                if waits and tries == 1:
                    log.error("the subscriber takes nothing: its events wait", subscriber=self._name)
                return
            await outbox.hold(connection, self._name, [_held(row, None, tries, at, True)], now)
            await outbox.acknowledged(connection, self._name, _place(row))
            if no_answer and not is_up:
                await outbox.set_aside(connection, self._name, now)
        self._other = self._other._replace(at_fault=self._other.at_fault + 1)
        log.warning("a usage event is set aside: no clear answer", subscriber=self._name, event_id=str(row.event_id))


def _place(row: Row) -> Cursor:
    return Cursor(row.position, row.event_id)


def _held(row: Row, code: str | None, tries: int, at: dt.datetime | None, sent: bool) -> Held:
    return Held(row.position, row.event_id, row.recorded_at, card_of(row), code, tries, at, sent)


def _long_ago(standing: Standing, now: dt.datetime) -> bool:
    assert standing.aside_at is not None, "some were set aside"
    return now >= standing.aside_at + ASIDE_WHILE_OUT
