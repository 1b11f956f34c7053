"""Gateways that a test may kill, and a database that it may hold up."""

import asyncio
import contextlib
import re
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import asyncpg
import psutil

from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import Database, prepare_data_dir
from tests.faults.load import VERIFY, Load
from tests.faults.planted import plant
from tests.faults.waiting import gone, named, tree, until
from tests.registry import CARDS, add_cards
from tests.running import ROOT, Client, Running, verify_body

Figure = Callable[..., None]
"""Keeps what a test has measured, given as keywords."""


class Home:
    """A gateway in a data folder of its own, on its embedded database or on a given one."""

    def __init__(self, data_dir: Path, database: Database | None = None, **environment: str) -> None:
        self.data_dir = data_dir
        self.running = Running(data_dir, "serve", **environment)
        if database is not None:
            self.running.environment["DATABASE_URL"] = database.dsn
        self.dsn = database.dsn if database else EmbeddedPostgres(data_dir).dsn
        self._keys = prepare_data_dir(data_dir, self.running.port)
        self._database = database
        self._has_cards = False

    @property
    def postmaster(self) -> int:
        """The process id of the embedded PostgreSQL."""
        return int((self.data_dir / "postgres" / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def workers(self) -> list[psutil.Process]:
        """Those of its processes that serve requests."""
        return named(tree(self.running.pid), "serve-worker")

    async def start(self, bug: str | None = None) -> "Home":
        """With or without a planted bug."""
        self.running.environment.pop("PYTHONPATH", None)
        if bug is not None:
            self.running.environment |= plant(bug)
        if self._database is not None:
            await self._add_cards()
        await self.running.start()
        if self._database is None and not self._has_cards:
            await self._add_cards()
            await self._know_the_data_key()
        return self

    async def _add_cards(self) -> None:
        if not self._has_cards:
            await add_cards(self.dsn, self._keys)
            self._has_cards = True

    async def _know_the_data_key(self) -> None:
        """A worker learns of the cards' data key when it first meets it: before a fault, not during one."""
        body, in_a_row = verify_body(CARDS[0].number, CARDS[0].identifier, terminal_id="first"), 0
        async with (
            Client(self.running, "demo-merchant") as client,
            aiohttp.ClientSession(
                self.running.url, headers=await client.authorization(), connector=aiohttp.TCPConnector(force_close=True)
            ) as session,
        ):

            async def known_to_all() -> bool:
                nonlocal in_a_row  # each connection falls to one of the workers at random
                async with session.post(VERIFY, json=body) as answer:
                    in_a_row = in_a_row + 1 if answer.status == 200 else 0
                return in_a_row >= 20

            await until(known_to_all, 10, "the workers know the data key")

    @contextlib.asynccontextmanager
    async def load(self, prefix: str, connections: int = 32, seconds_max: float = 60.0) -> AsyncIterator[Load]:
        """A load of its own client, with a fresh token."""
        async with (
            Client(self.running, "demo-merchant") as client,
            Load(client, prefix, connections, seconds_max=seconds_max) as load,
        ):
            yield load

    async def ended(self, within_s: float) -> int:
        """Wait for the end of its supervisor; returns the exit code."""
        assert self.running.process is not None
        async with asyncio.timeout(within_s):
            return await self.running.process.wait()

    async def end(self) -> None:
        """Kill whatever a test has left running."""
        process = self.running.process
        if process is not None and process.returncode is None:
            processes = []
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                processes = tree(process.pid)
                process.kill()
            await process.wait()
            await gone(processes, 15)


def configured(home: Home, folder: Path, **values: int) -> Home:
    """With other numbers in its gateway.toml, by `table.key`."""
    configuration(folder, **values)
    home.running.environment["CONFIG_DIR"] = str(folder)
    return home


def configuration(folder: Path, **values: int | str) -> None:
    """A copy of the house's, with other numbers (or tables) in gateway.toml, by `table.key`."""
    shutil.copytree(ROOT / "config", folder)
    text = (folder / "gateway.toml").read_text()
    for name, value in values.items():
        table, key = name.split(".")
        text, found = re.subn(rf"(?ms)^(\[{table}\].*?^{key} = )([0-9_]+|{{}})", rf"\g<1>{value}", text, count=1)
        assert found == 1, f"no {name} in gateway.toml"
    (folder / "gateway.toml").write_text(text)


@contextlib.asynccontextmanager
async def locked(dsn: str, table: str) -> AsyncIterator[None]:
    """Nobody else reads or writes the table inside the block."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "SET deadlock_timeout = '1min'"
        )  # of two that wait for each other, the other one fails
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()
