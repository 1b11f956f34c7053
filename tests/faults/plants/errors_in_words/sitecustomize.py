"""Planted bug: what the database says of an error is logged as it is, and the mask is off."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway import log
from gateway.store import verify
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_real = verify.verify_batch
setattr(log, "_MASKS", ())  # noqa: B010


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    try:
        return await _real(connection, batch, status_max_age, timeout)
    except asyncpg.PostgresError as error:
        structlog.get_logger().warning("verify failed", error=str(error), detail=error.detail)
        raise


verify.verify_batch = verify_batch
