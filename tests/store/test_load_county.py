"""Loading the synthetic county: whole or not at all, and readable with the keys alone."""

import asyncio
import datetime as dt
import os
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import pytest

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_files import create_missing, open_folder
from gateway.crypto.key_store import KeyUse
from gateway.crypto.sealing import Sealer
from gateway.domain.cards import CardStatus
from gateway.flows.settle_payment import ACCOUNT_COLUMN
from gateway.flows.tell_bank import ID_NUMBER_COLUMN
from gateway.flows.verify_card import HOLDER_COLUMN, SealedHolder
from gateway.sandbox.county import COUNTY_REGION, County
from gateway.sandbox.load import (
    CARD_IDENTIFIER_COLUMN,
    CARD_NUMBER_COLUMN,
    NotASandboxError,
    OpenKeys,
    load_county,
    loaded,
    refresh_sources,
)
from gateway.store import data_keys
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from tests.conftest import Database

TODAY = dt.date(2026, 11, 23)
COUNTY = County(330424, 6001, TODAY)
"""Two steps of the loader."""
FACTS = (330424, 6001, TODAY)

SCHEMA = """
SELECT conrelid::regclass::text AS "table", conname AS name, pg_get_constraintdef(oid) AS definition
FROM pg_constraint WHERE conrelid = ANY('{person, card, ecard}'::regclass[])
UNION ALL
SELECT tablename, indexname, indexdef FROM pg_indexes WHERE tablename IN ('person', 'card', 'ecard')
ORDER BY 1, 2, 3
"""

LOAD_A_LARGE_COUNTY = """
import asyncio, datetime, functools, multiprocessing, pathlib, sys
from gateway.crypto.key_files import open_folder
from gateway.sandbox.county import County
from gateway.sandbox.load import load_county

def say_workers(_):
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)

county = County(1, 200_000, datetime.date(2026, 11, 23))
asyncio.run(load_county(sys.argv[1], functools.partial(open_folder, pathlib.Path(sys.argv[2])), county, say_workers))
"""


@pytest.fixture
def keys(tmp_path: Path) -> OpenKeys:
    create_missing(tmp_path / "keys")
    return partial(open_folder, tmp_path / "keys")


async def load(database: Database, keys: OpenKeys, county: County = COUNTY) -> list[int]:
    steps: list[int] = []
    await load_county(database.dsn, keys, county, steps.append, processes=1)
    return steps


async def query(database: Database, sql: str, *arguments: object) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(database.dsn)
    try:
        return await connection.fetch(sql, *arguments)
    finally:
        await connection.close()


async def counts(database: Database) -> tuple[int, int, int]:
    sql = "SELECT (SELECT count(*) FROM person), (SELECT count(*) FROM card), (SELECT count(*) FROM ecard)"
    person, card, ecard = (await query(database, sql))[0]
    return person, card, ecard


async def test_every_citizen_is_found_and_opened(database: Database, keys: OpenKeys) -> None:
    assert await loaded(database.dsn) is None
    assert sum(await load(database, keys)) == COUNTY.cards
    assert await loaded(database.dsn) == FACTS
    assert await counts(database) == (COUNTY.cards, COUNTY.cards, COUNTY.ecards)

    index, sealer = BlindIndex(keys().working_keys(KeyUse.INDEX)[-1]), Sealer()
    connection = await asyncpg.connect(database.dsn)
    sealer.add(await data_keys.load(connection), keys())
    rows = await connection.fetch(
        "SELECT * FROM card JOIN person USING (person_id) LEFT JOIN ecard USING (card_id) ORDER BY card_id"
    )
    await connection.close()
    for i in [*range(0, COUNTY.cards, 97), COUNTY.cards - 1]:
        citizen, row = COUNTY.citizen(i), rows[i]
        card_id, person_id = row["card_id"].bytes, row["person_id"].bytes
        assert (card_id, person_id) == (citizen.card_id, citizen.person_id)
        assert row["id_number_index"] == index.id_number(citizen.id_number)
        assert row["chip_index"] == index.chip(citizen.card_number, citizen.card_identifier)
        assert row["number_index"] == index.number(citizen.card_number)
        assert sealer.open(ID_NUMBER_COLUMN, person_id, row["id_number_sealed"]).decode() == citizen.id_number
        assert sealer.open(CARD_NUMBER_COLUMN, card_id, row["number_sealed"]).decode() == citizen.card_number
        identifier = sealer.open(CARD_IDENTIFIER_COLUMN, card_id, row["identifier_sealed"]).decode()
        assert identifier == citizen.card_identifier
        holder = msgspec.json.decode(sealer.open(HOLDER_COLUMN, card_id, row["holder_sealed"]), type=SealedHolder)
        assert holder == SealedHolder(citizen.name, citizen.birth_date)
        assert (row["birth_year"], row["town"]) == (citizen.birth_date.year, citizen.town)
        assert (row["generation"], row["status"], row["region"]) == (citizen.generation, citizen.status, citizen.region)
        assert (row["issued_on"], row["valid_until"]) == (citizen.issued_on, citizen.valid_until)
        assert (row["sign_level"], row["signed_on"]) == (citizen.ecard_level, citizen.ecard_signed_on)
        assert row["source_id"] == (1 if citizen.region == COUNTY_REGION else 2)
        assert row["status_as_of"].date() <= TODAY
        if citizen.status == CardStatus.NORMAL:
            account = sealer.open(ACCOUNT_COLUMN, card_id, row["account_sealed"]).decode()
            assert (row["bank"], account) == COUNTY.account(i)
        else:
            assert row["bank"] is None and row["account_sealed"] is None


async def test_the_schema_is_as_the_migrations_made_it(database: Database, keys: OpenKeys) -> None:
    before = await query(database, SCHEMA)
    await load(database, keys)
    assert await query(database, SCHEMA) == before
    assert len(before) > 15


async def test_a_county_that_is_there_stays(database: Database, keys: OpenKeys) -> None:
    await load(database, keys)
    assert await load(database, keys, County(9, 2000, TODAY)) == []
    assert await loaded(database.dsn) == FACTS


async def test_a_half_loaded_county_is_loaded_anew(database: Database, keys: OpenKeys) -> None:
    await load(database, keys)
    await query(database, "DELETE FROM sandbox_county")
    await query(database, "DELETE FROM ecard WHERE sign_level = 1")
    await query(database, "DELETE FROM card WHERE status = 9")
    await query(database, "INSERT INTO person VALUES (gen_random_uuid(), 'x', 'x', 2000, NULL)")
    assert await loaded(database.dsn) is None
    await load(database, keys)
    assert await loaded(database.dsn) == FACTS
    assert await counts(database) == (COUNTY.cards, COUNTY.cards, COUNTY.ecards)


async def test_a_load_that_fails_leaves_the_database_as_it_was(database: Database, keys: OpenKeys) -> None:
    schema = await query(database, SCHEMA)

    def fail(_: int) -> None:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await load_county(database.dsn, keys, COUNTY, fail, processes=1)
    assert await loaded(database.dsn) is None
    assert await counts(database) == (0, 0, 0)
    assert await query(database, SCHEMA) == schema
    await load(database, keys)
    assert await loaded(database.dsn) == FACTS


async def test_a_killed_load_leaves_no_process_and_no_rows(database: Database, keys: OpenKeys, tmp_path: Path) -> None:
    loading = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LOAD_A_LARGE_COUNTY, database.dsn, str(tmp_path / "keys"), stdout=asyncio.subprocess.PIPE
    )
    assert loading.stdout is not None
    workers = [int(pid) for pid in (await loading.stdout.readline()).split()]
    assert len(workers) == 2 and all(map(_runs, workers))
    loading.kill()
    await loading.wait()
    deadline = time.monotonic() + 5
    while any(map(_runs, workers)):
        assert time.monotonic() < deadline, "the workers outlive the load"
        await asyncio.sleep(0.05)
    assert await loaded(database.dsn) is None
    assert await counts(database) == (0, 0, 0)
    await load(database, keys)
    assert await loaded(database.dsn) == FACTS


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


async def test_a_registry_that_is_not_the_sandboxs_is_not_touched(database: Database, keys: OpenKeys) -> None:
    await query(database, "INSERT INTO registry_source VALUES (1, '海盐县持卡库', now())")
    await query(database, "INSERT INTO person VALUES ($1, 'x', 'x', 2000, NULL)", UUID(bytes=os.urandom(16)))
    with pytest.raises(NotASandboxError, match="海盐县持卡库"):
        await load(database, keys)
    assert await counts(database) == (1, 0, 0)


async def test_usage_events_outlive_a_reload(database: Database, keys: OpenKeys) -> None:
    await query(
        database,
        "INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, scene, terminal_id,"
        " reason) VALUES (gen_random_uuid(), 1, now(), now(), 'verify', 'demo-merchant', 'parking.exit', 'P-1', 'ok')",
    )
    await load(database, keys)
    assert len(await query(database, "SELECT FROM usage_event")) == 1


async def test_refreshed_sources_are_of_now(database: Database, keys: OpenKeys) -> None:
    await load(database, keys)
    await query(database, "UPDATE registry_source SET as_of = now() - interval '3 days'")
    await refresh_sources(database.dsn)
    rows = await query(database, "SELECT source_id, name, now() - as_of AS age FROM registry_source ORDER BY 1")
    assert [(row["source_id"], row["name"]) for row in rows] == [
        (1, "海盐县持卡库 (sandbox)"),
        (2, "长三角持卡库 (sandbox)"),
    ]
    assert max(row["age"] for row in rows) < dt.timedelta(minutes=1)


@pytest.fixture
async def owned(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Database]:
    """Migrated by its owner, who may make roles and no checkpoint."""
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute("CREATE ROLE county_owner LOGIN CREATEROLE")
    await admin.execute("GRANT yikatong_app TO county_owner")
    await admin.execute("CREATE DATABASE county OWNER county_owner")
    dsn = postgres.dsn.replace("///yikatong", "///county").replace("user=yikatong", "user=county_owner")
    try:
        await migrate(dsn)
        yield Database(dsn, "county")
    finally:
        await admin.execute("DROP DATABASE county WITH (FORCE)")
        await admin.execute("DROP ROLE county_owner")
        await admin.close()


async def checkpoint(database: Database) -> asyncpg.Record:
    (row,) = await query(database, "SELECT checkpoint_lsn FROM pg_control_checkpoint()")
    return row


async def test_a_load_ends_with_a_checkpoint(database: Database, keys: OpenKeys) -> None:
    before = await checkpoint(database)
    await load(database, keys)
    assert await checkpoint(database) != before


async def test_an_owner_who_may_make_no_checkpoint_loads_a_county_too(owned: Database, keys: OpenKeys) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await query(owned, "CHECKPOINT")
    await load(owned, keys)
    assert await loaded(owned.dsn) == FACTS
