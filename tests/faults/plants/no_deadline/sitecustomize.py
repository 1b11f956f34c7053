"""Planted bug: a verify waits for the database as long as that takes."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.store import verify
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_FOR_EVER_S = 60.0
_real = verify.verify_batch


async def verify_batch(
    connection: "AnyConnection", batch: Sequence[Presented], status_max_age: dt.timedelta, timeout: float
) -> list[Judged]:
    return await _real(connection, batch, status_max_age, _FOR_EVER_S)


verify.verify_batch = verify_batch
