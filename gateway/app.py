"""The composition root: the one place where the parts of a worker process are wired together."""

import asyncio
import datetime as dt
import gc
import signal
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway import metrics
from gateway.api.auth import Authenticator
from gateway.api.hot_lane import HotLane
from gateway.api.loss_reports import losses_told_by
from gateway.api.middleware import Answering, endpoint
from gateway.api.payments import Payments
from gateway.api.points import Redemptions
from gateway.api.quota import Quota
from gateway.api.reply import JSON
from gateway.api.routes import ROUTES
from gateway.api.server import HardenedRunner, assert_c_parser
from gateway.api.visits import Visits
from gateway.crypto import sm2
from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyStoreError, KeyUse
from gateway.crypto.key_watch import KeyWatch
from gateway.crypto.lane import SlowLane
from gateway.crypto.pseudonym import Pseudonyms
from gateway.crypto.sealing import SealError
from gateway.crypto.tokens import AccessTokens
from gateway.directory import Directory
from gateway.domain.caller_keys import CallerKey
from gateway.domain.errors import LoopFailed, PortRefused, Problem
from gateway.domain.masking import Secret
from gateway.domain.scenes import VisitKind
from gateway.flows.ask_ecard import LOOKUP_S, AskEcard, Lookups
from gateway.flows.bulk_usage import BulkUsage
from gateway.flows.data_keys import DataKeys
from gateway.flows.earn_points import EarnPoints
from gateway.flows.effects import Effects
from gateway.flows.find_card import FindCard
from gateway.flows.pay import Pay, RefundPayment, ReversePayment
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, ReservePoints
from gateway.flows.return_usage import ReturnUsage
from gateway.flows.rotate_caller_key import RotateCallerKey
from gateway.flows.settle_payment import Banks, SettlePayment, banks_of
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.tell_bank import TellBank
from gateway.flows.usage_lines import line_reader
from gateway.flows.verify_card import VerifyCard, VerifyOnce
from gateway.flows.visit import BeginVisit, OpenExit
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.partners.call import Partners
from gateway.settings import Settings
from gateway.store import benefits, caller_keys, ecards
from gateway.store.batch import Batcher, BatchFigures
from gateway.store.benefits import Refusals, Want
from gateway.store.pool import FOR_EFFECTS, FOR_RETURNS, Pool, connect
from gateway.store.verify import Judged, Presented, verify_batch

if TYPE_CHECKING:
    from gateway.store.pool import Connection

log = structlog.get_logger()

_DRAIN_S = 2.5
_GAUGE_PERIOD_S = 1.0
_A_CARD_REF = "{card_ref:(?!redemptions$)[^{}/]+}"
"""In paths: /v1/points/redemptions is another resource."""
_CLAIM_LOCK_MS = "200"
_SIGNATURES_TOGETHER = 8
"""Of SM2, where so many wait: their effects are one transaction, where each would be one of its own."""


class Gateway:
    """The parts of one worker. Build it, open() it, serve() it, close() it."""

    def __init__(self, settings: Settings, dsn: Secret[str], banks: Banks | None = None) -> None:
        """`banks` None: through the partner engine."""
        self.settings = settings
        self._dsn = dsn
        config = settings.gateway
        self._keys = KeyWatch(settings.keys_dir, lambda store: self.tokens.replace(store))
        keys = self._keys.store
        self.directory = Directory(settings, self._caller_keys)
        self.tokens = AccessTokens(keys, settings.issuer, config.tokens.lifetime_s)
        self.authenticate = Authenticator(self.tokens, self.directory, config.tokens.cache_max)
        self.quota = Quota(settings.run_dir)
        self.pool = Pool(dsn, config.database, "yikatong serve")
        self.pseudonyms = Pseudonyms(keys.working_keys(KeyUse.PSEUDONYM))
        self.data_keys = DataKeys(self.pool, self._keys, config.sealing.algorithm)
        self.slow_lane = SlowLane(
            config.sm2.threads,
            config.sm2.waiting_max,
            config.sm2.timeout_ms / 1000,
            config.sm2.per_second,
            together=_SIGNATURES_TOGETHER,
        )
        self.index = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1])
        self.find_card = FindCard(self.index, self.pseudonyms, keys.working_keys(KeyUse.CARD_PROOF)[-1])
        self.verify_card = VerifyCard(self.find_card, self.pseudonyms, self.data_keys.sealer)
        self._status_max_age = dt.timedelta(minutes=config.verify.status_max_age_minutes)
        self.batcher: Batcher[Presented, Judged] = Batcher(
            partial(connect, dsn, config.database, "yikatong verify", FOR_EFFECTS),
            self._verify_batch,
            batch_max=config.verify.batch_max,
            queue_max=config.verify.queue_max,
            deadline_s=config.verify.deadline_ms / 1000,
            on_batch=_count_batch,
            on_delivered=self._write_answers,
        )
        self.claims = self._connect_claims()
        self.hot_lane = HotLane(self)
        waiting = FOR_EFFECTS | {"lock_timeout": str(config.effects.claim_timeout_ms)}
        self.effects = Effects(
            partial(connect, dsn, config.database, "yikatong effects", waiting),
            self.data_keys,
            self.index,
            batch_max=config.effects.batch_max,
            queue_max=config.effects.queue_max,
            deadline_s=config.effects.deadline_ms / 1000,
            on_batch=_count_effects,
        )
        self.verify_once = VerifyOnce(
            self.verify_card, self.data_keys.load, self._status_max_age, config.verify.deadline_ms / 1000
        )
        self.rotate_caller_key = RotateCallerKey()
        self.partners = Partners(settings, lambda op, outcome: self.settle_payment.take_late(op, outcome))
        self.ask_ecard = self._connect_ecards()
        banks = banks or banks_of(self.partners)
        self.losses = losses_told_by(TellBank(self.pool, self.data_keys, banks, config.losses))
        self.outcomes = WriteOutcomes(
            partial(connect, dsn, config.database, "yikatong outcomes", FOR_EFFECTS), self.data_keys
        )
        self.settle_payment = SettlePayment(self.pool, self.data_keys, self.outcomes, banks, config.payments)
        self.payments = self._payments(self.settle_payment)
        self.visits = self._visits(SettleVisit(self.pool, self.data_keys, self.partners, config.visits))
        self.redemptions = Redemptions(
            ReservePoints(self._status_max_age, config.verify.deadline_ms / 1000),
            CommitRedemption(),
            CancelRedemption(),
        )
        self.bulk_usage = self._bulk_usage(keys)
        self._loading: asyncio.Task[None] | None = None
        self.open_connections: Callable[[], int] = lambda: 0
        self._tasks: list[asyncio.Task[None]] = []

    def _payments(self, settle: SettlePayment) -> Payments:
        timeout_s = self.settings.gateway.verify.deadline_ms / 1000
        pay = Pay(settle, self.verify_card, self.data_keys.load, self._status_max_age, timeout_s)
        return Payments(pay, ReversePayment(settle), RefundPayment(settle))

    def _visits(self, settle: SettleVisit) -> Visits:
        timeout_s = self.settings.gateway.verify.deadline_ms / 1000
        begin = {
            kind: BeginVisit(kind, settle, self.verify_card, self.data_keys.load, self._status_max_age, timeout_s)
            for kind in VisitKind
        }
        return Visits(begin, OpenExit(settle))

    def _bulk_usage(self, keys: KeyStore) -> BulkUsage:
        config = self.settings.gateway
        return BulkUsage(
            partial(connect, self._dsn, config.database, "yikatong usage", FOR_RETURNS),
            line_reader(keys, config.usage_return.days_back),
            ReturnUsage(EarnPoints(lambda: self.directory.earn_rules)),
            config.usage_return,
        )

    def _connect_ecards(self) -> AskEcard | None:
        """None where no platform is configured: each code is `unknown` then."""
        verify = self.settings.gateway.verify
        if not verify.ecard_partner:
            return None
        lookups: Lookups = Batcher(
            partial(connect, self._dsn, self.settings.gateway.database, "yikatong ecards", FOR_EFFECTS),
            ecards.look,
            batch_max=verify.batch_max,
            queue_max=verify.queue_max,
            deadline_s=LOOKUP_S,
            on_batch=lambda _: None,
        )
        ask = partial(self.partners.call, verify.ecard_partner)
        return AskEcard(lookups, self.index, ask, verify.ecard_deadline_ms / 1000)

    def _connect_claims(self) -> Batcher[Want, Refusals | None]:
        config = self.settings.gateway
        settings = FOR_EFFECTS | {"lock_timeout": _CLAIM_LOCK_MS}
        return Batcher(
            partial(connect, self._dsn, config.database, "yikatong benefits", settings),
            benefits.claim_batch,
            batch_max=config.verify.batch_max,
            queue_max=config.verify.queue_max,
            deadline_s=config.verify.deadline_ms / 1000,
            on_batch=lambda _: None,
            on_delivered=self._write_answers,
            not_known="it is not known whether a benefit was used up",
        )

    def _write_answers(self) -> None:
        self.hot_lane.write_answers()

    async def open(self) -> None:
        """Connect and start the loops. Raises UnfitDatabase, KeyStoreError, SealError, OSError."""
        await self.pool.open()
        await self.data_keys.load()
        await self.directory.look()
        await self.partners.open()
        loops = [
            self.batcher.run, self.claims.run, self.effects.serve, self.outcomes.serve, self.bulk_usage.serve,
            self.directory.watch, self.partners.watch, self._keys.watch, self._watch_gauges,
        ]  # fmt: skip
        if self.ask_ecard is not None:
            loops.append(self.ask_ecard.serve)
        for loop in loops:
            self._tasks.append(asyncio.create_task(loop(), name=loop.__qualname__))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.effects.close()
        if self.ask_ecard is not None:
            await self.ask_ecard.close()
        await self.partners.close()
        self.slow_lane.close()
        self.bulk_usage.close()
        metrics.flush()
        await self.pool.close()

    async def failed(self) -> None:
        """Returns when one of the loops has ended, which none should."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            log.critical("a loop has failed", loop=task.get_name(), exc_info=error)

    async def _verify_batch(
        self, connection: "Connection", batch: Sequence[Presented], timeout: float
    ) -> Sequence[Judged]:
        return await verify_batch(connection, batch, self._status_max_age, timeout)

    def start_loading_data_keys(self) -> "asyncio.Task[None]":
        """Load the data keys in the background, once at a time; the task does not raise."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._try_loading_data_keys())
        return self._loading

    async def _try_loading_data_keys(self) -> None:
        try:
            await self.data_keys.load()
        except (Problem, KeyStoreError, SealError) as error:
            log.error("data keys not loaded", error=type(error).__name__)

    async def _caller_keys(self, file_kids: Collection[str]) -> list[CallerKey]:
        async with self.pool.acquire() as connection:
            return await caller_keys.relevant(connection, file_kids)

    async def _watch_gauges(self) -> None:
        while True:
            metrics.QUEUE.set(len(self.batcher))
            metrics.EFFECT_QUEUE.set(len(self.effects))
            metrics.POOL_FREE.set(self.pool.free)
            metrics.CONNECTIONS.set(self.open_connections())
            self.partners.measure()
            metrics.flush()
            await asyncio.sleep(_GAUGE_PERIOD_S)


def _count_batch(figures: BatchFigures) -> None:
    metrics.BATCH_SIZE.observe(figures.size)
    metrics.BATCH_WAIT_SECONDS.observe(figures.oldest_wait_s)
    metrics.BATCH_SECONDS.observe(figures.statement_s)


def _count_effects(figures: BatchFigures) -> None:
    metrics.EFFECT_BATCH_SIZE.observe(figures.size)
    metrics.EFFECT_BATCH_SECONDS.observe(figures.statement_s)


def web_application(gateway: Gateway) -> web.Application:
    """The public listener's routes, each wrapped by the pipe of middleware.py."""
    app = web.Application()
    for route in ROUTES:
        answering = endpoint(gateway, route.path, route.handler, route.scope, route.takes, route.effect, route.bulk)
        path = route.path.replace("{card_ref}", _A_CARD_REF)
        app.router.add_route(route.method, path, partial(_ordinary, answering))
        if route.takes == JSON and "{" not in path:
            gateway.hot_lane.add(path, answering)
    return app


async def _ordinary(answering: Answering, request: web.Request) -> web.StreamResponse:
    return (await answering(request, None)).response()


async def serve(settings: Settings, dsn: Secret[str], ready: Callable[[], None], banks: Banks | None = None) -> None:
    """One worker: serve until SIGTERM, then stop accepting, finish what has begun, and close. Raises LoopFailed."""
    assert_c_parser()
    http = settings.gateway.http
    metrics.set_build_info()
    (log.warning if sm2.chosen().reason else log.info)("SM2", backend=str(sm2.chosen()))
    gateway = Gateway(settings, dsn, banks)
    await gateway.open()
    runner = HardenedRunner(
        web_application(gateway),
        gateway.hot_lane,
        connections_max=http.connections_max,
        header_timeout_s=http.header_timeout_s,
        drain_s=_DRAIN_S,
    )
    await runner.setup()
    gateway.open_connections = lambda: runner.open_connections
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await runner.listen(_listen(http.host, http.port))
    # what was built at start lives for ever: keep the collector from walking it, and from running at every few requests
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    ready()
    failed = asyncio.create_task(gateway.failed())
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({failed, stopped}, return_when=asyncio.FIRST_COMPLETED)
    log.info("draining")
    await runner.cleanup()
    stopped.cancel()
    failed.cancel()
    await gateway.close()
    log.info("stopped")
    if failed in done:
        raise LoopFailed


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise PortRefused("PORT", host, port, error) from None
    listener.setblocking(False)
    return listener
