"""A verify finds its card by the index, also with a plan that was made while there were no cards."""

import datetime as dt
import json
import os
from collections.abc import Mapping
from uuid import uuid4

import asyncpg
import pytest

from gateway.store import verify
from gateway.store.pool import FOR_EFFECTS
from tests.conftest import Database
from tests.ledger import add_people
from tests.store.test_feed_pages import read

CARDS = 3000
STATEMENTS = (verify._SQL, verify._SQL_WITH_REFS, verify._SQL_WITH_CODES)


async def rows_read(dsn: str, statement: str, settings: Mapping[str, str]) -> float:
    """Of one verify, by a plan from before the cards; there are no statistics of them yet."""
    connection = await asyncpg.connect(dsn, server_settings={"jit": "off", **settings})
    try:
        await connection.execute("ALTER TABLE card SET (autovacuum_enabled = off)")
        now_us = str(int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000))
        told = [str(uuid4()), os.urandom(32).hex(), "demo-merchant", "parking.exit", "P-1", now_us, "14"]
        more = [uuid4().hex, "", "", os.urandom(32).hex()]  # for the lines that are no comments in this variant
        given = ", ".join(f"'{text}'" for text in [*told, verify._REASON_BY_STATUS, "1 day", *more])
        types = ", ".join(["text"] * 8 + ["interval"] + ["text"] * len(more))
        await connection.execute(f"PREPARE looked_up ({types}) AS {statement}")
        await connection.execute(f"EXPLAIN EXECUTE looked_up ({given})")
        await add_people(connection, CARDS)
        text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE looked_up ({given})")
        return read(json.loads(text)[0]["Plan"])
    finally:
        await connection.close()


@pytest.mark.parametrize("statement", STATEMENTS, ids=["chips", "refs", "codes"])
async def test_one_card_is_read(database: Database, statement: str) -> None:
    assert await rows_read(database.dsn, statement, FOR_EFFECTS) < 30


async def test_control_by_its_estimates_all_are_read(database: Database) -> None:
    plain = {"plan_cache_mode": FOR_EFFECTS["plan_cache_mode"]}
    assert await rows_read(database.dsn, verify._SQL, plain) >= CARDS
