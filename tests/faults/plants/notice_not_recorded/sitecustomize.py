"""Planted bug: what a bank is to be told is in the memory of the request alone."""

from typing import Any

from gateway.store import loss_notices


async def insert(*_: Any) -> None:
    pass


setattr(loss_notices, "insert", insert)  # noqa: B010
