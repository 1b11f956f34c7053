"""A migration that needs a table which others have locked."""

import asyncio
import datetime as dt

import asyncpg
import pytest

from gateway.store import migrate
from tests.conftest import Database
from tests.running import eventually

LOCKED = "LOCK TABLE person IN SHARE MODE"
"""By a long transaction of somebody else."""
MIGRATION = "ALTER TABLE person ADD COLUMN told boolean"


@pytest.fixture
def one_more(monkeypatch: pytest.MonkeyPatch) -> str:
    following = migrate.latest() + 1
    all_of_them = [*migrate.files(), (following, "one_more", MIGRATION)]
    monkeypatch.setattr(migrate, "files", lambda: all_of_them)
    monkeypatch.setattr(migrate, "_LOCK_REST_S", 0.0)
    return f"{following:04} one_more"


async def look(dsn: str) -> None:
    """Somebody who comes after the migration."""
    late = await asyncpg.connect(dsn)
    try:
        await late.execute("SELECT FROM person LIMIT 1", timeout=5)
    finally:
        await late.close()


async def waiting(watch: "asyncpg.Connection[asyncpg.Record]", table: str = "person") -> bool:
    return bool(
        await watch.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::text::regclass", table)
    )


async def test_it_waits_shortly_and_asks_again(
    database: Database, one_more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_WAIT", "20ms")
    monkeypatch.setattr(migrate, "_LOCK_TRIES", 10_000)
    other = await asyncpg.connect(database.dsn)
    watch = await asyncpg.connect(database.dsn)
    try:
        long = other.transaction()
        await long.start()
        await other.execute(LOCKED)
        migrating = asyncio.create_task(migrate.migrate(database.dsn))
        await eventually(lambda: waiting(watch), 20, "the migration waits")
        await look(database.dsn)
        assert not migrating.done()
        await long.rollback()
        assert await asyncio.wait_for(migrating, 30) == [one_more]
    finally:
        await other.close()
        await watch.close()


async def test_control_one_that_waits_long_holds_up_who_comes_after(
    database: Database, one_more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_WAIT", "1min")
    other = await asyncpg.connect(database.dsn)
    watch = await asyncpg.connect(database.dsn)
    try:
        async with other.transaction():
            await other.execute(LOCKED)
            migrating = asyncio.create_task(migrate.migrate(database.dsn))
            await eventually(lambda: waiting(watch), 20, "the migration waits")
            await watch.execute("SET lock_timeout = '100ms'")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await watch.execute("SELECT FROM person LIMIT 1")
        assert await asyncio.wait_for(migrating, 30) == [one_more]
    finally:
        await other.close()
        await watch.close()


async def test_it_gives_up_and_says_why(database: Database, one_more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_LOCK_WAIT", "10ms")
    monkeypatch.setattr(migrate, "_LOCK_TRIES", 3)
    other = await asyncpg.connect(database.dsn)
    try:
        async with other.transaction():
            await other.execute(LOCKED)
            with pytest.raises(migrate.MigrationError, match="one_more cannot lock a table"):
                await migrate.migrate(database.dsn)
        assert await migrate.migrate(database.dsn) == [one_more]
    finally:
        await other.close()


@pytest.mark.parametrize("asks_again", [True, False], ids=["as it is", "control"])
async def test_it_asks_again_after_a_deadlock(
    database: Database, monkeypatch: pytest.MonkeyPatch, asks_again: bool
) -> None:
    """Somebody has the second of its tables, and wants the first one."""
    following = migrate.latest() + 1
    sql = "ALTER TABLE card ADD COLUMN told boolean; ALTER TABLE person ADD COLUMN told boolean"
    all_of_them = [*migrate.files(), (following, "two_more", sql)]
    monkeypatch.setattr(migrate, "files", lambda: all_of_them)
    monkeypatch.setattr(migrate, "_LOCK_REST_S", 0.0)
    monkeypatch.setattr(migrate, "_LOCK_WAIT", "1min")
    if not asks_again:
        monkeypatch.setattr(migrate, "_LOCKED", (asyncpg.LockNotAvailableError,))
    other = await asyncpg.connect(database.dsn, server_settings={"deadlock_timeout": "1min"})
    watch = await asyncpg.connect(database.dsn)
    try:
        async with other.transaction():
            await other.execute(LOCKED)
            migrating = asyncio.create_task(migrate.migrate(database.dsn))
            await eventually(lambda: waiting(watch), 20, "the migration waits")
            await other.execute("LOCK TABLE card IN SHARE MODE", timeout=20)
        if asks_again:
            assert await asyncio.wait_for(migrating, 30) == [f"{following:04} two_more"]
        else:
            with pytest.raises(asyncpg.DeadlockDetectedError):
                await asyncio.wait_for(migrating, 30)
    finally:
        await other.close()
        await watch.close()


@pytest.mark.parametrize("tries", [10_000, 1], ids=["as it is", "control"])
async def test_a_partition_is_made_when_who_has_locked_the_table_has_ended(
    database: Database, monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    monkeypatch.setattr(migrate, "_LOCK_WAIT", "20ms")
    monkeypatch.setattr(migrate, "_LOCK_REST_S", 0.0)
    monkeypatch.setattr(migrate, "_LOCK_TRIES", tries)
    mine, other = await asyncpg.connect(database.dsn), await asyncpg.connect(database.dsn)
    watch = await asyncpg.connect(database.dsn)
    try:
        partition = await watch.fetchval(
            "SELECT max(inhrelid::regclass::text) FROM pg_inherits WHERE inhparent = 'visit'::regclass"
        )
        await watch.execute(f"DROP TABLE {partition}")
        async with other.transaction():
            await other.execute("LOCK TABLE visit IN SHARE UPDATE EXCLUSIVE MODE")  # as VACUUM does
            making = asyncio.create_task(migrate.ensure_partitions(mine, dt.datetime.now(dt.UTC).date()))
            if tries == 1:
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await asyncio.wait_for(making, 20)
                return
            await eventually(lambda: waiting(watch, "visit"), 20, "it waits")
        await asyncio.wait_for(making, 20)
        assert await watch.fetchval("SELECT to_regclass($1) IS NOT NULL", partition)
    finally:
        for connection in (mine, other, watch):
            await connection.close()
