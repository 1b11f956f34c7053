"""Usage events: the feed in commit order without gaps.

An event's position is the number of its transaction. A transaction that is still running may yet commit with a lower
position than one that is done; so a page stops below the oldest running one, and a kept cursor never skips an event.
"""

import datetime as dt
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Cursor(NamedTuple):
    """The last event that a reader has seen."""

    position: int
    event_id: UUID


class Row(NamedTuple):
    position: int
    event_id: UUID
    recorded_at: dt.datetime
    occurred_at: dt.datetime
    kind: str
    caller: str
    card_id: UUID | None
    medium: str | None
    region: str | None
    scene: str
    terminal_id: str
    reason: str | None
    result: str | None
    amount_fen: int | None
    discount_fen: int | None
    reversal_of: str | None
    caller_event_id: str | None


HORIZON = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint + (SELECT xid_offset FROM feed_origin)"
"""SQL: all below this position is there."""

# The cursor comes by sub-selects, so that the planner does not look it up in its statistics: they end before the newest
# events, so it would expect next to none behind the cursor, read all there are for each page, and sort them.
_PAGE = f"""
SELECT {", ".join(Row._fields)}
FROM usage_event
WHERE (position, event_id) > ((SELECT $1::bigint), (SELECT $2::uuid)) AND position < {HORIZON}
ORDER BY position, event_id
LIMIT $3
"""  # noqa: S608 - a constant

# the first by the feed's own index: the oldest of them would be looked for among all events of the day
_LAG = f"""
SELECT coalesce(extract(epoch FROM now() - (
    SELECT recorded_at FROM usage_event
    WHERE position >= {HORIZON} AND recorded_at > now() - interval '1 day'
    ORDER BY position, event_id LIMIT 1
)), 0)::float8
"""  # noqa: S608 - a constant


async def page(connection: "AnyConnection", after: Cursor, limit: int) -> list[Row]:
    """Up to `limit` events after a cursor, in the feed's order."""
    rows = await connection.fetch(_PAGE, after.position, after.event_id, limit)
    return [Row(*row) for row in rows]


async def is_ahead(connection: "AnyConnection", cursor: Cursor) -> bool:
    """Whether a cursor is of a transaction that has not begun yet: no reader of this database has seen that."""
    ahead: bool = await connection.fetchval(
        "SELECT $1 >= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + (SELECT xid_offset FROM feed_origin)",
        cursor.position,
    )
    return ahead


async def feed_lag_s(connection: "AnyConnection") -> float:
    """Age of the first event that a long-running transaction keeps out of the feed."""
    lag: float = await connection.fetchval(_LAG)
    return lag
