"""The resolver: takes up what nobody else is at, and asks or reverses until it is known."""

import datetime as dt

from gateway.configuration import Payments
from gateway.flows.resolve import TURNS_MAX, try_each
from gateway.flows.settle_payment import SettlePayment
from gateway.metrics import PAYMENTS_OPEN, PAYMENTS_STUCK
from gateway.store import payments
from gateway.store.pool import Pool


class ResolvePayments:
    """turn() is one round of the worker's loop."""

    def __init__(self, pool: Pool, settle: SettlePayment, settings: Payments) -> None:
        self._pool = pool
        self._settle = settle
        self._settings = settings

    async def turn(self) -> None:
        """Everything that is due, in bounded batches. Raises Problem 503."""
        for _ in range(TURNS_MAX):
            if await self.batch() < self._settings.resolve_max:
                break

    async def measure(self) -> None:
        """The gauges: in a loop of their own, for a turn takes as long as the slowest bank. Raises Problem 503."""
        older_than = dt.timedelta(seconds=self._settings.stuck_after_s)
        async with self._pool.acquire() as connection:
            left, stuck = await payments.count_open(connection, older_than)
        PAYMENTS_OPEN.set(left)
        PAYMENTS_STUCK.set(stuck)

    async def batch(self) -> int:
        """How many were taken up."""
        async with self._pool.acquire() as connection:
            due = await payments.due(connection, self._settings.resolve_max, self._settle.lease)
        await try_each(due, self._settle.again, "payment")
        return len(due)
