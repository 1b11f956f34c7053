"""Loads the synthetic county into PostgreSQL, as an upstream registry would have filled it.

Workers compute and seal the citizens; one transaction takes everything, from the emptying of the tables to the marker.
So a load that was interrupted, even by kill -9, has left nothing behind, and the next start does it from the beginning.
"""

import asyncio
import datetime as dt
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec
from asyncpg.pgproto.pgproto import UUID

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.crypto.sealing import Sealer, SealingAlgorithm, WrappedDataKey, new_data_key
from gateway.domain.cards import CardStatus
from gateway.domain.errors import CannotStart
from gateway.domain.times import CHINA
from gateway.flows.settle_payment import ACCOUNT_COLUMN
from gateway.flows.tell_bank import ID_NUMBER_COLUMN
from gateway.flows.verify_card import HOLDER_COLUMN, SealedHolder
from gateway.processes import end_with_parent
from gateway.sandbox.county import COUNTY_REGION, County
from gateway.store import data_keys

if TYPE_CHECKING:
    from gateway.store.pool import Connection

CARD_NUMBER_COLUMN = b"card.number_sealed"
CARD_IDENTIFIER_COLUMN = b"card.identifier_sealed"

_COUNTY_SOURCE, _DELTA_SOURCE = 1, 2
_SOURCES = {_COUNTY_SOURCE: "海盐县持卡库 (sandbox)", _DELTA_SOURCE: "长三角持卡库 (sandbox)"}
_CHUNK = 5_000
_LOCK = 0x636E7479  # "cnty"
_CONNECT_S = 10

_PERSON = ("person_id", "id_number_index", "id_number_sealed", "birth_year", "town")
_CARD = (
    "card_id", "person_id", "chip_index", "number_index", "number_sealed", "identifier_sealed", "holder_sealed",
    "generation", "status", "status_as_of", "issued_on", "valid_until", "region", "source_id", "bank", "account_sealed",
)  # fmt: skip
_ECARD = ("card_id", "sign_level", "signed_on")

Row = tuple[Any, ...]
OpenKeys = Callable[[], KeyStore]
"""Picklable: each worker opens the key store itself."""


class _Rows(NamedTuple):
    """Some citizens as the tables take them."""

    person: list[Row]
    card: list[Row]
    ecard: list[Row]


class NotASandboxError(CannotStart):
    """The database holds a registry that is not the sandbox's; loading the county would destroy it."""


async def loaded(dsn: str) -> tuple[int, int, dt.date] | None:
    """(seed, cards, today) of the county in this database."""
    async with _connected(dsn) as connection:
        if await connection.fetchval("SELECT to_regclass('sandbox_county') IS NULL"):
            return None
        row = await connection.fetchrow("SELECT seed, cards, today FROM sandbox_county")
        return tuple(row) if row else None


async def refresh_sources(dsn: str) -> None:
    """Stand in for the upstream feed: every change up to now is known."""
    async with _connected(dsn) as connection:
        await connection.execute("UPDATE registry_source SET as_of = now() WHERE source_id = ANY($1)", list(_SOURCES))


async def load_county(
    dsn: str,
    open_keys: OpenKeys,
    county: County,
    on_progress: Callable[[int], None],
    processes: int = 2,
    algorithm: SealingAlgorithm = "SM4-GCM",
) -> None:
    """Load a county unless one is there; `on_progress` gets the number of cards of each step.

    `dsn` connects as the tables' owner. A load that fails leaves the database as it was. Raises NotASandboxError,
    KeyStoreError, SealError, asyncpg.PostgresError, OSError, and BrokenProcessPool if a worker was killed.
    """
    async with _connected(dsn) as connection:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            if not await _empty_registry(connection):
                return
            data_key = await _data_key(connection, open_keys(), county.today, algorithm)
            async with _indexed_at_the_end(connection):
                await _fill(connection, open_keys, data_key, county, on_progress, processes)
            await connection.execute(
                "INSERT INTO sandbox_county VALUES ($1, $2, $3, now())", county.seed, county.cards, county.today
            )
        # now, not by autovacuum in the first minutes of use
        await connection.execute("VACUUM (ANALYZE) person, card, ecard")
        # the load's own files of the log can be used again: making new ones stops commits for 15 ms and more each
        with suppress(asyncpg.InsufficientPrivilegeError):  # a server of somebody else's makes its own
            await connection.execute("CHECKPOINT")


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator["Connection"]:
    connection = await asyncpg.connect(dsn, timeout=_CONNECT_S)
    try:
        yield connection
    finally:
        await connection.close()


async def _empty_registry(connection: "Connection") -> bool:
    """Make the tables ready for a county; False if they hold one. Raises NotASandboxError."""
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS sandbox_county (seed bigint, cards integer, today date, loaded_at timestamptz)"
    )
    if await connection.fetchval("SELECT EXISTS (SELECT FROM sandbox_county)"):
        return False
    foreign = await connection.fetchval(
        "SELECT min(name) FROM registry_source WHERE name <> ALL($1)", list(_SOURCES.values())
    )
    if foreign is not None:
        raise NotASandboxError(f"the database holds cards of {foreign!r}: give the sandbox a database of its own")
    await connection.execute("TRUNCATE person, card, ecard CASCADE")
    await connection.executemany(
        "INSERT INTO registry_source (source_id, name, as_of) VALUES ($1, $2, now())"
        " ON CONFLICT (source_id) DO UPDATE SET name = EXCLUDED.name, as_of = now()",
        list(_SOURCES.items()),
    )
    return True


@asynccontextmanager
async def _indexed_at_the_end(connection: "Connection") -> AsyncIterator[None]:
    """Sort once instead of inserting at random places; primary keys stay, for their ids come in order.

    Being part of the load's transaction, it cannot leave the tables without their indexes.
    """
    constraints = await connection.fetch(
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE conrelid = ANY('{person, card, ecard}'::regclass[]) AND contype IN ('u', 'f') ORDER BY contype DESC"
    )
    indexes = await connection.fetch(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
        " WHERE indrelid = ANY('{person, card, ecard}'::regclass[])"
        " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid AND conrelid = indrelid)"
    )
    for table, name, _ in constraints:
        await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    for name, _ in indexes:
        await connection.execute(f"DROP INDEX {name}")
    yield
    for _, definition in indexes:
        await connection.execute(definition)
    for table, name, definition in constraints:  # foreign keys last: they read what the indexes find
        await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")


async def _data_key(
    connection: "Connection", keys: KeyStore, today: dt.date, algorithm: SealingAlgorithm
) -> WrappedDataKey:
    new = new_data_key(keys, algorithm)
    data_key_id = await data_keys.for_month(connection, "registry", today, new)
    data_key = next(key for key in await data_keys.load(connection) if key.data_key_id == data_key_id)
    Sealer().add([data_key], keys)  # a key that does not open says so here, not in a worker
    return data_key


async def _fill(
    connection: "Connection", open_keys: OpenKeys, data_key: WrappedDataKey, county: County,
    on_progress: Callable[[int], None], processes: int,
) -> None:  # fmt: skip
    """COPY the citizens in the order of their ids, while the workers make the next ones."""
    workers = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), _start_worker, (os.getpid(), open_keys, data_key, county)
    )
    try:
        steps = (range(start, min(start + _CHUNK, county.cards)) for start in range(0, county.cards, _CHUNK))
        ahead = deque(workers.submit(_make, step) for step in islice(steps, 2 * processes))
        while ahead:
            rows = await asyncio.wrap_future(ahead.popleft())
            ahead.extend(workers.submit(_make, step) for step in islice(steps, 1))
            await connection.copy_records_to_table("person", records=rows.person, columns=_PERSON)
            await connection.copy_records_to_table("card", records=rows.card, columns=_CARD)
            await connection.copy_records_to_table("ecard", records=rows.ecard, columns=_ECARD)
            on_progress(len(rows.card))
    finally:
        workers.shutdown(cancel_futures=True)


class _Maker:
    """Makes the rows of citizens, in a worker process."""

    def __init__(self, keys: KeyStore, data_key: WrappedDataKey, county: County) -> None:
        self._county = county
        self._index = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1])
        self._data_key_id = data_key.data_key_id
        self._sealer = Sealer()
        self._sealer.add([data_key], keys)

    def rows(self, citizens: range) -> _Rows:
        rows = _Rows([], [], [])
        for i in citizens:
            self._add(i, rows)
        return rows

    def _add(self, i: int, rows: _Rows) -> None:
        citizen = self._county.citizen(i)
        seal, key_id, index = self._sealer.seal, self._data_key_id, self._index
        person_id, card_id = citizen.person_id, citizen.card_id
        number, identifier = citizen.card_number, citizen.card_identifier
        person, card = UUID(person_id), UUID(card_id)
        rows.person.append((
            person,
            index.id_number(citizen.id_number),
            seal(key_id, ID_NUMBER_COLUMN, person_id, citizen.id_number.encode()),
            citizen.birth_date.year,
            citizen.town,
        ))  # fmt: skip
        account = self._county.account(i) if citizen.status == CardStatus.NORMAL else None
        holder = msgspec.json.encode(SealedHolder(citizen.name, citizen.birth_date))
        rows.card.append((
            card,
            person,
            index.chip(number, identifier),
            index.number(number),
            seal(key_id, CARD_NUMBER_COLUMN, card_id, number.encode()),
            seal(key_id, CARD_IDENTIFIER_COLUMN, card_id, identifier.encode()),
            seal(key_id, HOLDER_COLUMN, card_id, holder),
            citizen.generation,
            int(citizen.status),
            dt.datetime.combine(citizen.issued_on, dt.time(), CHINA),
            citizen.issued_on,
            citizen.valid_until,
            citizen.region,
            _COUNTY_SOURCE if citizen.region == COUNTY_REGION else _DELTA_SOURCE,
            account and account.bank,
            account and seal(key_id, ACCOUNT_COLUMN, card_id, account.number.encode()),
        ))  # fmt: skip
        if citizen.ecard_level is not None:
            rows.ecard.append((card, citizen.ecard_level, citizen.ecard_signed_on))


_maker: _Maker
"""Of this worker process."""


def _start_worker(parent_pid: int, open_keys: OpenKeys, data_key: WrappedDataKey, county: County) -> None:
    global _maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which ends us
    end_with_parent(parent_pid, signal.SIGKILL)
    _maker = _Maker(open_keys(), data_key, county)


def _make(citizens: range) -> _Rows:
    return _maker.rows(citizens)
