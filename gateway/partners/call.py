"""The only place that sends to partners: deadline, bulkhead, breaker, retry, timestamps, metrics, transcript.

Retry lives here alone, and only of what was certainly not sent (design.md §5).
"""

import asyncio
import datetime as dt
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import structlog

from gateway import metrics
from gateway.domain.errors import Problem
from gateway.domain.operations import Operation, name_of
from gateway.domain.outcome import Approved, Declined, NotSent, Outcome, Pending, Unknown
from gateway.domain.times import CHINA
from gateway.partners.breaker import State
from gateway.partners.contract import CallContext, CannotBuild, CryptoRefused, HttpRequest, WireReply, WireRequest
from gateway.partners.link import LinkExchange
from gateway.partners.phases import NotSentError, UnknownError, Why
from gateway.partners.registry import Registry
from gateway.partners.stopwatch import Stopwatch
from gateway.partners.working import Transcript, Working
from gateway.settings import Settings

log = structlog.get_logger()

OnLateOutcome = Callable[[Operation, Outcome], Awaitable[None]]
"""Takes what an operation came to, though its call has ended as unknown. Does not raise."""

_TRIES_MAX = 3
_PAUSE_S = 0.05
"""Before the second try at most this, with full jitter; twice as much before the third."""
_REDACT_MAX_BYTES = 32_768
_SHOWN_MAX = 2000
_GAUGES = (metrics.PARTNER_IN_FLIGHT, metrics.PARTNER_WAITING, metrics.PARTNER_BREAKER, metrics.PARTNER_LINK_UP)


class Partners:
    """The partners of one worker. Made for one event loop: open() it, call(), close() it."""

    def __init__(self, settings: Settings, on_late: OnLateOutcome | None = None) -> None:
        """Raises SettingsError."""
        self.registry = Registry(settings)
        self._on_late = on_late
        self._late: set[asyncio.Task[None]] = set()
        self._measured: set[str] = set()

    async def open(self) -> None:
        await self.registry.open()

    async def watch(self) -> None:
        await self.registry.watch()

    async def close(self) -> None:
        await self.registry.close()
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def call(self, partner_name: str, op: Operation, deadline: float) -> Outcome:
        """What it came to, by `deadline` (time.monotonic()) or the partner's own timeout, whichever is sooner.

        Raises nothing; a cancelled call's outcome is unknown.
        """
        working = self.registry.get(partner_name)
        if working is None or type(op) not in working.operations:
            log.warning("not sent: no such partner, or not for this", partner=partner_name, operation=name_of(type(op)))
            return NotSent(Why.NO_PARTNER)
        deadline = min(deadline, time.monotonic() + working.block.timeout_ms / 1000)
        with working.held():
            outcome = await _call(working, op, deadline, self._take_late)
        metrics.PARTNER_CALLS.add((working.name, name_of(type(op)), _name(outcome)))
        return outcome

    def _take_late(self, working: Working, op: Operation, context: CallContext, reply: WireReply) -> None:
        """A transport bounds how many there can be."""
        if self._on_late is not None:
            task = asyncio.create_task(_late(self._on_late, working, op, context, reply))
            self._late.add(task)
            task.add_done_callback(self._late.discard)

    def transcript(self, partner_name: str) -> list[Transcript]:
        """The last tries, oldest first, redacted."""
        working = self.registry.get(partner_name)
        return list(working.transcript) if working is not None else []

    def measure(self) -> None:
        """Set the gauges; those of a partner that has gone to zero."""
        working_now = self.registry.all()
        for name in self._measured - {working.name for working in working_now}:
            for gauge in _GAUGES:
                gauge.labels(name).set(0)
        self._measured = {working.name for working in working_now}
        for working in working_now:
            metrics.PARTNER_IN_FLIGHT.labels(working.name).set(working.bulkhead.in_flight)
            metrics.PARTNER_WAITING.labels(working.name).set(working.bulkhead.waiting)
            metrics.PARTNER_BREAKER.labels(working.name).set(working.breaker.state)
            if isinstance(working.transport, LinkExchange):
                working.transport.measure()


async def _late(
    on_late: OnLateOutcome, working: Working, op: Operation, context: CallContext, reply: WireReply
) -> None:
    try:
        outcome = await working.translate(op.reference, working.adapter.parse, op, context, reply)
        await on_late(op, outcome)
    except Exception as error:  # an adapter's bug, or no place in its thread: the call has ended as unknown
        log.error("a late reply was not taken", partner=working.name, exc_info=error)


OnLateReply = Callable[[Working, Operation, CallContext, WireReply], None]


async def _call(working: Working, op: Operation, deadline: float, on_late: OnLateReply) -> Outcome:
    working.retries.count_call()
    attempt = 1
    while True:
        outcome = await _Try(working, op, attempt, deadline, on_late).run()
        pause = random.uniform(0, _PAUSE_S * attempt)  # noqa: S311 - jitter
        if (
            not (isinstance(outcome, NotSent) and outcome.why == Why.NO_CONNECTION)
            or attempt == _TRIES_MAX
            or time.monotonic() + pause >= deadline
            or not working.retries.take()
        ):
            return outcome
        metrics.PARTNER_RETRIES.labels(working.name).inc()
        await asyncio.sleep(pause)
        attempt += 1


class _Try:
    """One try of one call."""

    def __init__(self, working: Working, op: Operation, attempt: int, deadline: float, on_late: OnLateReply) -> None:
        self._working = working
        self._on_late = on_late
        self._op = op
        self._attempt = attempt
        self._deadline = deadline
        self._stopwatch = Stopwatch(time.monotonic())
        self._request: WireRequest | None = None
        self._reply: WireReply | None = None

    async def run(self) -> Outcome:
        at = dt.datetime.now(CHINA)
        try:
            async with asyncio.timeout(self._deadline - time.monotonic()):
                outcome = await self._in_place(at)
        except TimeoutError:
            outcome = self._failed(Why.LATE)
        self._keep(at, outcome)
        return outcome

    def _failed(self, why: Why) -> NotSent | Unknown:
        """After the first byte nobody may say that nothing happened."""
        return Unknown(why) if self._stopwatch.sent else NotSent(why)

    async def _in_place(self, at: dt.datetime) -> Outcome:
        bulkhead, breaker = self._working.bulkhead, self._working.breaker
        if breaker.state is State.OPEN:
            return NotSent(Why.BREAKER_OPEN)
        if not await bulkhead.enter():
            return NotSent(Why.NO_PLACE)
        try:
            ticket = breaker.enter()
            if ticket is None:
                return NotSent(Why.BREAKER_OPEN)
            good: bool | None = None
            try:
                outcome, good = await self._exchange(at)
                return outcome
            except asyncio.CancelledError:
                # the deadline of run() comes as a cancellation too: a partner that keeps silent has failed
                good = False if time.monotonic() >= self._deadline else None
                raise
            finally:
                breaker.report(ticket, good)
        finally:
            bulkhead.leave()

    async def _exchange(self, at: dt.datetime) -> tuple[Outcome, bool | None]:
        """The outcome, and whether the partner did well (None: that was not learnt)."""
        working, op = self._working, self._op
        context = CallContext(at, secrets.token_bytes(16), self._attempt, working.keys)
        try:
            self._request = request = await working.translate(op.reference, working.adapter.build, op, context)
        except (CannotBuild, CryptoRefused):
            return NotSent(Why.CANNOT_BUILD), None
        except Problem:
            return NotSent(Why.NO_PLACE), None
        except Exception as error:  # an adapter's bug; nothing was sent, and the worker goes on
            log.error("an adapter's build failed", partner=working.name, exc_info=error)
            return NotSent(Why.CANNOT_BUILD), None
        try:
            on_late = partial(self._on_late, working, op, context)
            self._reply = reply = await working.transport.exchange(request, self._stopwatch, self._deadline, on_late)
        except CannotBuild:
            return NotSent(Why.CANNOT_BUILD), None
        except (NotSentError, UnknownError) as error:
            log.debug("exchange failed", partner=working.name, why=str(error))
            return self._failed(Why.NO_ANSWER if self._stopwatch.sent else Why.NO_CONNECTION), False
        except Exception as error:  # a bug of a transport; money may have moved
            log.error("exchange failed", partner=working.name, exc_info=error)
            return self._failed(Why.NO_ANSWER if self._stopwatch.sent else Why.CANNOT_BUILD), None
        try:
            outcome = await working.translate(op.reference, working.adapter.parse, op, context, reply)
        except Problem:
            return Unknown(Why.LATE), None
        except Exception as error:  # an adapter's bug; money may have moved
            log.error("an adapter's parse failed", partner=working.name, exc_info=error)
            return Unknown(Why.ADAPTER_FAILED), None
        self._stopwatch.parsed = time.monotonic()
        if isinstance(outcome, NotSent):  # it was
            return Unknown(Why.ADAPTER_FAILED), None
        return outcome, not isinstance(outcome, Unknown)

    def _keep(self, at: dt.datetime, outcome: Outcome) -> None:
        if self._request is None and getattr(outcome, "why", "") != Why.CANNOT_BUILD:
            return  # there was no try: a breaker that is open would crowd out what opened it
        spans = self._stopwatch.spans()
        for name, seconds in spans.items():
            metrics.partner_seconds(self._working.name, name).observe(seconds)
        entry = Transcript(
            at=at,
            reference=str(_reference(self._op)),
            operation=name_of(type(self._op)),
            attempt=self._attempt,
            outcome=_name(outcome),
            why=str(getattr(outcome, "why", None) or getattr(outcome, "code", "")),
            seconds=spans,
            request=self._shown(self._request),
            reply=self._shown(self._reply),
        )
        self._working.transcript.append(entry)
        if log.is_enabled_for(logging.DEBUG):
            log.debug("partner call", partner=self._working.name, **msgspec.structs.asdict(entry))

    def _shown(self, wire: WireRequest | WireReply | None) -> str:
        """As the adapter redacts it; of HTTP also the method and path, or the status."""
        if wire is None:
            return ""
        if len(wire.body) > _REDACT_MAX_BYTES:
            shown = f"({len(wire.body)} bytes)"
        else:
            try:
                shown = self._working.adapter.redact(wire.body)[:_SHOWN_MAX]
            except Exception as error:  # noqa: BLE001 - telemetry fails open, and shows nothing
                shown = f"(redact raised {type(error).__name__})"
        if isinstance(wire, HttpRequest):
            return f"{wire.method} {wire.target.partition('?')[0]} {shown}"
        return f"{wire.status} {shown}" if hasattr(wire, "status") else shown


def _reference(op: Any) -> UUID:
    """By which the operation is known: a reversal or query has its own, and its original's says more."""
    original: Operation = getattr(op, "original", op)
    return original.reference


def _name(outcome: Outcome) -> str:
    return _OUTCOMES[type(outcome)]


_OUTCOMES: dict[type[Any], str] = {kind: name_of(kind) for kind in (Approved, Declined, Pending, NotSent, Unknown)}
