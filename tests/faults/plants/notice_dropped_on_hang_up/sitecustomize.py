"""Planted bug: when a client hangs up, telling the bank is given up for it, on either way past or through aiohttp."""

import asyncio
from types import SimpleNamespace
from typing import Any

from gateway.api.server import Connection, HardenedServer
from gateway.flows import effects

_init = HardenedServer.__init__
_connection_lost = Connection.connection_lost


def init(self: HardenedServer, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    self.handler_cancellation = True


def connection_lost(self: Connection, exc: BaseException | None) -> None:
    _connection_lost(self, exc)
    for task in self._hot_lane._tasks:
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and frame.f_locals["connection"] is self:
            task.cancel()


HardenedServer.__init__ = init  # type: ignore[method-assign]
Connection.connection_lost = connection_lost  # type: ignore[assignment]
setattr(effects, "asyncio", SimpleNamespace(**{**vars(asyncio), "shield": lambda task: task}))  # noqa: B010
