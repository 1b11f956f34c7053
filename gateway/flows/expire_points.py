"""What time ends: reservations nobody committed, and points past their last day. Each turn is bounded.

A lot that is over is not taken from what is reserved: a person who stands at the counter on the last evening gets what
was promised. If the reservation ends without a commit, the next turn takes it.
"""

import datetime as dt
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from uuid import UUID

import structlog

from gateway.crypto.randomness import RandomBytes
from gateway.domain.ids import uuid7
from gateway.domain.points import EXPIRED, TransferKind, take
from gateway.domain.redemptions import RedemptionState
from gateway.domain.times import CHINA
from gateway.flows.redeem_points import release
from gateway.metrics import POINTS, REDEMPTIONS
from gateway.store import points, redemptions
from gateway.store.payments import created_at
from gateway.store.points import Transfer
from gateway.store.pool import Pool
from gateway.store.redemptions import Redemption

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

log = structlog.get_logger()

BATCH = 500
_TURNS_MAX = 200
_TURN_MAX_S = 30.0
_NOBODY = UUID(int=0)
CLOCKS_APART_MAX = dt.timedelta(minutes=5)
"""What expired cannot be given back but by hand, and a clock that leaps expires the whole county's. The day is the
database's; where this process is further from it than callers' clocks may be from ours, one of both is wrong."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class ExpirePoints:
    """Two turns of the worker's loops. `clock` tells this process's time."""

    def __init__(self, pool: Pool, clock: Callable[[], dt.datetime] = _now) -> None:
        self._pool = pool
        self._clock = clock
        self._random = RandomBytes(10)

    async def reservations(self) -> None:
        """Those whose time is over. Raises Problem 503, asyncpg.PostgresError."""
        for _ in range(_TURNS_MAX):
            async with self._pool.acquire(_TURN_MAX_S) as connection, connection.transaction():
                ended = await end_reservations(connection)
            for redemption in ended:
                REDEMPTIONS.labels(RedemptionState.EXPIRED, redemption.caller).inc()
            if len(ended) < BATCH:
                break

    async def lots(self) -> None:
        """Points past their last day in China; empty lots of the past. Nothing, while the clocks disagree.

        Raises Problem 503, asyncpg.PostgresError.
        """
        today = await self._today()
        if today is None:
            return
        last = _NOBODY
        for _ in range(_TURNS_MAX):
            async with self._pool.acquire(_TURN_MAX_S) as connection, connection.transaction():
                transfers = await self.end_lots(connection, today, last)
            POINTS.labels(TransferKind.EXPIRE).inc(-sum(transfer.points for transfer in transfers))
            if len(transfers) < BATCH:
                break
            # on the first of a month they are most of the county: the search does not walk past the done ones again
            last = max(transfer.person_id for transfer in transfers)
        for _ in range(_TURNS_MAX):
            async with self._pool.acquire(_TURN_MAX_S) as connection:
                if await points.sweep_lots(connection, today, BATCH) < BATCH:
                    break

    async def _today(self) -> dt.date | None:
        """The day in China by the database's clock; None if it cannot be trusted."""
        async with self._pool.acquire(_TURN_MAX_S) as connection:
            moment = await points.database_time(connection)
        ahead = self._clock() - moment
        if abs(ahead) > CLOCKS_APART_MAX:
            log.warning(
                "no points expire: the clocks of this process and the database differ", ahead_s=ahead.total_seconds()
            )
            return None
        return moment.astimezone(CHINA).date()

    async def end_lots(self, connection: "AnyConnection", today: dt.date, after: UUID = _NOBODY) -> list[Transfer]:
        """Of up to BATCH persons, inside a transaction; of those whose id is behind `after`."""
        persons = await points.lock_due(connection, today, BATCH, after)
        lots = await points.lots_of(connection, persons)
        transfers: list[Transfer] = []
        left = []
        for person_id, account in persons.items():
            over = sum(lot.remaining for lot in lots.get(person_id, ()) if lot.expires_on < today)
            amount = max(0, over - account.reserved)
            if not amount:
                continue
            left += [(person_id, lot) for lot in take(lots[person_id], amount)]
            transfer_id = self._new_id()
            transfers.append(Transfer(
                transfer_id, created_at(transfer_id), TransferKind.EXPIRE, person_id, None, EXPIRED, -amount, today
            ))  # fmt: skip
        await points.set_lots(connection, left)
        await points.post(connection, transfers)
        return transfers

    def _new_id(self) -> UUID:
        return UUID(bytes=uuid7(time.time_ns() // 1_000_000, self._random.take()))


async def end_reservations(connection: "AnyConnection") -> list[Redemption]:
    """Up to BATCH, inside a transaction."""
    due = await redemptions.lock_due(connection, BATCH)
    if due:
        await points.lock(connection, {redemption.person_id for redemption in due if redemption.person_id})
        await redemptions.end(connection, due, RedemptionState.EXPIRED)
        await release(connection, due)
    return due
