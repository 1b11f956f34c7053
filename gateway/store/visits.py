"""Visits: inserted with the card's use, moved from state to state by guarded updates, taken up when they are due."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.scenes import VisitKind
from gateway.domain.visits import VisitState
from gateway.store.payments import created_at

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Visit(NamedTuple):
    """A row. `created_at` is the time inside the reference."""

    reference: UUID
    created_at: dt.datetime
    kind: VisitKind
    caller: str
    idempotency_key: str
    """Whose answer may be owed."""
    terminal_id: str
    partner: str
    card_id: UUID | None
    state: VisitState
    reason: str | None = None
    benefits: str = ""
    """With blanks between."""
    rate_percent: int | None = None
    fee_fen: int | None = None
    discount_fen: int | None = None
    payment: UUID | None = None
    opening: UUID | None = None
    """The operation that opened it, when it was paid."""
    details_sealed: bytes | None = None
    tries: int = 0
    expires_at: dt.datetime | None = None

    @property
    def amount_fen(self) -> int:
        """What is left to pay."""
        return (self.fee_fen or 0) - (self.discount_fen or 0)

    def stands_at(self, time: dt.datetime) -> bool:
        return self.expires_at is not None and time < self.expires_at


class Step(NamedTuple):
    """A line of a visit's history."""

    at: dt.datetime
    state: str


class Unknown(NamedTuple):
    """One of which nobody knows what the merchant did."""

    reference: UUID
    kind: str
    caller: str
    partner: str
    state: str
    tries: int
    created_at: dt.datetime


_COLUMNS = ", ".join(Visit._fields)
_V_COLUMNS = ", ".join(f"v.{name}" for name in Visit._fields)

_INSERT = f"""
INSERT INTO visit ({_COLUMNS}, next_try_at)
SELECT *, CASE WHEN state <> 'refused' THEN now() + $20::interval END
FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[],
            $9::text[], $10::text[], $11::text[], $12::smallint[], $13::bigint[], $14::bigint[], $15::uuid[],
            $16::uuid[], $17::bytea[], $18::integer[], $19::timestamptz[])
     AS asked({_COLUMNS})
"""  # noqa: S608 - the names of our own fields

# who moves it says everything that may change; of two who try, the second finds it elsewhere. What was due, was opened
# and is due anew has another time: whoever read it before does not end it. By what the lot knows the car is erased by
# the database, with the step that ends the visit
_MOVE = """
UPDATE visit SET state = $4, idempotency_key = $5, reason = $6, benefits = $7, fee_fen = $8, discount_fen = $9,
       payment = $10, opening = $11, details_sealed = $12, expires_at = $13, next_try_at = now() + $14::interval
WHERE reference = $1 AND created_at = $2 AND state = ANY($3) AND ($15::uuid IS NULL OR opening = $15)
  AND ($4 <> 'expired' OR expires_at = $13) RETURNING true
"""

_DUE = f"""
WITH taken AS (
    SELECT reference, created_at FROM visit WHERE next_try_at <= now()
    ORDER BY next_try_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE visit v SET next_try_at = now() + $2::interval, tries = tries + 1 FROM taken
WHERE v.reference = taken.reference AND v.created_at = taken.created_at RETURNING {_V_COLUMNS}
"""  # noqa: S608 - the names of our own fields

_LOCK = f"""
SELECT {_V_COLUMNS} FROM visit v
JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[])) AS asked(reference, created_at, caller)
    ON v.reference = asked.reference AND v.created_at = asked.created_at AND v.caller = asked.caller
ORDER BY v.reference FOR UPDATE OF v
"""  # noqa: S608 - the names of our own fields

_UNKNOWN = """
FROM visit WHERE state = 'unknown' AND created_at > now() - interval '1 day' AND reference >= (
    lpad(to_hex((extract(epoch FROM now() - interval '1 day') * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
"""
"""Of the last day; by the key, too, which begins with the time: there is no index of times alone."""


async def insert(connection: "AnyConnection", visits: Sequence[Visit], lease: dt.timedelta) -> None:
    """Inside the transaction that claims their keys. What is not refused is the resolver's when the lease is over."""
    await connection.execute(_INSERT, *(list(column) for column in zip(*visits, strict=True)), lease)


async def move(
    connection: "AnyConnection", visit: Visit, before: Collection[VisitState], again_in: dt.timedelta | None,
    opening: UUID | None = None,
) -> bool:  # fmt: skip
    """Bring it to what `visit` says, if it stands in one of `before`; whether this was the one that moved it.

    `opening`: only if it is at this one. What was due again may be at another.
    """
    done = await connection.fetchval(
        _MOVE, visit.reference, visit.created_at, list(before), visit.state, visit.idempotency_key, visit.reason,
        visit.benefits, visit.fee_fen, visit.discount_fen, visit.payment, visit.opening, visit.details_sealed,
        visit.expires_at, again_in, opening,
    )  # fmt: skip
    return done is not None


async def find(connection: "AnyConnection", reference: UUID) -> Visit | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM visit WHERE reference = $1 AND created_at = $2",  # noqa: S608 - our own fields
        reference, created_at(reference),
    )  # fmt: skip
    return None if row is None else _visit(row)


async def lock(connection: "AnyConnection", references: Sequence[UUID], callers: Sequence[str]) -> dict[UUID, Visit]:
    """The visits of these callers, locked in one order; what is not theirs, or no visit, is absent."""
    times = [created_at(reference) for reference in references]
    return {row["reference"]: _visit(row) for row in await connection.fetch(_LOCK, references, times, callers)}


async def take_payments(connection: "AnyConnection", wanted: Sequence[tuple[UUID, UUID]]) -> set[tuple[UUID, UUID]]:
    """Give payments to visits, each once for ever; returns which of (payment, visit) have each other."""
    payments, visits = [payment for payment, _ in wanted], [visit for _, visit in wanted]
    await connection.execute(
        "INSERT INTO visit_payment (payment, paid_at, visit) SELECT * FROM unnest($1::uuid[], $2::timestamptz[],"
        " $3::uuid[]) AS asked(payment, paid_at, visit) ORDER BY payment, visit ON CONFLICT DO NOTHING",
        payments, [created_at(payment) for payment in payments], visits,
    )  # fmt: skip
    rows = await connection.fetch(
        "SELECT payment, visit FROM visit_payment"
        " JOIN unnest($1::uuid[], $2::timestamptz[]) AS asked(payment, paid_at) USING (payment, paid_at)",
        payments, [created_at(payment) for payment in payments],
    )  # fmt: skip
    return {(row[0], row[1]) for row in rows}


async def try_again(connection: "AnyConnection", visit: Visit, after: dt.timedelta) -> None:
    """Due after a while, unless it has been moved on since."""
    await connection.execute(
        "UPDATE visit SET next_try_at = now() + $4::interval WHERE reference = $1 AND created_at = $2 AND state = $3",
        visit.reference, visit.created_at, visit.state, after,
    )  # fmt: skip


async def due(connection: "AnyConnection", limit: int, lease: dt.timedelta) -> list[Visit]:
    """Take up to `limit` that are due, for as long as the lease; nobody else takes them meanwhile."""
    return [_visit(row) for row in await connection.fetch(_DUE, limit, lease)]


async def history(connection: "AnyConnection", reference: UUID) -> list[Step]:
    """The last 100, in order."""
    rows = await connection.fetch(
        "SELECT at, state FROM visit_history WHERE reference = $1 AND created_at = $2 ORDER BY at DESC LIMIT 100",
        reference, created_at(reference),
    )  # fmt: skip
    return [Step(*row) for row in reversed(rows)]


async def unknown(connection: "AnyConnection", limit: int) -> list[Unknown]:
    """Those of the last day that people have to look at, the latest first."""
    rows = await connection.fetch(
        f"SELECT reference, 'visit_' || kind, caller, partner, state, tries, created_at {_UNKNOWN}"
        " ORDER BY created_at DESC LIMIT $1",
        limit,
    )
    return [Unknown(*row) for row in rows]


async def count_unknown(connection: "AnyConnection") -> int:
    """How many those are."""
    count: int = await connection.fetchval(f"SELECT count(*) {_UNKNOWN}")
    return count


def _visit(row: "asyncpg.Record") -> Visit:
    visit = Visit(*row)
    return visit._replace(kind=VisitKind(visit.kind), state=VisitState(visit.state))
