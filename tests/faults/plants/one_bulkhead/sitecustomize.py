"""Planted bug: all partners share the places of one."""

from typing import Any

from gateway.partners.bulkhead import Bulkhead
from gateway.partners.working import Working

_init = Working.__init__
_shared: list[Bulkhead] = []


def init(self: Working, *parts: Any) -> None:
    _init(self, *parts)
    _shared.append(self.bulkhead)
    self.bulkhead = _shared[0]


setattr(Working, "__init__", init)  # noqa: B010
