"""Planted bug: a batch has the time that its oldest presentation has left, however little that is."""

import asyncio
import time
from typing import Any

import asyncpg

from gateway.domain.errors import unavailable
from gateway.store.batch import Batcher
from gateway.store.pool import GONE


async def serve_one_batch(self: "Batcher[Any, Any]") -> None:
    connection = self._free_one() or await self._new_one(5.0)
    taken = [self._queue.popleft() for _ in range(min(len(self._queue), self._batch_max))]
    left = max(taken[0][2] - time.monotonic(), 0.001)
    try:
        answers = await self._execute(connection, [item for item, _, _ in taken], left)
    except (*GONE, asyncpg.PostgresError):
        connection.terminate()
        for _, sink, _ in taken:
            sink(None, unavailable("the batch took too long"))
        self._on_delivered()
        return
    asyncio.get_running_loop().call_soon(self._deliver, taken, answers)


Batcher._serve_one_batch = serve_one_batch  # type: ignore[method-assign]
