"""Planted bug: when a client hangs up, telling the bank is given up for it."""

import asyncio
from types import SimpleNamespace
from typing import Any

from gateway.api.server import HardenedServer
from gateway.flows import effects

_init = HardenedServer.__init__


def init(self: HardenedServer, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    self.handler_cancellation = True


HardenedServer.__init__ = init  # type: ignore[method-assign]
setattr(effects, "asyncio", SimpleNamespace(**{**vars(asyncio), "shield": lambda task: task}))  # noqa: B010
