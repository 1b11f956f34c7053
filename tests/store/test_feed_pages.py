"""A page of the feed costs what a page costs, however many events are behind it."""

import json
from typing import Any
from uuid import UUID

import asyncpg

from gateway.store import usage_events
from tests.conftest import Database

EVENTS = 20_000
PAGE = 100

_FILL = """
INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, scene, terminal_id, reason)
SELECT gen_random_uuid(), $1 + n, now(), now(), 'verify', 'demo-merchant', 'market.till', 'T', 'ok'
FROM generate_series(1, $2::integer) n
"""


def read(node: dict[str, Any]) -> float:
    """Rows that the scans of a plan have brought up."""
    below = node.get("Plans", [])
    return node["Actual Rows"] * node["Actual Loops"] if not below else sum(map(read, below))


async def rows_read(dsn: str, statement: str) -> float:
    """For the first page behind a cursor near the beginning, with statistics from before most events."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(_FILL, -(10**9), EVENTS // 10)
        await connection.execute("ANALYZE usage_event")
        await connection.execute(_FILL, -(10**9) + EVENTS, EVENTS)
        cursor = (-(10**9) + EVENTS, UUID(int=0))
        # in an own plan for these values, as asyncpg's first executions have it
        (text,) = await connection.fetchrow(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *cursor, PAGE) or ("",)
        return read(json.loads(text)[0]["Plan"])
    finally:
        await connection.close()


async def test_a_page_reads_a_page(database: Database) -> None:
    assert PAGE <= await rows_read(database.dsn, usage_events._PAGE) < 3 * PAGE


async def test_control_by_its_statistics_it_reads_everything(database: Database) -> None:
    plain = usage_events._PAGE.replace("((SELECT $1::bigint), (SELECT $2::uuid))", "($1, $2)")
    assert plain != usage_events._PAGE
    assert await rows_read(database.dsn, plain) > EVENTS / 2
