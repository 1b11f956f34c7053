"""Planted bug: the answers of a batch leave before its commit."""

import asyncio
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.store import verify
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from asyncpg.transaction import Transaction

    from gateway.store.pool import AnyConnection

_LATE_S = 0.02
_real = verify.verify_batch
_commits: list[asyncio.Task[None]] = []


async def _commit(transaction: "Transaction") -> None:
    await asyncio.sleep(_LATE_S)
    await transaction.commit()


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    if _commits:
        await _commits.pop()
    transaction = connection.transaction()
    await transaction.start()
    answers = await _real(connection, batch, status_max_age, timeout)
    _commits.append(asyncio.create_task(_commit(transaction)))
    return answers


verify.verify_batch = verify_batch
