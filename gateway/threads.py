"""Work in a thread beside an event loop."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_EVERY = 100
_REST_S = 1e-5


def breathing(items: Iterable[T]) -> Iterator[T]:
    """The same items, with a rest after every hundred.

    A thread that computes keeps the interpreter for 5 ms, which every request would feel. (A sleep of 0 gives it back,
    and takes it again before anybody has noticed.)
    """
    for count, item in enumerate(items, 1):
        if count % _EVERY == 0:
            time.sleep(_REST_S)
        yield item
