"""The slow lane: checks of some tenths of a millisecond (SM2) in threads of their own, bounded, off the event loop."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from gateway.domain.errors import overloaded, unavailable

P = ParamSpec("P")
T = TypeVar("T")


class SlowLane:
    """Made for one event loop. At most `threads` run and `waiting_max` wait; what nobody awaits any more is skipped."""

    def __init__(self, threads: int, waiting_max: int, deadline_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="slow-lane")
        self._places = threads + waiting_max
        self._taken = 0
        self._deadline_s = deadline_s
        self._closed = False

    def __len__(self) -> int:
        """Checks that run or wait."""
        return self._taken

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What the function returns or raises. Raises Problem 503: no place, too late, closed."""
        if self._closed:
            raise unavailable("the gateway is stopping")
        if self._taken >= self._places:
            raise overloaded("too many signatures of a slow algorithm are waiting to be checked")
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            # a place is given back by the thread, not by who stops waiting: the bound is on the work there is
            outcome = None if answer.done() else _outcome(function, *args, **kwargs)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._deliver, answer, outcome)

        self._taken += 1
        self._executor.submit(work)
        try:
            async with asyncio.timeout(self._deadline_s) as deadline:
                return await answer
        except TimeoutError:
            if not deadline.expired():
                raise  # the function's own
            raise overloaded("the signature could not be checked in time") from None

    def _deliver(self, answer: "asyncio.Future[Any]", outcome: "tuple[Any, BaseException | None] | None") -> None:
        self._taken -= 1
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


def _outcome(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T | None, BaseException | None]:
    try:
        return function(*args, **kwargs), None
    except Exception as error:  # noqa: BLE001 - handed to who awaits it
        return None, error
