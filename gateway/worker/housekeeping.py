"""The background loops of a gateway: partitions ahead, sweeping, the feed's lag, callers' published keys, what became
of payments and of visits at merchants, what banks are to be told, their check files, the feed outward, points and
reservations whose time is over. Each turn is bounded."""

import asyncio
import datetime as dt
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import asyncpg
import structlog

from gateway import metrics
from gateway.configuration import Gateway
from gateway.crypto.key_watch import KeyWatch
from gateway.directory import Directory
from gateway.domain.caller_keys import CallerKey
from gateway.domain.errors import LoopFailed, Problem
from gateway.domain.masking import Secret
from gateway.flows.data_keys import DataKeys
from gateway.flows.expire_points import ExpirePoints
from gateway.flows.ingest_usage_file import ingest_usage_files
from gateway.flows.reconcile_bank import ReconcileBank
from gateway.flows.resolve_notices import ResolveNotices
from gateway.flows.resolve_payments import ResolvePayments
from gateway.flows.resolve_visits import ResolveVisits
from gateway.flows.settle_payment import Banks, SettlePayment, banks_of
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.tell_bank import TellBank
from gateway.flows.watch_usage import WatchUsage
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.partners.call import Partners
from gateway.settings import Settings
from gateway.store import (
    assertions,
    benefits,
    caller_keys,
    ecards,
    idempotency,
    outbox,
    usage_events,
    usage_files,
)
from gateway.store.migrate import ensure_partitions
from gateway.store.pool import FOR_EFFECTS, FOR_RETURNS, GONE, Pool, connect
from gateway.worker.outbox import Relays
from gateway.worker.published_keys import PublishedKeys
from gateway.worker.usage_files import WatchUsageFiles

log = structlog.get_logger()

SWEEP_BATCH = 500
_SWEEP_TURNS_MAX = 200
_TURN_MAX_S = 30.0
_RESOLVE_S = 1.0
_RECONCILE_S = 600.0
_MEASURE_S = 1.0
_RESERVATIONS_S = 1.0
_LOTS_S = 600.0
_WATCH_S = 1.0
_CLOSE_S = 0.7
"""For each of five things to be closed: the supervisor kills who has not ended after four seconds."""


async def run(settings: Settings, dsn: Secret[str], ready: Callable[[], None], banks: Banks | None = None) -> None:
    """Until SIGTERM; raises LoopFailed. `banks` None: through the partner engine."""
    pool = Pool(dsn, settings.gateway.database, "yikatong worker")
    await pool.open()
    partners = Partners(settings, lambda op, outcome: settle.take_late(op, outcome))
    await partners.open()
    banks = banks or banks_of(partners)
    data_keys = DataKeys(pool, KeyWatch(settings.keys_dir, lambda _: None), settings.gateway.sealing.algorithm)
    outcomes = WriteOutcomes(
        partial(connect, dsn, settings.gateway.database, "yikatong outcomes", FOR_EFFECTS), data_keys
    )
    settle = SettlePayment(pool, data_keys, outcomes, banks, settings.gateway.payments)
    resolve = ResolvePayments(pool, settle, settings.gateway.payments)
    tell = TellBank(pool, data_keys, banks, settings.gateway.losses)
    notices = ResolveNotices(pool, tell, settings.gateway.losses)
    reconcile = ReconcileBank(pool, banks, settings.gateway.payments, settings.data_dir)
    settle_visit = SettleVisit(pool, data_keys, partners, settings.gateway.visits)
    visits = ResolveVisits(pool, settle_visit, settings.gateway.visits)
    expire = ExpirePoints(pool)
    directory = Directory(settings, partial(_caller_keys, pool))
    await directory.look()
    watch_files = WatchUsageFiles(
        ingest_usage_files(settings, directory),
        partial(connect, dsn, settings.gateway.database, "yikatong usage files", FOR_RETURNS),
        settings.gateway.usage_return,
        settings.data_dir,
    )
    monitoring = WatchUsage(settings, pool)
    relays = Relays(settings, dsn, partners)
    await relays.open()
    published = PublishedKeys(settings, pool)
    await published.open()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    turns: list[tuple[float, str, Callable[[], Awaitable[None]]]] = [
        (3600, "partitions", lambda: _partitions(dsn)),
        (60, "sweep", lambda: sweep(pool, settings.gateway)),
        (5, "feed lag", lambda: _feed_lag(pool)),
        (_RESOLVE_S, "resolver", resolve.turn),
        (5, "open payments", resolve.measure),
        (_RESOLVE_S, "loss notices", notices.turn),
        (5, "open loss notices", notices.measure),
        (5, "outbox figures", relays.measure),
        (_RESOLVE_S, "visits", visits.turn),
        (30, "unknown visits", visits.measure),
        (_MEASURE_S, "partners' metrics", lambda: _measure(partners)),
        (_RECONCILE_S, "reconciliation", lambda: reconcile.turn(dt.datetime.now(dt.UTC))),
        (_RESERVATIONS_S, "reservations", expire.reservations),
        (_LOTS_S, "expiring points", expire.lots),
        (settings.gateway.callers_keys.period_s, "published keys", published.turn),
        (settings.gateway.usage_return.period_s, "usage files", watch_files.turn),
        (_WATCH_S, "usage monitoring", monitoring.turn),
    ]
    loops = [
        asyncio.create_task(partners.watch(), name="partners"),
        asyncio.create_task(outcomes.serve(), name="outcomes"),
        asyncio.create_task(directory.watch(), name="directory"),
    ]
    loops += [asyncio.create_task(every(seconds, name, turn), name=name) for seconds, name, turn in turns]
    loops += [asyncio.create_task(loop, name=name) for name, loop in relays.loops()]
    ready()
    try:
        await keep(loops, stop)
    finally:
        # what monitoring cannot keep is looked at again
        await close_all(monitoring.close, published.close, relays.close, partners.close, pool.close)
        metrics.flush()


async def close_all(*closes: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """One after the other, whatever becomes of one: it must not hide why the worker ends, nor outlast its time."""
    for close in closes:
        error = (await asyncio.gather(asyncio.wait_for(close(), _CLOSE_S), return_exceptions=True))[0]
        if error is not None:
            log.warning("not closed in order", exc_info=error)


async def keep(loops: Sequence[asyncio.Task[None]], stop: asyncio.Event) -> None:
    """Until told to stop. Raises LoopFailed when a loop has ended: it must not be missing while the others go on."""
    stopped = asyncio.create_task(stop.wait())
    ended, _ = await asyncio.wait([*loops, stopped], return_when=asyncio.FIRST_COMPLETED)
    for task in [*loops, stopped]:
        task.cancel()
    failed = False
    for loop, error in zip(loops, await asyncio.gather(*loops, return_exceptions=True), strict=True):
        if loop in ended or isinstance(error, Exception):
            failed = True
            log.critical("a loop has failed", loop=loop.get_name(), exc_info=error)
    if failed:
        raise LoopFailed


async def every(seconds: float, name: str, turn: Callable[[], Awaitable[None]]) -> None:
    """Take a turn, then rest; a turn that the database fails is taken again next time."""
    task = asyncio.current_task()
    assert task is not None
    while True:
        try:
            await turn()
        except (Problem, asyncpg.PostgresError, *GONE) as error:
            log.warning("turn failed", loop=name, error=type(error).__name__)
        if task.cancelling():  # what ends in the same moment may win over it (asyncio.wait_for of Python 3.11)
            raise asyncio.CancelledError
        await asyncio.sleep(seconds)


async def _partitions(dsn: Secret[str]) -> None:
    # creating a table needs the owner, which the pool is not
    connection = await asyncpg.connect(dsn.reveal(), timeout=10)
    try:
        await ensure_partitions(connection, dt.datetime.now(dt.UTC).date())
    finally:
        await connection.close()


async def sweep(pool: Pool, config: Gateway) -> None:
    """What has had its time, in small batches. Raises Problem 503, asyncpg.PostgresError."""
    for some in (
        assertions.sweep, idempotency.sweep, ecards.sweep, benefits.sweep,
        partial(usage_files.sweep_rejected, days=config.usage_return.rejects_days),
        partial(outbox.sweep_dead_letters, days=config.outbox.dead_letters_days),
    ):  # fmt: skip
        for _ in range(_SWEEP_TURNS_MAX):
            async with pool.acquire(_TURN_MAX_S) as connection:
                if await some(connection, SWEEP_BATCH) < SWEEP_BATCH:
                    break


async def _caller_keys(pool: Pool, file_kids: Collection[str]) -> list[CallerKey]:
    async with pool.acquire() as connection:
        return await caller_keys.relevant(connection, file_kids)


async def _measure(partners: Partners) -> None:
    partners.measure()
    metrics.flush()


async def _feed_lag(pool: Pool) -> None:
    async with pool.acquire(_TURN_MAX_S) as connection:
        metrics.FEED_LAG_SECONDS.set(await usage_events.feed_lag_s(connection))
