"""Anomalies, and how far the usage events were looked at for them."""

import datetime as dt
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.domain.anomalies import Anomaly
from gateway.store.usage_events import Cursor

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Row(NamedTuple):
    """An anomaly as it is shown."""

    anomaly_id: UUID
    at: dt.datetime
    rule: str
    caller: str | None
    outlet: str | None
    terminal_id: str | None
    card_id: UUID | None
    from_at: dt.datetime
    until_at: dt.datetime
    weight: int
    stands: bool
    restates: UUID | None
    event_ids: list[UUID]
    figures: dict[str, float]


class Watch(NamedTuple):
    """How far the events were looked at; `memory` None: nothing was looked at yet."""

    version: int
    cursor: Cursor
    memory: bytes | None


_COLUMNS = ", ".join(Row._fields)

_ADD = f"""
INSERT INTO anomaly ({_COLUMNS})
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
ON CONFLICT DO NOTHING
RETURNING anomaly_id
"""  # noqa: S608 - the names of our own fields

# an anomaly that was restated is shown by its last word: of one finding the weight only grows, until it does not stand,
# which ends it. The time does not tell: the events of a bulk were recorded at once
_SINCE = f"""
SELECT {_COLUMNS} FROM (
    SELECT DISTINCT ON (coalesce(restates, anomaly_id)) * FROM anomaly WHERE at >= $1
    ORDER BY coalesce(restates, anomaly_id), stands, weight DESC
) last
ORDER BY at DESC, anomaly_id DESC LIMIT $2
"""  # noqa: S608 - the names of our own fields

_FIRST_WATCH = """
INSERT INTO anomaly_watch (version, position, event_id)
SELECT 0, coalesce(min(position) - 1, 0), $2 FROM usage_event WHERE recorded_at > now() - $1::interval
ON CONFLICT DO NOTHING
"""


async def add(connection: "AnyConnection", anomaly: Anomaly) -> bool:
    """Whether it is new: after a restart the last events are looked at again."""
    subject = anomaly.subject
    return await connection.fetchval(
        _ADD, UUID(bytes=anomaly.anomaly_id), _time(anomaly.at_us), anomaly.rule, subject.caller, subject.outlet,
        subject.terminal_id, UUID(bytes=subject.card_id) if subject.card_id else None, _time(anomaly.from_us),
        _time(anomaly.until_us), anomaly.weight, anomaly.stands,
        UUID(bytes=anomaly.restates) if anomaly.restates else None,
        [UUID(bytes=event_id) for event_id in anomaly.event_ids], msgspec.json.encode(anomaly.figures).decode(),
    ) is not None  # fmt: skip


async def since(connection: "AnyConnection", moment: dt.datetime, limit: int) -> list[Row]:
    """The last `limit`, oldest first, each as it was stated last."""
    rows = await connection.fetch(_SINCE, moment, limit)
    return [Row(**dict(row) | {"figures": msgspec.json.decode(row["figures"])}) for row in reversed(rows)]


async def watch(connection: "AnyConnection", back: dt.timedelta) -> Watch:
    """Where to go on; the first time, so far back in what was recorded."""
    found = await connection.fetchrow("SELECT version, position, event_id, memory FROM anomaly_watch")
    if found is None:
        await connection.execute(_FIRST_WATCH, back, UUID(int=0))
        found = await connection.fetchrow("SELECT version, position, event_id, memory FROM anomaly_watch")
        assert found is not None
    return Watch(found[0], Cursor(found[1], found[2]), found[3])


async def keep(connection: "AnyConnection", version: int, cursor: Cursor, memory: bytes) -> bool:
    """False: somebody else has moved it since `version`."""
    moved = await connection.fetchval(
        "UPDATE anomaly_watch SET version = version + 1, position = $2, event_id = $3, memory = $4, kept_at = now()"
        " WHERE version = $1 RETURNING version",
        version, cursor.position, cursor.event_id, memory,
    )  # fmt: skip
    return moved is not None


def _time(unix_us: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(unix_us // 1_000_000, dt.UTC) + dt.timedelta(microseconds=unix_us % 1_000_000)
