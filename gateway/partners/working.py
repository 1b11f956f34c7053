"""A partner at work: its checked block with adapter, keys, transport, bulkhead, breaker and transcript."""

import asyncio
import datetime as dt
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar
from uuid import UUID

import msgspec

from gateway.crypto.lane import SlowLane
from gateway.domain.operations import Operation
from gateway.domain.partners import Partner
from gateway.partners.breaker import Breaker
from gateway.partners.bulkhead import Bulkhead, RetryBudget
from gateway.partners.contract import Adapter, WireReply, WireRequest
from gateway.partners.keys import Keys
from gateway.partners.stopwatch import Stopwatch

P = ParamSpec("P")
T = TypeVar("T")

_UNPACED = 10_000
"""Checks a second: what bounds a partner's lane is the number of calls at a time."""
_TRANSCRIPT_CALLS = 50


OnLate = Callable[[WireReply], None]
"""Takes a reply that comes when its try has ended; called once at most, and perhaps never."""


class Exchange(Protocol):
    """A transport as call.py uses it."""

    async def exchange(self, request: WireRequest, stopwatch: Stopwatch, deadline: float, on_late: OnLate) -> WireReply:
        """One try until `deadline` (monotonic), when it is cancelled; `stopwatch.sent` is 0 as long as nothing left.

        Raises CannotBuild, NotSentError, UnknownError. An HTTP connection ends with its try: nothing comes late.
        """
        ...

    async def open(self) -> None:
        """Raises nothing: what cannot be reached now is tried again."""

    async def close(self) -> None: ...


class Transcript(msgspec.Struct, frozen=True):
    """One try, as it may be shown: wire bytes only as the adapter redacts them."""

    at: dt.datetime
    reference: str
    operation: str
    attempt: int
    outcome: str
    why: str
    seconds: Mapping[str, float]
    request: str
    reply: str


class Working:
    """Made for one event loop. Replaced as a whole when its block changes; calls that run end on the old one."""

    def __init__(
        self, name: str, block: Partner, adapter: Adapter, keys: Keys, transport: Exchange,
        operations: frozenset[type[Operation]],
    ) -> None:  # fmt: skip
        self.name = name
        self.block = block
        self.adapter = adapter
        self.keys = keys
        self.transport = transport
        self.operations = operations
        self.bulkhead = Bulkhead(block.concurrency_max, block.waiting_max)
        self.breaker = Breaker(block.breaker.failures, block.breaker.open_s)
        self.retries = RetryBudget(block.retry_percent)
        self.transcript: deque[Transcript] = deque(maxlen=_TRANSCRIPT_CALLS)
        # a thread of its own: one partner's SM2 does not wait for another's; each call has at most one job in it
        self.lane = SlowLane(1, block.concurrency_max, block.timeout_ms / 1000, _UNPACED) if keys.slow else None
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def translate(self, reference: UUID, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The adapter's build or parse: in the partner's thread if its keys are slow, else at once.

        Raises Problem 503 too.
        """
        if self.lane is None:
            return function(*args, **kwargs)
        return await self.lane.run(str(reference), function, *args, **kwargs)

    @contextmanager
    def held(self) -> Iterator[None]:
        """As long as a call runs: close() waits for it."""
        self._calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def abandon(self) -> None:
        """Let close() go on although calls run: they end as unknown."""
        self._idle.set()

    async def close(self) -> None:
        """When the last call has ended, which its deadline sees to."""
        await self._idle.wait()
        await self.transport.close()
        if self.lane is not None:
            self.lane.close()
