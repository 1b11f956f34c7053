"""A long-lived link as call.py uses every transport: an exchange by correlation key."""

import asyncio
import datetime as dt
import secrets
import time
from collections import OrderedDict
from pathlib import Path

import msgspec
import structlog

from gateway import metrics
from gateway.domain.partners import PartnerLink
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext, LinkAdapter, LinkFrame, WireRequest
from gateway.partners.keys import Keys
from gateway.partners.phases import NotSentError, UnknownError
from gateway.partners.stopwatch import Stopwatch
from gateway.partners.tls import tls_context
from gateway.partners.transport_iso8583 import Link, LinkSettings, LinkState
from gateway.partners.working import OnLate

log = structlog.get_logger()

_REPORT_S = 0.02
"""The link gives up this long before the caller, so that it can still say whether the frame had left."""
_UNANSWERED_MAX = 1000
"""Calls whose reply may still come; of more the oldest are forgotten."""


class LinkExchange:
    """The link of a configured partner. Raises OSError for certificates that cannot be read."""

    def __init__(self, name: str, block: PartnerLink, adapter: LinkAdapter, keys: Keys, data_dir: Path) -> None:
        settings = LinkSettings(
            host=block.host, port=block.port, framing=block.framing,
            echo_after_s=block.echo_s, backoff_cap_s=block.reconnect_max_s,
        )  # fmt: skip

        def context() -> CallContext:
            return CallContext(dt.datetime.now(CHINA), secrets.token_bytes(16), 1, keys)

        tls = tls_context(block, data_dir)
        self._link = Link(name, settings, adapter, context=context, on_late=self._take_late, tls=tls)
        self._name = name
        self._adapter = adapter
        self._unanswered: OrderedDict[str, OnLate] = OrderedDict()
        self._measured: dict[str, int] = {}
        self._told_late = False
        """Since the link was measured; a partner may send thousands, and a line each would stop all else."""

    async def exchange(self, request: WireRequest, stopwatch: Stopwatch, deadline: float, on_late: OnLate) -> LinkFrame:
        """Raises NotSentError, UnknownError; after that `on_late` gets the reply, if it comes."""
        key = self._adapter.correlate(request.body) if isinstance(request, LinkFrame) else None
        if not isinstance(request, LinkFrame) or key is None:
            raise NotSentError("not a message that could be answered")
        stopwatch.sent = time.monotonic()
        try:
            reply = await self._link.exchange(request, key, deadline - _REPORT_S)
        except NotSentError:
            stopwatch.sent = 0.0
            raise
        except (UnknownError, asyncio.CancelledError):
            self._unanswered[key] = on_late
            if len(self._unanswered) > _UNANSWERED_MAX:
                self._unanswered.popitem(last=False)
            raise
        self._unanswered.pop(key, None)  # of an earlier try
        stopwatch.first_byte = time.monotonic()
        return reply

    def _take_late(self, body: bytes) -> None:
        """A reply that nobody waits for; a duplicate of one that was taken is nobody's."""
        if not self._told_late:
            self._told_late = True
            log.warning("late reply", partner=self._name, reply=self._adapter.redact(body)[:500])
        key = self._adapter.correlate(body)
        if key is not None and (on_late := self._unanswered.pop(key, None)) is not None:
            on_late(LinkFrame(body))

    def measure(self) -> None:
        """Set the link's metrics, and tell of more late replies than had a line."""
        metrics.PARTNER_LINK_UP.labels(self._name).set(self._link.state is LinkState.READY)
        counts: dict[str, int] = msgspec.structs.asdict(self._link.counts)
        for event, count in counts.items():
            metrics.PARTNER_LINK_EVENTS.labels(self._name, event).inc(count - self._measured.get(event, 0))
        late = counts["late"] - self._measured.get("late", 0)
        if late > 1:
            log.warning("late replies", partner=self._name, count=late)
        self._measured, self._told_late = counts, False

    async def open(self) -> None:
        await self._link.open()

    async def close(self) -> None:
        await self._link.close()
