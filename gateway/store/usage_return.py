"""Returned usage: what a chunk of lines meets in the database, its rows, and the sums over all of it.

Rows are written by COPY, a third of what INSERT costs (loadtests/README.md). Two transactions that use the same id at
once are told apart by the unique key: the second one fails as a whole and is tried again, when it sees the first.
"""

import datetime as dt
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import msgspec

from gateway.domain.usage import Original
from gateway.threads import breathing

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_LOOK = (Path(__file__).parent / "usage_return.sql").read_text()
_SEPARATOR = "\x1f"
_CARD_WIDTH = 80
_NOBODY = "-" * 79

COLLIDED = (asyncpg.UniqueViolationError, asyncpg.DeadlockDetectedError)
"""Another transaction was at the same ids or uses: nothing was written, and trying again finds what it wrote."""

_EVENT_COLUMNS = (
    "event_id", "position", "recorded_at", "occurred_at", "kind", "caller", "card_id", "medium", "region", "scene",
    "terminal_id", "amount_fen", "discount_fen", "result", "reversal_of", "caller_event_id",
)  # fmt: skip


class Key(NamedTuple):
    """By what a line is looked up, as text: its id, and one of the others in hex."""

    id: str
    chip_index: str
    card_id: str


class Known(msgspec.Struct, frozen=True, gc=False):
    """What the database knows of a line. `card_id` is empty for a card that is not there."""

    card_id: str
    person_id: str
    generation: str
    region: str
    id_is_used: bool


class Place(NamedTuple):
    """Where the events of this transaction stand in the feed."""

    position: int
    recorded_at: dt.datetime


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """A row of usage_event and one of usage_return. No text of it has a control character; `occurred_at` is in UTC."""

    event_id: str
    occurred_at: str
    card_id: str
    medium: str
    region: str
    scene: str
    terminal_id: str
    amount_fen: int | None
    discount_fen: int | None
    result: str
    reversal_of: str | None
    id: str


class Used(NamedTuple):
    """What an id was used for."""

    card_id: str
    scene: str
    terminal_id: str
    occurred_at: dt.datetime
    amount_fen: int | None
    discount_fen: int | None
    result: str
    reversal_of: str | None


class Sums(NamedTuple):
    """Of one scene, of the uses that occurred in a time."""

    scene: str
    uses: int
    amount_fen: int
    discount_fen: int
    cards: int


async def look(connection: "AnyConnection", caller: str, keys: Sequence[Key]) -> tuple[Place, list[Known]]:
    """What is known of some lines, in their order. One statement, inside the transaction that records them."""
    ids, chips, cards = map(_SEPARATOR.join, zip(*keys, strict=True))
    row = await connection.fetchrow(_LOOK, caller, ids, chips, cards)
    assert row is not None and len(row["found"]) == _CARD_WIDTH * len(keys), "one answer for each line"
    found: str = row["found"]
    known = []
    for at in range(0, len(found), _CARD_WIDTH):
        used = found[at + 79] == "k"
        if found.startswith(_NOBODY, at):
            known.append(Known("", "", "", "", used))
        else:
            card, person, region = found[at : at + 36], found[at + 36 : at + 72], found[at + 73 : at + 79]
            known.append(Known(card, person, found[at + 72], region, used))
    return Place(row["position"], row["recorded_at"]), known


async def originals(connection: "AnyConnection", caller: str, ids: Sequence[str]) -> dict[str, tuple[str, Original]]:
    """(event_id, what is known) of uses by the caller's ids; those that are not there are left out."""
    rows = await connection.fetch(
        "SELECT r.id, e.event_id::text, e.card_id::text, e.amount_fen, e.result, e.reversal_of IS NOT NULL,"
        " EXISTS (SELECT FROM usage_reversal v WHERE v.original = e.event_id)"
        " FROM unnest($2::text[]) AS asked(id) JOIN usage_return r ON r.caller = $1 AND r.id = asked.id"
        " JOIN usage_event e ON e.position = r.position AND e.event_id = r.event_id AND e.recorded_at = r.recorded_at",
        caller, ids,
    )  # fmt: skip
    return {row[0]: (row[1], Original(*tuple(row)[2:])) for row in rows}


async def used(connection: "AnyConnection", caller: str, ids: Sequence[str]) -> dict[str, Used]:
    """What some ids were used for."""
    rows = await connection.fetch(
        "SELECT r.id, e.card_id::text, e.scene, e.terminal_id, e.occurred_at, e.amount_fen, e.discount_fen, e.result,"
        " e.reversal_of"
        " FROM unnest($2::text[]) AS asked(id) JOIN usage_return r ON r.caller = $1 AND r.id = asked.id"
        " JOIN usage_event e ON e.position = r.position AND e.event_id = r.event_id AND e.recorded_at = r.recorded_at",
        caller, ids,
    )  # fmt: skip
    return {row[0]: Used(*tuple(row)[1:]) for row in rows}


class Rows(NamedTuple):
    """Rows as COPY takes them."""

    ids: bytes
    events: bytes


def rows_of(caller: str, place: Place, events: Sequence[NewEvent]) -> Rows:
    """Pure, and worth a thread for thousands of events.

    Ids are in one order, so that two transactions that use the same ones do not wait for each other crosswise.
    """
    at, moment = str(place.position), place.recorded_at.isoformat()
    ids = [
        f"{caller}\t{_escaped(event.id)}\t{event.event_id}\t{at}\t{moment}\n"
        for event in breathing(sorted(events, key=_id_of))
    ]
    rows = [
        f"{event.event_id}\t{at}\t{moment}\t{event.occurred_at}\tusage\t{caller}\t{event.card_id}\t{event.medium}"
        f"\t{event.region}\t{event.scene}\t{_escaped(event.terminal_id)}\t{_nullable(event.amount_fen)}"
        f"\t{_nullable(event.discount_fen)}\t{event.result}"
        f"\t{_NULL if event.reversal_of is None else _escaped(event.reversal_of)}\t{_escaped(event.id)}\n"
        for event in breathing(events)
    ]
    return Rows("".join(ids).encode(), "".join(rows).encode())


async def record(connection: "AnyConnection", rows: Rows) -> None:
    """Take the ids and write the events. Raises one of COLLIDED: then nothing of the transaction stands."""
    await _copy(connection, "usage_return", rows.ids, ("caller", "id", "event_id", "position", "recorded_at"))
    await _copy(connection, "usage_event", rows.events, _EVENT_COLUMNS)


async def record_reversals(connection: "AnyConnection", pairs: Sequence[tuple[str, str]]) -> None:
    """(use, reversal), both events. Raises one of COLLIDED."""
    rows = "".join(f"{original}\t{reversal}\n" for original, reversal in sorted(pairs))
    await _copy(connection, "usage_reversal", rows.encode(), ("original", "reversal"))


async def _copy(connection: "AnyConnection", table: str, rows: bytes, columns: Sequence[str]) -> None:
    await connection.copy_to_table(table, source=io.BytesIO(rows), columns=columns)


_NULL = "\\N"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\") if "\\" in text else text


def _nullable(number: int | None) -> str:
    return _NULL if number is None else str(number)


def _id_of(event: NewEvent) -> str:
    return event.id


_SUMS = """
SELECT scene, count(*), coalesce(sum(amount_fen), 0)::bigint, coalesce(sum(discount_fen), 0)::bigint,
       count(DISTINCT card_id)
FROM usage_event AS use
WHERE kind = 'usage' AND result = 'success' AND reversal_of IS NULL AND occurred_at >= $1 AND occurred_at < $2
  -- a use is recorded after it occurred (clocks differ by 5 minutes at most): older partitions are not read
  AND recorded_at >= $1 - interval '10 minutes'
  AND NOT EXISTS (SELECT FROM usage_reversal WHERE original = use.event_id)
GROUP BY scene
ORDER BY scene
"""


async def usage_sums(
    connection: "AnyConnection", since: dt.datetime, until: dt.datetime
) -> tuple[dt.datetime, list[Sums]]:
    """(as_of, sums by scene) of the returned uses that occurred from `since` to before `until`.

    Reversed pairs are left out, both sides, and so is what failed (domain.md §8 [G]). Data that come later and later
    reversals change it: whoever keeps a figure keeps its as_of.
    """
    as_of: dt.datetime = await connection.fetchval("SELECT now()")
    rows = await connection.fetch(_SUMS, since, until)
    return as_of, [Sums(*row) for row in rows]
