"""What the worker's resolvers have in common: what is due is taken up in bounded batches, each by itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar
from uuid import UUID

import structlog

from gateway.domain.errors import Problem
from gateway.flows.not_now import NOT_NOW
from gateway.log import describe

log = structlog.get_logger()

TURNS_MAX = 100
"""Batches of one turn."""


class Due(Protocol):
    @property
    def reference(self) -> UUID: ...


T = TypeVar("T", bound=Due)


async def try_each(due: Sequence[T], again: Callable[[T], Awaitable[None]], what: str) -> None:
    """One try at each of them at once: one that fails stays due, is stuck in time, holds up none.

    Not even one that meets a mistake of ours: it would come again, and end the loop for all others again.
    """
    results = await asyncio.gather(*map(again, due), return_exceptions=True)
    for one, result in zip(due, results, strict=True):
        if isinstance(result, NOT_NOW):
            error = result.code if isinstance(result, Problem) else type(result).__name__
            log.warning(f"a {what} was not resolved", reference=str(one.reference), error=error)
        elif isinstance(result, Exception):
            exception = describe(type(result), result.__traceback__)
            log.error(f"a {what} was not resolved", reference=str(one.reference), exception=exception)
        elif result is not None:
            raise result
