"""A database that may lose what it acknowledged, or has another schema: the gateway does not start, and says why."""

import asyncio
import hashlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gateway.store import embedded
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import files, latest, migrate
from tests.conftest import Database
from tests.faults.home import Figure, Home
from tests.faults.load import VERIFY
from tests.faults.planted import plant
from tests.registry import CARDS
from tests.running import Client, verify_body

START_S = 20.0
SET_LENGTH = "set log_parameter_max_length to 0 or log_statement to none"

Spoil = Callable[["asyncpg.Connection[asyncpg.Record]", str], Awaitable[object]]

SPOILT: dict[str, tuple[Spoil, str]] = {
    "synchronous_commit": (
        lambda owner, name: owner.execute(f"ALTER DATABASE {name} SET synchronous_commit = off"),
        "synchronous_commit = off, must be on",
    ),
    "log_statement": (
        lambda owner, name: owner.execute(
            f"ALTER DATABASE {name} SET log_statement = 'all'; ALTER DATABASE {name} SET log_parameter_max_length = -1"
        ),
        SET_LENGTH,
    ),
    "log_min_duration_statement": (
        lambda owner, name: owner.execute(
            f"ALTER DATABASE {name} SET log_min_duration_statement = 500;"
            f" ALTER DATABASE {name} SET log_parameter_max_length = 64"
        ),
        "log_min_duration_statement = 500ms: the server would log card indexes",
    ),
    "auto_explain": (
        lambda owner, name: owner.execute(
            f"ALTER DATABASE {name} SET session_preload_libraries = 'auto_explain';"
            f" LOAD 'auto_explain'; ALTER DATABASE {name} SET auto_explain.log_min_duration = 0"
        ),
        "auto_explain.log_min_duration = 0: the server would log card indexes; set it to -1",
    ),
    "newer schema": (
        lambda owner, _: owner.execute(
            "INSERT INTO schema_migration (version, name, checksum) VALUES ($1, 'later', '')", latest() + 1
        ),
        f"the database is newer than this gateway: migration {latest() + 1:04} is unknown",
    ),
    "changed migration": (
        lambda owner, _: owner.execute("UPDATE schema_migration SET checksum = '' WHERE version = 1"),
        "migration 0001 registry was changed after it had been applied",
    ),
}


async def spoil(database: Database, how: str) -> None:
    owner = await asyncpg.connect(database.dsn)
    try:
        await SPOILT[how][0](owner, database.name)
    finally:
        await owner.close()


async def refusal(home: Home) -> tuple[int, str]:
    """(exit code, last line of its log) of a gateway that is expected not to start."""
    process = await home.running.launch()
    assert process.stdout is not None
    async with asyncio.timeout(START_S):
        ready = await process.stdout.readline()
        if ready:
            return 0, ready.decode()
        code = await process.wait()
    return code, home.running.log.strip().split("\n")[-1]


@pytest.mark.parametrize("how", SPOILT)
async def test_an_unfit_database_is_refused(tenant: Home, database: Database, how: str, figure: Figure) -> None:
    await spoil(database, how)
    code, line = await refusal(tenant)
    assert code == 1
    assert line.startswith("cannot start: ") and SPOILT[how][1] in line, line
    figure(said=line)


async def test_control_a_gateway_that_takes_any_database_is_noticed(tenant: Home, database: Database) -> None:
    await spoil(database, "synchronous_commit")
    tenant.running.environment |= plant("no_assertion")
    code, line = await refusal(tenant)
    assert (code, line.split()[0]) == (0, "ready")


@pytest.fixture
def risky_postgres(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A server that does not wait for its disk."""
    for name, value in (("fsync", "off"), ("full_page_writes", "off"), ("data_sync_retry", "on")):
        monkeypatch.setitem(embedded._OPTIONS, name, value)
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    server.start()
    server.stop()
    checksums = server._command("pg_checksums", "--disable", "--no-sync", "-D", str(server._data))
    subprocess.run(checksums, check=True, capture_output=True)
    server.start()
    yield Database(server.dsn, "yikatong")
    server.stop()


async def test_a_server_without_fsync_is_refused(
    risky_postgres: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also without full page writes, with a second try of a failed fsync, without checksums; all are named."""
    home = Home(tmp_path_factory.mktemp("home"), risky_postgres, WORKERS="1")
    code, line = await refusal(home)
    await home.end()
    assert code == 1
    for wrong in ("fsync = off", "full_page_writes = off", "data_sync_retry = on", "data_checksums = off"):
        assert f"{wrong}, must be " in line


@pytest.mark.parametrize("command", ["serve-worker", "worker"])
async def test_a_process_of_its_own_refuses_an_older_schema(tenant: Home, database: Database, command: str) -> None:
    """`serve` brings the schema up to date first; a worker that meets an older one does not start on it."""
    owner = await asyncpg.connect(database.dsn)
    await owner.execute("DELETE FROM schema_migration WHERE version = $1", latest())
    await owner.close()
    tenant.running.arguments = (command,)
    tenant.running.environment |= {"PARENT_PID": str(os.getpid())}
    (tenant.data_dir / "run").mkdir()
    (tenant.data_dir / "run" / "quota").write_bytes(bytes(8 << 16))
    code, line = await refusal(tenant)
    assert code == 1
    assert f"schema version {latest() - 1}, must be {latest()}" in tenant.running.log
    assert "Traceback" not in tenant.running.log and "cannot start" in line, "a clear line, not a traceback"


@asynccontextmanager
async def settings_seen(dsn: str) -> AsyncIterator[Callable[[], Awaitable[set[str]]]]:
    """Records with every event whether its commit waits for the disk."""
    owner = await asyncpg.connect(dsn)
    await owner.execute(
        "CREATE TABLE seen (synchronous_commit text); GRANT INSERT ON seen TO yikatong_app;"
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;"
        "CREATE TRIGGER see AFTER INSERT ON usage_event FOR EACH STATEMENT EXECUTE FUNCTION see()"
    )

    async def seen() -> set[str]:
        return {row[0] for row in await owner.fetch("SELECT DISTINCT synchronous_commit FROM seen")}

    yield seen
    await owner.close()


async def written_after_spoiling(tenant: Home, database: Database) -> tuple[set[str], list[int]]:
    """Spoil the database of a running gateway, and end its connections.

    Returns the values of synchronous_commit that events were written with, and the statuses of the requests after.
    """
    card = CARDS[0]
    async with Client(tenant.running, "demo-merchant") as client, settings_seen(database.dsn) as seen:
        await client.verify(card.number, card.identifier)
        assert await seen() == {"on"}
        await spoil(database, "synchronous_commit")
        owner = await asyncpg.connect(database.dsn)
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'yikatong%'"
        )
        await owner.close()
        body = verify_body(card.number, card.identifier)
        answers = [(await client.post(VERIFY, body))[0] for _ in range(20)]
        return await seen(), answers


async def test_a_database_that_becomes_unfit_is_not_written_to(tenant: Home, database: Database) -> None:
    """The next connection asserts again: no event is committed without waiting for the disk."""
    await tenant.start()
    written, answers = await written_after_spoiling(tenant, database)
    assert written == {"on"}, f"events were committed without waiting for the disk; answers: {answers}"


async def test_control_a_gateway_that_never_asks_again_is_noticed(tenant: Home, database: Database) -> None:
    await tenant.start("no_assertion")
    assert "off" in (await written_after_spoiling(tenant, database))[0]


async def test_an_older_schema_is_brought_up_to_date(tenant: Home, database: Database) -> None:
    """A database of the version before: what is missing is applied, then the gateway serves."""
    owner = await asyncpg.connect(database.dsn)
    await owner.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC")
    await owner.execute(
        "CREATE TABLE schema_migration (version integer PRIMARY KEY, name text NOT NULL, checksum bytea NOT NULL,"
        " applied_at timestamptz NOT NULL DEFAULT now())"
    )
    for version, name, sql in files()[:-1]:
        await owner.execute(sql)
        await owner.execute(
            "INSERT INTO schema_migration VALUES ($1, $2, $3)", version, name, hashlib.sha256(sql.encode()).digest()
        )
    await owner.close()
    await tenant.start()
    assert await migrate(database.dsn) == []


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:s3cr3t#word@127.0.0.1/x", "mysql://u:s3cr3tword@h/x", "postgresql://u:s3cr3tword@[::1/x"]
)
async def test_a_dsn_that_is_none_is_refused_without_being_shown(tenant: Home, dsn: str) -> None:
    tenant.running.environment["DATABASE_URL"] = dsn
    code, line = await refusal(tenant)
    assert code == 1 and line.startswith("cannot start: the database: ")
    assert "s3cr3t" not in tenant.running.log and "word" not in tenant.running.log


async def test_a_default_verbosity_is_warned_of(tenant: Home, database: Database) -> None:
    """Default details of an error quote rows; what they hold is sealed or keyed, so this is no refusal."""
    owner = await asyncpg.connect(database.dsn)
    for name, value in (("log_error_verbosity", "default"), ("log_min_messages", "warning")):
        await owner.execute(f"ALTER DATABASE {database.name} SET {name} = '{value}'")
    await owner.close()
    await tenant.start()
    assert "set log_error_verbosity to terse" in tenant.running.log
