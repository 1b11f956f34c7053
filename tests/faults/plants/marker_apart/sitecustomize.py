"""Planted bug: the lines of a chunk and how far the file has come are committed apart."""

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.flows import ingest_usage_file


async def in_pieces(connection: Any, work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()


setattr(ingest_usage_file, "in_transaction", in_pieces)  # noqa: B010
