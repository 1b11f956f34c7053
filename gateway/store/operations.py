"""Operations with effects: recorded once, in the transaction that does them, and never changed."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_AROUND = dt.timedelta(hours=1)
_LATEST_MS = int(dt.datetime(9999, 1, 1, tzinfo=dt.UTC).timestamp()) * 1000


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
_INSERT = f"""
INSERT INTO operation ({_COLUMNS})
SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::uuid[], $5::uuid[], $6::text[], $7::text[], $8::smallint[],
                     $9::smallint[], $10::text[], $11::text[], $12::timestamptz[], $13::bytea[], $14::bytea[],
                     $15::text[], $16::bytea[])
"""  # noqa: S608 - the names of our own fields


async def record(connection: "AnyConnection", operations: Sequence[Operation]) -> None:
    """Inside the transaction of the effects."""
    await connection.execute(_INSERT, *(list(column) for column in zip(*operations, strict=True)))


def recorded_between(reference: UUID) -> tuple[dt.datetime, dt.datetime]:
    """Bounds of the time at which an operation was recorded, from the time inside its reference.

    A caller may have made the reference up: a time beyond the calendar is one at which nothing was recorded.
    """
    milliseconds = min(reference.int >> 80, _LATEST_MS)
    made = dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC)
    return made - _AROUND, made + _AROUND


async def find(connection: "AnyConnection", reference: UUID) -> Recorded | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS}, recorded_at FROM operation"  # noqa: S608 - the names of our own fields
        " WHERE reference = $1 AND recorded_at BETWEEN $2 AND $3",
        reference, *recorded_between(reference),
    )  # fmt: skip
    return None if row is None else Recorded(Operation(*tuple(row)[:-1]), row["recorded_at"])
