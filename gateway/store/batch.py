"""Micro-batches: what arrives while the last batch is being committed waits together and goes as one statement.

There is no timer: a lone item goes at once. The queue is bounded, every item has a deadline, and a database that is
gone fails what waits at once; the next item tries to connect again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar, cast

import asyncpg
import structlog

from gateway.domain.errors import Problem, overloaded, unavailable
from gateway.store.pool import GONE, UnfitDatabase

if TYPE_CHECKING:
    from gateway.store.pool import Connection

log = structlog.get_logger()

LEAST_TIME_S = 0.02
"""An item with less time left is not sent: one that is late must not cut off the fresh ones beside it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Sink = Callable[[Answer | None, Problem | None], None]
"""Takes an answer, or the problem that stands in its place. It does not raise."""


class BatchFigures(NamedTuple):
    """Of one committed batch: for the metrics."""

    size: int
    oldest_wait_s: float
    statement_s: float


class Batcher(Generic[Item, Answer]):
    """One connection, one batch in flight. run() is the loop; submit() is called by requests on the same event loop."""

    def __init__(
        self,
        connect: "Callable[[], Awaitable[Connection]]",
        execute: "Callable[[Connection, Sequence[Item], float], Awaitable[Sequence[Answer]]]",
        *,
        batch_max: int,
        queue_max: int,
        deadline_s: float,
        on_batch: Callable[[BatchFigures], None],
        on_delivered: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._execute = execute
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._on_batch = on_batch
        self._on_delivered = on_delivered
        self._queue: deque[tuple[Item, Sink[Answer], float]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._connection: Connection | None = None
        self._connected_once = True
        self._ended = False

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, item: Item, sink: "Sink[Answer]") -> None:
        """Queue an item; the sink is called once, after the commit. Raises Problem 503 at once if the queue is full."""
        if self._ended:
            raise unavailable("the gateway is stopping")
        if len(self._queue) >= self._queue_max:
            raise overloaded("the verify queue is full")
        self._queue.append((item, sink, time.monotonic() + self._deadline_s))
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def ask(self, item: Item) -> "asyncio.Future[Answer]":
        """submit() for a coroutine: the future gives the answer, or raises the Problem."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def sink(answer: Answer | None, problem: Problem | None) -> None:
            if future.done():
                return
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(cast(Answer, answer))

        self.submit(item, sink)
        return future

    async def run(self) -> None:
        """Serve batches until cancelled; then finish what is queued, and take nothing more."""
        try:
            while True:
                if not self._queue:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                await self._serve_one_batch()
        except asyncio.CancelledError:
            while self._queue:
                await self._serve_one_batch()
            raise
        finally:
            self._ended = True
            self._fail(len(self._queue), "the gateway is stopping")
            self._drop_connection()

    async def _serve_one_batch(self) -> None:
        try:
            async with asyncio.timeout(max(self._queue[0][2] - time.monotonic(), 0.001)):
                connection = await self._connected()
        except (*GONE, asyncpg.PostgresError, UnfitDatabase) as error:
            if self._connected_once:
                self._connected_once = False
                log.warning("no connection for the batches", error=type(error).__name__)
            self._fail(len(self._queue), "the database is not available")
            return
        began = time.monotonic()
        taken = self._take(began)
        if not taken:
            return
        deadline = taken[0][2]
        try:
            answers = await self._execute(connection, [item for item, _, _ in taken], deadline - began)
        except (*GONE, asyncpg.PostgresError) as error:
            # whether the batch was committed is not known: no verdict leaves, the callers ask again
            log.warning("batch failed", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None))
            self._drop_connection()
            self._queue.extendleft(reversed(taken))
            self._fail(len(taken), "the event could not be written")
            return
        except BaseException:
            self._queue.extendleft(reversed(taken))  # a mistake of ours ends the loop, but nobody is left waiting
            raise
        self._on_batch(BatchFigures(len(taken), began - deadline + self._deadline_s, time.monotonic() - began))
        # soon, not now: the next batch is sent first, so that the database works while the answers are written
        asyncio.get_running_loop().call_soon(self._deliver, taken, answers)

    def _take(self, now: float) -> "list[tuple[Item, Sink[Answer], float]]":
        """The next batch: items with enough time left for a statement. Those without are failed, not sent."""
        while self._queue and self._queue[0][2] - now < LEAST_TIME_S:
            self._fail(1, "the database did not answer in time")
        return [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_max))]

    def _deliver(self, taken: "Sequence[tuple[Item, Sink[Answer], float]]", answers: "Sequence[Answer]") -> None:
        for (_, sink, _), answer in zip(taken, answers, strict=True):
            sink(answer, None)
        self._on_delivered()

    def _fail(self, count: int, detail: str) -> None:
        for _ in range(count):
            _, sink, _ = self._queue.popleft()
            sink(None, unavailable(detail))
        self._on_delivered()

    async def _connected(self) -> "Connection":
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
            self._connected_once = True
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None
