"""A correction whose commit is acknowledged to nobody is found, and is made once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import pytest

from gateway.flows.correct_points import NotCorrected, NotKnown, correct_once
from gateway.store.points import Transfer
from tests.conftest import Database
from tests.ledger import add_people, broken_rules, new_id, open_points

if TYPE_CHECKING:
    from gateway.store.pool import Connection


class Wire:
    """A relay to the database's socket that cuts one connection at its COMMIT: before it, or after its work."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._real = next(Path(parse_qs(urlsplit(dsn).query)["host"][0]).glob(".s.PGSQL.*[0-9]"))
        self.path = folder / self._real.name
        self.cuts, self.passes, self.dials_max = True, True, 2
        self.goes_on = asyncio.Event()
        """What is passed after the cut waits for it."""
        self.goes_on.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials_max -= 1
        if self.dials_max < 0:
            writer.transport.abort()
            return
        from_database, to_database = await asyncio.open_unix_connection(str(self._real))
        cut = False

        async def up() -> None:
            nonlocal cut
            while data := await reader.read(65536):
                if self.cuts and b"COMMIT" in data:
                    self.cuts, cut = False, True
                if cut and not self.passes:
                    break
                if cut and not self.goes_on.is_set():
                    writer.transport.abort()
                    await self.goes_on.wait()
                to_database.write(data)
                await to_database.drain()
            to_database.close()
            writer.transport.abort()

        async def down() -> None:
            while data := await from_database.read(65536):
                if cut:
                    break  # the database has done it, and says so
                writer.write(data)
                await writer.drain()
            writer.transport.abort()

        with contextlib.suppress(OSError):
            await asyncio.gather(up(), down())


@pytest.fixture
async def wire(database: Database, tmp_path: Path) -> AsyncIterator[Wire]:
    made = Wire(database.dsn, tmp_path)
    server = await asyncio.start_unix_server(made.serve, str(made.path))
    yield made
    server.close()


async def test_a_lost_acknowledgement_is_no_second_correction(database: Database, wire: Wire, tmp_path: Path) -> None:
    owner = await asyncpg.connect(database.dsn)
    people = await add_people(owner, 1)
    await open_points(owner, people, 100)
    (person,) = people.values()
    old = await owner.fetchval("SELECT transfer_id FROM points_transfer WHERE person_id = $1", person)

    elsewhere: list[str] = []
    """Of the connections after the first: a database that is not there."""

    async def dial() -> "Connection":
        name = elsewhere.pop() if elsewhere and not wire.cuts else None
        return await asyncpg.connect(database.dsn, host=str(tmp_path), database=name)

    async def balance() -> int:
        points: int = await owner.fetchval("SELECT balance FROM points_account WHERE account_id = $1", person)
        return points

    def once(amount: int, transfer_id: UUID | None = None) -> Awaitable[tuple[Transfer, bool]]:
        return correct_once(dial, transfer_id or new_id(), old, amount, "x", 24)

    made, was_there = await once(50)
    assert (made.points, was_there, await balance()) == (50, False, 150)

    wire.cuts, wire.dials_max, wire.passes = True, 2, False
    with pytest.raises(NotCorrected, match="lost"):
        await once(50)
    assert await balance() == 150

    for wire.dials_max in (9, 1):
        wire.cuts, wire.passes = True, True
        elsewhere = ["absent"]
        with pytest.raises(NotKnown) as caught:
            await once(-60)
    wire.dials_max, elsewhere = 9, []
    made, was_there = await once(-60, caught.value.transfer_id)
    assert (made.points, was_there, await balance()) == (-60, True, 30)
    for amount, note in ((-20, "x"), (-60, "y")):
        with pytest.raises(NotCorrected, match="another one"):
            await correct_once(dial, caught.value.transfer_id, old, amount, note, 24)
    assert await balance() == 30 and await broken_rules(owner) == {}

    wire.cuts = True
    wire.goes_on.clear()
    correcting = asyncio.ensure_future(once(5))
    while not await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        assert not correcting.done(), "it waits for who has sent the commit"
    wire.goes_on.set()
    made, was_there = await correcting
    assert (made.points, was_there, await balance()) == (5, False, 35)
    await owner.close()
