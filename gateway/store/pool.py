"""Connections to PostgreSQL: as the application's role, its settings asserted, never waited for without a limit."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from gateway.configuration import Database
from gateway.domain.errors import CannotStart, unavailable
from gateway.domain.masking import Secret
from gateway.store import discretion
from gateway.store.migrate import latest

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
    PooledConnection = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    AnyConnection = Connection | PooledConnection

Place = tuple[int, int]
"""Where a row of a table without partitions is (`ctid`). One that this transaction has inserted or locked stays there
until it changes it itself, or ends: to find it so costs less than to find it by its key once more."""

APP_ROLE = "yikatong_app"
"""Has no UPDATE or DELETE on events; the role that owns the tables is used by migrations alone."""

_REQUIRED = {
    "fsync": ("on",),
    "full_page_writes": ("on",),
    "synchronous_commit": ("on", "remote_apply"),
    "data_sync_retry": ("off",),  # a failed fsync is not tried again: what it was for may be gone
    "data_checksums": ("on",),
}

GONE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # no server of a multi-host DSN is writable, during a failover
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, crashed, starting, statement cancelled
    asyncpg.InsufficientResourcesError,  # disk full, memory, too many connections
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidAuthorizationSpecificationError,
)
"""What connecting or a statement raises when the database is away, full or too slow: answered with 503."""


class UnfitDatabase(CannotStart):
    """The database's settings or schema would break a promise; the gateway refuses to start on it."""


async def assert_durable(connection: "AnyConnection") -> None:
    """Refuse a database that may lose what it acknowledged, or whose log tells of cards. Raises UnfitDatabase."""
    values = await discretion.shown(connection, [*_REQUIRED, *discretion.NAMES])
    wrong = [
        f"{name} = {values[name]}, must be {' or '.join(allowed)}"
        for name, allowed in _REQUIRED.items()
        if values[name] not in allowed
    ]
    if wrong := wrong + discretion.indiscretions(values):
        raise UnfitDatabase("; ".join(wrong))


async def assert_fit(connection: "AnyConnection") -> None:
    """Durable, and of the schema that this version knows: asked at the start. Raises UnfitDatabase."""
    await assert_durable(connection)
    version = await connection.fetchval("SELECT max(version) FROM schema_migration")
    if version != latest():
        raise UnfitDatabase(f"schema version {version}, must be {latest()}: run `python -m gateway migrate`")


FOR_RETURNS = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_mergejoin": "off"}
"""Of connections that look rows up by their keys, thousands at once: those in memory are joined by hashing. A plan made
while a table was empty would read all of it later, until its statistics are taken; and a bitmap of one key's rows reads
them through PostgreSQL 18's I/O workers: a bulk took three times as long."""

FOR_EFFECTS = FOR_RETURNS | {"enable_hashjoin": "off", "plan_cache_mode": "force_generic_plan"}
"""... of those that look up few, with statements prepared once (verifies, effects, outcomes, benefits, e-cards):
PostgreSQL would plan anew for every small batch, which takes longer (250 us for a verify) than it hopes to gain."""


async def connect(
    dsn: Secret[str], settings: Database, name: str, more: Mapping[str, str] | None = None
) -> "Connection":
    """One connection as the application's role, to a durable database, with `more` session settings."""
    connection: Connection = await asyncpg.connect(
        dsn.reveal(), timeout=settings.acquire_timeout_ms / 1000, **_options(settings, name, more)
    )
    try:
        await assert_durable(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


def _options(settings: Database, name: str, more: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "command_timeout": settings.statement_timeout_ms / 1000,
        "server_settings": {
            "role": APP_ROLE,
            "application_name": name,
            "timezone": "UTC",
            "statement_timeout": str(settings.statement_timeout_ms),
            "idle_in_transaction_session_timeout": str(settings.statement_timeout_ms),
            "jit": "off",
            **(more or {}),
            **discretion.OF_A_SESSION,
        },
    }


@contextmanager
def cut_off(connection: "AnyConnection", after_s: float) -> Iterator[None]:
    """Past it the connection is given up, and with it the transaction; TimeoutError is raised.

    To cancel a statement, or to roll back, would need a database that answers.
    """
    expired = False

    def give_up() -> None:
        nonlocal expired
        expired = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(after_s, give_up)
    try:
        yield
    except (*GONE, AttributeError) as error:
        # it says that the connection has ended, which was us; AttributeError, if the driver had its answer in the same
        # moment: it goes on to its protocol, which terminate() has taken away
        if expired:
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()


class Pool:
    """A bounded pool that gives up after the configured time instead of queueing its callers."""

    def __init__(self, dsn: Secret[str], settings: Database, name: str) -> None:
        self._dsn = dsn
        self._settings = settings
        self._name = name
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def open(self) -> None:
        """Connect and check the database. Raises UnfitDatabase, or one of GONE."""
        self._pool = await asyncpg.create_pool(
            self._dsn.reveal(),
            min_size=1,
            max_size=self._settings.pool_size,
            timeout=5,
            init=assert_durable,  # each new connection: what was fit at the start may have been changed
            **_options(self._settings, self._name),
        )
        async with self._pool.acquire() as connection:
            await assert_fit(connection)

    async def close(self) -> None:
        if self._pool is not None:
            try:
                await asyncio.wait_for(self._pool.close(), 2)
            except TimeoutError:
                self._pool.terminate()

    @property
    def free(self) -> int:
        """Connections that could be had at once."""
        assert self._pool is not None
        return self._pool.get_idle_size() + self._pool.get_max_size() - self._pool.get_size()

    @asynccontextmanager
    async def acquire(self, limit_s: float = 0.7) -> AsyncIterator["PooledConnection"]:
        """A connection within the configured wait, for at most `limit_s`; Problem 503 if the database fails us."""
        assert self._pool is not None
        try:
            async with self._pool.acquire(timeout=self._settings.acquire_timeout_ms / 1000) as connection:
                with cut_off(connection, limit_s):
                    yield connection
        except (*GONE, UnfitDatabase) as error:
            raise unavailable("the database is not available") from error
