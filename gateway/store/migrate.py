"""Migrations: numbered SQL files, each in a transaction of its own, under one advisory lock, with checksums kept.

Also what has to be there before the gateway may serve: the partitions of the coming months and the feed's origin.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path

import asyncpg

from gateway.domain.errors import CannotStart

_FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x79696B61  # "yika"
MONTHS_AHEAD = 3
PARTITIONED = (
    "usage_event", "operation", "payment", "payment_history", "points_transfer", "points_entry", "points_redemption",
    "benefit_claim", "loss_notice", "loss_notice_history", "anomaly", "outbox_dead_letter", "visit", "visit_history",
    "visit_payment",
)  # fmt: skip
_SELDOM_VACUUMED = "autovacuum_vacuum_insert_threshold = 10000000"
"""A vacuum for rows that were only added does nothing for who finds them by their keys. By default there is one each
time that a fifth has been added, and meanwhile a quarter fewer verifies are answered. Rows that were changed still call
for one. Migration 0022 made the partitions so that were there before."""


_LOCK_WAIT = "2s"
"""Whoever asks for the same table after us waits behind us: so we wait shortly, and ask again. Longer than PostgreSQL's
deadlock_timeout (1 s), at which it sees a deadlock, and an autovacuum gives way."""
_LOCK_TRIES = 30
_LOCK_REST_S = 1.0
_LOCKED = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)


class MigrationError(CannotStart):
    """The database's schema is not one this gateway can bring up to date."""


def files() -> list[tuple[int, str, str]]:
    """(version, name, SQL) of every migration, in order."""
    found = [(int(path.name[:4]), path.stem[5:], path.read_text()) for path in sorted(_FOLDER.glob("*.sql"))]
    assert [version for version, _, _ in found] == list(range(1, len(found) + 1)), "migrations are numbered 1, 2, 3 …"
    return found


def latest() -> int:
    return len(files())


async def migrate(dsn: str) -> list[str]:
    """Bring the schema up to date; returns what was applied. Raises MigrationError, asyncpg.PostgresError, OSError."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute("SELECT pg_advisory_lock($1)", _LOCK)
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migration (version integer PRIMARY KEY, name text NOT NULL,"
            " checksum bytea NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        done = {row["version"]: row["checksum"] for row in await connection.fetch("SELECT * FROM schema_migration")}
        applied = []
        for version, name, sql in files():
            if version not in done:
                await _apply(connection, version, name, sql)
                applied.append(f"{version:04} {name}")
            elif done[version] != _checksum(sql):
                raise MigrationError(f"migration {version:04} {name} was changed after it had been applied")
        if unknown := done.keys() - {version for version, _, _ in files()}:
            raise MigrationError(f"the database is newer than this gateway: migration {max(unknown):04} is unknown")
        await ensure_partitions(connection, datetime.now(UTC).date())
        await _fix_feed_origin(connection)
        return applied
    finally:
        await connection.close()


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", version: int, name: str, sql: str) -> None:
    """Raises MigrationError if others hold a lock that it needs for too long."""

    async def change() -> None:
        await connection.execute(sql)
        await connection.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES ($1, $2, $3)", version, name, _checksum(sql)
        )

    try:
        await _change_tables(connection, change)
    except _LOCKED:
        message = f"migration {version:04} {name} cannot lock a table: start again when who uses it has ended"
        raise MigrationError(message) from None


async def _change_tables(
    connection: "asyncpg.Connection[asyncpg.Record]", change: Callable[[], Awaitable[None]]
) -> None:
    """In one transaction; from the start again where others hold a lock. Raises what _LOCKED names if they keep it."""
    for left in reversed(range(_LOCK_TRIES)):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
                await change()
        except _LOCKED:
            if not left:
                raise
            await asyncio.sleep(_LOCK_REST_S)
        else:
            return


def _checksum(sql: str) -> bytes:
    return hashlib.sha256(sql.encode()).digest()


async def ensure_partitions(connection: "asyncpg.Connection[asyncpg.Record]", today: date) -> None:
    """The monthly partitions, last month to MONTHS_AHEAD: without one, nothing could be written.

    Raises asyncpg.PostgresError, also where others keep a table locked.
    """
    for table in PARTITIONED:
        for ahead in range(-1, MONTHS_AHEAD + 1):
            await _ensure_partition(connection, table, _month(today, ahead), _month(today, ahead + 1))


async def _ensure_partition(
    connection: "asyncpg.Connection[asyncpg.Record]", table: str, first: date, following: date
) -> None:
    name = f"{table}_{first:%Y%m}"
    if not await connection.fetchval("SELECT to_regclass($1) IS NULL", name):
        return

    async def change() -> None:
        await connection.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL) WITH ({_SELDOM_VACUUMED})")
        # attaching lets readers and writers of the parent go on; PARTITION OF would lock them out
        await connection.execute(
            f"ALTER TABLE {table} ATTACH PARTITION {name}"
            f" FOR VALUES FROM ('{first}T00:00:00Z') TO ('{following}T00:00:00Z')"
        )

    await _change_tables(connection, change)


def _month(day: date, ahead: int) -> date:
    months = day.year * 12 + day.month - 1 + ahead
    return date(months // 12, months % 12 + 1, 1)


async def _fix_feed_origin(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Positions must grow although a new cluster (after a logical restore) counts its transactions from the start."""
    async with connection.transaction():
        cluster = await connection.fetchval("SELECT system_identifier FROM pg_control_system()")
        if cluster != await connection.fetchval("SELECT system_identifier FROM feed_origin"):
            await connection.execute(
                "INSERT INTO feed_origin (system_identifier, xid_offset)"
                " SELECT $1, coalesce(max(position), 0) + 1 - pg_current_xact_id()::text::bigint FROM usage_event"
                " ON CONFLICT (only_row) DO UPDATE"
                " SET system_identifier = EXCLUDED.system_identifier, xid_offset = EXCLUDED.xid_offset",
                cluster,
            )
