"""Usage monitoring: look at every usage event once, in the order of the feed, and keep what the rules found.

What the rules remember is kept now and then, with the place in the feed. After a restart the events since are looked at
again: they bring about the same anomalies, which are there already.
"""

import asyncio
import datetime as dt
import time
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import structlog

from gateway.config_watch import Component, ConfigWatch
from gateway.domain.anomalies import Anomaly, Detector, Memory, Seen
from gateway.domain.anomaly_rules import RuleName
from gateway.domain.usage import UsageResult
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.metrics import ANOMALIES, ANOMALY_LAG_SECONDS
from gateway.settings import Settings
from gateway.store import anomalies, usage_events
from gateway.store.pool import Pool
from gateway.store.usage_events import Cursor, Row

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

log = structlog.get_logger()

PAGE = 100
"""Events between two breaths of the loop: a few milliseconds of a core."""
_PAGES_MAX = 200
_RESTS = 30
"""Times as long as a page took the loop's thread, when it is behind: requests go before, and a flood of them is looked
at after it. A wait for the database is no work. What the thread does for others meanwhile counts: it errs to rest."""
_REST_MAX_S = 1.0
_TURN_MAX_S = 30.0
KEEP_AFTER_S = 60.0
KEEP_AFTER_EVENTS = 50_000
_BACK = dt.timedelta(days=1)
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)


class WatchUsage:
    """A turn of the worker's loops. Several workers do no harm: they find the same, and it is kept once."""

    def __init__(self, settings: Settings, pool: Pool) -> None:
        self._pool = pool
        self._rules = settings.anomalies
        self._watch = ConfigWatch(
            Component.USAGE_MONITORING, settings, lambda settings: [settings.config_dir / "anomalies.toml"]
        )
        self._detector: Detector | None = None
        self._version = 0
        self._cursor = Cursor(0, UUID(int=0))
        self._unkept, self._kept_at = 0, time.monotonic()
        for rule in RuleName:
            ANOMALIES.labels(rule)  # so that the first one is an increase

    async def turn(self) -> None:
        """Up to _PAGES_MAX pages. Raises Problem 503, asyncpg.PostgresError; then they are looked at again."""
        self._take_up_rules()
        try:
            await self._turn()
        except BaseException:
            self._detector = None  # it may have seen events whose anomalies were not kept: go back to what was
            raise

    async def close(self) -> None:
        """Keep what is not kept yet. Raises as turn() does."""
        if self._detector is not None and self._unkept:
            async with self._pool.acquire(_TURN_MAX_S) as connection:
                await self._keep(connection, self._detector)

    async def _turn(self) -> None:
        for _ in range(_PAGES_MAX):
            began = time.thread_time()
            async with self._pool.acquire(_TURN_MAX_S) as connection:
                detector = self._detector or await self._go_on(connection)
                rows = await usage_events.page(connection, self._cursor, PAGE)
                for row in rows:
                    for anomaly in detector.see(seen(row)):
                        if await anomalies.add(connection, anomaly):
                            _tell(anomaly)
                worked_s = time.thread_time() - began
                if rows:
                    self._cursor = Cursor(rows[-1].position, rows[-1].event_id)
                    self._unkept += len(rows)
                due = time.monotonic() - self._kept_at > KEEP_AFTER_S or self._unkept >= KEEP_AFTER_EVENTS
                if self._unkept and due:
                    await self._keep(connection, detector)
            if len(rows) < PAGE:
                ANOMALY_LAG_SECONDS.set(0)
                return
            behind = dt.datetime.now(dt.UTC) - rows[-1].recorded_at
            ANOMALY_LAG_SECONDS.set(max(0.0, behind.total_seconds()))
            await asyncio.sleep(min(_RESTS * worked_s, _REST_MAX_S))

    async def _go_on(self, connection: "AnyConnection") -> Detector:
        """Where it was left, with what was remembered there."""
        kept = await anomalies.watch(connection, _BACK)
        memory = None
        if kept.memory is not None:
            try:
                memory = msgspec.msgpack.decode(kept.memory, type=Memory)
            except msgspec.DecodeError:  # of another version of the gateway
                log.warning("usage monitoring begins with an empty memory")
        self._version, self._cursor = kept.version, kept.cursor
        self._unkept, self._kept_at = 0, time.monotonic()
        self._detector = Detector(self._rules, memory)
        return self._detector

    async def _keep(self, connection: "AnyConnection", detector: Detector) -> None:
        memory = msgspec.msgpack.encode(detector.memory())
        if await anomalies.keep(connection, self._version, self._cursor, memory):
            self._version += 1
            self._unkept, self._kept_at = 0, time.monotonic()
        else:
            self._detector = None  # another worker was here

    def _take_up_rules(self) -> None:
        """A changed file; the last good rules stay."""
        settings = self._watch.changed()
        if settings is None:
            return
        self._rules = settings.anomalies
        if self._detector is not None:
            self._detector = Detector(self._rules, self._detector.memory())
        self._watch.taken()


def seen(row: Row) -> Seen:
    """What the rules look at of an event."""
    verdict = VERDICT_OF[Reason(row.reason)] if row.reason else None
    returned = row.result == UsageResult.SUCCESS and row.reversal_of is None
    return Seen(
        row.event_id.bytes, _unix_us(row.recorded_at), _unix_us(row.occurred_at), row.caller, row.scene,
        row.terminal_id, row.card_id.bytes if row.card_id else None, returned or verdict is Verdict.VALID,
        verdict is Verdict.REFUSED, row.amount_fen, row.caller_event_id, row.reversal_of,
    )  # fmt: skip


def _tell(anomaly: Anomaly) -> None:
    """One line, without the terminal: a caller may have written anything there."""
    ANOMALIES.labels(anomaly.rule).inc()
    log.warning(
        "anomaly", rule=anomaly.rule, anomaly_id=str(UUID(bytes=anomaly.anomaly_id)), caller=anomaly.subject.caller,
        outlet=anomaly.subject.outlet, weight=anomaly.weight, stands=anomaly.stands,
        restates=str(UUID(bytes=anomaly.restates)) if anomaly.restates else None,
    )  # fmt: skip


def _unix_us(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
