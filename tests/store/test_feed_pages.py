"""A page of the feed costs what a page costs, however many events are behind it."""

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import asyncpg

from gateway.store import usage_events
from tests.conftest import Database

EVENTS = 20_000
PAGE = 100

_FILL = """
INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, scene, terminal_id, reason)
SELECT gen_random_uuid(), $1::bigint + n, now(), now(), 'verify', 'demo-merchant', 'market.till', 'T', 'ok'
FROM generate_series(1, $2::integer) n
"""


def read(node: dict[str, Any]) -> float:
    """Rows that the scans of a plan have looked at, whether they were any good or not."""
    if below := node.get("Plans", []):
        return sum(map(read, below))
    in_vain = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + in_vain) * node["Actual Loops"])


async def rows_read(
    dsn: str, statement: str, *arguments: object, first: int = -(10**9), settings: Mapping[str, str] | None = None
) -> float:
    """With statistics from before most events."""
    connection = await asyncpg.connect(dsn, server_settings=dict(settings or {}))
    try:
        await connection.execute(_FILL, first, EVENTS // 10)
        await connection.execute("ANALYZE usage_event")
        await connection.execute(_FILL, first + EVENTS, EVENTS)
        # in an own plan for these values, as asyncpg's first executions have it
        (text,) = await connection.fetchrow(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", *arguments) or ("",)
        return read(json.loads(text)[0]["Plan"])
    finally:
        await connection.close()


BEGINNING = (-(10**9) + EVENTS, UUID(int=0), PAGE)


async def test_a_page_reads_a_page(database: Database) -> None:
    assert PAGE <= await rows_read(database.dsn, usage_events._PAGE, *BEGINNING) < 3 * PAGE


async def test_control_by_its_statistics_it_reads_everything(database: Database) -> None:
    plain = usage_events._PAGE.replace("((SELECT $1::bigint), (SELECT $2::uuid))", "($1, $2)")
    assert plain != usage_events._PAGE
    assert await rows_read(database.dsn, plain, *BEGINNING) > EVENTS / 2


async def test_the_lag_reads_next_to_nothing(database: Database) -> None:
    assert await rows_read(database.dsn, usage_events._LAG) < PAGE  # nothing is held back
    assert await rows_read(database.dsn, usage_events._LAG, first=10**12) < PAGE  # all that is new is


async def test_control_without_an_index_rows_are_looked_at_in_vain(database: Database) -> None:
    """None of them leaves its scan."""
    off = dict.fromkeys(("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan"), "off")
    assert await rows_read(database.dsn, usage_events._LAG, settings=off) > EVENTS


async def test_control_the_oldest_is_looked_for_among_all(database: Database) -> None:
    oldest = """
    SELECT coalesce(extract(epoch FROM now() - min(recorded_at)), 0)::float8 FROM usage_event
    WHERE position >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint + (SELECT xid_offset FROM feed_origin)
      AND recorded_at > now() - interval '1 day'
    """
    assert await rows_read(database.dsn, oldest, first=10**12) > EVENTS / 2
