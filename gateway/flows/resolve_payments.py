"""The resolver: takes up what nobody else is at, and asks or reverses until it is known."""

import asyncio
import datetime as dt

import structlog

from gateway.configuration import Payments
from gateway.domain.errors import Problem
from gateway.flows.settle_payment import NOT_NOW, SettlePayment
from gateway.log import describe
from gateway.metrics import PAYMENTS_OPEN, PAYMENTS_STUCK
from gateway.store import payments
from gateway.store.pool import Pool

log = structlog.get_logger()

_TURNS_MAX = 100


class ResolvePayments:
    """turn() is one round of the worker's loop."""

    def __init__(self, pool: Pool, settle: SettlePayment, settings: Payments) -> None:
        self._pool = pool
        self._settle = settle
        self._settings = settings

    async def turn(self) -> None:
        """Everything that is due, in bounded batches. Raises Problem 503."""
        for _ in range(_TURNS_MAX):
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
        """How many were taken up. Each is tried by itself: one that fails stays due, is stuck in time, holds up none.

        Not even one that meets a mistake of ours: it would come again, and end the loop for all others again.
        """
        async with self._pool.acquire() as connection:
            due = await payments.due(connection, self._settings.resolve_max, self._settle.lease)
        results = await asyncio.gather(*(self._settle.again(payment) for payment in due), return_exceptions=True)
        for payment, result in zip(due, results, strict=True):
            if isinstance(result, NOT_NOW):
                error = result.code if isinstance(result, Problem) else type(result).__name__
                log.warning("a payment was not resolved", reference=str(payment.reference), error=error)
            elif isinstance(result, Exception):
                exception = describe(type(result), result.__traceback__)
                log.error("a payment was not resolved", reference=str(payment.reference), exception=exception)
            elif result is not None:
                raise result
        return len(due)
