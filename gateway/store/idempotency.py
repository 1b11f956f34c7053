"""Idempotency keys: claimed, kept with their answer, swept after 7 days. All in batches, in the order of the keys."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.store.pool import Place

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

KEPT_DAYS = 7

KeyOf = tuple[str, str]
"""(caller, key): what is unique."""


class Stored(NamedTuple):
    """What the first use of a key left."""

    fingerprint: bytes
    answer_sealed: bytes | None
    """None: the first use has begun and its outcome is not known yet."""


async def claim(
    connection: "AnyConnection", keys: Sequence[KeyOf], fingerprints: Sequence[bytes]
) -> dict[KeyOf, Place]:
    """Claim keys inside a transaction; returns those that are ours now, and where. `keys` has none twice.

    Waits for another transaction that holds one of them for as long as the connection's lock_timeout, then raises
    LockNotAvailableError. All transactions claim in the same order, so none waits in a circle.
    """
    callers, names, prints = zip(*sorted((*each, f) for each, f in zip(keys, fingerprints, strict=True)), strict=True)
    rows = await connection.fetch(
        "INSERT INTO idempotency_key (caller, key, fingerprint)"
        " SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[])"
        " ON CONFLICT DO NOTHING RETURNING caller, key, ctid",
        callers, names, prints,
    )  # fmt: skip
    return {(row[0], row[1]): row[2] for row in rows}


async def stored(connection: "AnyConnection", keys: Sequence[KeyOf]) -> dict[KeyOf, Stored]:
    """What is kept of keys that claim() did not give us: committed, so it is there."""
    rows = await connection.fetch(
        "SELECT caller, key, fingerprint, answer_sealed FROM idempotency_key"
        " JOIN unnest($1::text[], $2::text[]) AS asked(caller, key) USING (caller, key)",
        [caller for caller, _ in keys], [key for _, key in keys],
    )  # fmt: skip
    return {(row["caller"], row["key"]): Stored(row["fingerprint"], row["answer_sealed"]) for row in rows}


KEEP_AT_ONCE = """
UPDATE idempotency_key AS kept SET answer_sealed = done.answer_sealed
FROM unnest($1::tid[], $2::bytea[]) AS done(place, answer_sealed) WHERE kept.ctid = done.place
"""
"""For the transaction that has claimed the keys."""


async def keep(connection: "AnyConnection", answers: Mapping[KeyOf, bytes]) -> None:
    """Store the sealed answers of keys that were claimed before and have none: an answer is never replaced."""
    await connection.execute(
        "UPDATE idempotency_key AS kept SET answer_sealed = done.answer_sealed"
        " FROM unnest($1::text[], $2::text[], $3::bytea[]) AS done(caller, key, answer_sealed)"
        " WHERE kept.caller = done.caller AND kept.key = done.key AND kept.answer_sealed IS NULL",
        [caller for caller, _ in answers], [key for _, key in answers], list(answers.values()),
    )  # fmt: skip


async def give_back(connection: "AnyConnection", keys: Sequence[KeyOf]) -> None:
    """Undo the claims of what did not take effect: such keys may be used again. One with an answer stays."""
    await connection.execute(
        "DELETE FROM idempotency_key USING unnest($1::text[], $2::text[]) AS asked(caller, key)"
        " WHERE idempotency_key.caller = asked.caller AND idempotency_key.key = asked.key AND answer_sealed IS NULL",
        [caller for caller, _ in keys], [key for _, key in keys],
    )  # fmt: skip


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` keys past their days; returns how many."""
    done = await connection.fetch(
        "DELETE FROM idempotency_key WHERE (caller, key) IN (SELECT caller, key FROM idempotency_key"
        " WHERE created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2) RETURNING true",
        KEPT_DAYS, limit,
    )  # fmt: skip
    return len(done)
