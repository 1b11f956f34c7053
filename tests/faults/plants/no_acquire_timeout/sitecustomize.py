"""Planted bug: who finds the pool empty waits until a connection is free."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from gateway.domain.errors import unavailable
from gateway.store.pool import GONE, Pool

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection


@asynccontextmanager
async def acquire(self: Pool, *limits: float) -> AsyncIterator["PooledConnection"]:
    assert self._pool is not None
    try:
        async with self._pool.acquire() as connection:
            yield connection
    except GONE as error:
        raise unavailable("the database is not available") from error


setattr(Pool, "acquire", acquire)  # noqa: B010
