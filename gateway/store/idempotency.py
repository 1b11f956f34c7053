"""Idempotency keys: claimed, kept with their answer, swept after 7 days."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

KEPT_DAYS = 7


class Stored(NamedTuple):
    fingerprint: bytes
    answer_sealed: bytes


async def claim(connection: "AnyConnection", caller: str, key: str, fingerprint: bytes) -> Stored | None:
    """Claim a key inside a transaction: None if it is ours now, else what its first use left.

    Waits at most 200 ms for another transaction that holds the key, then raises LockNotAvailableError.
    """
    await connection.execute("SET LOCAL lock_timeout = '200ms'")
    claimed = await connection.fetchval(
        "INSERT INTO idempotency_key (caller, key, fingerprint) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING RETURNING true",
        caller, key, fingerprint,
    )  # fmt: skip
    await connection.execute("SET LOCAL lock_timeout = 0")  # the work's own waits are not this one
    if claimed:
        return None
    row = await connection.fetchrow(
        "SELECT fingerprint, answer_sealed FROM idempotency_key WHERE caller = $1 AND key = $2", caller, key
    )
    assert row is not None, "a committed claim is there: sweeping leaves seven days"
    return Stored(row["fingerprint"], row["answer_sealed"])


async def keep(connection: "AnyConnection", caller: str, key: str, answer_sealed: bytes) -> None:
    """Store the answer of a claimed key, in the same transaction."""
    await connection.execute(
        "UPDATE idempotency_key SET answer_sealed = $3 WHERE caller = $1 AND key = $2", caller, key, answer_sealed
    )


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` keys past their days; returns how many."""
    done = await connection.fetch(
        "DELETE FROM idempotency_key WHERE (caller, key) IN (SELECT caller, key FROM idempotency_key"
        " WHERE created_at < now() - make_interval(days => $1) ORDER BY created_at LIMIT $2) RETURNING true",
        KEPT_DAYS, limit,
    )  # fmt: skip
    return len(done)
