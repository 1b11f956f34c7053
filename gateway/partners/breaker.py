"""A circuit breaker of one partner: after enough failures in a row it is left alone, then probed with one call."""

import time
from collections.abc import Callable
from enum import IntEnum


class State(IntEnum):
    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """Closed -> open after `failures` in a row; after `open_s` one probe: good -> closed, bad -> open for as long."""

    def __init__(self, failures: int, open_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._failures_max = failures
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probe: object | None = None

    @property
    def state(self) -> State:
        if self._opened_at is None:
            return State.CLOSED
        due = self._probe is not None or self._clock() >= self._opened_at + self._open_s
        return State.HALF_OPEN if due else State.OPEN

    def enter(self) -> object | None:
        """A pass for one try, or None: leave the partner alone. Every pass is given back by report()."""
        if self._opened_at is None:
            return object()
        if self._probe is not None or self._clock() < self._opened_at + self._open_s:
            return None
        self._probe = object()
        return self._probe

    def report(self, ticket: object, good: bool | None) -> None:
        """What came of a try; None: nothing was learnt of the partner (it was given up, or could not be built)."""
        if ticket is self._probe:
            self._probe = None
            if good is not None:
                self._opened_at = None if good else self._clock()
                self._failures = 0
            return
        if self._opened_at is not None or good is None:
            return  # a try from before it opened
        self._failures = 0 if good else self._failures + 1
        if self._failures >= self._failures_max:
            self._opened_at = self._clock()
            self._failures = 0
