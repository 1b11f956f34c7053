"""What keeps an operation from its try, and the second try for the word that nothing was sent."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.sealing import SealError, UnknownDataKey
from gateway.domain.errors import Problem

NOT_NOW = (Problem, KeyStoreError, SealError, UnknownDataKey, asyncpg.PostgresError)
"""The database is away, or a key is not here: the operation stays due."""

_SOON_S = 2.5
"""What failed later failed by being slow, and its lease is nearly over."""
_PAUSE_S = 0.5
"""A database that is started again refuses connections for a quarter of a second (reliability.md §5.5)."""

T = TypeVar("T")


async def in_two_tries(write: Callable[[], Awaitable[T]]) -> T:
    """For "not sent": until that is written key and order are not free, and the resolver takes an intent for sent.

    `write` is a guarded update: it changes nothing if the first try was committed after all. Raises what it raises.
    """
    began = time.monotonic()
    try:
        return await write()
    except NOT_NOW:
        if time.monotonic() - began > _SOON_S:
            raise
    await asyncio.sleep(_PAUSE_S)
    return await write()
