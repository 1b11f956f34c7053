"""Planted bug: the verify queue takes whatever comes."""

from typing import Any

from gateway.store.batch import Batcher

_init = Batcher.__init__


def init(self: "Batcher[Any, Any]", *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs | {"queue_max": 1_000_000})


Batcher.__init__ = init  # type: ignore[method-assign]
