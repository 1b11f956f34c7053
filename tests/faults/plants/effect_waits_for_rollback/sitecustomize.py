"""Planted bug: past its deadline a batch of effects is rolled back, which waits for the database."""

import asyncio
from typing import Any

from gateway.flows.effects import Effects

_real = Effects._execute


async def execute(self: Effects, connection: Any, batch: Any, timeout: float) -> Any:
    async with asyncio.timeout(timeout):
        return await _real(self, connection, batch, 60.0)


setattr(Effects, "_execute", execute)  # noqa: B010
