"""Fixtures: a real PostgreSQL, a database for each test, a gateway in its own processes."""

import itertools
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import hypothesis
import psutil
import pytest

from gateway.crypto.key_files import create_missing, open_folder, write_private
from gateway.crypto.key_store import KeyStore
from gateway.domain.cards import CardStatus
from gateway.sandbox.callers import write_callers
from gateway.settings import load
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from tests.registry import CARDS, LOSABLE, TestCard, add_cards, new_card
from tests.running import Client, Running

_numbers = itertools.count()

# the same examples every time, and no deadline: a busy machine is no failure
hypothesis.settings.register_profile("house", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("house")


class Database(NamedTuple):
    """A migrated database of its own."""

    dsn: str
    name: str


_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 3 << 30
"""For one server: its log of writes may come to 2 GB (max_wal_size)."""


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """In memory if there is room: a database is hundreds of files, and most tests have one of their own.

    What is said of a disk, or of what is killed, is shown of a server on a disk (tests/faults: `home`).
    """
    folder, servers = tmp_path_factory.mktemp("pg"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if _MEMORY.is_dir() and _room() > servers * _ROOM_BYTES:
        for other in _MEMORY.glob("yikatong-tests-*"):  # whose tests were killed
            if not psutil.pid_exists(int(other.name.rpartition("-")[2])):
                shutil.rmtree(other, ignore_errors=True)
        folder = _MEMORY / f"yikatong-tests-{os.getpid()}"
        folder.mkdir()
    server = EmbeddedPostgres(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


def _room() -> int:
    """Bytes that files in memory may take."""
    return min(shutil.disk_usage(_MEMORY).total, psutil.virtual_memory().available)


@pytest.fixture(scope="session")
async def template(postgres: EmbeddedPostgres) -> str:
    """The name of a migrated database to copy."""
    await migrate(postgres.dsn)
    return "yikatong"


async def make_database(postgres: EmbeddedPostgres, template: str) -> Database:
    name = f"test_{os.getpid()}_{next(_numbers)}"
    admin = await asyncpg.connect(postgres.dsn.replace("///yikatong", "///postgres"))
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    await admin.close()
    return Database(postgres.dsn.replace("///yikatong", f"///{name}"), name)


async def drop_database(postgres: EmbeddedPostgres, database: Database) -> None:
    admin = await asyncpg.connect(postgres.dsn.replace("///yikatong", "///postgres"))
    await admin.execute(f"DROP DATABASE {database.name} WITH (FORCE)")
    await admin.close()


@pytest.fixture
async def database(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Database]:
    made = await make_database(postgres, template)
    yield made
    await drop_database(postgres, made)


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    create_missing(tmp_path / "keys")
    return open_folder(tmp_path / "keys")


def prepare_data_dir(data_dir: Path, port: int) -> KeyStore:
    """Keys and callers in a data folder, as the sandbox makes them."""
    settings = load({"DATA_DIR": str(data_dir), "PORT": str(port)})
    create_missing(settings.keys_dir)
    write_callers(settings)
    return open_folder(settings.keys_dir)


_LOT = """
[partners.lot]
name = "停车场(合成)"
adapter = "merchant_signed_http"
operations = ["open_barrier", "parking_fee", "query_status"]
http = { base_url = "http://127.0.0.1:1" }
merchant = { caller = "demo-merchant", terminals = ["P-*"] }
keys = { sign = { kind = "hmac-sm3", file = "lot.key" }, partner = { kind = "hmac-sm3", file = "lot.key" } }
[partners.lot.dialect]
party = "yikatong"
done = "0"
declines = { "4" = "not_found" }
paths = { open_barrier = "/open", parking_fee = "/fee", query_status = "/state" }
"""
"""A parking lot that is always away."""


def lot(data_dir: Path) -> str:
    """Its block of partners.toml; its key is written."""
    data_dir.mkdir(parents=True, exist_ok=True)
    write_private(data_dir / "lot.key", "00112233445566778899aabbccddeeff\n")
    return _LOT


async def start_gateway(data_dir: Path, database: Database, **environment: str) -> Running:
    """A gateway on a database that holds the test cards, with a parking lot that it does not reach."""
    if "CONFIG_DIR" not in environment:
        (partners := data_dir / "partners.toml").write_text(lot(data_dir))
        environment["PARTNERS_FILE"] = str(partners)
    running = Running(data_dir, "serve", DATABASE_URL=database.dsn, **environment)
    await add_cards(database.dsn, prepare_data_dir(data_dir, running.port), (*CARDS, LOSABLE))
    return await running.start()


async def add_card(gateway: Running, status: CardStatus = CardStatus.NORMAL, **more: Any) -> TestCard:
    """A card of its own for one test, in the registry of a running gateway."""
    card = new_card(status, **more)
    await add_cards(gateway.environment["DATABASE_URL"], open_folder(gateway.data_dir / "keys"), (card,))
    return card


@pytest.fixture(scope="session")
async def gateway(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """One gateway of two workers for all tests that only call it."""
    made = await make_database(postgres, template)
    running = await start_gateway(tmp_path_factory.mktemp("gateway"), made, WORKERS="2")
    yield running
    await running.stop()
    await drop_database(postgres, made)


@pytest.fixture(scope="session")
async def merchant(gateway: Running) -> AsyncIterator[Client]:
    async with Client(gateway, "demo-merchant") as client:
        yield client


@pytest.fixture(scope="session")
async def bureau(gateway: Running) -> AsyncIterator[Client]:
    async with Client(gateway, "demo-bureau") as client:
        yield client


@pytest.fixture(scope="session")
async def kiosk(gateway: Running) -> AsyncIterator[Client]:
    async with Client(gateway, "demo-kiosk") as client:
        yield client


@pytest.fixture(scope="session")
async def bank(gateway: Running) -> AsyncIterator[Client]:
    async with Client(gateway, "demo-bank") as client:
        yield client
