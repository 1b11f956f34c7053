"""Benefits with caps: claimed exactly once, however many ask at the same instant, and given back.

Counts are locked before they are looked at, in one order, and raised in the same transaction: nobody looks first and
writes later. What comes to a full count waits for nothing but the lock, and writes nothing.
"""

import datetime as dt
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg

from gateway.domain.benefits import USED_UP, Counter, Refusal, Span
from gateway.store.payments import created_at
from gateway.store.pool import cut_off

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection, Connection

_HELD = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError)
_AGAIN_MS = 10
"""How long one may wait for a lock when its batch has waited already: all of them within the deadline."""
_FULL = sys.maxsize
KEPT_DAYS = 62
"""Counts stay for so long after the beginning of what they count: a month, and a month for what is reversed late."""


class Want(NamedTuple):
    """The capped benefits that one card is to be given, each with its counts (SceneBenefits.counters)."""

    source: UUID
    """The usage event of a verify, or the reference of a payment."""
    card_id: UUID
    benefits: Sequence[Sequence[Counter]]
    only_one: bool = False
    """The first that is left; the others are not wanted any more."""


_Taken = tuple[UUID, dt.datetime, str, Span, dt.date, UUID, UUID]

Refusals = dict[str, Refusal]
"""Benefits that were not given, with the cap that was used up; the others of a Want are claimed (of `only_one`: the
first of the others)."""

_LOCK = """
WITH asked AS (
    SELECT item, benefit, span, since, cap, CASE per WHEN 'person' THEN person_id WHEN 'card' THEN card_id
           ELSE '00000000-0000-0000-0000-000000000000' END AS holder
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::date[], $5::text[], $6::integer[])
         WITH ORDINALITY AS asked(card_id, benefit, span, since, per, cap, item)
    JOIN card USING (card_id)
), locked AS (
    INSERT INTO benefit_use AS kept (since, span, benefit, holder, used, cap)
    SELECT DISTINCT ON (since, span, benefit, holder) since, span, benefit, holder, 0, cap
    -- all in one order, so none waits in a circle. Where a cap has just been changed, the greater one bounds the count;
    -- each is given what its own leaves
    FROM asked ORDER BY since, span, benefit, holder, cap DESC
    ON CONFLICT (since, span, benefit, holder) DO UPDATE SET cap = EXCLUDED.cap WHERE kept.used < EXCLUDED.cap
    RETURNING since, span, benefit, holder, used
)
SELECT asked.holder, locked.used FROM asked LEFT JOIN locked USING (since, span, benefit, holder) ORDER BY asked.item
"""

_TAKE = """
WITH taken AS (
    SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::date[], $6::uuid[], $7::uuid[])
           AS taken(source, made_at, benefit, span, since, holder, card_id)
), recorded AS (
    INSERT INTO benefit_claim (source, made_at, benefit, span, delta, since, holder, card_id)
    SELECT source, made_at, benefit, span, 1, since, holder, card_id FROM taken
)
UPDATE benefit_use AS kept SET used = used + n
FROM (SELECT since, span, benefit, holder, count(*)::integer AS n FROM taken GROUP BY 1, 2, 3, 4) AS raised
WHERE kept.since = raised.since AND kept.span = raised.span AND kept.benefit = raised.benefit
  AND kept.holder = raised.holder
"""

_GIVE_BACK = """
WITH back AS (
    INSERT INTO benefit_claim (source, made_at, benefit, span, delta, since, holder, card_id)
    SELECT source, made_at, benefit, span, -1, since, holder, card_id FROM benefit_claim
    JOIN unnest($1::uuid[], $2::timestamptz[]) AS asked(source, made_at) USING (source, made_at) WHERE delta = 1
    ON CONFLICT DO NOTHING RETURNING since, span, benefit, holder
), lowered AS (
    SELECT since, span, benefit, holder, count(*)::integer AS n FROM back GROUP BY 1, 2, 3, 4
), held AS (
    SELECT kept.since, kept.span, kept.benefit, kept.holder, n FROM benefit_use AS kept
    JOIN lowered USING (since, span, benefit, holder) ORDER BY 1, 2, 3, 4 FOR UPDATE OF kept
)
UPDATE benefit_use AS kept SET used = used - n FROM held
WHERE kept.since = held.since AND kept.span = held.span AND kept.benefit = held.benefit AND kept.holder = held.holder
"""


async def claim(connection: "AnyConnection", wants: Sequence[Want]) -> list[Refusals]:
    """Give what is left to those who come first in `wants`; inside a transaction, whose commit makes it last.

    Waits for others at the same counts for as long as the connection's lock_timeout, then raises LockNotAvailableError.
    """
    asked = [(want, counter) for want in wants for counters in want.benefits for counter in counters]
    if not asked:
        return [{} for _ in wants]
    rows = await connection.fetch(
        _LOCK,
        [want.card_id for want, _ in asked], [counter.benefit for _, counter in asked],
        [counter.span for _, counter in asked], [counter.since for _, counter in asked],
        [counter.per for _, counter in asked], [counter.most for _, counter in asked],
    )  # fmt: skip
    assert len(rows) == len(asked), "each card is there"
    refused, taken = _allot(wants, iter([(row[0], row[1]) for row in rows]))
    if taken:
        await connection.execute(_TAKE, *(list(column) for column in zip(*taken, strict=True)))
    return refused


def _allot(wants: Sequence[Want], counts: Iterator[tuple[UUID, int | None]]) -> tuple[list[Refusals], list[_Taken]]:
    """One after the other: all counts of a benefit are raised, or none. `counts` are (holder, used) of the wants'
    counters as they stand, None for one that is full by the greatest of their caps."""
    used: dict[tuple[str, Span, dt.date, UUID], int] = {}
    refused: list[Refusals] = []
    taken: list[_Taken] = []
    for want in wants:
        refusals: Refusals = {}
        claimed = False
        for counters in want.benefits:
            keys = []
            for counter in counters:
                holder, so_far = next(counts)
                key = (counter.benefit, counter.span, counter.since, holder)
                used.setdefault(key, _FULL if so_far is None else so_far)
                keys.append(key)
            if want.only_one and claimed:
                continue
            full = [each.span for each, key in zip(counters, keys, strict=True) if used[key] >= each.most]
            if full:
                refusals[counters[0].benefit] = USED_UP[full[0]]
                continue
            claimed = True
            for key in keys:
                used[key] += 1
                taken.append((want.source, created_at(want.source), *key, want.card_id))
        refused.append(refusals)
    return refused, taken


async def claim_batch(connection: "Connection", wants: Sequence[Want], timeout: float) -> list[Refusals | None]:
    """claim() in a transaction of its own, committed when it returns. If somebody holds a count for too long, each is
    claimed by itself, so that it is the only one that is not: None."""
    with cut_off(connection, timeout):
        try:
            async with connection.transaction():
                return [*await claim(connection, wants)]
        except _HELD:
            return [await _alone(connection, want) for want in wants]


async def _alone(connection: "Connection", want: Want) -> Refusals | None:
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = {_AGAIN_MS}")
            return (await claim(connection, [want]))[0]
    except _HELD:
        return None


async def give_back(connection: "AnyConnection", sources: Sequence[UUID]) -> None:
    """Undo what they have claimed, once; inside a transaction."""
    await connection.execute(_GIVE_BACK, sources, [created_at(source) for source in sources])


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` counts whose time is long over; returns how many."""
    done = await connection.fetch(
        "DELETE FROM benefit_use WHERE (since, span, benefit, holder) IN (SELECT since, span, benefit, holder"
        " FROM benefit_use WHERE since < current_date - $1::integer ORDER BY since LIMIT $2) RETURNING true",
        KEPT_DAYS, limit,
    )  # fmt: skip
    return len(done)
