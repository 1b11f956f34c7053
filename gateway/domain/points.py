"""Points: what a use earns, when it expires, who holds what (domain.md §8, 积分 [G]). All of it integers.

Points belong to a person. An account's id is the person's id, or one of those below; they sort after every UUIDv7, so
that whoever locks accounts in the order of their ids takes the busiest last, and holds them the shortest.
"""

import calendar
import datetime as dt
import functools
import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple
from uuid import UUID

import msgspec

ISSUED = UUID("ffffffff-ffff-8000-8000-000000000001")
"""The issuer's: what was issued. Its balance is negative."""
REDEEMED = UUID("ffffffff-ffff-8000-8000-000000000002")
"""The issuer's too: what came back for the county's own goods. Apart, so that a long ingest, which holds the other one
until its commit, does not keep the county from redeeming."""
EXPIRED = UUID("ffffffff-ffff-8000-8000-000000000003")

_Points = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class TransferKind(StrEnum):
    OPEN = "open"
    """What a person has at the beginning."""
    EARN = "earn"
    TAKE_BACK = "take_back"
    """Of what a use earned that was reversed since."""
    REDEEM = "redeem"
    EXPIRE = "expire"
    CORRECT = "correct"


class PointsRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a use of a scene earns: `points` of a block of scenes.toml."""

    daily_max: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Of one person, in this scene, on one day in China."""
    per_yuan: _Points = 0
    per_use: _Points = 0


class EarnRules(NamedTuple):
    """What is in force."""

    scenes: Mapping[str, PointsRule]
    """Of those scenes that earn points."""
    valid_months: int


class Lot(NamedTuple):
    """A person's points that expire on one day."""

    expires_on: dt.date
    remaining: int


def merchant_account(caller_id: str) -> UUID:
    """The account of a caller whose outlets give goods of their own: always the same (UUIDv8, RFC 9562 §5.8)."""
    digest = hashlib.sha256(caller_id.encode()).digest()
    return UUID(bytes=b"\xff\xff\xff\xff\xff\xfe\x80" + digest[:1] + b"\x80" + digest[1:8])


def earned(rule: PointsRule, amount_fen: int) -> int:
    """Of one use, before the day's limit; rounded down."""
    return amount_fen * rule.per_yuan // 100 + rule.per_use


@functools.lru_cache(maxsize=1024)
def expires_on(day: dt.date, valid_months: int) -> dt.date:
    """The last day of points earned on a day: the end of a month, so that a person has few lots."""
    months = day.year * 12 + day.month - 1 + valid_months
    year, month = months // 12, months % 12 + 1
    return dt.date(year, month, calendar.monthrange(year, month)[1])


def take(lots: Sequence[Lot], points: int, from_lot: dt.date | None = None) -> list[Lot]:
    """What remains of those lots from which points are taken: first in, first out.

    `from_lot`: the lot that they were earned into comes first, then what expires last (for what is taken back).
    """
    order = sorted(lots, key=lambda lot: lot.expires_on, reverse=from_lot is not None)
    order.sort(key=lambda lot: lot.expires_on != from_lot)
    left: list[Lot] = []
    for lot in order:
        if (taken := min(points, lot.remaining)) > 0:
            left.append(lot._replace(remaining=lot.remaining - taken))
            points -= taken
    assert points == 0, "the lots hold what the account holds"
    return left
