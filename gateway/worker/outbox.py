"""The relays of the outward feed: for each subscriber one process at a time, by a lease in the database.

A holder that dies is followed within LEASE_S; one that stops gives its lease back.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import structlog

from gateway.crypto.key_files import open_folder
from gateway.crypto.key_store import KeyUse
from gateway.crypto.pseudonym import Pseudonyms
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.operations import DeliverUsage
from gateway.domain.outcome import Outcome
from gateway.flows.deliver_held import DeliverHeld
from gateway.flows.deliver_usage import DeliverPages, Delivery, Send, Subscriber
from gateway.metrics import OUTBOX_DEAD_LETTERS, OUTBOX_HELD, OUTBOX_LAG_EVENTS, OUTBOX_LAG_SECONDS
from gateway.partners.call import Partners
from gateway.partners.nats_stream import NatsStream
from gateway.settings import Settings
from gateway.store import outbox, outbox_figures
from gateway.store.outbox import LeaseLost
from gateway.store.pool import GONE, Pool

log = structlog.get_logger()

LEASE_S = 6.0
_AGAIN_S = 1.0
_CALL_MAX_S = 60.0
_ACQUIRE_MS = 3000
"""Nobody waits for an answer here; half of a lease."""
_TURN_MAX_S = 30.0


class Relays:
    """open() it, run its loops, close() it."""

    def __init__(self, settings: Settings, dsn: Secret[str], partners: Partners) -> None:
        """Raises KeyStoreError."""
        config = settings.gateway.outbox
        self._pseudonyms = Pseudonyms(open_folder(settings.keys_dir).working_keys(KeyUse.PSEUDONYM))
        self._sends: dict[Subscriber, Send] = {
            Subscriber(name, one.card_refs_of, one.batch_max, one.batches_at_once): partial(_by, partners, one.partner)
            for name, one in config.subscribers.items()
            if config.enabled
        }
        self._nats: NatsStream | None = None
        if config.enabled and config.nats.url:
            self._nats = NatsStream(config.nats, settings.data_dir)
            # one message after the other: the stream keeps the order in which they come
            self._sends[Subscriber("nats", config.nats.card_refs_of, config.nats.batch_max, 1)] = self._nats.send
        # of their own: a page of thousands of events holds its connection longer than other loops like to wait
        places = msgspec.structs.replace(
            settings.gateway.database, pool_size=3 * len(self._sends) + 1, acquire_timeout_ms=_ACQUIRE_MS
        )
        self._pool = Pool(dsn, places, "yikatong outbox")

    async def open(self) -> None:
        """Raises UnfitDatabase, or one of GONE."""
        if self._sends:
            await self._pool.open()

    async def close(self) -> None:
        if self._nats is not None:
            await self._nats.close()
        if self._sends:
            await self._pool.close()

    def loops(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """By name; each until it is cancelled."""
        return [
            (f"outbox of {subscriber.name}", self._serve(subscriber, send)) for subscriber, send in self._sends.items()
        ]

    async def measure(self) -> None:
        """The gauges. Raises Problem 503."""
        if not self._sends:
            return
        async with self._pool.acquire(_TURN_MAX_S) as connection:
            names = [subscriber.name for subscriber in self._sends]
            for figures in await outbox_figures.figures(connection, names):
                OUTBOX_LAG_SECONDS.labels(figures.name).set(figures.lag_s)
                OUTBOX_LAG_EVENTS.labels(figures.name).set(figures.lag_events)
                OUTBOX_HELD.labels(figures.name).set(figures.held)
                OUTBOX_DEAD_LETTERS.labels(figures.name).set(figures.dead)

    async def _serve(self, subscriber: Subscriber, send: Send) -> None:
        """Wait for the lease, work while it lasts, and again."""
        holder = uuid4()
        line = log.bind(subscriber=subscriber.name)
        task = asyncio.current_task()
        assert task is not None
        try:
            while not task.cancelling():
                try:
                    if await self._take_lease(subscriber.name, holder):
                        line.info("outbox taken in hand")
                        await self._work(Delivery(self._pool, subscriber, holder, send, self._pseudonyms))
                except LeaseLost:
                    line.warning("outbox lost to another process")
                except (Problem, asyncpg.PostgresError, *GONE) as error:
                    line.warning("outbox interrupted", error=type(error).__name__)
                await asyncio.sleep(_AGAIN_S)
        finally:
            # nobody has to wait for the end of the lease of one who stops in order
            with contextlib.suppress(Problem, asyncpg.PostgresError, *GONE):
                async with self._pool.acquire() as connection:
                    await outbox.end_lease(connection, subscriber.name, holder)

    async def _take_lease(self, name: str, holder: UUID) -> bool:
        async with self._pool.acquire() as connection:
            await outbox.subscribe(connection, name)
            return await outbox.take_lease(connection, name, holder, LEASE_S)

    async def _work(self, delivery: Delivery) -> None:
        """Until the lease is lost or the database is away: the first loop that ends so ends all, with its reason."""
        loops = [
            asyncio.create_task(_turns(turn))
            for turn in (DeliverPages(delivery).turn, DeliverHeld(delivery).turn, partial(self._keep_lease, delivery))
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        done.pop().result()

    async def _keep_lease(self, delivery: Delivery) -> float:
        async with delivery.transaction() as (connection, _):
            await outbox.take_lease(connection, delivery.subscriber.name, delivery.holder, LEASE_S)
        return LEASE_S / 3


async def _turns(turn: Callable[[], Awaitable[float]]) -> None:
    task = asyncio.current_task()
    assert task is not None
    while not task.cancelling():  # what ends in the same moment may win over it (asyncio.wait_for of Python 3.11)
        rest_s = await turn()
        await asyncio.sleep(rest_s)


async def _by(partners: Partners, name: str, op: DeliverUsage) -> Outcome:
    return await partners.call(name, op, time.monotonic() + _CALL_MAX_S)
