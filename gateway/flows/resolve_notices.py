"""The resolver of loss notices: tells the banks, card by card in order, until each has said yes or no."""

import datetime as dt

from gateway.configuration import Losses
from gateway.flows.resolve import TURNS_MAX, try_each
from gateway.flows.tell_bank import TellBank
from gateway.metrics import LOSS_NOTICES_OPEN, LOSS_NOTICES_STUCK
from gateway.store import loss_notices
from gateway.store.pool import Pool


class ResolveNotices:
    """turn() is one round of the worker's loop."""

    def __init__(self, pool: Pool, tell: TellBank, settings: Losses) -> None:
        self._pool = pool
        self._tell = tell
        self._settings = settings

    async def turn(self) -> None:
        """Everything that is due, until nothing is: a release follows its loss in the same turn. Raises Problem 503."""
        for _ in range(TURNS_MAX):
            if not await self.batch():
                break

    async def measure(self) -> None:
        """The gauges, in a loop of their own as those of payments. Raises Problem 503."""
        older_than = dt.timedelta(seconds=self._settings.stuck_after_s)
        async with self._pool.acquire() as connection:
            left, stuck = await loss_notices.count_open(connection, older_than)
        LOSS_NOTICES_OPEN.set(left)
        LOSS_NOTICES_STUCK.set(stuck)

    async def batch(self) -> int:
        """How many were taken up."""
        async with self._pool.acquire() as connection:
            due = await loss_notices.due(connection, self._settings.resolve_max, self._tell.lease)
        await try_each(due, self._tell.again, "loss notice")
        return len(due)
