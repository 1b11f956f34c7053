"""The resolver of visits: asks merchants what they did, for as long as that matters, and ends what nobody paid."""

from gateway.configuration import Visits
from gateway.flows.resolve import TURNS_MAX, try_each
from gateway.flows.settle_visit import SettleVisit
from gateway.metrics import VISITS_UNKNOWN
from gateway.store import visits
from gateway.store.pool import Pool


class ResolveVisits:
    """turn() is one round of the worker's loop."""

    def __init__(self, pool: Pool, settle: SettleVisit, settings: Visits) -> None:
        self._pool = pool
        self._settle = settle
        self._settings = settings

    async def turn(self) -> None:
        """Everything that is due, in bounded batches. Raises Problem 503."""
        for _ in range(TURNS_MAX):
            if await self.batch() < self._settings.resolve_max:
                break

    async def measure(self) -> None:
        """The gauge: from the table, for a count of what is rare begins with the first, which is no increase. Raises
        Problem 503."""
        async with self._pool.acquire() as connection:
            VISITS_UNKNOWN.set(await visits.count_unknown(connection))

    async def batch(self) -> int:
        """How many were taken up."""
        async with self._pool.acquire() as connection:
            due = await visits.due(connection, self._settings.resolve_max, self._settle.lease)
        await try_each(due, self._settle.again, "visit")
        return len(due)
