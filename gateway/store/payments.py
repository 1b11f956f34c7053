"""Payments: inserted with their intent, moved from state to state by guarded updates, taken up when they are due."""

import datetime as dt
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.ids import uuid7_unix_ms
from gateway.domain.payments import OPEN, PaymentKind, PaymentState

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Payment(NamedTuple):
    """A row. `created_at` is the time inside the reference."""

    reference: UUID
    created_at: dt.datetime
    kind: PaymentKind
    caller: str
    idempotency_key: str
    merchant_order_id: str
    terminal_id: str
    parent: UUID | None
    card_id: UUID | None
    bank: str | None
    account_sealed: bytes | None
    amount_fen: int
    trace: int | None
    state: PaymentState
    decline_code: str | None = None
    tries: int = 0
    """By it a lease is known: it is raised with every one that is given, and when one is taken away."""
    discount_fen: int | None = None
    """What `benefit` took off what the caller asked for; None if it did not ask for a benefit."""
    benefit: str | None = None
    partner: str | None = None
    """Through which the bank is reached for this payment and all that undoes it; None: as its bank is routed."""


class Move(NamedTuple):
    """A step that is taken if the operation stands in one of `before`; `again_in`: when there is more to do."""

    payment: Payment
    before: tuple[PaymentState, ...]
    after: PaymentState
    decline_code: str | None = None
    again_in: dt.timedelta | None = None

    def done(self) -> Payment:
        return self.payment._replace(state=self.after, decline_code=self.decline_code)

    @property
    def is_reversal(self) -> bool:
        """Of a payment that is reversed with it."""
        return self.payment.kind is PaymentKind.REVERSAL and self.after is PaymentState.REVERSED


class Account(NamedTuple):
    bank: str
    account_sealed: bytes


class Step(NamedTuple):
    """A line of a payment's history."""

    at: dt.datetime
    state: str
    note: str


class Stuck(NamedTuple):
    reference: UUID
    kind: str
    caller: str
    bank: str
    partner: str | None
    amount_fen: int
    state: str
    tries: int
    created_at: dt.datetime
    next_try_at: dt.datetime


_COLUMNS = ", ".join(Payment._fields)
_P_COLUMNS = ", ".join(f"p.{name}" for name in Payment._fields)
_OPEN = sorted(OPEN)
_SINCE = "coalesce(decided_at, created_at)"
"""Since when something is left to do: an old payment that has just been reversed is looked for once more."""

_DUE = f"""
WITH taken AS (
    SELECT reference, created_at FROM payment WHERE next_try_at <= now()
    ORDER BY next_try_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE payment p SET next_try_at = now() + $2::interval, tries = tries + 1 FROM taken
WHERE p.reference = taken.reference AND p.created_at = taken.created_at RETURNING {_P_COLUMNS}
"""  # noqa: S608 - the names of our own fields

_LOCK = f"""
SELECT {_P_COLUMNS} FROM payment p
JOIN (SELECT DISTINCT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[])) AS asked(reference, created_at, caller)
    ON p.reference = asked.reference AND p.created_at = asked.created_at AND p.caller = asked.caller
WHERE p.kind = 'payment' ORDER BY p.reference FOR UPDATE OF p
"""  # noqa: S608 - the names of our own fields

_MOVE = """
UPDATE payment p SET state = asked.after, decline_code = asked.code, next_try_at = now() + asked.again_in
FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::interval[])
     AS asked(reference, created_at, before, after, code, again_in)
WHERE p.reference = asked.reference AND p.created_at = asked.created_at
  AND p.state = ANY(string_to_array(asked.before, ' '))
RETURNING p.reference
"""

_INSERT = f"""
INSERT INTO payment ({_COLUMNS}, next_try_at)
SELECT *, CASE WHEN state = 'intent' THEN now() + $20::interval END
FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::uuid[],
            $9::uuid[], $10::text[], $11::bytea[], $12::bigint[], $13::integer[], $14::text[], $15::text[],
            $16::integer[], $17::bigint[], $18::text[], $19::text[])
     AS asked({_COLUMNS})
"""  # noqa: S608 - the names of our own fields


def created_at(reference: UUID) -> dt.datetime:
    """The time inside a reference, exact to the millisecond."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return epoch + dt.timedelta(milliseconds=uuid7_unix_ms(reference))


async def accounts(connection: "AnyConnection", card_ids: Collection[UUID]) -> dict[UUID, Account]:
    """The bank accounts of those cards that have one."""
    rows = await connection.fetch(
        "SELECT card_id, bank, account_sealed FROM card WHERE card_id = ANY($1) AND bank IS NOT NULL", list(card_ids)
    )
    return {row[0]: Account(row[1], row[2]) for row in rows}


async def take_orders(connection: "AnyConnection", orders: Sequence[tuple[str, str, UUID]]) -> set[UUID]:
    """Give (caller, order id) to references; returns the references that got theirs. Waits for rivals' transactions."""
    rows = await connection.fetch(
        "INSERT INTO payment_order (caller, merchant_order_id, reference)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::uuid[]) AS asked(caller, merchant_order_id, reference)"
        " ORDER BY caller, merchant_order_id, reference ON CONFLICT DO NOTHING RETURNING reference",
        *(list(column) for column in zip(*orders, strict=True)),
    )  # fmt: skip
    return {row[0] for row in rows}


async def orders(connection: "AnyConnection", orders: Sequence[tuple[str, str]]) -> dict[tuple[str, str], UUID]:
    """The payments that have these (caller, order id)."""
    rows = await connection.fetch(
        "SELECT caller, merchant_order_id, reference FROM payment_order"
        " JOIN unnest($1::text[], $2::text[]) AS asked(caller, merchant_order_id) USING (caller, merchant_order_id)",
        *(list(column) for column in zip(*orders, strict=True)),
    )  # fmt: skip
    return {(row[0], row[1]): row[2] for row in rows}


async def free_order(connection: "AnyConnection", payment: Payment) -> None:
    """Nothing reached the bank: the order may be paid by another attempt."""
    await connection.execute(
        "DELETE FROM payment_order WHERE caller = $1 AND merchant_order_id = $2 AND reference = $3",
        payment.caller, payment.merchant_order_id, payment.reference,
    )  # fmt: skip


async def traces(connection: "AnyConnection", count: int) -> list[int]:
    return [
        row[0]
        for row in await connection.fetch("SELECT nextval('payment_trace')::int FROM generate_series(1, $1)", count)
    ]


async def insert(connection: "AnyConnection", payments: Sequence[Payment], lease: dt.timedelta) -> None:
    """Inside the transaction that claims their keys. An intent is the resolver's when the lease is over."""
    await connection.execute(_INSERT, *(list(column) for column in zip(*payments, strict=True)), lease)


async def find(connection: "AnyConnection", reference: UUID) -> Payment | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM payment WHERE reference = $1 AND created_at = $2",  # noqa: S608 - our own fields
        reference, created_at(reference),
    )  # fmt: skip
    return None if row is None else _payment(row)


async def lock(connection: "AnyConnection", references: Sequence[UUID], callers: Sequence[str]) -> dict[UUID, Payment]:
    """The payments of these callers, locked in one order; what is not theirs, or no payment, is absent."""
    times = [created_at(reference) for reference in references]
    rows = await connection.fetch(_LOCK, references, times, callers)
    return {row["reference"]: _payment(row) for row in rows}


async def refunded(connection: "AnyConnection", references: Sequence[UUID]) -> dict[UUID, int]:
    """What of locked payments was given back, or may yet be: fen by payment."""
    rows = await connection.fetch(
        "SELECT parent, sum(amount_fen)::bigint FROM payment"
        " WHERE parent = ANY($1) AND kind = 'refund' AND state NOT IN ('declined', 'not_sent') GROUP BY parent",
        list(references),
    )  # fmt: skip
    return {row[0]: row[1] for row in rows}


async def being_reversed(connection: "AnyConnection", references: Sequence[UUID]) -> set[UUID]:
    """Which of locked payments have a reversal that is under way."""
    rows = await connection.fetch(
        "SELECT DISTINCT parent FROM payment WHERE parent = ANY($1) AND kind = 'reversal' AND state = ANY($2)",
        list(references), _OPEN,
    )  # fmt: skip
    return {row[0] for row in rows}


async def move(connection: "AnyConnection", move: Move) -> bool:
    """Whether this was the one that moved it on: of two who try, the second finds it elsewhere."""
    return bool(await move_all(connection, [move]))


async def move_all(connection: "AnyConnection", moves: Sequence[Move]) -> set[UUID]:
    """The references of those that were moved on. No two of `moves` are of one operation."""
    rows = await connection.fetch(
        _MOVE,
        [move.payment.reference for move in moves], [move.payment.created_at for move in moves],
        [" ".join(move.before) for move in moves], [move.after for move in moves],
        [move.decline_code for move in moves], [move.again_in for move in moves],
    )  # fmt: skip
    return {row[0] for row in rows}


async def try_again(connection: "AnyConnection", payment: Payment, after: dt.timedelta | None) -> None:
    """Due after a while, None: never; unless it has been moved on since, or the lease is no longer this one."""
    await connection.execute(
        "UPDATE payment SET next_try_at = now() + $5::interval"
        " WHERE reference = $1 AND created_at = $2 AND state = $3 AND tries = $4",
        payment.reference, payment.created_at, payment.state, payment.tries, after,
    )  # fmt: skip


async def try_now(connection: "AnyConnection", payment: Payment) -> None:
    """Due at once, though nothing was left to do, or somebody is at it; unless it has been moved on since."""
    await connection.execute(
        "UPDATE payment SET next_try_at = now(), tries = tries + 1"
        " WHERE reference = $1 AND created_at = $2 AND state = $3",
        payment.reference, payment.created_at, payment.state,
    )  # fmt: skip


async def end_looking(connection: "AnyConnection", payment: Payment) -> bool:
    """Nothing is left to do of a reversed payment, nor for who is at it; False: nothing was."""
    ended = await connection.fetchval(
        "UPDATE payment SET next_try_at = NULL, tries = tries + 1 WHERE reference = $1 AND created_at = $2"
        " AND state = 'reversed' AND next_try_at IS NOT NULL RETURNING true",
        payment.reference, payment.created_at,
    )  # fmt: skip
    return ended is not None


async def due(connection: "AnyConnection", limit: int, lease: dt.timedelta) -> list[Payment]:
    """Take up to `limit` that are due, for as long as the lease; nobody else takes them meanwhile."""
    rows = await connection.fetch(_DUE, limit, lease)
    return [_payment(row) for row in rows]


async def note(connection: "AnyConnection", payment: Payment, state: PaymentState, text: str) -> None:
    """A line of history that is no move."""
    await connection.execute(
        "INSERT INTO payment_history (reference, created_at, state, note) VALUES ($1, $2, $3, $4)",
        payment.reference, payment.created_at, state, text,
    )  # fmt: skip


async def note_once(connection: "AnyConnection", payment: Payment, state: PaymentState, text: str) -> bool:
    """Inside a transaction, which locks the operation: whether it is the first line of its history with this text."""
    await connection.execute(
        "SELECT FROM payment WHERE reference = $1 AND created_at = $2 FOR UPDATE",
        payment.reference, payment.created_at,
    )  # fmt: skip
    there = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM payment_history WHERE reference = $1 AND created_at = $2 AND note = $3)",
        payment.reference, payment.created_at, text,
    )  # fmt: skip
    if not there:
        await note(connection, payment, state, text)
    return not there


async def history(connection: "AnyConnection", reference: UUID) -> list[Step]:
    """The last 100, in order."""
    rows = await connection.fetch(
        "SELECT at, state, note FROM payment_history WHERE reference = $1 AND created_at = $2"
        " ORDER BY at DESC LIMIT 100",
        reference, created_at(reference),
    )  # fmt: skip
    return [Step(*row) for row in reversed(rows)]


async def stuck(connection: "AnyConnection", older_than: dt.timedelta, limit: int) -> list[Stuck]:
    """Operations that are not decided, or whose reversal is not answered, since so long; the oldest first."""
    rows = await connection.fetch(
        "SELECT reference, kind, caller, bank, partner, amount_fen, state, tries, created_at, next_try_at"  # noqa: S608
        f" FROM payment WHERE next_try_at IS NOT NULL AND {_SINCE} < now() - $1::interval ORDER BY created_at LIMIT $2",
        older_than, limit,
    )  # fmt: skip
    return [Stuck(*row) for row in rows]


async def count_open(connection: "AnyConnection", older_than: dt.timedelta) -> tuple[int, int]:
    """(operations with something left to do, those of them that are stuck)."""
    row = await connection.fetchrow(
        f"SELECT count(*), count(*) FILTER (WHERE {_SINCE} < now() - $1::interval) FROM payment"  # noqa: S608
        " WHERE next_try_at IS NOT NULL",
        older_than,
    )  # fmt: skip
    assert row is not None
    return row[0], row[1]


def _payment(row: "asyncpg.Record") -> Payment:
    payment = Payment(*row)
    return payment._replace(kind=PaymentKind(payment.kind), state=PaymentState(payment.state))
