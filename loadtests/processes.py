"""Starting and ending our own processes, and reading what CPU and memory they use."""

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parent.parent
STOP_S = 30.0
PARTNERS = "gateway.sandbox.peers."


class StartError(Exception):
    """A process that we need did not become ready; the text says which."""


@dataclass(frozen=True)
class Cpu:
    """CPU seconds since each process began."""

    server: float
    """The processes that answer requests."""
    database: float
    rest: float
    """The supervisor, its background worker, and a second load driver if there is one."""
    partners: float
    """The simulated partners, which are no part of a gateway."""
    machine: float
    """Everything that runs on this machine, ours included."""
    at: float


class Running:
    """A process that we started and the processes below it."""

    def __init__(self, process: subprocess.Popen[str], serving: str) -> None:
        self.process = process
        self._serving = serving

    def tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def servers(self) -> list[psutil.Process]:
        """The processes whose command line holds the word that tells a server process."""
        found = []
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                if self._serving in process.cmdline():
                    found.append(process)
        return found

    def rss_mib(self) -> float:
        """Resident memory of the largest server process."""
        return max((float(server.memory_info().rss) for server in self.servers()), default=0.0) / 2**20


def cpu_of(serving: Running, database: Running | None, aside: int | None = None) -> Cpu:
    """CPU used so far by a server's tree and by the PostgreSQL below `database` (which may be the same tree).

    `aside` is one more process of ours, which counts as `rest`.
    """
    at = time.monotonic()
    server = rest = partners = 0.0
    if aside is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = psutil.Process(aside).cpu_times()
            rest += times.user + times.system
    servers = {process.pid for process in serving.servers()}
    for process in serving.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "postgres":
                continue
            times = process.cpu_times()
            if process.pid in servers:
                server += times.user + times.system
            elif any(word.startswith(PARTNERS) for word in process.cmdline()):
                partners += times.user + times.system
            else:
                rest += times.user + times.system
    machine = psutil.cpu_times()
    busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
    return Cpu(server, _database_cpu(database) if database else 0.0, rest, partners, busy, at)


def _database_cpu(running: Running) -> float:
    """Of every postgres process, those that have ended too: the postmaster has their times as its children's."""
    total, known = 0.0, {}
    for process in running.tree():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "postgres":
                known[process.pid] = (process.ppid(), process.cpu_times())
    for parent, times in known.values():
        total += times.user + times.system
        if parent not in known:
            total += times.children_user + times.children_system
    return total


@contextlib.contextmanager
def started(
    command: list[str], environment: dict[str, str], serving: str, ready_s: float, log: Path
) -> Iterator[Running]:
    """Run `python -m <command>` until the block ends. Its standard output must begin a line with `ready`."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=CHECKOUT, env=os.environ | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    try:
        _wait_until_ready(process, ready_s, f"{' '.join(command)}: {log} says why")
        yield Running(process, serving)
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout:
            process.stdout.close()


def _wait_until_ready(process: subprocess.Popen[str], ready_s: float, what: str) -> None:
    assert process.stdout is not None
    ends = time.monotonic() + ready_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(max(0.0, ends - time.monotonic())):
            line = process.stdout.readline()
            if line.startswith("ready"):
                return
            if not line:
                raise StartError(f"ended before it was ready: {what}")
    raise StartError(f"not ready within {ready_s:.0f} s: {what}")
