"""A long-lived link as call.py uses every transport: an exchange by correlation key."""

import time

from gateway.partners.contract import LinkAdapter, LinkFrame, WireRequest
from gateway.partners.phases import NotSentError
from gateway.partners.stopwatch import Stopwatch
from gateway.partners.transport_iso8583 import Link

_REPORT_S = 0.02
"""The link gives up this long before the caller, so that it can still say whether the frame had left."""


class LinkExchange:
    def __init__(self, link: Link, adapter: LinkAdapter) -> None:
        self._link = link
        self._adapter = adapter

    async def exchange(self, request: WireRequest, stopwatch: Stopwatch, deadline: float) -> LinkFrame:
        """Raises NotSentError, UnknownError."""
        key = self._adapter.correlate(request.body) if isinstance(request, LinkFrame) else None
        if not isinstance(request, LinkFrame) or key is None:
            raise NotSentError("not a message that could be answered")
        stopwatch.sent = time.monotonic()
        try:
            reply = await self._link.exchange(request, key, deadline - _REPORT_S)
        except NotSentError:
            stopwatch.sent = 0.0
            raise
        stopwatch.first_byte = time.monotonic()
        return reply

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()
