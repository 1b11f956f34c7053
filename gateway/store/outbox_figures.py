"""The outward feed as operators see it: how far behind a subscriber is, its dead letters, and sending them again."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

LAG_COUNTED_MAX = 100_000
"""Events behind the cursor are counted up to here: the count must stay cheap when a subscriber is away."""


class Figures(NamedTuple):
    """Of one subscriber."""

    name: str
    lag_s: float
    """Age of the oldest event that is not acknowledged, held back or given up."""
    lag_events: int
    """At most LAG_COUNTED_MAX."""
    held: int
    dead: int
    """Given up and not sent again."""
    tries: int
    next_try_at: dt.datetime | None
    at_work: bool
    """Whether a process has it in hand."""


class DeadLetter(NamedTuple):
    event_id: UUID
    recorded_at: dt.datetime
    code: str | None
    tries: int
    dead_at: dt.datetime


async def figures(connection: "AnyConnection", names: Sequence[str] | None = None) -> list[Figures]:
    """Of these subscribers, or of all."""
    rows = await connection.fetch(
        """
        SELECT s.name,
          coalesce(extract(epoch FROM now() - (
            SELECT e.recorded_at FROM usage_event e WHERE (e.position, e.event_id) > (s.position, s.event_id)
            ORDER BY e.position, e.event_id LIMIT 1)), 0)::float8,
          (SELECT count(*) FROM (
            SELECT FROM usage_event e WHERE (e.position, e.event_id) > (s.position, s.event_id) LIMIT $2) AS behind),
          (SELECT count(*) FROM outbox_held h WHERE h.subscriber = s.name),
          (SELECT count(*) FROM outbox_dead_letter d WHERE d.subscriber = s.name AND replayed_at IS NULL),
          s.tries, s.next_try_at, s.leased_until > now()
        FROM outbox_subscriber s WHERE $1::text[] IS NULL OR s.name = ANY($1) ORDER BY s.name
        """,
        list(names) if names is not None else None, LAG_COUNTED_MAX,
    )  # fmt: skip
    return [Figures(*row) for row in rows]


async def dead_letters(
    connection: "AnyConnection", name: str, since: dt.datetime | None, until: dt.datetime | None, limit: int
) -> list[DeadLetter]:
    """Not sent again yet, by when their events were recorded: `since` <= recorded_at < `until`."""
    rows = await connection.fetch(
        "SELECT event_id, recorded_at, code, tries, dead_at FROM outbox_dead_letter WHERE subscriber = $1"
        " AND replayed_at IS NULL AND ($2::timestamptz IS NULL OR recorded_at >= $2)"
        " AND ($3::timestamptz IS NULL OR recorded_at < $3) ORDER BY recorded_at, event_id LIMIT $4",
        name, since, until, limit,
    )  # fmt: skip
    return [DeadLetter(*row) for row in rows]


async def count_dead(connection: "AnyConnection", name: str, since: dt.datetime, until: dt.datetime) -> int:
    """How many dead_letters() there are."""
    count: int = await connection.fetchval(
        "SELECT count(*) FROM outbox_dead_letter WHERE subscriber = $1 AND replayed_at IS NULL"
        " AND recorded_at >= $2 AND recorded_at < $3",
        name, since, until,
    )  # fmt: skip
    return count


async def replay(
    connection: "AnyConnection", name: str, since: dt.datetime, until: dt.datetime, now: dt.datetime, limit: int
) -> int:
    """Put dead letters back among what waits, in order, with all their tries; returns how many, `limit` at most.

    In one transaction of the caller's.
    """
    await connection.fetchval("SELECT 1 FROM outbox_subscriber WHERE name = $1 FOR NO KEY UPDATE", name)
    count: int = await connection.fetchval(
        "WITH chosen AS ("
        " SELECT subscriber, position, event_id, dead_at FROM outbox_dead_letter"
        "  WHERE subscriber = $1 AND replayed_at IS NULL AND recorded_at >= $2 AND recorded_at < $3"
        "  ORDER BY position, event_id LIMIT $5), taken AS ("
        " UPDATE outbox_dead_letter d SET replayed_at = $4 FROM chosen c"
        "  WHERE (d.subscriber, d.position, d.event_id, d.dead_at)"
        "      = (c.subscriber, c.position, c.event_id, c.dead_at) RETURNING d.*), put AS ("
        " INSERT INTO outbox_held"
        " (subscriber, position, event_id, recorded_at, card, tries, next_try_at, sent, replayed)"
        " SELECT subscriber, position, event_id, recorded_at, card, 0, $4, true, true FROM taken"
        " ON CONFLICT DO NOTHING)"
        " SELECT count(*) FROM taken",
        name, since, until, now, limit,
    )  # fmt: skip
    return count
