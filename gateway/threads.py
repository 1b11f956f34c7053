"""Work in a thread beside an event loop."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_LOOK_EVERY = 16
_HOLD_S, _HOLD_MAX_S = 2e-4, 1e-3
_REST_S = 1e-5
_ALONE_S = 1e-4
"""The shortest sleep takes some 60 us; one that takes longer than this has waited for somebody else."""


def breathing(items: Iterable[T]) -> Iterator[T]:
    """The same items, with rests: a thread that computes keeps the interpreter for 5 ms, which all requests would feel.

    A rest comes soon after one in which somebody else had the interpreter, and later where nobody wants it. (A sleep of
    0 would give it back, and take it again before anybody has noticed.)
    """
    hold, rested = _HOLD_S, time.perf_counter()
    for count, item in enumerate(items, 1):
        if count % _LOOK_EVERY == 0 and (now := time.perf_counter()) - rested > hold:
            time.sleep(_REST_S)
            rested = time.perf_counter()
            hold = min(hold * 2, _HOLD_MAX_S) if rested - now < _ALONE_S else _HOLD_S
        yield item
