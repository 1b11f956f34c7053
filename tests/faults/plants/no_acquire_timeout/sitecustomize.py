"""Planted bug: who finds the pool empty waits until a connection is free."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection


@asynccontextmanager
async def acquire(self: Pool) -> AsyncIterator["PooledConnection"]:
    assert self._pool is not None
    async with self._pool.acquire() as connection:
        yield connection


Pool.acquire = acquire  # type: ignore[method-assign]
