"""Operations with effects: recorded once, in the transaction that does them, and never changed."""

import datetime as dt
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.ids import uuid7_unix_ms
from gateway.store import idempotency
from gateway.store.pool import Place

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_AROUND = dt.timedelta(hours=1)


class Operation(NamedTuple):
    """A row; recorded_at is the time of its transaction."""

    reference: UUID
    kind: str
    caller: str
    card_id: UUID | None = None
    parent: UUID | None = None
    result: str = ""
    reason: str | None = None
    card_status_before: int | None = None
    card_status_after: int | None = None
    key_id: str | None = None
    algorithm: str | None = None
    signed_at: dt.datetime | None = None
    base_digest: bytes | None = None
    signature: bytes | None = None
    public_jwk: str | None = None
    proof_sealed: bytes | None = None


class Recorded(NamedTuple):
    operation: Operation
    recorded_at: dt.datetime


_COLUMNS = ", ".join(Operation._fields)
_RECORD = f"""
WITH recorded AS (
    INSERT INTO operation ({_COLUMNS})
    SELECT * FROM unnest($3::uuid[], $4::text[], $5::text[], $6::uuid[], $7::uuid[], $8::text[], $9::text[],
                         $10::smallint[], $11::smallint[], $12::text[], $13::text[], $14::timestamptz[],
                         $15::bytea[], $16::bytea[], $17::text[], $18::bytea[])
)
{idempotency.KEEP_AT_ONCE}
"""  # noqa: S608 - the names of our own fields


async def record(connection: "AnyConnection", operations: Sequence[Operation], answers: Mapping[Place, bytes]) -> None:
    """Record operations and keep the sealed answers with their keys, inside the transaction that has claimed them.

    One statement: its way to the database and back costs as much as what it carries.
    """
    columns = zip(*operations, strict=True) if operations else repeat((), len(Operation._fields))
    # a column that nobody fills is NULL as a whole, which is cheaper: unnest() fills it up
    given = (None if column.count(None) == len(column) else column for column in columns)
    done = await connection.execute(_RECORD, list(answers), list(answers.values()), *given)
    assert done == f"UPDATE {len(answers)}", "a key that was claimed stays in its place"


def recorded_between(reference: UUID) -> tuple[dt.datetime, dt.datetime]:
    """Bounds of the time at which an operation was recorded, from the time inside its reference.

    A caller may have made the reference up: a time beyond the calendar is one at which nothing was recorded.
    """
    made = dt.datetime.fromtimestamp(uuid7_unix_ms(reference) / 1000, dt.UTC)
    return made - _AROUND, made + _AROUND


async def undone_at(connection: "AnyConnection", reference: UUID, kind: str, result: str) -> dt.datetime | None:
    """When an operation of this kind first undid it with this result; None: it stands."""
    time: dt.datetime | None = await connection.fetchval(
        "SELECT min(recorded_at) FROM operation WHERE parent = $1 AND kind = $2 AND result = $3",
        reference,
        kind,
        result,
    )
    return time


async def find(connection: "AnyConnection", reference: UUID) -> Recorded | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, recorded_at FROM operation"  # noqa: S608 - the names of our own fields
        " WHERE reference = $1 AND recorded_at BETWEEN $2 AND $3",
        reference, *recorded_between(reference),
    )  # fmt: skip
    return None if row is None else Recorded(Operation(*tuple(row)[:-1]), row["recorded_at"])
