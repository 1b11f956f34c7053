"""The background loops: a connection that is given up ends none, and a process whose loop has ended says so."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest

from gateway import directory as directories
from gateway.directory import Directory
from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store import pool as pools
from gateway.store.pool import GONE, Pool, cut_off
from gateway.worker.housekeeping import _caller_keys
from tests.conftest import Database, prepare_data_dir
from tests.faults.home import Home
from tests.faults.waiting import named, tree, until


class Watch(NamedTuple):
    """A directory as a process watches it, and the looks of which the connection ended at the given place."""

    loop: asyncio.Task[None]
    directory: Directory
    met: list[str]


@pytest.fixture
async def watch(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    """Its first look's connection ends when the database has prepared the statement, and before it is executed."""
    met: list[str] = []
    prepare = asyncpg.Connection._get_statement  # type: ignore[attr-defined]

    async def prepare_and_end(self: Any, query: str, *more: Any, **named: Any) -> Any:
        statement = await prepare(self, query, *more, **named)
        if "FROM caller_key" in query and not met:
            ended = asyncio.Event()
            self.add_termination_listener(lambda _: ended.set())
            await ended.wait()
            met.append(query)
        return statement

    monkeypatch.setattr(asyncpg.Connection, "_get_statement", prepare_and_end)
    monkeypatch.setattr(directories, "POLL_S", 0.01)
    prepare_data_dir(tmp_path, 1)
    settings = load({"DATA_DIR": str(tmp_path)})
    pool = Pool(Secret(database.dsn), settings.gateway.database, "test")
    await pool.open()
    directory = Directory(settings, partial(_caller_keys, pool))
    made = Watch(asyncio.create_task(directory.watch()), directory, met)
    yield made
    made.loop.cancel()
    await asyncio.gather(made.loop, return_exceptions=True)
    await pool.close()


async def test_a_connection_given_up_as_its_answer_comes_ends_no_loop(watch: Watch) -> None:
    await until(lambda: watch.directory.known_at > 0 or watch.loop.done(), 30, "it has looked again")
    assert watch.met and not watch.loop.done()


@contextmanager
def _believes_the_driver(connection: Any, after_s: float) -> Iterator[None]:
    """Planted: only what a connection that is gone should raise is taken for our end of it."""
    timer = asyncio.get_running_loop().call_later(after_s, connection.terminate)
    try:
        yield
    except GONE as error:
        raise TimeoutError from error
    finally:
        timer.cancel()


async def test_control_the_drivers_own_mistake_would_end_the_loop(
    monkeypatch: pytest.MonkeyPatch, watch: Watch
) -> None:
    monkeypatch.setattr(pools, "cut_off", _believes_the_driver)
    await until(watch.loop.done, 30, "the loop has ended")
    assert watch.met and isinstance(watch.loop.exception(), AttributeError)


async def test_a_mistake_of_ours_in_time_is_not_taken_for_the_databases(database: Database) -> None:
    connection = await asyncpg.connect(database.dsn)
    with pytest.raises(AttributeError), cut_off(connection, 60):
        await connection.no_such_thing()  # type: ignore[attr-defined]
    await connection.close()


def ends(home: Home) -> dict[str, int]:
    """The code of each child that has ended, the last of each."""
    lines = (json.loads(line) for line in home.running.log.splitlines() if line.startswith("{"))
    return {line["child"]: line["code"] for line in lines if line["event"].startswith("child ended")}


async def test_a_process_whose_loop_has_failed_ends_with_a_code_that_says_so(tenant: Home) -> None:
    await tenant.start("loop_mistake")
    await until(lambda: ends(tenant) == {"worker": 1, "serve-1": 1}, 30, "both have ended with 1")
    assert "a loop has failed" in tenant.running.log and "ZeroDivisionError" in tenant.running.log


async def test_control_one_that_was_told_to_end_has_another_code(tenant: Home) -> None:
    await tenant.start()
    for process in named(tree(tenant.running.pid), "worker") + tenant.workers():
        process.send_signal(signal.SIGTERM)
    await until(lambda: ends(tenant) == {"worker": 0, "serve-1": 0}, 30, "both have ended with 0")
    assert "a loop has failed" not in tenant.running.log
