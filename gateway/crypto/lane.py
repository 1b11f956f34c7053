"""The slow lane: checks of some tenths of a millisecond (SM2) in threads of their own, bounded, off the event loop."""

import asyncio
import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, ParamSpec, TypeVar

from gateway.crypto.sm2 import chosen
from gateway.domain.errors import overloaded, unavailable

NICENESS = 10
"""Below the event loop: a check that has a core gives it to a request that comes. On Linux it is the thread's own."""

P = ParamSpec("P")
T = TypeVar("T")


class _Check(NamedTuple):
    who: str
    function: Callable[[], Any]
    answer: "asyncio.Future[Any]"


_Outcome = tuple[Any, BaseException | None]


class SlowLane:
    """Made for one event loop. At most `threads` run and `waiting_max` wait; what nobody awaits any more is skipped.

    No more than `per_second` are begun in a second: a thread that never rests takes the interpreter and a core from
    everybody else's requests (loadtests/README.md). Where more than one waits, up to `together` are answered together,
    so that what follows them (an effect's transaction) is done together too, for a part of the cost.
    """

    def __init__(self, threads: int, waiting_max: int, deadline_s: float, per_second: int, together: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="slow-lane", initializer=_give_way)
        self._places = threads + waiting_max
        self._taken = 0
        self._taken_by: Counter[str] = Counter()
        self._deadline_s = deadline_s
        self._closed = False
        self._gap_s = 1 / per_second
        # the first of them waits for the last: no more than a tenth of its time
        self._together = max(min(together, int(deadline_s * per_second / 10)), 1)
        self._waiting: deque[_Check] = deque()
        self._next = 0.0
        self._turn = Lock()

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
        self._taken += 1
        self._taken_by[who] += 1
        self._waiting.append(_Check(who, partial(function, *args, **kwargs), answer))
        self._executor.submit(self._check, loop)
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise  # the function's own
            raise overloaded("the signature could not be checked in time") from None

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        """A turn of a thread. There is one for each check; those that come to nothing are over at once."""
        done: list[tuple[_Check, _Outcome | None]] = []
        while len(done) < self._together and (each := self._next_one()) is not None:
            done.append((each, None if each.answer.done() else _outcome(each.function)))
        # a place is given back by the thread, not by who stops waiting: the bound is on the work there is
        if done:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._deliver, done)

    def _next_one(self) -> _Check | None:
        """When it is time for it; None if none waits."""
        with self._turn:
            if not self._waiting:
                return None
            each = self._waiting.popleft()
            if not each.answer.done():
                time.sleep(max(self._next - time.monotonic(), 0.0))
                self._next = max(self._next, time.monotonic()) + self._gap_s
            return each

    def _deliver(self, done: "Sequence[tuple[_Check, _Outcome | None]]") -> None:
        for (who, _, answer), outcome in done:
            self._taken -= 1
            self._taken_by[who] -= 1
            if not self._taken_by[who]:
                del self._taken_by[who]
            if answer.done() or outcome is None:
                continue
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


def _outcome(function: Callable[[], Any]) -> _Outcome:
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001 - handed to who awaits it
        return None, error
