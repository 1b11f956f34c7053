"""A long-lived link to a partner: many calls in flight on one connection, each answered by its key (jPOS QMUX).

A call ends with its reply, as NotSentError (not a byte left) or as UnknownError (bytes left: the partner may have
acted). A broken link ends what was in flight as unknown at once, what was queued as not sent.
"""

import asyncio
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from ssl import SSLContext
from typing import Annotated, cast

import msgspec
import structlog

from gateway.domain.operations import LinkMessage
from gateway.partners.contract import CallContext, CannotBuild, LinkAdapter, LinkFrame
from gateway.partners.framing import BadFrame, FrameReader, Framing, with_length
from gateway.partners.phases import NotSentError, UnknownError

log = structlog.get_logger()

Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


_TRACES = range(900_000, 1_000_000)
"""F11 of a link's own messages: no payment has one of these (migration 0007)."""


class LinkSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    framing: Framing = "length2"
    frame_max_bytes: Annotated[int, msgspec.Meta(ge=16, le=9_999)] = 4_096
    connect_s: Seconds = 3.0
    answer_s: Seconds = 5.0
    """For sign-on, echo and sign-off."""
    echo_after_s: Seconds = 30.0
    """Without a whole message received."""
    backoff_first_s: Seconds = 0.2
    backoff_cap_s: Seconds = 30.0
    in_flight_max: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 2_000
    queued_max: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 500
    """Of those in flight, how many may wait for a connection that is being opened or that takes no more bytes."""
    drain_s: Seconds = 5.0
    """How long close() waits for the calls in flight."""
    write_buffer_max_bytes: Annotated[int, msgspec.Meta(ge=1, le=16_777_216)] = 262_144


class LinkState(StrEnum):
    DOWN = "down"
    """Waiting before the next try: calls are refused at once."""
    OPENING = "opening"
    READY = "ready"
    CLOSING = "closing"


class LinkCounts(msgspec.Struct):
    """Since the start, for the metrics; none ever falls."""

    opened: int = 0
    failed_to_open: int = 0
    lost: int = 0
    duplicates_refused: int = 0
    late: int = 0
    """Replies that nobody waited for (any more), handed to on_late."""
    unasked: int = 0
    """Requests of the partner's own, which this link does not serve."""


def pause_max_s(settings: LinkSettings, failures: int) -> float:
    """The longest pause after so many failures in a row: doubled each time, up to the cap."""
    return min(settings.backoff_cap_s, settings.backoff_first_s * 2.0 ** min(failures, 20))


class _Call:
    __slots__ = ("future", "sent")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future
        self.sent = False

    def end(self, why: str) -> None:
        if not self.future.done():
            self.future.set_exception(UnknownError(why) if self.sent else NotSentError(why))


class Link:
    """open() it once, exchange() from many tasks of one loop, close() it.

    `context` is for the link's own messages; `on_late` gets each reply that nobody waits for.
    """

    def __init__(
        self,
        name: str,
        settings: LinkSettings,
        adapter: LinkAdapter,
        *,
        context: Callable[[], CallContext],
        on_late: Callable[[bytes], None],
        tls: SSLContext | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.counts = LinkCounts()
        self.state = LinkState.DOWN
        self._name = name
        self._settings = settings
        self._adapter = adapter
        self._context = context
        first = int(_TRACES[0] + chance() * len(_TRACES))  # not where the links of other workers began
        self._traces = itertools.chain(range(first, _TRACES[-1] + 1), itertools.cycle(_TRACES))
        self._on_late = on_late
        self._tls = tls
        self._chance = chance
        self._calls: dict[str, _Call] = {}
        self._queue: OrderedDict[_Call, bytes] = OrderedDict()
        self._wire: _Wire | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    async def open(self) -> None:
        """Connect in the background, and again whenever the connection breaks."""
        assert self._keeper is None
        self.state = LinkState.OPENING
        self._keeper = asyncio.create_task(self._keep(), name=f"link {self._name}")

    async def exchange(self, frame: LinkFrame, key: str, deadline: float) -> LinkFrame:
        """Send, and wait for the reply of this key until `deadline` (monotonic). Raises NotSentError, UnknownError.

        `key` is the adapter's correlate(frame.body). A cancelled wait leaves the reply to on_late.
        """
        loop = asyncio.get_running_loop()
        left_s = deadline - time.monotonic()
        self._admit(key, left_s)
        try:
            message = with_length(self._settings.framing, frame.body, self._settings.frame_max_bytes)
        except BadFrame as error:
            raise NotSentError(str(error)) from None
        call = _Call(loop.create_future())
        self._send_or_queue(call, message)
        self._calls[key] = call
        timer = loop.call_later(left_s, call.end, "the deadline has passed")
        try:
            return LinkFrame(await call.future)
        finally:
            timer.cancel()
            self._forget(key, call)

    async def close(self) -> None:
        """Take no more calls, wait for those in flight, sign off. Over within drain_s + answer_s."""
        self.state = LinkState.CLOSING
        self._end_calls("the link is closing", sent=False)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        waiting = [call.future for call in self._calls.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=self._settings.drain_s)
        self._end_calls("the link was closed before the reply")
        wire = self._wire
        if wire is not None:
            with suppress(NotSentError, UnknownError, CannotBuild):
                await self._ask(LinkMessage.SIGN_OFF)
            wire.transport.abort()
            await wire.lost

    # what a call waits for

    def _admit(self, key: str, left_s: float) -> None:
        """Raises NotSentError for what may not even wait."""
        if self.state in (LinkState.CLOSING, LinkState.DOWN):
            raise NotSentError(f"the link is {self.state}")
        if left_s <= 0:
            raise NotSentError("no time left")
        if key in self._calls:
            # two calls of one key could get each other's replies
            self.counts.duplicates_refused += 1
            raise NotSentError("a call of this key is in flight")
        if len(self._calls) >= self._settings.in_flight_max:
            raise NotSentError("the link is full")

    def _send_or_queue(self, call: _Call, message: bytes) -> None:
        if self.state is LinkState.READY and self._wire is not None and not self._wire.paused and not self._queue:
            call.sent = True
            self._wire.transport.write(message)
        elif len(self._queue) < self._settings.queued_max:
            self._queue[call] = message
        else:
            raise NotSentError("the link's queue is full")

    def _forget(self, key: str, call: _Call) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]
        self._queue.pop(call, None)  # the queue holds those that wait, and nobody else

    def _end_calls(self, why: str, *, sent: bool = True) -> None:
        """End all calls, or without `sent` those that are queued."""
        self._queue.clear()
        for call in self._calls.values():
            if sent or not call.sent:
                call.end(why)

    # what a connection tells

    def take_reply(self, body: bytes) -> bool:
        """One message received; False if it is none of this dialect."""
        key = self._adapter.correlate(body)
        if key is None:
            return False
        if not self._adapter.is_reply(body):
            self.counts.unasked += 1
            return True
        call = self._calls.get(key)
        if call is not None and call.sent and not call.future.done():
            call.future.set_result(body)
        else:
            self.counts.late += 1
            # what goes wrong there is not the connection's fault
            asyncio.get_running_loop().call_soon(self._on_late, body)
        return True

    def may_write(self) -> None:
        """Send what is queued, until the connection takes no more."""
        wire = self._wire
        while self._queue and self.state is LinkState.READY and wire is not None and not wire.paused:
            call, message = self._queue.popitem(last=False)
            if not call.future.done():
                call.sent = True
                wire.transport.write(message)

    def connection_ended(self, wire: "_Wire", why: str) -> None:
        if self._wire is wire:
            self._wire = None
            if self.state is not LinkState.CLOSING:
                self.state = LinkState.DOWN
            self._end_calls(why)

    # keeping the connection

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            wire = await self._open()
            if wire is not None:
                opened_at = loop.time()
                await self._tend(wire)
                self.counts.lost += 1
                log.warning("link lost", partner=self._name, why=wire.why)
                if loop.time() - opened_at >= self._settings.backoff_cap_s:
                    failures = 0  # else a partner that signs on and hangs up would be asked without a pause
            # full jitter: links that broke together do not come back together
            await asyncio.sleep(self._chance() * pause_max_s(self._settings, failures))
            failures += 1

    async def _open(self) -> "_Wire | None":
        """Connect and sign on; None if that failed."""
        loop = asyncio.get_running_loop()
        self.state = LinkState.OPENING
        wire = _Wire(self, self._settings)
        try:
            async with asyncio.timeout(self._settings.connect_s):
                await loop.create_connection(lambda: wire, self._settings.host, self._settings.port, ssl=self._tls)
            self._wire = wire
            if not await self._ask(LinkMessage.SIGN_ON):
                raise UnknownError("sign-on refused")
        except (OSError, UnknownError, NotSentError, CannotBuild) as error:  # TimeoutError is an OSError
            self.counts.failed_to_open += 1
            why = "cannot connect" if isinstance(error, OSError) else str(error)
            log.warning("link does not open", partner=self._name, why=why)
            wire.abort(why)
            self.state = LinkState.DOWN
            self._end_calls(why)
            return None
        self.state = LinkState.READY
        self.counts.opened += 1
        log.info("link open", partner=self._name)
        self.may_write()
        return wire

    async def _tend(self, wire: "_Wire") -> None:
        """Until the connection ends; after silence, an echo must be answered."""
        loop = asyncio.get_running_loop()
        while not wire.lost.done():
            quiet_s = loop.time() - wire.heard_at
            if quiet_s < self._settings.echo_after_s:
                await asyncio.wait({wire.lost}, timeout=self._settings.echo_after_s - quiet_s)
                continue
            with suppress(UnknownError, NotSentError, CannotBuild):
                if await self._ask(LinkMessage.ECHO):
                    continue
            wire.abort("the echo was not answered")
            await wire.lost

    async def _ask(self, kind: LinkMessage) -> bool:
        """One of the link's own messages; whether it was accepted. Raises UnknownError, NotSentError, CannotBuild."""
        loop = asyncio.get_running_loop()
        frame = self._adapter.link_message(kind, self._context(), next(self._traces))
        key = self._adapter.correlate(frame.body)
        if key is None or key in self._calls or self._wire is None:
            raise NotSentError(f"no {kind} can be sent")
        message = with_length(self._settings.framing, frame.body, self._settings.frame_max_bytes)
        call = self._calls[key] = _Call(loop.create_future())
        call.sent = True
        self._wire.transport.write(message)
        timer = loop.call_later(self._settings.answer_s, call.end, f"no reply to the {kind}")
        try:
            return self._adapter.link_accepted(await call.future)
        finally:
            timer.cancel()
            self._forget(key, call)


class _Wire(asyncio.Protocol):
    """One connection, from its first to its last byte."""

    transport: asyncio.Transport

    def __init__(self, link: Link, settings: LinkSettings) -> None:
        loop = asyncio.get_running_loop()
        self._link = link
        self._frames = FrameReader(settings.framing, settings.frame_max_bytes)
        self._write_buffer_max = settings.write_buffer_max_bytes
        self.paused = False
        self.heard_at = loop.time()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.why = "the partner closed the connection"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but not by its class
        self.transport.set_write_buffer_limits(high=self._write_buffer_max)

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self.heard_at = asyncio.get_running_loop().time()
                if not self._link.take_reply(body):
                    raise BadFrame("an unreadable message")
        except BadFrame as error:
            # where the next message begins can no longer be known
            self.abort(str(error))

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self._link.may_write()

    def abort(self, why: str) -> None:
        self.why = why
        if hasattr(self, "transport"):
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.why = "the connection broke"
        if not self.lost.done():
            self.lost.set_result(None)
        self._link.connection_ended(self, self.why)
