"""One process that keeps a gateway running: the embedded database, the workers, the operators' listener.

Everything it starts ends with it, even if it is killed: children ask the kernel for that (processes.py).
"""

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import IO

import asyncpg
import structlog
from aiohttp import web
from prometheus_client.multiprocess import mark_process_dead

from gateway.api.ops import ops_application, outcome
from gateway.api.quota import create_table
from gateway.crypto.key_files import open_folder
from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.sealing import Sealer
from gateway.directory import Directory
from gateway.domain.errors import CannotStart, PortRefused
from gateway.domain.masking import Secret
from gateway.settings import Settings
from gateway.store import data_keys, discretion
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from gateway.store.pool import assert_fit

log = structlog.get_logger()

_READY_S = 30.0
_DRAIN_S = 4.0
_CRASHES_MAX = 5
_CRASHES_WITHIN_S = 30.0
_POSTGRES_LOOK_S = 0.2
_RETRY_S = 0.5

Preparation = Callable[[Settings, Secret[str]], Awaitable[None]]


class Supervisor:
    """run() is its life. `prepare` is awaited between migrations and workers (the sandbox loads its county there)."""

    def __init__(self, settings: Settings, prepare: Preparation | None, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._prepare = prepare
        self._say = say
        self._postgres: EmbeddedPostgres | None = None
        self._dsn = settings.gateway.database.url
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._crashes: deque[float] = deque(maxlen=_CRASHES_MAX)
        self._stopping = asyncio.Event()
        self._broken: str | None = None

    async def run(self) -> None:
        """Start everything, print the ready line, stay until SIGTERM or SIGINT, stop everything. Raises CannotStart."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        began = time.monotonic()
        lock = self._claim_data_folder()
        self._refuse_taken_ports()
        if self._prepare is None:
            open_folder(self._settings.keys_dir)
        try:
            await self._open_database()
            await self._serve(began)
        finally:
            await self._end_children()
            if self._postgres is not None:
                self._postgres.stop()
            lock.close()
        if self._broken:
            raise CannotStart(self._broken)

    async def _serve(self, began: float) -> None:
        if self._prepare is not None and not await self._prepared(self._prepare):
            return
        await self._refuse_foreign_keys()
        Directory(self._settings)
        ops = await self._open_ops()
        tasks = [asyncio.create_task(self._watch_postgres())] if self._postgres else []
        ready = [asyncio.Event() for _ in range(self._settings.gateway.http.workers + 1)]
        for number, event in enumerate(ready):
            name, command = (f"serve-{number}", "serve-worker") if number else ("worker", "worker")
            tasks.append(asyncio.create_task(self._keep(name, command, event)))
        try:
            all_ready = asyncio.create_task(_all_set(ready))
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait({all_ready, stopping}, timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if all_ready.done():
                self._say(self._ready_line(time.monotonic() - began))
            elif not self._stopping.is_set():
                self._broken = "the workers did not become ready; the log above says why"
                self._stopping.set()
            await stopping
            all_ready.cancel()
            await self._end_children()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await ops.cleanup()

    async def _prepared(self, prepare: Preparation) -> bool:
        """Whether the preparation came to its end before we were told to stop."""
        preparing = asyncio.ensure_future(prepare(self._settings, self._dsn))
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({preparing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if preparing.done():
            stopping.cancel()
            await preparing
            return True
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)
        return False

    def _ready_line(self, seconds: float) -> str:
        http, ops = self._settings.gateway.http, self._settings.gateway.ops
        public = f"http://{http.host}:{http.port}"
        return (
            f"ready  api={public}  docs={public}/docs  metrics=http://{ops.host}:{ops.port}/metrics  ({seconds:.1f} s)"
        )

    def _claim_data_folder(self) -> IO[bytes]:
        """One gateway to a data folder; the lock goes with the process. Fresh metrics and quota files."""
        run = self._settings.run_dir
        run.mkdir(parents=True, exist_ok=True)
        lock = (run / "lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotStart(f"another gateway runs on {self._settings.data_dir} (or set DATA_DIR)") from None
        shutil.rmtree(self._settings.metrics_dir, ignore_errors=True)
        self._settings.metrics_dir.mkdir()
        create_table(run)
        return lock

    def _refuse_taken_ports(self) -> None:
        """Workers share a port, so a second gateway would not be refused by the kernel: ask first."""
        http, ops = self._settings.gateway.http, self._settings.gateway.ops
        for name, host, port in (("PORT", http.host, http.port), ("OPS_PORT", ops.host, ops.port)):
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((host, port))
                except OSError as error:
                    raise PortRefused(name, host, port, error) from None

    async def _open_database(self) -> None:
        if not self._dsn:
            self._postgres = EmbeddedPostgres(self._settings.data_dir)
            self._postgres.start()
            self._dsn = Secret(self._postgres.dsn)
        for name in await migrate(self._dsn.reveal()):
            log.info("migration applied", migration=name)
        connection = await asyncpg.connect(self._dsn.reveal(), timeout=10)
        try:
            await assert_fit(connection)
            for advice in await discretion.advice(connection):
                log.warning("the database's log may tell more than it should", advice=advice)
        finally:
            await connection.close()

    async def _refuse_foreign_keys(self) -> None:
        """Every data key must open with our keys, or a worker would fail later. Raises KeyStoreError, SealError."""
        store = open_folder(self._settings.keys_dir)
        connection = await asyncpg.connect(self._dsn.reveal(), timeout=10)
        try:
            Sealer().add(await data_keys.load(connection), store)
        finally:
            await connection.close()

    async def _watch_postgres(self) -> None:
        assert self._postgres is not None
        while True:
            try:
                if self._postgres.restart_if_dead():
                    log.error("PostgreSQL had ended; started again", pid=self._postgres.pid)
            except OSError as error:
                log.error("PostgreSQL could not be started again", error=error.strerror)
            await asyncio.sleep(_POSTGRES_LOOK_S)

    async def _keep(self, name: str, command: str, ready: asyncio.Event) -> None:
        """Keep one child running; give up when it crashes too often."""
        environment = os.environ | {
            "DATABASE_URL": self._dsn.reveal(),
            "PARENT_PID": str(os.getpid()),
            "PROMETHEUS_MULTIPROC_DIR": str(self._settings.metrics_dir),
        }
        while not self._stopping.is_set():
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "gateway", command,
                env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )  # fmt: skip
            self._children[name] = child
            assert child.stdout is not None
            if await child.stdout.readline():
                ready.set()
            code = await child.wait()
            mark_process_dead(child.pid, str(self._settings.metrics_dir))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            log.error("child ended; starting it again", child=name, code=code)
            if await outcome(self._check_database):  # not the child's fault: it does not count
                await asyncio.sleep(_RETRY_S)
                continue
            now = time.monotonic()
            if len(self._crashes) == _CRASHES_MAX and now - self._crashes[0] < _CRASHES_WITHIN_S:
                self._broken = (
                    f"{name} ended {_CRASHES_MAX} times within {_CRASHES_WITHIN_S:.0f} s; the log above says why"
                )
                self._stopping.set()
                return
            self._crashes.append(now)
            await asyncio.sleep(0.2 * len(self._crashes))

    async def _end_children(self) -> None:
        """SIGTERM, time to drain, SIGKILL."""
        running = [child for child in self._children.values() if child.returncode is None]
        for child in running:
            child.terminate()
        if running:
            waits = [asyncio.create_task(child.wait()) for child in running]
            _, late = await asyncio.wait(waits, timeout=_DRAIN_S)
            if late:
                log.error("children did not end in time and are killed", count=len(late))
            for child in running:
                if child.returncode is None:
                    child.kill()
            await asyncio.gather(*waits)

    async def _open_ops(self) -> web.AppRunner:
        checks = {
            "serving": self._check_serving,
            "database": self._check_database,
            "signing_keys": self._check_keys,
        }
        runner = web.AppRunner(
            ops_application(self._settings.metrics_dir, checks, lambda: self._broken is None), access_log=None
        )
        await runner.setup()
        ops = self._settings.gateway.ops
        try:
            await web.TCPSite(runner, ops.host, ops.port).start()
        except OSError as error:  # taken since we asked
            raise PortRefused("OPS_PORT", ops.host, ops.port, error) from None
        return runner

    async def _check_serving(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        servers = [child for name, child in self._children.items() if name != "worker"]
        running = sum(child.returncode is None for child in servers)
        return "" if running else "no worker is running"

    async def _check_database(self) -> str:
        connection = await asyncpg.connect(self._dsn.reveal(), timeout=1)
        try:
            await assert_fit(connection)
        finally:
            await connection.close()
        return ""

    async def _check_keys(self) -> str:
        try:
            await asyncio.to_thread(open_folder, self._settings.keys_dir)
        except KeyStoreError as error:
            return str(error)
        return ""


async def _all_set(events: list[asyncio.Event]) -> None:
    for event in events:
        await event.wait()
