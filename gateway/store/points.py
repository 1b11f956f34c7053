"""The points ledger's rows: accounts locked in the order of their ids, transfers posted for a whole batch at once.

Whoever posts has locked the accounts before: what the entries say of before and after is computed from them. An account
that many share is updated once a batch, and last.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.points import Lot, TransferKind
from gateway.store.payments import created_at

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Transfer(NamedTuple):
    """A row. `points` is what it does to the person's account; the other side gets the opposite."""

    transfer_id: UUID
    created_at: dt.datetime
    kind: TransferKind
    person_id: UUID
    card_id: UUID | None
    counter: UUID
    points: int
    day: dt.date
    shortfall: int = 0
    scene: str | None = None
    corrects: UUID | None = None
    redemption: UUID | None = None
    note: str = ""


class Terms(NamedTuple):
    """What the uses of one scene on one day have in common, if their events were made at once."""

    scene: str
    day: dt.date
    expires_on: dt.date
    daily_max: int
    created_at: dt.datetime
    """The time inside the events' ids."""


class Earning(NamedTuple):
    """What a use would earn, as text without control characters: ids in hex, the number of its terms from 1."""

    event_id: str
    card_id: str
    person_id: str
    points: str
    terms: str


class Account(NamedTuple):
    """A person's, locked until the end of the transaction."""

    balance: int
    reserved: int

    @property
    def available(self) -> int:
        return self.balance - self.reserved


class Earned(NamedTuple):
    """What an event earned, and how much of it was taken back, or should have been."""

    transfer: Transfer
    undone: int


_COLUMNS = ", ".join(Transfer._fields)

_EARN = (Path(__file__).parent / "earn.sql").read_text()
_SEPARATOR = "\x1f"

_OPEN_OF_CARDS = """
INSERT INTO points_account (account_id, kind)
SELECT DISTINCT person_id, 'citizen' FROM card
WHERE card_id = ANY($1) AND NOT EXISTS (SELECT FROM points_account WHERE account_id = person_id)
ORDER BY person_id ON CONFLICT DO NOTHING
"""
# Thousands of ids as one text, in their order. A subquery for each, or LATERAL with FOR UPDATE, looks each up by key:
# a plan that is kept for all later texts does not know how many there are, and might read the whole table.
_OPEN_PERSONS = """
INSERT INTO points_account (account_id, kind)
SELECT person_id, 'citizen' FROM unnest(string_to_array($1, E'\\x1f')::uuid[]) AS asked(person_id)
WHERE (SELECT true FROM points_account WHERE account_id = person_id) IS NULL
ON CONFLICT DO NOTHING
"""
_LOCK_PERSONS = """
SELECT count(*) FROM unnest(string_to_array($1, E'\\x1f')::uuid[]) AS asked(account_id),
    LATERAL (SELECT FROM points_account held WHERE held.account_id = asked.account_id FOR UPDATE) AS locked
"""
_LOCK = """
SELECT account_id, balance, reserved FROM points_account
WHERE account_id = ANY($1) ORDER BY account_id FOR UPDATE
"""
_INSERT = f"""
INSERT INTO points_transfer ({_COLUMNS})
SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::uuid[], $6::uuid[], $7::bigint[],
                     $8::date[], $9::bigint[], $10::text[], $11::uuid[], $12::uuid[], $13::text[])
"""  # noqa: S608 - the names of our own fields

_POST = """
WITH leg AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::uuid[], $5::bigint[])
        WITH ORDINALITY AS leg(transfer_id, created_at, person_id, account_id, points, item)
), moved AS (
    UPDATE points_account account
    SET balance = balance + total.points, entries = account.entries + total.entries
    FROM (SELECT account_id, sum(points)::bigint AS points, count(*) AS entries FROM leg GROUP BY account_id) total
    WHERE account.account_id = total.account_id
    RETURNING account.account_id, balance - total.points AS balance, account.entries - total.entries AS entries
)
INSERT INTO points_entry (transfer_id, account_id, created_at, person_id, number, points, previous, current)
SELECT transfer_id, account_id, created_at, person_id, entries + row_number() OVER so_far, points,
       balance + sum(points) OVER so_far - points, balance + sum(points) OVER so_far
FROM leg JOIN moved USING (account_id)
WINDOW so_far AS (PARTITION BY account_id ORDER BY item)
"""

_EARNED_BY = f"""
SELECT {", ".join(f"t.{name}" for name in Transfer._fields)},
       (SELECT coalesce(sum(back.shortfall - back.points), 0)::bigint FROM points_transfer back
        WHERE back.corrects = t.transfer_id)
FROM unnest($1::uuid[], $2::timestamptz[]) AS asked(transfer_id, created_at)
JOIN points_transfer t ON t.transfer_id = asked.transfer_id AND t.created_at = asked.created_at
WHERE t.kind = 'earn'
"""  # noqa: S608 - the names of our own fields

# By the index of persons and days; older partitions are not looked into.
_EXPIRED_AFTER = """
SELECT transfer_id, (SELECT coalesce(-sum(t.points), 0)::bigint FROM points_transfer t
                     WHERE t.person_id = asked.person_id AND t.day > asked.day AND t.kind = 'expire'
                       AND t.created_at > asked.since)
FROM unnest($1::uuid[], $2::uuid[], $3::date[], $4::timestamptz[]) AS asked(transfer_id, person_id, day, since)
"""


async def open_accounts(connection: "AnyConnection", card_ids: Collection[UUID]) -> None:
    """Accounts for the holders of these cards, where they have none."""
    await connection.execute(_OPEN_OF_CARDS, list(card_ids))


async def open_merchant(connection: "AnyConnection", accounts: Mapping[UUID, str]) -> None:
    """Accounts of callers, where they have none."""
    await connection.execute(
        "INSERT INTO points_account (account_id, kind, caller)"
        " SELECT account_id, 'merchant', caller FROM unnest($1::uuid[], $2::text[]) AS asked(account_id, caller)"
        " ORDER BY account_id ON CONFLICT DO NOTHING",
        list(accounts), list(accounts.values()),
    )  # fmt: skip


async def lock(connection: "AnyConnection", account_ids: Collection[UUID]) -> dict[UUID, Account]:
    """Lock accounts in the order of their ids, as everybody does; those that do not exist are absent."""
    return {row[0]: Account(row[1], row[2]) for row in await connection.fetch(_LOCK, list(account_ids))}


async def lock_persons(connection: "AnyConnection", person_ids: Collection[str]) -> None:
    """lock() for thousands at once; the ids as hex. Those who have no account get one."""
    asked = _SEPARATOR.join(sorted(person_ids))
    await connection.execute(_OPEN_PERSONS, asked)
    await connection.execute(_LOCK_PERSONS, asked)


async def earn(connection: "AnyConnection", earnings: Sequence[Earning], terms: Sequence[Terms], issuer: UUID) -> int:
    """Grant what uses earn within the limit of its day; returns the points. Their holders are locked.

    The issuer's account is locked from here to the end of the transaction. Raises asyncpg.UniqueViolationError if one
    of the events has earned before.
    """
    columns = map(_SEPARATOR.join, zip(*earnings, strict=True))
    scenes, days, expiries, limits, moments = zip(*terms, strict=True)
    # no transfer was made before its day, or is newer than these: other partitions are not looked into
    since = dt.datetime.combine(min(days), dt.time(), dt.UTC) - dt.timedelta(days=2)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    points: int = await connection.fetchval(
        _EARN, *columns, scenes, days, expiries, limits, moments, since, issuer, until
    )
    return points


async def known(connection: "AnyConnection", transfer_ids: Sequence[UUID]) -> set[UUID]:
    """Which of these transfers exist. Their persons' accounts are locked, so the answer stays."""
    rows = await connection.fetch(
        "SELECT transfer_id FROM points_transfer"
        " JOIN unnest($1::uuid[], $2::timestamptz[]) AS asked(transfer_id, created_at) USING (transfer_id, created_at)",
        transfer_ids, [created_at(transfer_id) for transfer_id in transfer_ids],
    )  # fmt: skip
    return {row[0] for row in rows}


async def find(connection: "AnyConnection", transfer_id: UUID) -> Transfer | None:
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM points_transfer WHERE transfer_id = $1 AND created_at = $2",  # noqa: S608 - our fields
        transfer_id, created_at(transfer_id),
    )  # fmt: skip
    return None if row is None else Transfer(*row)


async def earned_by(connection: "AnyConnection", event_ids: Collection[UUID]) -> dict[UUID, Earned]:
    """What usage events earned, of those that earned anything."""
    rows = await connection.fetch(_EARNED_BY, list(event_ids), [created_at(event_id) for event_id in event_ids])
    return {row[0]: Earned(Transfer(*tuple(row)[:-1]), row[-1]) for row in rows}


async def expired_after(connection: "AnyConnection", earnings: Sequence[tuple[Transfer, dt.date]]) -> dict[UUID, int]:
    """By the transfer that earned: what has expired of its person's points since, after the day that is given with it.

    Of what that transfer earned, if its lot ends with that day, at most so much has expired.
    """
    rows = await connection.fetch(
        _EXPIRED_AFTER,
        [transfer.transfer_id for transfer, _ in earnings], [transfer.person_id for transfer, _ in earnings],
        [day for _, day in earnings],
        [transfer.created_at - dt.timedelta(days=1) for transfer, _ in earnings],  # clocks differ
    )  # fmt: skip
    return {row[0]: row[1] for row in rows}


async def database_time(connection: "AnyConnection") -> dt.datetime:
    """What the database's clock says, in UTC."""
    moment: dt.datetime = await connection.fetchval("SELECT clock_timestamp()")
    return moment


async def lock_due(connection: "AnyConnection", today: dt.date, limit: int, after: UUID) -> dict[UUID, Account]:
    """Up to `limit` accounts with points past their last day that no reservation holds, locked; the next `after` one.

    The search reads without locks; what it came to is read again by whoever has them.
    """
    due = await connection.fetch(
        "SELECT person_id FROM points_lot JOIN points_account ON account_id = person_id"
        " WHERE expires_on < $1 AND remaining > 0 AND person_id > $3"
        " GROUP BY person_id, reserved HAVING sum(remaining) > reserved ORDER BY person_id LIMIT $2",
        today, limit, after,
    )  # fmt: skip
    return await lock(connection, [row[0] for row in due]) if due else {}


async def sweep_lots(connection: "AnyConnection", today: dt.date, limit: int) -> int:
    """Delete up to `limit` empty lots of the past; returns how many."""
    done = await connection.fetch(
        "DELETE FROM points_lot WHERE (person_id, expires_on) IN (SELECT person_id, expires_on FROM points_lot"
        " WHERE expires_on < $1 AND remaining = 0 LIMIT $2) AND remaining = 0 RETURNING true",
        today, limit,
    )  # fmt: skip
    return len(done)


async def held_by(connection: "AnyConnection", card_id: UUID) -> tuple[Account, list[Lot]] | None:
    """What the holder of a card has, in one snapshot; None for a card that does not exist."""
    rows = await connection.fetch(
        "SELECT coalesce(balance, 0), coalesce(reserved, 0), expires_on, remaining FROM card"
        " LEFT JOIN points_account ON account_id = person_id"
        " LEFT JOIN points_lot lot ON lot.person_id = card.person_id AND remaining > 0"
        " WHERE card_id = $1 ORDER BY expires_on",
        card_id,
    )  # fmt: skip
    if not rows:
        return None
    return Account(rows[0][0], rows[0][1]), [Lot(row[2], row[3]) for row in rows if row[2] is not None]


async def post(connection: "AnyConnection", transfers: Sequence[Transfer]) -> None:
    """Write transfers of persons whose accounts are locked, and the entries of both sides. None twice."""
    if not transfers:
        return
    await connection.execute(_INSERT, *(list(column) for column in zip(*transfers, strict=True)))
    moving = [transfer for transfer in transfers if transfer.points]  # one that found everything spent moves nothing
    if not moving:
        return
    ids, times = [transfer.transfer_id for transfer in moving], [transfer.created_at for transfer in moving]
    persons = [transfer.person_id for transfer in moving]
    await connection.execute(_POST, ids, times, persons, persons, [transfer.points for transfer in moving])
    # the accounts that the county shares: one update each, as late as can be
    counters = [transfer.counter for transfer in moving]
    await lock(connection, set(counters))
    await connection.execute(_POST, ids, times, persons, counters, [-transfer.points for transfer in moving])


async def reserve(connection: "AnyConnection", points: Mapping[UUID, int]) -> None:
    """Add to what is reserved of locked accounts; negative gives back."""
    await connection.execute(
        "UPDATE points_account SET reserved = reserved + asked.points"
        " FROM unnest($1::uuid[], $2::bigint[]) AS asked(account_id, points)"
        " WHERE points_account.account_id = asked.account_id",
        list(points), list(points.values()),
    )  # fmt: skip


async def add_to_lots(connection: "AnyConnection", points: Mapping[tuple[UUID, dt.date], int]) -> None:
    """Add to the lots of persons whose accounts are locked, by (person, day on which they expire)."""
    await connection.execute(
        "INSERT INTO points_lot (person_id, expires_on, remaining)"
        " SELECT * FROM unnest($1::uuid[], $2::date[], $3::bigint[])"
        " ON CONFLICT (person_id, expires_on) DO UPDATE SET remaining = points_lot.remaining + EXCLUDED.remaining",
        [person_id for person_id, _ in points], [expires_on for _, expires_on in points], list(points.values()),
    )  # fmt: skip


async def lots_of(connection: "AnyConnection", person_ids: Collection[UUID]) -> dict[UUID, list[Lot]]:
    """The lots that are not empty, each person's in the order in which they expire."""
    found: dict[UUID, list[Lot]] = {}
    for row in await connection.fetch(
        "SELECT person_id, expires_on, remaining FROM points_lot WHERE person_id = ANY($1) AND remaining > 0"
        " ORDER BY person_id, expires_on",
        list(person_ids),
    ):
        found.setdefault(row[0], []).append(Lot(row[1], row[2]))
    return found


async def set_lots(connection: "AnyConnection", lots: Iterable[tuple[UUID, Lot]]) -> None:
    """Write what remains of lots of locked accounts."""
    rows = list(lots)
    await connection.execute(
        "UPDATE points_lot SET remaining = new.remaining"
        " FROM unnest($1::uuid[], $2::date[], $3::bigint[]) AS new(person_id, expires_on, remaining)"
        " WHERE points_lot.person_id = new.person_id AND points_lot.expires_on = new.expires_on",
        [person_id for person_id, _ in rows], [lot.expires_on for _, lot in rows], [lot.remaining for _, lot in rows],
    )  # fmt: skip
