"""Planted bug: where the event cannot be written, a verdict leaves all the same."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg

from gateway.store import verify
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_real = verify.verify_batch


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    try:
        return await _real(connection, batch, status_max_age, timeout)
    except asyncpg.PostgresError:
        return [("unrecognised", None, None, None, None, None) for _ in batch]


verify.verify_batch = verify_batch
