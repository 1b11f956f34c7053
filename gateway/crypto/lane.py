"""The slow lane: checks of some tenths of a millisecond (SM2) in threads of their own, bounded, off the event loop."""

import asyncio
import contextlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, ParamSpec, TypeVar

from gateway.crypto.sm2 import chosen
from gateway.domain.errors import overloaded, unavailable

NICENESS = 10
"""Below the event loop: a check that has a core gives it to a request that comes. On Linux it is the thread's own."""

_LEAST_SHARE = 0.25
"""A check that has less of its time left is not begun: where more come than can be checked, each would be begun at the
end of its time, and be too late. Threads that give way may have to wait for a core, too."""

_TOGETHER_SHARE = 0.1
"""The first of those that are answered together waits for the last, for no more of its time."""

P = ParamSpec("P")
T = TypeVar("T")

_Outcome = tuple[Any, Exception | None]
_Done = tuple["_Check", _Outcome | None]


class _Check(NamedTuple):
    who: str
    function: Callable[[], Any]
    begin_by: float
    answer: "asyncio.Future[_Outcome | None]"
    """None: there was no time for it."""

    def can_be_in_time(self) -> bool:
        """And somebody awaits it."""
        return not self.answer.done() and time.monotonic() < self.begin_by


class SlowLane:
    """Made for one event loop. At most `threads` run and `waiting_max` wait; what nobody awaits any more is skipped.

    No more than `per_second` are begun in a second: a thread that never rests takes the interpreter and a core from
    everybody else's requests (loadtests/README.md). Where more than one waits, up to `together` are answered together,
    so that what follows them (an effect's transaction) is done together too, for a part of the cost.
    """

    def __init__(self, threads: int, waiting_max: int, deadline_s: float, per_second: int, together: int = 1) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="slow-lane", initializer=_give_way)
        self._threads = threads
        self._at_work = 0
        """Threads, as far as the loop knows: one that ends while more comes is woken again by _rest()."""
        self._places = threads + waiting_max
        self._taken = 0
        self._taken_by: Counter[str] = Counter()
        self._deadline_s = deadline_s
        self._closed = False
        self._gap_s = 1 / per_second
        # all threads share the pace
        self._together = max(min(together, int(_TOGETHER_SHARE * deadline_s * per_second / threads)), 1)
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
        begin_by = time.monotonic() + self._deadline_s * (1 - _LEAST_SHARE)
        check = _Check(who, partial(function, *args, **kwargs), begin_by, loop.create_future())
        self._taken += 1
        self._taken_by[who] += 1
        self._waiting.append(check)
        self._wake_a_thread(loop)
        try:
            async with asyncio.timeout(self._deadline_s):
                outcome = await check.answer
        except TimeoutError:
            outcome = None
        if outcome is None:
            raise overloaded("the signature could not be checked in time")
        result: T
        result, error = outcome
        if error is not None:
            raise error
        return result

    def _wake_a_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._at_work < self._threads and not self._closed:
            self._executor.submit(self._work, loop)
            self._at_work += 1

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """What a thread does while any wait."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            while done := self._check_some():
                loop.call_soon_threadsafe(self._deliver, done)
            loop.call_soon_threadsafe(self._rest, loop)

    def _rest(self, loop: asyncio.AbstractEventLoop) -> None:
        self._at_work -= 1
        self._wake_a_thread(loop)  # for what has come since the thread looked

    def _check_some(self) -> list[_Done]:
        """Checks that are done, or skipped; none if none waits. What is skipped is told with what is done after it."""
        done: list[_Done] = []
        for _ in range(self._together):
            if self._closed or (check := self._take_one(done)) is None:
                break
            done.append((check, _outcome(check.function)))
        return done

    def _take_one(self, skipped: list[_Done]) -> _Check | None:
        """The next one that can be in time, when it is time for it; None if none waits.

        All before it are skipped at one go: one at a time, each with its way to the loop, they would take what time
        there is on a busy machine, and the next ones would be late in their turn.
        """
        with self._turn:
            if not self._waiting:
                return None
            time.sleep(max(self._next - time.monotonic(), 0.0))
            while self._waiting:
                check = self._waiting.popleft()
                if check.can_be_in_time():
                    self._next = max(self._next, time.monotonic()) + self._gap_s
                    return check
                skipped.append((check, None))
            return None

    def _deliver(self, done: list[_Done]) -> None:
        # a place is given back for what a thread has done, not by who stops waiting: the bound is on the work there is
        for (who, _, _, answer), outcome in done:
            self._taken -= 1
            self._taken_by[who] -= 1
            if not self._taken_by[who]:
                del self._taken_by[who]
            if not answer.done():
                answer.set_result(outcome)

    def close(self) -> None:
        """Take nothing more; what runs ends by itself, what waits is told at its deadline."""
        self._closed = True
        self._executor.shutdown(wait=False)


def _give_way() -> None:
    """Not where the library keeps the interpreter: a thread that waits for a core would keep it from the event loop."""
    if chosen().backend.frees_interpreter:
        with contextlib.suppress(OSError):  # where it may not, it does without
            os.nice(NICENESS)


def _outcome(function: Callable[[], Any]) -> _Outcome:
    """The function's result, or what it raised, for who awaits it."""
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001 - handed on
        return None, error
    except BaseException as error:  # noqa: BLE001 - a library's panic: it is not to end the thread, nor the event loop
        failed = RuntimeError("a check failed")
        failed.__cause__ = error
        return None, failed
