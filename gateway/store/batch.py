"""Micro-batches: what arrives while the last batch is being committed waits together and goes as one statement.

There is no timer: a lone item goes at once. The queue is bounded, every item has a deadline, and a database that is
gone fails what waits at once; the next item tries to connect again.
"""

import asyncio
import contextlib
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

IN_FLIGHT_MAX = 2
"""Statements at a time: while one waits for its commit, the next can be read and decided."""

WORTH_A_SECOND = 30
"""So many have to wait for a second statement, unless a batcher is told otherwise."""
QUICK_S = 0.02

LEAST_SHARE = 0.5
"""An item that has waited longer than this share of its time is not sent: a late one would cut off the fresh ones."""

_SERVER_ENDED = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
)

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
    """Few connections, few batches in flight. run() is the loop; submit() is called on the same event loop."""

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
        worth_a_second: int = WORTH_A_SECOND,
        quick_s: float = QUICK_S,
        not_known: str = "the event could not be written",
    ) -> None:
        """A second batch goes beside one when so many have queued, and the last one was so quick.

        `not_known` is what a caller is told when the database went away in the middle of its batch.
        """
        self._connect = connect
        self._execute = execute
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._deadline_s = deadline_s
        self._on_batch = on_batch
        self._on_delivered = on_delivered
        self._worth_a_second = worth_a_second
        self._quick_s = quick_s
        self._not_known = not_known
        self._queue: deque[tuple[Item, Sink[Answer], float]] = deque()
        self._resting: list[asyncio.Future[None]] = []
        self._in_flight = 0
        self._statement_s = 0.0
        self._free: list[Connection] = []
        self._connected_once = True
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        return len(self._queue)

    def submit(self, item: Item, sink: "Sink[Answer]") -> None:
        """Queue an item; the sink is called once, after the commit. Raises Problem 503 at once if the queue is full."""
        if self._ended:
            raise unavailable("the gateway is stopping")
        if len(self._queue) >= self._queue_max:
            raise overloaded("the queue is full")
        self._queue.append((item, sink, time.monotonic() + self._deadline_s))
        self._start_if_due()

    def ask(self, item: Item) -> "asyncio.Future[Answer]":
        """submit() for a coroutine: the future gives the answer, or raises the Problem."""
        future: asyncio.Future[Answer] = self._own_loop().create_future()

        def sink(answer: "Answer | None", problem: "Problem | None") -> None:  # a type that is built takes longer
            if future.done():
                return
            if problem is not None:
                future.set_exception(problem)
            else:
                future.set_result(cast(Answer, answer))

        self.submit(item, sink)
        return future

    def _own_loop(self) -> asyncio.AbstractEventLoop:
        """asyncio asks the system for its process each time, which costs as much as the rest of ask()."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    async def run(self) -> None:
        """Serve batches until cancelled; then finish what is queued, and take nothing more."""
        lanes: list[asyncio.Task[None]] = []
        try:
            await self._connect_ahead()
            lanes += [asyncio.create_task(self._lane()) for _ in range(IN_FLIGHT_MAX)]
            await asyncio.gather(*lanes)
        finally:
            self._ended = True
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            try:
                while self._queue:
                    await self._serve_one_batch()
            finally:
                self._fail(len(self._queue), "the gateway is stopping")
                self._drop_free()

    async def _connect_ahead(self) -> None:
        """Connect before the first item needs it; a database that is away is met again then."""
        with contextlib.suppress(*GONE, asyncpg.PostgresError, UnfitDatabase):
            while len(self._free) < IN_FLIGHT_MAX:
                self._free.append(await self._connect())

    async def _lane(self) -> None:
        """One statement at a time."""
        while True:
            turn = self._own_loop().create_future()
            self._resting.append(turn)
            self._start_if_due()
            await turn
            try:
                if self._queue:
                    await self._serve_one_batch()
            finally:
                self._in_flight -= 1

    def _start_if_due(self) -> None:
        """A lone item goes at once. A second statement goes when enough has queued and the database is quick: beside
        one that is slow it would only wait, and use up the time of what it carries."""
        second = len(self._queue) >= self._worth_a_second and self._statement_s < self._quick_s
        if self._queue and self._resting and (second or not self._in_flight):
            self._in_flight += 1
            turn = self._resting.pop()
            if not turn.done():
                turn.set_result(None)

    async def _serve_one_batch(self) -> None:
        try:
            connection = self._free_one() or await self._new_one(max(self._queue[0][2] - time.monotonic(), 0.001))
        except (*GONE, asyncpg.PostgresError, UnfitDatabase) as error:
            if self._connected_once:
                self._connected_once = False
                log.warning("no connection for the batches", error=type(error).__name__)
            self._fail(len(self._queue), "the database is not available")
            return
        began = time.monotonic()
        taken = self._take(began)
        if not taken:
            self._free.append(connection)
            return
        deadline = taken[0][2]
        try:
            answers = await self._execute(connection, [item for item, _, _ in taken], deadline - began)
        except (*GONE, asyncpg.PostgresError) as error:
            # whether the batch was committed is not known: no verdict leaves, the callers ask again
            self._statement_s = time.monotonic() - began
            log.warning("batch failed", error=type(error).__name__, sqlstate=getattr(error, "sqlstate", None))
            connection.terminate()
            if isinstance(error, _SERVER_ENDED) and not isinstance(error, TimeoutError):
                self._drop_free()
            self._queue.extendleft(reversed(taken))
            self._fail(len(taken), self._not_known)
            return
        except BaseException:  # a mistake of ours ends the loop, but nobody is left waiting, and nothing is sent twice
            connection.terminate()
            self._queue.extendleft(reversed(taken))
            self._fail(len(taken), self._not_known)
            raise
        self._free.append(connection)
        self._statement_s = time.monotonic() - began
        self._on_batch(BatchFigures(len(taken), began - deadline + self._deadline_s, self._statement_s))
        # soon, not now: the next batch is sent first, so that the database works while the answers are written
        self._own_loop().call_soon(self._deliver, taken, answers)

    def _take(self, now: float) -> "list[tuple[Item, Sink[Answer], float]]":
        """The next batch: items with enough time left for a statement. Those without are failed, not sent."""
        while self._queue and self._queue[0][2] - now < self._deadline_s * LEAST_SHARE:
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

    def _free_one(self) -> "Connection | None":
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _new_one(self, timeout_s: float) -> "Connection":
        async with asyncio.timeout(timeout_s):
            connection = await self._connect()
        self._connected_once = True
        return connection

    def _drop_free(self) -> None:
        """What ended one connection has mostly ended the other, which would show it by a second failed batch."""
        while self._free:
            self._free.pop().terminate()
