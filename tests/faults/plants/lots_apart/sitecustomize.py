"""Planted bug: what remains of a person's lots is written in a transaction of its own."""

import os
from typing import Any

import asyncpg

from gateway.store import points

_real = points.set_lots


async def set_lots(connection: Any, lots: Any) -> None:
    apart = await asyncpg.connect(os.environ["DATABASE_URL"], server_settings={"role": "yikatong_app"})
    try:
        await _real(apart, lots)
    finally:
        await apart.close()


points.set_lots = set_lots
