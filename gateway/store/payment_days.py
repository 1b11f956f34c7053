"""Payments of a settlement day, as they are compared with the bank's file. Nothing is written."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.payments import PaymentState
from gateway.store.payments import created_at

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Booked(NamedTuple):
    """A payment or refund, as it is compared with the bank's line."""

    reference: UUID
    created_at: dt.datetime
    amount_fen: int
    state: PaymentState
    reversed_at: dt.datetime | None
    """When the reversal was asked for that undid it; None also of one that was never approved."""
    partner: str | None
    """As in payments.Payment."""


_BOOKED = """
SELECT p.reference, p.created_at, p.amount_fen, p.state, CASE WHEN p.state = 'reversed' THEN (
    SELECT min(r.created_at) FROM payment_history h, payment r
    WHERE h.reference = p.reference AND h.created_at = p.created_at AND h.state = 'approved'
      AND r.parent = p.reference AND r.created_at >= p.created_at AND r.kind = 'reversal' AND r.state = 'reversed'
) END AS reversed_at, p.partner
FROM payment p
"""
"""The first reversal that is done undid it: those after it found it so. One query, as EXISTS would be answered from all
of the history; few are reversed, so this is cheap."""


async def of_day(connection: "AnyConnection", bank: str, since: dt.datetime, until: dt.datetime) -> list[Booked]:
    """Payments and refunds at a bank; for reversals see reversals_of_day()."""
    rows = await connection.fetch(
        f"{_BOOKED} WHERE p.bank = $1 AND p.created_at >= $2 AND p.created_at < $3 AND p.kind <> 'reversal'",
        bank, since, until,
    )  # fmt: skip
    return [_booked(row) for row in rows]


async def of_bank(connection: "AnyConnection", bank: str, references: Sequence[UUID]) -> list[Booked]:
    """Those of the references that are payments or refunds at this bank."""
    rows = await connection.fetch(
        f"{_BOOKED} JOIN"  # noqa: S608 - our own text
        " (SELECT DISTINCT * FROM unnest($2::uuid[], $3::timestamptz[])) AS asked(reference, created_at)"
        " ON p.reference = asked.reference AND p.created_at = asked.created_at"
        " WHERE p.bank = $1 AND p.kind <> 'reversal'",
        bank, references, [created_at(reference) for reference in references],
    )  # fmt: skip
    return [_booked(row) for row in rows]


async def reversals_of_day(
    connection: "AnyConnection", bank: str, since: dt.datetime, until: dt.datetime
) -> dict[UUID, bool]:
    """The payments, of whatever day, that callers wanted reversed in this time: whether that is still open.

    Not those where it came to nothing.
    """
    rows = await connection.fetch(
        "SELECT parent, bool_or(state <> 'reversed') FROM payment WHERE bank = $1 AND created_at >= $2"
        " AND created_at < $3 AND kind = 'reversal' AND state NOT IN ('declined', 'not_sent') GROUP BY parent",
        bank, since, until,
    )  # fmt: skip
    return {row[0]: row[1] for row in rows}


async def partners_of(
    connection: "AnyConnection", bank: str, since: dt.datetime, until: dt.datetime
) -> set[str | None]:
    """Through which a bank's operations of a time were made; a reversal or refund has its payment's."""
    rows = await connection.fetch(
        "SELECT DISTINCT partner FROM payment WHERE bank = $1 AND created_at >= $2 AND created_at < $3",
        bank, since, until,
    )  # fmt: skip
    return {row[0] for row in rows}


async def banks_since(connection: "AnyConnection", since: dt.datetime) -> set[str]:
    """With operations after a time: from one to the next in the index, not over all that were made."""
    rows = await connection.fetch(
        "WITH RECURSIVE seen AS (SELECT min(bank) AS bank FROM payment WHERE created_at >= $1 UNION ALL"
        " SELECT (SELECT min(p.bank) FROM payment p WHERE p.bank > seen.bank AND p.created_at >= $1)"
        " FROM seen WHERE seen.bank IS NOT NULL) SELECT bank FROM seen WHERE bank IS NOT NULL",
        since,
    )  # fmt: skip
    return {row[0] for row in rows}


async def first_at(connection: "AnyConnection", bank: str, since: dt.datetime) -> dt.datetime | None:
    """When the first operation at a bank after a time was begun."""
    found: dt.datetime | None = await connection.fetchval(
        "SELECT min(created_at) FROM payment WHERE bank = $1 AND created_at >= $2", bank, since
    )
    return found


def _booked(row: "asyncpg.Record") -> Booked:
    booked = Booked(*row)
    return booked._replace(state=PaymentState(booked.state))
