"""Planted bug: when a client hangs up, what was begun for it is dropped, wherever it stands.

A queued presentation is taken out, a handler is cancelled, and its connection of the pool is not given back.
"""

from asyncio import Future
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from gateway.api.server import Connection
from gateway.store import batch
from gateway.store.batch import Batcher
from gateway.store.pool import Pool
from tests.faults.hanging_up import cancels_what_was_begun

if TYPE_CHECKING:
    from gateway.store.pool import PooledConnection

_serve_one_batch = Batcher._serve_one_batch


def _client_is_gone(sink: Any) -> bool:
    held = [cell.cell_contents for cell in sink.__closure__ or ()]
    return any(
        one.transport is None if isinstance(one, Connection) else isinstance(one, Future) and one.cancelled()
        for one in held
    )


async def serve_one_batch(self: "Batcher[Any, Any]") -> None:
    self._queue = deque(waiting for waiting in self._queue if not _client_is_gone(waiting[1]))
    if self._queue:
        await _serve_one_batch(self)


@asynccontextmanager
async def acquire(self: Pool, limit_s: float = 0.7) -> AsyncIterator["PooledConnection"]:
    assert self._pool is not None
    connection = await self._pool.acquire(timeout=self._settings.acquire_timeout_ms / 1000)
    try:
        yield connection
    except Exception:
        await self._pool.release(connection)
        raise
    await self._pool.release(connection)


batch.IN_FLIGHT_MAX = 1  # so that there is a queue to drop from
cancels_what_was_begun()
Batcher._serve_one_batch = serve_one_batch  # type: ignore[method-assign]
setattr(Pool, "acquire", acquire)  # noqa: B010
