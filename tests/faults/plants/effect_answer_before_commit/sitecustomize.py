"""Planted bug: the answers of a batch of effects leave before its commit."""

import asyncio
from typing import Any

from gateway.flows.effects import Effects

_LATE_S = 0.05
_real = Effects._transact
_commits: dict[int, asyncio.Task[None]] = {}


class _Late:
    """A transaction whose commit comes later."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transaction = connection.transaction()

    async def __aenter__(self) -> None:
        await self._transaction.start()

    async def __aexit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            await self._transaction.rollback()
        else:
            _commits[id(self._connection)] = asyncio.create_task(self._commit())

    async def _commit(self) -> None:
        await asyncio.sleep(_LATE_S)
        await self._transaction.commit()


class _Connection:
    def __init__(self, real: Any) -> None:
        self._real = real

    def transaction(self) -> _Late:
        return _Late(self._real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def transact(self: Effects, connection: Any, *rest: Any) -> Any:
    if commit := _commits.pop(id(connection), None):
        await commit
    return await _real(self, _Connection(connection), *rest)  # type: ignore[arg-type]


setattr(Effects, "_transact", transact)  # noqa: B010
