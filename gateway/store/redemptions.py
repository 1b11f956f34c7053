"""Redemptions of points: reserved at the person's account, then ended once. A row is locked before its account."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.redemptions import RedemptionState
from gateway.store.payments import created_at
from gateway.store.points import Account

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Redemption(NamedTuple):
    """A row. `created_at` is the time inside the reference."""

    reference: UUID
    created_at: dt.datetime
    caller: str
    outlet_id: str
    item: str
    points: int
    credit: UUID
    card_id: UUID | None
    person_id: UUID | None
    state: RedemptionState
    reason: str | None = None
    expires_at: dt.datetime | None = None
    decided_at: dt.datetime | None = None


class Held(NamedTuple):
    """The account behind a card."""

    person_id: UUID
    account: Account


_COLUMNS = ", ".join(Redemption._fields)
_R_COLUMNS = ", ".join(f"r.{name}" for name in Redemption._fields)

_LOCK_HOLDERS = """
SELECT card_id, person_id, balance, reserved FROM card JOIN points_account ON account_id = person_id
WHERE card_id = ANY($1) ORDER BY account_id FOR UPDATE OF points_account
"""
_INSERT = f"""
WITH asked AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::uuid[],
                         $8::uuid[], $9::uuid[], $10::text[], $11::text[], $12::timestamptz[], $13::timestamptz[])
        AS asked({_COLUMNS})
), made AS (
    INSERT INTO points_redemption ({_COLUMNS}) SELECT {_COLUMNS} FROM asked
)
UPDATE points_account SET reserved = reserved + held.points
FROM (SELECT person_id, sum(points)::bigint AS points FROM asked WHERE state = 'reserved' GROUP BY person_id) held
WHERE account_id = held.person_id
"""  # noqa: S608 - the names of our own fields
_LOCK = f"""
SELECT {_R_COLUMNS} FROM points_redemption r
JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[])) AS asked(reference, created_at, caller)
    ON r.reference = asked.reference AND r.created_at = asked.created_at AND r.caller = asked.caller
ORDER BY r.reference FOR UPDATE OF r
"""  # noqa: S608 - the names of our own fields
_DUE = f"""
SELECT {_COLUMNS} FROM points_redemption WHERE state = 'reserved' AND expires_at < now()
ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - the names of our own fields


async def lock_holders(connection: "AnyConnection", card_ids: Collection[UUID]) -> dict[UUID, Held]:
    """The accounts behind cards, locked in the order of their ids; whoever has none is absent."""
    rows = await connection.fetch(_LOCK_HOLDERS, list(card_ids))
    return {row[0]: Held(row[1], Account(row[2], row[3])) for row in rows}


async def insert(connection: "AnyConnection", redemptions: Sequence[Redemption]) -> None:
    """And reserve what the reserved ones hold, of accounts that are locked."""
    await connection.execute(_INSERT, *(list(column) for column in zip(*redemptions, strict=True)))


async def lock(
    connection: "AnyConnection", references: Sequence[UUID], callers: Sequence[str]
) -> dict[UUID, Redemption]:
    """The redemptions of these callers, locked in one order; what is not theirs, or none, is absent."""
    rows = await connection.fetch(_LOCK, references, [created_at(reference) for reference in references], callers)
    return {row["reference"]: _redemption(row) for row in rows}


async def find(connection: "AnyConnection", reference: UUID) -> Redemption | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM points_redemption WHERE reference = $1 AND created_at = $2",  # noqa: S608 - our fields
        reference, created_at(reference),
    )  # fmt: skip
    return None if row is None else _redemption(row)


async def lock_due(connection: "AnyConnection", limit: int) -> list[Redemption]:
    """Up to `limit` whose time is over, locked; those that somebody else is at are left out."""
    return [_redemption(row) for row in await connection.fetch(_DUE, limit)]


async def end(connection: "AnyConnection", redemptions: Collection[Redemption], state: RedemptionState) -> None:
    """Write the final state of locked redemptions; the database refuses a second one."""
    await connection.execute(
        "UPDATE points_redemption r SET state = $3"
        " FROM unnest($1::uuid[], $2::timestamptz[]) AS ended(reference, created_at)"
        " WHERE r.reference = ended.reference AND r.created_at = ended.created_at",
        [redemption.reference for redemption in redemptions], [redemption.created_at for redemption in redemptions],
        state,
    )  # fmt: skip


def _redemption(row: "asyncpg.Record") -> Redemption:
    redemption = Redemption(*row)
    return redemption._replace(state=RedemptionState(redemption.state))
