"""Run something once for a caller's key: the claim is the first insert of the business transaction (design.md §6).

Only what began to execute is kept: a failure rolls the claim back. Kept for 7 days (worker/housekeeping.py).
"""

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg

from gateway.domain.errors import Problem
from gateway.store import idempotency
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection

_KEY = re.compile(r"[\x21-\x7e]{1,255}")


def is_key(text: str) -> bool:
    """1 to 255 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


async def run(
    pool: Pool, caller_id: str, key: str, fingerprint: bytes, work: "Callable[[PooledConnection], Awaitable[bytes]]"
) -> tuple[bytes, bool]:
    """(answer, whether it is a replay). Raises Problem 409 while the first use still runs, 422 for another request."""
    async with pool.acquire() as connection:
        try:
            async with connection.transaction():
                stored = await idempotency.claim(connection, caller_id, key, fingerprint)
                if stored is None:
                    answer = await work(connection)
                    await idempotency.keep(connection, caller_id, key, answer)
                    return answer, False
        except asyncpg.LockNotAvailableError:
            raise Problem("idempotency_key_in_use", headers={"Retry-After": "1"}) from None
    if stored.fingerprint != fingerprint:
        raise Problem("idempotency_key_reused")
    return stored.answer, True
