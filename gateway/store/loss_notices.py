"""Loss notices: inserted with the change of the card, moved by guarded updates, taken up in the order of each card."""

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.cards import CardStatus, LossKind
from gateway.domain.loss_notices import Heard, NoticeKind, NoticeState
from gateway.store.payments import created_at

if TYPE_CHECKING:
    import asyncpg

    from gateway.store.pool import AnyConnection


class Notice(NamedTuple):
    """A row. `created_at` is the time inside the reference."""

    reference: UUID
    created_at: dt.datetime
    kind: NoticeKind
    loss_kind: LossKind
    caller: str
    idempotency_key: str
    card_id: UUID
    card_status: CardStatus
    """After the operation."""
    bank: str
    account_sealed: bytes
    person_id: UUID
    id_number_sealed: bytes
    state: NoticeState = NoticeState.INTENT
    reason: str | None = None
    tries: int = 0


class Holder(NamedTuple):
    """What the bank of a card is told: whose account."""

    bank: str
    account_sealed: bytes
    person_id: UUID
    id_number_sealed: bytes


class Step(NamedTuple):
    """A line of a notice's history."""

    at: dt.datetime
    state: str


class Stuck(NamedTuple):
    reference: UUID
    kind: str
    caller: str
    bank: str
    state: str
    tries: int
    created_at: dt.datetime


_COLUMNS = ", ".join(Notice._fields)
_N_COLUMNS = ", ".join(f"n.{name}" for name in Notice._fields)

_INSERT = f"""
INSERT INTO loss_notice ({_COLUMNS}, next_try_at)
SELECT {_COLUMNS}, now() + due_in
FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::uuid[], $8::smallint[],
            $9::text[], $10::bytea[], $11::uuid[], $12::bytea[], $13::text[], $14::text[], $15::integer[],
            $16::interval[]) WITH ORDINALITY AS told({_COLUMNS}, due_in, item)
ORDER BY item
"""  # noqa: S608 - the names of our own fields

# one of a card waits until those before it are decided; it stays due meanwhile
_DUE = f"""
WITH taken AS (
    SELECT reference, created_at FROM loss_notice n WHERE next_try_at <= now()
    AND NOT EXISTS (SELECT FROM loss_notice earlier
                    WHERE earlier.card_id = n.card_id AND earlier.turn < n.turn AND earlier.next_try_at IS NOT NULL)
    ORDER BY next_try_at LIMIT $1 FOR UPDATE SKIP LOCKED
)
UPDATE loss_notice n SET next_try_at = now() + $2::interval, tries = tries + 1 FROM taken
WHERE n.reference = taken.reference AND n.created_at = taken.created_at RETURNING {_N_COLUMNS}
"""  # noqa: S608 - the names of our own fields

_HEARD = """
SELECT asked.release, coalesce(last.kind = 'loss_report', false), reported.turn IS NOT NULL,
       EXISTS (SELECT FROM loss_notice taken WHERE taken.card_id = asked.card_id AND taken.kind = 'loss_release'
               AND taken.state = 'accepted' AND taken.turn > reported.turn)
FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::timestamptz[]) AS asked(release, card_id, report, reported_at)
LEFT JOIN loss_notice reported ON reported.reference = asked.report AND reported.created_at = asked.reported_at
LEFT JOIN LATERAL (
    SELECT taken.kind FROM loss_notice taken WHERE taken.card_id = asked.card_id AND taken.state <> 'refused'
    ORDER BY taken.turn DESC LIMIT 1
) last ON true
"""


async def holders(connection: "AnyConnection", card_ids: Collection[UUID]) -> dict[UUID, Holder]:
    """Of those cards that have a bank account."""
    rows = await connection.fetch(
        "SELECT card_id, bank, account_sealed, person_id, id_number_sealed FROM card JOIN person USING (person_id)"
        " WHERE card_id = ANY($1) AND bank IS NOT NULL",
        list(card_ids),
    )
    return {row[0]: Holder(*tuple(row)[1:]) for row in rows}


async def heard(connection: "AnyConnection", releases: Mapping[UUID, tuple[UUID, UUID]]) -> dict[UUID, Heard]:
    """What the banks know, by release; given are the card and the report of each, the cards locked."""
    cards, reports = zip(*releases.values(), strict=True)
    rows = await connection.fetch(_HEARD, list(releases), cards, reports, [created_at(report) for report in reports])
    return {row[0]: Heard(*tuple(row)[1:]) for row in rows}


async def insert(connection: "AnyConnection", notices: Sequence[Notice], due_in: Sequence[dt.timedelta | None]) -> None:
    """Inside the transaction that changes the cards, in the order of its changes; when due, it is the resolver's.

    None: it is decided.
    """
    await connection.execute(_INSERT, *(list(column) for column in zip(*notices, strict=True)), list(due_in))


async def find(connection: "AnyConnection", reference: UUID) -> Notice | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM loss_notice WHERE reference = $1 AND created_at = $2",  # noqa: S608 - our own fields
        reference, created_at(reference),
    )  # fmt: skip
    return None if row is None else _notice(row)


async def move(
    connection: "AnyConnection", notice: Notice, before: Collection[NoticeState], state: NoticeState,
    reason: str | None = None, again_in: dt.timedelta | None = None,
) -> bool:  # fmt: skip
    """Whether this was the one that moved it on: of two who try, the second finds it elsewhere."""
    done = await connection.fetchval(
        "UPDATE loss_notice SET state = $4, reason = $5, next_try_at = now() + $6::interval"
        " WHERE reference = $1 AND created_at = $2 AND state = ANY($3) RETURNING true",
        notice.reference, notice.created_at, list(before), state, reason, again_in,
    )  # fmt: skip
    return done is not None


async def due(connection: "AnyConnection", limit: int, lease: dt.timedelta) -> list[Notice]:
    """Take up to `limit` that are due, at most one of a card, for as long as the lease."""
    rows = await connection.fetch(_DUE, limit, lease)
    return [_notice(row) for row in rows]


async def history(connection: "AnyConnection", reference: UUID) -> list[Step]:
    """The last 100, in order."""
    rows = await connection.fetch(
        "SELECT at, state FROM loss_notice_history WHERE reference = $1 AND created_at = $2 ORDER BY at DESC LIMIT 100",
        reference, created_at(reference),
    )  # fmt: skip
    return [Step(*row) for row in reversed(rows)]


async def stuck(connection: "AnyConnection", older_than: dt.timedelta, limit: int) -> list[Stuck]:
    """Notices that are not decided since so long; the oldest first."""
    rows = await connection.fetch(
        "SELECT reference, kind, caller, bank, state, tries, created_at FROM loss_notice"
        " WHERE next_try_at IS NOT NULL AND created_at < now() - $1::interval ORDER BY created_at LIMIT $2",
        older_than, limit,
    )  # fmt: skip
    return [Stuck(*row) for row in rows]


async def count_open(connection: "AnyConnection", older_than: dt.timedelta) -> tuple[int, int]:
    """(notices that are not decided, those of them that are stuck)."""
    row = await connection.fetchrow(
        "SELECT count(*), count(*) FILTER (WHERE created_at < now() - $1::interval) FROM loss_notice"
        " WHERE next_try_at IS NOT NULL",
        older_than,
    )  # fmt: skip
    assert row is not None
    return row[0], row[1]


def _notice(row: "asyncpg.Record") -> Notice:
    notice = Notice(*row)
    return notice._replace(
        kind=NoticeKind(notice.kind), loss_kind=LossKind(notice.loss_kind), state=NoticeState(notice.state),
        card_status=CardStatus(notice.card_status),
    )  # fmt: skip
