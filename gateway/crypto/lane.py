"""The slow lane: checks of some tenths of a millisecond (SM2) in threads of their own, bounded, off the event loop."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, ParamSpec, TypeVar

from gateway.crypto.sm2 import chosen
from gateway.domain.errors import overloaded, unavailable

NICENESS = 10
"""Below the event loop: a check that has a core gives it to a request that comes. On Linux it is the thread's own."""

P = ParamSpec("P")
T = TypeVar("T")


class Pace:
    """Lets threads begin one after the other, `gap_s` apart."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = gap_s
        self._next = 0.0
        self._turn = Lock()

    def wait(self) -> None:
        with self._turn:
            begin = max(time.monotonic(), self._next)
            self._next = begin + self._gap_s
        time.sleep(max(begin - time.monotonic(), 0.0))


class SlowLane:
    """Made for one event loop. At most `threads` run and `waiting_max` wait; what nobody awaits any more is skipped.

    No more than `per_second` are begun in a second: a thread that never rests takes the interpreter and a core from
    everybody else's requests (loadtests/README.md).
    """

    def __init__(self, threads: int, waiting_max: int, deadline_s: float, per_second: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="slow-lane", initializer=_give_way)
        self._places = threads + waiting_max
        self._taken = 0
        self._taken_by: Counter[str] = Counter()
        self._deadline_s = deadline_s
        self._closed = False
        self._pace = Pace(1 / per_second)

    def __len__(self) -> int:
        """Checks that run or wait."""
        return self._taken

    async def run(self, who: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. Raises Problem 503: no place, too late, closed.

        `who` has at most half of the places: nobody shuts the lane for the others.
        """
        if self._closed:
            raise unavailable("the gateway is stopping")
        if self._taken >= self._places or self._taken_by[who] >= max(self._places // 2, 1):
            raise overloaded("too many signatures of a slow algorithm are waiting to be checked")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            # a place is given back by the thread, not by who stops waiting: the bound is on the work there is
            if not answer.done():
                self._pace.wait()
            outcome = None if answer.done() else _outcome(function, *args, **kwargs)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._deliver, who, answer, outcome)

        self._taken += 1
        self._taken_by[who] += 1
        self._executor.submit(work)
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise  # the function's own
            raise overloaded("the signature could not be checked in time") from None

    def _deliver(
        self, who: str, answer: "asyncio.Future[Any]", outcome: "tuple[Any, BaseException | None] | None"
    ) -> None:
        self._taken -= 1
        self._taken_by[who] -= 1
        if not self._taken_by[who]:
            del self._taken_by[who]
        if answer.done() or outcome is None:
            return
        result, error = outcome
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def close(self) -> None:
        """Take nothing more; what runs ends by itself, what waits is told at its deadline."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)


def _give_way() -> None:
    """Not where the library keeps the interpreter: a thread that waits for a core would keep it from the event loop."""
    if chosen().backend.frees_interpreter:
        with contextlib.suppress(OSError):  # where it may not, it does without
            os.nice(NICENESS)


def _outcome(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, BaseException | None]:
    try:
        return function(*args, **kwargs), None
    except Exception as error:  # noqa: BLE001 - handed to who awaits it
        return None, error
