"""One run of the load driver against one server, with the CPU time that each side used over the measuring window."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
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


def drive(server: Server, load: Load, on_mark: Callable[[int], None] | None = None) -> Run:
    """Run the driver in its own process. `on_mark` is called with the number of answers at each mark."""
    out = load.headers.parent / "driver.json"
    out.unlink(missing_ok=True)
    driver = subprocess.Popen(
        [sys.executable, "-m", "loadtests.driver", *_arguments(server, load), "--out", str(out)],
        cwd=CHECKOUT, env=os.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    began: Cpu | None = None
    ended: Cpu | None = None
    assert driver.stdout is not None
    try:
        for line in driver.stdout:
            word = line.split()[0]
            if word == "measuring":
                began = cpu_of(server.running, server.database)
            elif word == "measured":
                ended = cpu_of(server.running, server.database)
            elif word == "mark" and on_mark:
                on_mark(int(line.split()[1]))
        driver.wait(DRIVER_ENDS_S)
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait()
        driver.stdout.close()
    if not (began and ended and out.exists()):
        raise DriverError(f"the driver ended with code {driver.returncode} against {server.url}")
    return _figures(json.loads(out.read_text()), began, ended)


def _arguments(server: Server, load: Load) -> list[str]:
    return [
        "--url", server.url, "--path", VERIFY, "--bodies", str(load.bodies), "--headers", str(load.headers),
        "--seconds", str(load.seconds), "--warmup", str(load.warmup), "--connections", str(load.connections),
        "--rate", str(load.rate), "--count", str(load.count), "--marks", str(load.marks), "--expect", load.expect,
    ]  # fmt: skip


def _figures(found: dict[str, Any], began: Cpu, ended: Cpu) -> Run:
    answers = max(1, found["answers"])
    server, database = ended.server - began.server, ended.database - began.database
    rest = ended.rest - began.rest
    driver = found["driver_cpu_us"] * answers / 1e6
    others = ended.machine - began.machine - server - database - rest - driver
    latency = found["latency_ms"]
    return Run(
        per_second=found["ok_per_second"], p50_ms=latency["p50"], p99_ms=latency["p99"], p999_ms=latency["p999"],
        max_ms=latency["max"], server_us=server / answers * 1e6, database_us=database / answers * 1e6,
        rest_us=rest / answers * 1e6, driver_us=found["driver_cpu_us"],
        others_cores=max(0.0, others) / (ended.at - began.at),
        failed=found["answers"] - found["ok"] + sum(found["errors"].values()), driver=found,
    )  # fmt: skip
