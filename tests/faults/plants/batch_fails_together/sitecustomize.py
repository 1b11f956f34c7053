"""Planted bug: a batch of effects that fails is not tried one by one."""

from typing import Any

from gateway.flows.effects import Effects


async def attempt(self: Effects, connection: Any, batch: Any, data_keys: Any, waited: bool = False) -> Any:
    return await self._transact(connection, batch, data_keys)


setattr(Effects, "_attempt", attempt)  # noqa: B010
