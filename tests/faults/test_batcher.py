"""Whatever a batch fails with, nobody is left waiting: each presentation gets its answer or a 503."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway.domain.errors import Problem
from gateway.store.batch import Batcher
from gateway.store.pool import cut_off
from tests.conftest import Database

DEADLINE_S = 4.0
"""A machine that stands still for half of it would be a database that does not answer."""
ANSWER_S = 6.0


class StubConnection:
    """What the batcher asks of a connection."""

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None:
        return


class FailingOnce:
    """A database whose first statement fails in a given way; the next ones answer each item with itself."""

    def __init__(self, error: BaseException) -> None:
        self.error: BaseException | None = error

    async def connect(self) -> Any:
        return StubConnection()

    async def execute(self, connection: object, batch: Sequence[str], timeout: float) -> Sequence[str]:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return batch


class EndingTogether:
    """A database that may have ended the connections in `ended`: they fail when they are used."""

    def __init__(self, error: Exception, *, all_of_them: bool) -> None:
        self._error = error
        self._all = all_of_them
        self.ended: set[int] = set()
        self.connected: list[StubConnection] = []

    async def connect(self) -> Any:
        self.connected.append(StubConnection())
        return self.connected[-1]

    async def execute(self, connection: object, batch: Sequence[str], timeout: float) -> Sequence[str]:
        if id(connection) in self.ended:
            self.ended.clear()
            self.ended.update(map(id, self.connected) if self._all else ())
            raise self._error
        return batch


class Real:
    """A real database; an item is a statement."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.connected: list[Any] = []

    async def connect(self) -> Any:
        self.connected.append(await asyncpg.connect(self._dsn))
        return self.connected[-1]

    async def execute(self, connection: Any, batch: Sequence[str], timeout: float) -> Sequence[str]:
        with cut_off(connection, timeout):
            for each in batch:
                await connection.execute(each)
        return batch


@asynccontextmanager
async def batcher(database: Any, deadline_s: float = DEADLINE_S) -> AsyncIterator[Batcher[str, str]]:
    """With its loop running."""
    batches: Batcher[str, str] = Batcher(
        database.connect, database.execute, batch_max=2, queue_max=10, deadline_s=deadline_s, on_batch=lambda _: None
    )
    loop = asyncio.create_task(batches.run())
    try:
        yield batches
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


async def answers(asked: list[asyncio.Future[str]]) -> list[str | int]:
    """Of each an answer, or the status of its problem. Fails if one is left waiting."""
    async with asyncio.timeout(ANSWER_S):
        found = await asyncio.gather(*asked, return_exceptions=True)
    return [one.status if isinstance(one, Problem) else str(one) for one in found]


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress"),
        asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"),
        asyncpg.CheckViolationError("no partition of relation found for row"),
        ConnectionResetError(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_loop_outlives_what_a_dying_database_raises(error: BaseException) -> None:
    """InternalClientError too: asyncpg raises it for a statement that meets the end of the connection."""
    async with batcher(FailingOnce(error)) as batches:
        assert await answers([batches.ask("a")]) == [503]
        assert await answers([batches.ask("b"), batches.ask("c")]) == ["b", "c"]


@pytest.mark.parametrize(
    ("error", "made"),
    [
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), 3),
        (asyncpg.AdminShutdownError("terminating connection due to administrator command"), 3),
        (asyncpg.CheckViolationError("no partition of relation found for row"), 2),
        (asyncpg.QueryCanceledError("canceling statement due to statement timeout"), 2),
        (TimeoutError(), 2),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_connections_that_ended_together_cost_one_batch(error: Exception, made: int) -> None:
    """A server that was restarted has ended them all, and a client may learn of each only by using it. What is wrong
    with one batch ends one connection."""
    database = EndingTogether(error, all_of_them=made == 3)
    async with batcher(database) as batches:
        assert await answers([batches.ask("a")]) == ["a"]
        assert len(database.connected) == 2
        database.ended.update(map(id, database.connected))
        assert [await answers([batches.ask(letter)]) for letter in "bcd"] == [[503], ["c"], ["d"]]
        assert len(database.connected) == made


@pytest.mark.parametrize(
    ("statement", "made"),
    [("SELECT pg_sleep(60)", 2), ("SELECT pg_terminate_backend(pg_backend_pid())", 3)],
    ids=["cut off by us", "control: ended by the server"],
)
async def test_a_batch_that_is_cut_off_ends_its_own_connection_alone(
    database: Database, statement: str, made: int
) -> None:
    """However the driver words that its connection was given up."""
    real = Real(database.dsn)
    async with batcher(real, deadline_s=2) as batches:
        assert await answers([batches.ask("SELECT 1")]) == ["SELECT 1"]
        assert len(real.connected) == 2
        assert [await answers([batches.ask(sql)]) for sql in (statement, "SELECT 2")] == [[503], ["SELECT 2"]]
        assert len(real.connected) == made


async def test_nobody_is_left_waiting_when_the_loop_fails() -> None:
    """A mistake of ours ends the loop, and the worker with it: its callers hear 503 at once, not nothing."""
    async with batcher(FailingOnce(RuntimeError("a mistake"))) as batches:
        found = await answers([batches.ask(letter) for letter in "abcd"])
        assert found[:2] == [503, 503]  # the batch that failed
    with pytest.raises(Problem, match="unavailable"):
        batches.ask("later")


async def test_a_batch_is_not_sent_again_when_the_loop_is_cancelled() -> None:
    """Whether its first statement was committed is not known: sent again, it could leave each event twice."""
    sent: list[str] = []
    running = asyncio.Event()

    async def execute(connection: object, batch: Sequence[str], timeout: float) -> Sequence[str]:
        sent.extend(batch)
        running.set()
        await asyncio.sleep(ANSWER_S if len(sent) == 1 else 0)
        return batch

    database = FailingOnce(RuntimeError("not used"))
    batches: Batcher[str, str] = Batcher(
        database.connect, execute, batch_max=2, queue_max=10, deadline_s=DEADLINE_S, on_batch=lambda _: None
    )
    loop = asyncio.create_task(batches.run())
    first = batches.ask("a")
    await running.wait()
    queued = batches.ask("b")
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert (await answers([first, queued]))[0] == 503
    assert sent.count("a") == 1
