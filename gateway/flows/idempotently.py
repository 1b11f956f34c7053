"""Run something once for a caller's key: the claim is the first insert of the business transaction (design.md §6).

Only what began to execute is kept: a failure rolls the claim back. Kept for 7 days (worker/housekeeping.py), the answer
sealed, because it may tell of a person, and the request as a keyed digest.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import asyncpg

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.sealing import Sealer
from gateway.domain.errors import Problem
from gateway.store import idempotency
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_COLUMN = b"idempotency_key.answer_sealed"


def is_key(text: str) -> bool:
    """1 to 255 visible ASCII characters."""
    return _KEY.fullmatch(text) is not None


class Idempotency:
    """`data_key` gives the id of the data key that seals answers now, and has the sealer know it."""

    def __init__(
        self,
        pool: Pool,
        sealer: Sealer,
        index: BlindIndex,
        data_key: "Callable[[PooledConnection], Awaitable[int]]",
        load_data_keys: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._sealer = sealer
        self._index = index
        self._data_key = data_key
        self._load_data_keys = load_data_keys

    async def run(
        self, caller_id: str, key: str, request: bytes, work: "Callable[[PooledConnection], Awaitable[bytes]]"
    ) -> tuple[bytes, bool]:
        """(answer, whether it is a replay). `request` is all that makes two requests the same.

        Raises Problem 409 while the first use still runs, 422 for another request with the key.
        """
        fingerprint = self._index.request(request)
        row_id = hashlib.sha256(f"{caller_id} {key}".encode()).digest()[:16]
        async with self._pool.acquire() as connection:
            data_key_id = await self._data_key(connection)
            try:
                async with connection.transaction():
                    stored = await idempotency.claim(connection, caller_id, key, fingerprint)
                    if stored is None:
                        answer = await work(connection)
                        sealed = self._sealer.seal(data_key_id, _COLUMN, row_id, answer)
                        await idempotency.keep(connection, caller_id, key, sealed)
                        return answer, False
            except asyncpg.LockNotAvailableError:
                raise Problem("idempotency_key_in_use", headers={"Retry-After": "1"}) from None
        if stored.fingerprint != fingerprint:
            raise Problem("idempotency_key_reused")
        if not self._sealer.knows(stored.answer_sealed):
            await self._load_data_keys()
        return self._sealer.open(_COLUMN, row_id, stored.answer_sealed), True
