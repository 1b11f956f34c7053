"""The resolver: takes up what nobody else is at, and asks or reverses until it is known."""

import asyncio
import datetime as dt

import structlog

from gateway.domain.errors import Problem
from gateway.flows.settle_payment import SettlePayment
from gateway.metrics import PAYMENTS_OPEN, PAYMENTS_STUCK
from gateway.settings import Payments
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
        """Everything that is due, in bounded batches; then the gauges. Raises Problem 503."""
        for _ in range(_TURNS_MAX):
            if await self.batch() < self._settings.resolve_max:
                break
        older_than = dt.timedelta(seconds=self._settings.stuck_after_s)
        async with self._pool.acquire() as connection:
            left, stuck = await payments.count_open(connection, older_than)
        PAYMENTS_OPEN.set(left)
        PAYMENTS_STUCK.set(stuck)

    async def batch(self) -> int:
        """How many were taken up. Each is tried by itself: one that fails stays due, and holds up no other."""
        async with self._pool.acquire() as connection:
            due = await payments.due(connection, self._settings.resolve_max, self._settle.lease)
        results = await asyncio.gather(*(self._settle.again(payment) for payment in due), return_exceptions=True)
        for payment, result in zip(due, results, strict=True):
            if isinstance(result, Problem):
                log.warning("a payment was not resolved", reference=str(payment.reference), code=result.code)
            elif isinstance(result, BaseException):
                raise result
        return len(due)
