"""Proof that the points ledger is whole: every rule as a statement that finds the rows which break it.

All of them run in one snapshot, so writers may be busy meanwhile: a transfer is either in all of its tables or in none.
"""

from typing import NamedTuple

import asyncpg

FOUND_MAX = 20
"""Offending ids of a rule that are told; it is counted how many there are."""


class Finding(NamedTuple):
    """A rule, how many break it, and the ids of some of them."""

    rule: str
    broken: int
    ids: tuple[str, ...]


class Sums(NamedTuple):
    """What the snapshot held."""

    accounts: int
    transfers: int
    entries: int
    held: int
    """By citizens and merchants."""


RULES = {
    "the entries of a transfer sum up to 0": """
        SELECT transfer_id FROM points_entry GROUP BY transfer_id HAVING sum(points) <> 0
    """,
    "a transfer has one entry on each of its two sides": """
        SELECT coalesce(t.transfer_id, e.transfer_id) FROM points_transfer t
        FULL JOIN (
            SELECT transfer_id, created_at, count(*) AS entries,
                   array_agg((account_id, points) ORDER BY account_id) AS sides
            FROM points_entry GROUP BY transfer_id, created_at
        ) e ON e.transfer_id = t.transfer_id AND e.created_at = t.created_at
        WHERE coalesce(t.points, 0) <> 0 AND (e.entries IS NULL OR e.entries <> 2
              OR e.sides <> ARRAY[(t.person_id, t.points), (t.counter, -t.points)])
           OR coalesce(t.points, 0) = 0 AND e.entries IS NOT NULL
    """,
    "the entries of an account are numbered, and each begins where the last one ended": """
        SELECT DISTINCT account_id FROM (
            SELECT account_id, number, previous, lag(current, 1, 0::bigint) OVER account AS last,
                   row_number() OVER account AS place, current - points AS before
            FROM points_entry WINDOW account AS (PARTITION BY account_id ORDER BY number)
        ) chain
        WHERE previous <> last OR number <> place OR previous <> before
    """,
    "an account's balance is the sum of its entries": """
        SELECT coalesce(a.account_id, e.account_id) FROM points_account a
        FULL JOIN (SELECT account_id, sum(points) AS points, count(*) AS entries
                   FROM points_entry GROUP BY account_id) e ON e.account_id = a.account_id
        WHERE coalesce(a.balance, 0) <> coalesce(e.points, 0) OR coalesce(a.entries, 0) <> coalesce(e.entries, 0)
    """,
    "only the issuer's balance is below 0": """
        SELECT account_id FROM points_account WHERE balance < 0 AND kind <> 'issuer'
    """,
    "a person's lots are what the person has": """
        SELECT coalesce(a.account_id, l.person_id)
        FROM (SELECT * FROM points_account WHERE kind = 'citizen') a
        FULL JOIN (SELECT person_id, sum(remaining) AS remaining FROM points_lot GROUP BY person_id) l
            ON l.person_id = a.account_id
        WHERE coalesce(a.balance, 0) <> coalesce(l.remaining, 0)
    """,
    "what an account has reserved is what its open redemptions hold": """
        SELECT coalesce(a.account_id, r.person_id) FROM points_account a
        FULL JOIN (SELECT person_id, sum(points) AS points FROM points_redemption
                   WHERE state = 'reserved' GROUP BY person_id) r ON r.person_id = a.account_id
        WHERE coalesce(a.reserved, 0) <> coalesce(r.points, 0)
    """,
    "a committed redemption was paid once, and no other was": """
        SELECT coalesce(r.reference, t.redemption) FROM (SELECT * FROM points_redemption WHERE state = 'committed') r
        FULL JOIN (SELECT redemption, count(*) AS times, sum(points) AS points FROM points_transfer
                   WHERE kind = 'redeem' GROUP BY redemption) t ON t.redemption = r.reference
        WHERE r.reference IS NULL OR coalesce(t.times, 0) <> 1 OR t.points <> -r.points
    """,
    "not more is taken back than was earned": """
        SELECT back.corrects FROM points_transfer back
        LEFT JOIN points_transfer t ON t.transfer_id = back.corrects
        WHERE back.kind IN ('take_back', 'correct') GROUP BY back.corrects, t.points, t.kind
        -- with what it was corrected upwards by
        HAVING count(*) FILTER (WHERE back.kind = 'take_back') > 0 AND (t.kind IS DISTINCT FROM 'earn'
            OR sum(back.shortfall - back.points) FILTER (WHERE back.kind = 'take_back')
               > t.points + coalesce(sum(back.points) FILTER (WHERE back.kind = 'correct' AND back.points > 0), 0))
    """,
    # The ids of returned uses, and their reversals, are kept for ever; the events' partitions need not be there.
    "what was earned is a returned use's": """
        SELECT t.transfer_id FROM points_transfer t
        WHERE t.kind = 'earn' AND NOT EXISTS (SELECT FROM usage_return u WHERE u.event_id = t.transfer_id)
    """,
    "what was taken back is a reversed use's": """
        SELECT t.transfer_id FROM points_transfer t
        WHERE t.kind = 'take_back'
          AND NOT EXISTS (SELECT FROM usage_reversal r WHERE r.original = t.corrects AND r.reversal = t.transfer_id)
    """,
    "what a reversed use had earned is taken back, or recorded as missing": """
        SELECT t.transfer_id FROM usage_reversal r
        JOIN points_transfer t ON t.transfer_id = r.original
        LEFT JOIN (
            -- with what it was corrected downwards by
            SELECT corrects, sum(CASE WHEN kind = 'take_back' THEN shortfall - points ELSE -points END) AS points
            FROM points_transfer WHERE kind = 'take_back' OR kind = 'correct' AND points < 0 GROUP BY corrects
        ) back ON back.corrects = t.transfer_id
        WHERE t.kind = 'earn' AND coalesce(back.points, 0) < t.points
    """,
}
"""Every rule with the statement that finds what breaks it (reliability.md §1)."""


async def check(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[Sums, list[Finding]]:
    """What was looked at, and what is wrong. Raises asyncpg.PostgresError."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # an owner of other settings may have turned them off for its own statements: this one reads everything
        await connection.execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on")
        row = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM points_account), (SELECT count(*) FROM points_transfer),"
            " (SELECT count(*) FROM points_entry),"
            " (SELECT coalesce(sum(balance), 0)::bigint FROM points_account WHERE kind IN ('citizen', 'merchant'))"
        )
        assert row is not None
        findings = []
        for rule, statement in RULES.items():
            found = await connection.fetch(
                f"SELECT id::text, count(*) OVER () FROM ({statement}) AS broken(id) ORDER BY id LIMIT {FOUND_MAX}"  # noqa: S608
            )
            if found:
                findings.append(Finding(rule, found[0][1], tuple(each[0] for each in found)))
    return Sums(*row), findings
