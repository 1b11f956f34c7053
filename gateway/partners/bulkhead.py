"""How much one partner may hold of us: calls at once, calls that wait, retries. One partner's trouble stays its own."""

import asyncio

_RETRIES_SAVED_MAX = 5.0


class Bulkhead:
    """At most `concurrency_max` calls at the partner and `waiting_max` that wait for a place, in their order."""

    def __init__(self, concurrency_max: int, waiting_max: int) -> None:
        self._places = asyncio.Semaphore(concurrency_max)
        self._waiting_max = waiting_max
        self.in_flight = 0
        self.waiting = 0

    async def enter(self) -> bool:
        """False at once if no place is free and no more may wait. Who has entered must leave()."""
        if self._places.locked():
            if self.waiting >= self._waiting_max:
                return False
            self.waiting += 1
            try:
                await self._places.acquire()
            finally:
                self.waiting -= 1
        else:
            await self._places.acquire()  # does not wait
        self.in_flight += 1
        return True

    def leave(self) -> None:
        self.in_flight -= 1
        self._places.release()


class RetryBudget:
    """A share of the calls may be retried (SRE: 10 %): retries do not multiply what a partner in trouble gets."""

    def __init__(self, percent: int) -> None:
        self._share = percent / 100
        self._saved = min(1.0, percent)

    def count_call(self) -> None:
        self._saved = min(_RETRIES_SAVED_MAX, self._saved + self._share)

    def take(self) -> bool:
        if self._saved < 1:
            return False
        self._saved -= 1
        return True
