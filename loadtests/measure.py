"""One run of the load driver against one server, with the CPU time that each side used over the measuring window."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from loadtests.processes import CHECKOUT, Cpu, Running, cpu_of

VERIFY = "/v1/cards/verify"
DRIVER_ENDS_S = 120.0


class DriverError(Exception):
    """The load driver ended without a result."""


@dataclass(frozen=True)
class Server:
    """What is being measured."""

    url: str
    running: Running
    database: Running | None = None
    """Whose process tree holds the PostgreSQL that it uses."""


@dataclass(frozen=True)
class Load:
    """What the driver is to send."""

    bodies: Path
    headers: Path
    seconds: float
    warmup: float = 2.0
    connections: int = 64
    rate: float = 0.0
    count: int = 0
    marks: int = 0
    expect: str = '"verdict":"valid"'
    requests: Path | None = None
    """Whole requests, each sent once: `bodies` and `headers` are not used."""
    answers: Path | None = None
    """Where the bodies of the answers are left."""
    patient: bool = False


@dataclass(frozen=True)
class Run:
    """One run's figures. CPU is in µs a request; `others_cores` is what neither we nor the driver used."""

    per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    server_us: float
    database_us: float
    rest_us: float
    partners_us: float
    driver_us: float
    others_cores: float
    failed: int
    driver: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Row:
    """Several runs of the same thing."""

    name: str
    runs: list[Run]

    def middle(self, figure: str) -> float:
        return median(float(getattr(run, figure)) for run in self.runs)

    def spread(self, figure: str) -> tuple[float, float]:
        values = [getattr(run, figure) for run in self.runs]
        return min(values), max(values)

    def document(self) -> dict[str, Any]:
        figures = [name for name in Run.__dataclass_fields__ if name != "driver"]
        return {
            "median": {name: round(self.middle(name), 3) for name in figures},
            "spread": {name: [round(value, 3) for value in self.spread(name)] for name in figures},
            "runs": [asdict(run) for run in self.runs],
        }


class Beside:
    """A second driver that runs while the block does."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.found: dict[str, Any] = {}
        """Its result, when the block has ended."""


def drive(
    server: Server, load: Load, on_mark: Callable[[int], None] | None = None, beside: Beside | None = None
) -> Run:
    """Run the driver in its own process. `on_mark` is called with the number of answers at each mark."""
    out = load.headers.parent / "driver.json"
    aside = beside.process.pid if beside else None
    began: Cpu | None = None
    ended: Cpu | None = None
    with _driver(server, load, out) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            word = line.split()[0]
            if word == "measuring":
                began = cpu_of(server.running, server.database, aside)
            elif word == "measured":
                ended = cpu_of(server.running, server.database, aside)
            elif word == "mark" and on_mark:
                on_mark(int(line.split()[1]))
        driver.wait(DRIVER_ENDS_S)
    if ended and not began:
        raise DriverError("the requests were used up before the measuring began: there were too few")
    if not (began and ended and out.exists()):
        raise DriverError(f"the driver ended with code {driver.returncode} against {server.url}")
    return _figures(json.loads(out.read_text()), began, ended)


@contextlib.contextmanager
def driving_beside(server: Server, load: Load) -> Iterator[Beside]:
    """Have a second driver at work, past its warm-up, for as long as the block runs. Raises DriverError."""
    out = load.headers.parent / "driver-beside.json"
    with _driver(server, load, out) as driver:
        assert driver.stdout is not None
        if driver.stdout.readline().strip() != "measuring":
            raise DriverError(f"the driver beside did not begin against {server.url}")
        beside = Beside(driver)
        yield beside
        if select.select([driver.stdout], [], [], 0)[0]:
            raise DriverError("the driver beside ended too early: its requests were used up")
        driver.terminate()
        driver.wait(DRIVER_ENDS_S)
    if not out.exists():
        raise DriverError(f"the driver beside ended with code {driver.returncode}")
    beside.found = json.loads(out.read_text())


@contextlib.contextmanager
def _driver(server: Server, load: Load, out: Path) -> Iterator[subprocess.Popen[str]]:
    out.unlink(missing_ok=True)
    driver = subprocess.Popen(
        [sys.executable, "-m", "loadtests.driver", *_arguments(server, load), "--out", str(out)],
        cwd=CHECKOUT, env=os.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield driver
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
        assert driver.stdout is not None
        driver.stdout.close()


def _arguments(server: Server, load: Load) -> list[str]:
    if load.requests:
        what = ["--requests", str(load.requests), *(["--patient"] if load.patient else [])]
    else:
        what = ["--path", VERIFY, "--bodies", str(load.bodies), "--headers", str(load.headers)]
    if load.answers:
        what += ["--answers", str(load.answers)]
    return [
        "--url", server.url, *what,
        "--seconds", str(load.seconds), "--warmup", str(load.warmup), "--connections", str(load.connections),
        "--rate", str(load.rate), "--count", str(load.count), "--marks", str(load.marks), "--expect", load.expect,
    ]  # fmt: skip


def _figures(found: dict[str, Any], began: Cpu, ended: Cpu) -> Run:
    answers = max(1, found["answers"])
    server, database = ended.server - began.server, ended.database - began.database
    rest, partners = ended.rest - began.rest, ended.partners - began.partners
    driver = found["driver_cpu_us"] * answers / 1e6
    others = ended.machine - began.machine - server - database - rest - partners - driver
    latency = found["latency_ms"]
    return Run(
        per_second=found["ok_per_second"], p50_ms=latency["p50"], p99_ms=latency["p99"], p999_ms=latency["p999"],
        max_ms=latency["max"], server_us=server / answers * 1e6, database_us=database / answers * 1e6,
        rest_us=rest / answers * 1e6, partners_us=partners / answers * 1e6, driver_us=found["driver_cpu_us"],
        others_cores=max(0.0, others) / (ended.at - began.at),
        failed=found["answers"] - found["ok"] + sum(found["errors"].values()), driver=found,
    )  # fmt: skip
