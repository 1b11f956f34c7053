"""The outward feed: each subscriber's cursor into the usage events, what waits aside for it, what was given up."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.store.usage_events import HORIZON, Cursor, Row

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_EVENT = ", ".join(f"e.{name}" for name in Row._fields)

_STANDING = (
    "SELECT position, event_id, sent_position, sent_event_id, sequence, tries, next_try_at, asides, aside_at"
    " FROM outbox_subscriber WHERE name = $1 AND holder = $2 AND leased_until > now()"
)
_STANDING_LOCKED = f"{_STANDING} FOR NO KEY UPDATE"

_OLD = (
    "dead_at < now() - make_interval(days => $1) AND coalesce(replayed_at, dead_at) < now() - make_interval(days => $1)"
)

# the age is asked twice: newer partitions are not read, and a letter that is sent again in this moment stays
_SWEEP = f"""
DELETE FROM outbox_dead_letter
WHERE (subscriber, position, event_id, dead_at) IN (
    SELECT subscriber, position, event_id, dead_at FROM outbox_dead_letter WHERE {_OLD} ORDER BY dead_at LIMIT $2)
  AND {_OLD}
RETURNING true
"""  # noqa: S608 - a constant

_WOKEN_AGAIN = dt.timedelta(minutes=30)
_AHEAD_MAX = 20_000
"""So far ahead another event is looked for: past the largest bulk."""

# The first of its card, so that it overtakes none. What surely was not sent comes before, what has least in common with
# $4, $5 before the rest, and the next before what is behind, because all up to it counts as sent from then on: of these
# the one after $10 others, or the last. Where all was sent, each turn another. The limit comes by a sub-selection for
# the reason a page's cursor does (usage_events.py): else all that is behind would be sorted.
_ANOTHER = f"""
WITH ahead AS (
    SELECT position, event_id, recorded_at, caller, scene, coalesce(card_id, event_id) AS card FROM usage_event
    WHERE (position, event_id) > ((SELECT $2::bigint), (SELECT $3::uuid)) AND position < {HORIZON}
    ORDER BY position, event_id LIMIT (SELECT {_AHEAD_MAX})
), firsts AS (
    SELECT DISTINCT ON (card) * FROM ahead ORDER BY card, position, event_id
), free AS (
    SELECT *, (position, event_id) <= ($8, $9) AS sent FROM firsts
    WHERE card <> $6 AND NOT EXISTS (SELECT FROM outbox_held h WHERE h.subscriber = $1 AND h.card = firsts.card)
), chosen AS (
    SELECT position, event_id, recorded_at FROM free
    ORDER BY sent, CASE WHEN sent THEN hashtextextended(event_id::text, $7)
        ELSE (caller = $4)::int + (scene = $5)::int END, position, event_id
    OFFSET (SELECT least($10::int, greatest(count(*) - 1, 0)) FROM free WHERE NOT sent) LIMIT 1
)
SELECT {_EVENT} FROM chosen JOIN usage_event e USING (position, event_id, recorded_at)
"""  # noqa: S608 - a constant


class LeaseLost(Exception):
    """Another process is at this subscriber now, or may be."""


class Standing(NamedTuple):
    """Where a subscriber is."""

    cursor: Cursor
    sent: Cursor
    sequence: int
    tries: int
    """Of the first event after the cursor, by itself."""
    next_try_at: dt.datetime | None
    asides: int
    """Events set aside for want of an answer since it last took one as new, but those that another one has shown to be
    at fault; nor does that other one count."""
    aside_at: dt.datetime | None
    """The last of them."""


class Held(NamedTuple):
    """An event that waits aside."""

    position: int
    event_id: UUID
    recorded_at: dt.datetime
    card: UUID
    code: str | None
    tries: int
    next_try_at: dt.datetime | None
    sent: bool


class Due(NamedTuple):
    """... whose turn it is."""

    row: Row
    tries: int
    sent: bool
    replayed: bool
    regular_at: dt.datetime | None
    """Its turn would have come then: it was woken, and this try counts for nothing."""


class Failed(NamedTuple):
    """A held event after another try that came to nothing; `next_try_at` None: given up."""

    position: int
    event_id: UUID
    code: str | None
    tries: int
    next_try_at: dt.datetime | None


def card_of(row: Row) -> UUID:
    """By what events are in order; an event without a card is alone."""
    return row.card_id or row.event_id


async def subscribe(connection: "AnyConnection", name: str) -> None:
    """A new subscriber begins with the first event there is."""
    await connection.execute("INSERT INTO outbox_subscriber (name) VALUES ($1) ON CONFLICT DO NOTHING", name)


async def take_lease(connection: "AnyConnection", name: str, holder: UUID, lease_s: float) -> bool:
    """Take it, or keep it: whether it is ours for the next `lease_s` seconds."""
    return await connection.fetchval(
        "UPDATE outbox_subscriber SET holder = $2, leased_until = now() + make_interval(secs => $3)"
        " WHERE name = $1 AND (holder = $2 OR leased_until < now()) RETURNING true",
        name, holder, lease_s,
    ) is not None  # fmt: skip


async def end_lease(connection: "AnyConnection", name: str, holder: UUID) -> None:
    await connection.execute(
        "UPDATE outbox_subscriber SET leased_until = '-infinity' WHERE name = $1 AND holder = $2", name, holder
    )


async def standing(connection: "AnyConnection", name: str, holder: UUID, lock: bool = True) -> Standing:
    """Locked until the transaction ends, so that all who write for a subscriber take turns. Raises LeaseLost.

    Only to look, it need not be locked: an idle subscriber costs no write.
    """
    row = await connection.fetchrow(_STANDING_LOCKED if lock else _STANDING, name, holder)
    if row is None:
        raise LeaseLost
    return Standing(Cursor(row[0], row[1]), Cursor(row[2], row[3]), *row[4:])


async def sending(connection: "AnyConnection", name: str, through: Cursor, batches: int) -> None:
    """Note, before they leave, that events up to `through` may arrive, and use up sequence numbers."""
    await connection.execute(
        "UPDATE outbox_subscriber SET sent_position = $2, sent_event_id = $3, sequence = sequence + $4 WHERE name = $1",
        name, *through, batches,
    )  # fmt: skip


async def acknowledged(connection: "AnyConnection", name: str, through: Cursor) -> None:
    await connection.execute(
        "UPDATE outbox_subscriber SET position = $2, event_id = $3, tries = 0, next_try_at = NULL WHERE name = $1",
        name, *through,
    )  # fmt: skip


async def failed(connection: "AnyConnection", name: str, tries: int, next_try_at: dt.datetime) -> None:
    """The first event after the cursor, sent by itself, came to nothing."""
    await connection.execute(
        "UPDATE outbox_subscriber SET tries = $2, next_try_at = $3 WHERE name = $1", name, tries, next_try_at
    )


async def set_aside(connection: "AnyConnection", name: str, now: dt.datetime) -> None:
    """For want of an answer; until it answers, another process is to know of it too."""
    await connection.execute(
        "UPDATE outbox_subscriber SET asides = asides + 1, aside_at = $2 WHERE name = $1", name, now
    )


async def answered(connection: "AnyConnection", name: str, ended: bool) -> None:
    """It takes events as new. If that has `ended` an outage, the first one of the feed has not to wait any longer."""
    await connection.execute(
        "UPDATE outbox_subscriber SET asides = 0, next_try_at = CASE WHEN NOT $2 THEN next_try_at END WHERE name = $1",
        name, ended,
    )  # fmt: skip


async def another(connection: "AnyConnection", name: str, first: Row, standing: Standing, in_vain: int) -> Row | None:
    """An event further ahead that may go before its turn: of another card than `first`, and the first of that card.

    One that surely was not sent if there is one, and of those of another caller and scene; the next, or after so many
    `in_vain` one twice as far: what is bad stands together.
    """
    row = await connection.fetchrow(
        _ANOTHER, name, first.position, first.event_id, first.caller, first.scene, card_of(first), standing.sequence,
        *standing.sent, min(2**in_vain, _AHEAD_MAX) - 1,
    )  # fmt: skip
    return Row(*row) if row is not None else None


async def count_held(connection: "AnyConnection", name: str) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM outbox_held WHERE subscriber = $1", name)
    return count


async def cards_held(connection: "AnyConnection", name: str, cards: Collection[UUID]) -> set[UUID]:
    """Those of the cards of which an event waits aside: the later ones wait behind it."""
    rows = await connection.fetch(
        "SELECT DISTINCT card FROM outbox_held WHERE subscriber = $1 AND card = ANY($2)", name, list(cards)
    )
    return {row[0] for row in rows}


async def hold(connection: "AnyConnection", name: str, events: Sequence[Held], now: dt.datetime) -> None:
    if events:
        await connection.execute(
            "INSERT INTO outbox_held"
            " (subscriber, position, event_id, recorded_at, card, code, tries, next_try_at, sent)"
            " SELECT $1, * FROM unnest($2::bigint[], $3::uuid[], $4::timestamptz[], $5::uuid[], $6::text[],"
            "  $7::smallint[], $8::timestamptz[], $9::boolean[])",
            name, *_columns(events, Held),
        )  # fmt: skip
        await _promote(connection, name, {event.card for event in events}, now)


async def due(connection: "AnyConnection", name: str, now: dt.datetime, limit: int) -> list[Due]:
    """First events of their cards whose time has come; they are noted as sent."""
    rows = await connection.fetch(
        f"""
        WITH chosen AS (
            SELECT * FROM outbox_held h
            WHERE subscriber = $1 AND next_try_at <= $2 AND NOT EXISTS (
                SELECT FROM outbox_held before
                WHERE before.subscriber = $1 AND before.card = h.card
                  AND (before.position, before.event_id) < (h.position, h.event_id))
            ORDER BY next_try_at LIMIT $3
        ), noted AS (
            UPDATE outbox_held h SET sent = true FROM chosen
            WHERE h.subscriber = $1 AND h.position = chosen.position AND h.event_id = chosen.event_id
        )
        SELECT {_EVENT}, chosen.tries, chosen.sent, chosen.replayed,
               CASE WHEN chosen.regular_at > chosen.next_try_at THEN chosen.regular_at END
        FROM chosen JOIN usage_event e USING (position, event_id, recorded_at)
        ORDER BY e.position, e.event_id
        """,  # noqa: S608 - names of columns
        name, now, limit,
    )  # fmt: skip
    return [Due(Row(*row[:-4]), *row[-4:]) for row in rows]


async def settle(
    connection: "AnyConnection", name: str, delivered: Sequence[Row], failures: Sequence[Failed], now: dt.datetime
) -> int:
    """Held events after a try; returns how many were given up. What waited behind those that went is due."""
    cards = {row[0] for row in await connection.fetch(
        "DELETE FROM outbox_held USING unnest($2::bigint[], $3::uuid[]) AS done (position, event_id)"
        " WHERE subscriber = $1 AND outbox_held.position = done.position AND outbox_held.event_id = done.event_id"
        " RETURNING card",
        name, [row.position for row in delivered], [row.event_id for row in delivered],
    )}  # fmt: skip
    await connection.execute(
        "UPDATE outbox_held h SET code = f.code, tries = f.tries, next_try_at = f.next_try_at, regular_at = NULL"
        " FROM unnest($2::bigint[], $3::uuid[], $4::text[], $5::smallint[], $6::timestamptz[])"
        " AS f (position, event_id, code, tries, next_try_at)"
        " WHERE h.subscriber = $1 AND h.position = f.position AND h.event_id = f.event_id",
        name, *_columns(failures, Failed),
    )  # fmt: skip
    dead = [failure for failure in failures if failure.next_try_at is None]
    rows = await connection.fetch(
        "WITH dead AS ("
        " DELETE FROM outbox_held USING unnest($2::bigint[], $3::uuid[]) AS d (position, event_id)"
        "  WHERE subscriber = $1 AND outbox_held.position = d.position AND outbox_held.event_id = d.event_id"
        "  RETURNING outbox_held.*)"
        " INSERT INTO outbox_dead_letter"
        " (subscriber, position, event_id, recorded_at, card, code, tries, dead_at)"
        " SELECT subscriber, position, event_id, recorded_at, card, code, tries, $4 FROM dead RETURNING card",
        name, [failure.position for failure in dead], [failure.event_id for failure in dead], now,
    )  # fmt: skip
    await _promote(connection, name, cards | {row[0] for row in rows}, now)
    return len(rows)


async def wake(connection: "AnyConnection", name: str, now: dt.datetime) -> None:
    """It answers again: what only lacked an answer is due at once, or so long after it was last woken for nothing.

    Otherwise each of many that are never answered would wake all the others, whenever the feed has come past it.
    """
    await connection.execute(
        "UPDATE outbox_held SET regular_at = greatest(regular_at, next_try_at),"  # greatest() passes over NULL
        " next_try_at = greatest($2, woken_at + $3), woken_at = greatest($2, woken_at + $3)"
        " WHERE subscriber = $1 AND next_try_at > greatest($2, woken_at + $3) AND code IS NULL",
        name, now, _WOKEN_AGAIN,
    )  # fmt: skip


async def sweep_dead_letters(connection: "AnyConnection", limit: int, days: int) -> int:
    """Delete up to `limit` that were given up, and perhaps sent again, longer ago; returns how many.

    What is on its way again is a row of its own, outbox_held.
    """
    return len(await connection.fetch(_SWEEP, days, limit))


async def _promote(connection: "AnyConnection", name: str, cards: Collection[UUID], now: dt.datetime) -> None:
    """The first event of each card gets its turn, if it has none yet."""
    if cards:
        await connection.execute(
            "UPDATE outbox_held h SET next_try_at = $3 FROM ("
            " SELECT DISTINCT ON (card) position, event_id FROM outbox_held"
            "  WHERE subscriber = $1 AND card = ANY($2) ORDER BY card, position, event_id) AS first"
            " WHERE h.subscriber = $1 AND h.position = first.position AND h.event_id = first.event_id"
            " AND h.next_try_at IS NULL",
            name, list(cards), now,
        )  # fmt: skip


def _columns(rows: Sequence[NamedTuple], kind: type[NamedTuple]) -> list[list[object]]:
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in kind._fields]
