"""Measures the gateway on this machine, beside what it should be compared with. `python -m loadtests.bench --help`.

It starts what it needs on loopback ports, one thing at a time under load, and ends it again. The county stays in
`var/bench-<cards>` under the checkout, so that a second bench does not load it again.
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from loadtests import benefits, report
from loadtests.bulk import BulkRun, Bulks
from loadtests.client import Caller, CallError, Session, call
from loadtests.effects import BesideRun, Effects, config_copy
from loadtests.engine import engine_cost, link_in_flight
from loadtests.loading import Loading, load_anew
from loadtests.measure import Beside, DriverError, Load, Row, Run, Server, drive
from loadtests.payments import Payments
from loadtests.processes import CHECKOUT, StartError, started
from loadtests.redemptions import Redemptions, with_a_cheap_item
from loadtests.usage_file import FileRun, ingest_file

PARTS = (
    "bare", "verify", "open", "ordinary", "verify2", "memory", "benefits", "effect", "beside", "load",
    "payments", "ecard", "memory-payments", "engine", "iso-500", "redeem", "bulk", "usage-file",
)  # fmt: skip
SAMPLE = 50_000
OPEN_SHARE = 0.7
OPEN_CONNECTIONS = 256  # so many that the server, not the driver, is the limit while it catches up after a stall
COUNTY_READY_S = 1800.0
MEMORY_SECONDS_MAX = 540.0  # the token lives 600 s
MEMORY_CONNECTIONS = 1000
PEER = "loadtests.peers.ordinary"
_log = Console(stderr=True, soft_wrap=True)


class Bench:
    """The servers, the load's files and what was measured so far."""

    def __init__(self, cards: int, seconds: float, rounds: int) -> None:
        self.cards = cards
        self.rounds = rounds
        self.data_dir = CHECKOUT / "var" / f"bench-{cards}"
        self.work = self.data_dir / "bench"
        self.work.mkdir(parents=True, exist_ok=True)
        self.load = Load(self.work / "bodies.ndjson", self.work / "headers.json", seconds)
        self.rows: dict[str, Row] = {}
        self.memory: list[dict[str, Any]] = []
        self.engine: dict[str, Any] = {}
        self.beside: list[BesideRun] = []
        self.loadings: list[Loading] = []
        self.bulks: list[BulkRun] = []
        self.files: list[FileRun] = []

    @staticmethod
    def say(text: str) -> None:
        _log.print(text)

    @contextlib.contextmanager
    def gateway(self, workers: int, config: Path | None = None) -> Iterator[Server]:
        """The gateway's sandbox with its own embedded database; `config` is another folder of settings."""
        port = free_port()
        environment = self._environment() | {
            "PORT": str(port), "OPS_PORT": str(free_port()), "WORKERS": str(workers), "HOST": "127.0.0.1", "ISSUER": "",
            # the request's path alone: no subscriber of the feed, no bank that is told of a loss
            "TRAFFIC": "off", "OUTBOX_ENABLED": "false", "LOSS_ROUTES": "{}",
        } | ({"CONFIG_DIR": str(config)} if config else {})  # fmt: skip
        for book in (self.data_dir / "sandbox" / "partners").glob("*.ndjson"):
            book.unlink()  # a partner reads its book whole when it starts
        _log.print(f"starting the gateway, WORKERS={workers} (its first start loads {self.cards:,} cards) …")
        with started(
            ["gateway", "sandbox"], environment, "serve-worker", COUNTY_READY_S, self.work / "gateway.log"
        ) as running:
            server = Server(f"http://127.0.0.1:{port}", running, running)
            self.sample_cards()
            yield server

    def _environment(self) -> dict[str, str]:
        # an empty DATABASE_URL is the embedded database: never the one that somebody's shell points to
        return {"DATA_DIR": str(self.data_dir), "CARDS": str(self.cards), "DATABASE_URL": ""}

    @contextlib.contextmanager
    def bare(self) -> Iterator[Server]:
        port = free_port()
        log = self.work / "bare.log"
        with started(["loadtests.bare", "--port", str(port)], {}, "loadtests.bare", 20.0, log) as running:
            yield Server(f"http://127.0.0.1:{port}", running)

    @contextlib.contextmanager
    def ordinary(self, gateway: Server) -> Iterator[Server]:
        """The ordinary service, on the gateway's PostgreSQL but in a database of its own, with as many cards."""
        socket_dir, port = self.data_dir / "postgres" / "socket", free_port()
        jwks = self.work / "jwks.json"
        jwks.write_text(json.dumps(call(gateway.url, "GET", "/.well-known/jwks.json")))
        environment = {
            "DATABASE_URL": f"postgresql:///peer?host={socket_dir}&user=yikatong",
            "PEER_ISSUER": Caller.read(self.data_dir, "demo-merchant").issuer,
            "PEER_JWKS": str(jwks),
        }
        _log.print("loading the ordinary service's tables …")
        try:
            self._peer(environment, "--load", str(self.work / "cards.ndjson"), "--cards", str(self.cards))
            with started([PEER, "--port", str(port)], environment, PEER, 30.0, self.work / "ordinary.log") as running:
                yield Server(f"http://127.0.0.1:{port}", running, gateway.running)
        finally:
            self._peer(environment, "--drop")

    def _peer(self, environment: dict[str, str], *arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", PEER, *arguments], cwd=CHECKOUT, env=os.environ | environment, check=True,
            stdout=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip

    def sampled(self, count: int) -> bytes:
        """Lines of random normal cards, some of them more than once."""
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "sample-cards", "--count", str(min(count, 2 * self.cards))],
            cwd=CHECKOUT, env=os.environ | self._environment(), capture_output=True, check=True, timeout=600,
        )  # fmt: skip
        return done.stdout

    def sample_cards(self) -> None:
        """Random normal cards from the whole county, as request bodies."""
        cards = self.sampled(SAMPLE)
        (self.work / "cards.ndjson").write_bytes(cards)
        bodies = [
            json.dumps(
                {
                    "presentation": {"type": "chip_card"} | json.loads(line),
                    "scene": "parking.exit",
                    "terminal_id": "P-0001",
                },
                separators=(",", ":"),
            )
            for line in cards.splitlines()
        ]
        self.load.bodies.write_text("\n".join(bodies) + "\n")

    def authorize(self, gateway: Server) -> None:
        """A fresh token for the next runs: it lives 600 s."""
        session = Session(gateway.url, Caller.read(self.data_dir, "demo-merchant"))
        headers = {"Authorization": session.authorization(), "Content-Type": "application/json"}
        self.load.headers.touch(mode=0o600)
        self.load.headers.write_text(json.dumps(headers))

    def run(self, key: str, name: str, server: Server, load: Load, beside: Beside | None = None) -> Run:
        """One run, added to its row."""
        found = drive(server, load, beside=beside)
        row = self.rows.setdefault(key, Row(name, []))
        row.runs.append(found)
        _log.print(
            f"  {name}: {found.per_second:,.0f}/s, p50 {found.p50_ms:.2f}, p99 {found.p99_ms:.2f} ms, server "
            f"{found.server_us:.0f} µs, database {found.database_us:.0f} µs, failed {found.failed}, "
            f"others {found.others_cores:.2f} cores"
        )
        if found.failed:
            _log.print(f"    {found.driver['by_status']} {found.driver['errors']} {found.driver['sample'][:300]}")
        return found

    def measure_one_process(self, only: set[str]) -> None:
        """Bare, verify, the open loop and the ordinary service, interleaved where they are compared closely."""
        with self.gateway(1) as gateway:
            self.authorize(gateway)
            if only & {"bare", "verify", "open"}:
                with self.bare() as bare:
                    self._against_bare(gateway, bare, only)
            if "ordinary" in only:
                with self.ordinary(gateway) as ordinary:
                    for _ in range(self.rounds):
                        self.authorize(gateway)
                        self.run("ordinary", "ordinary service, 1 process", ordinary, self.load)

    def _against_bare(self, gateway: Server, bare: Server, only: set[str]) -> None:
        for _ in range(self.rounds):
            self.authorize(gateway)
            if "bare" in only:
                self.run("bare", "bare aiohttp handler, 1 process", bare, self.load)
            if only & {"verify", "open"}:
                self.run("verify", "verify, 1 process", gateway, self.load)
        if "open" in only:
            rate = round(self.rows["verify"].middle("per_second") * OPEN_SHARE)
            paced = replace(self.load, rate=float(rate), connections=OPEN_CONNECTIONS)
            for _ in range(self.rounds):
                self.authorize(gateway)
                self.run("bare-open", f"bare, open loop at {rate:,}/s", bare, paced)
                self.run("verify-open", f"verify, open loop at {rate:,}/s", gateway, paced)

    def measure_two_processes(self) -> None:
        with self.gateway(2) as gateway:
            for _ in range(self.rounds):
                self.authorize(gateway)
                self.run("verify2", "verify, 2 processes", gateway, self.load)

    def measure_effects(self, only: set[str], beside_rate: float) -> None:
        with self.gateway(1, config_copy(self.work / "config")) as gateway:
            effects = Effects(self, gateway)
            if "effect" in only:
                effects.measure()
            if "beside" in only:
                effects.measure_beside(beside_rate)

    def measure_benefits(self) -> None:
        with self.gateway(1, benefits.config_copy(self.work / "config-benefits")) as gateway:
            benefits.measure(self, gateway)

    def measure_redemptions(self) -> None:
        with self.gateway(1, with_a_cheap_item(config_copy(self.work / "config"))) as gateway:
            Redemptions(self, gateway, self._environment()).measure()

    def measure_load(self) -> None:
        """The county from nothing, in a data folder of its own that is removed."""
        for _ in range(self.rounds):
            _log.print(f"loading {self.cards:,} cards from nothing …")
            found = load_anew(CHECKOUT / "var" / "bench-load", self.cards, free_port)
            self.loadings.append(found)
            _log.print(f"  {found}")

    def measure_memory(self, count: int) -> None:
        """The resident memory of one fresh worker while a great many verifies pass over many open connections."""
        marks: list[dict[str, float]] = []
        with self.gateway(1) as gateway:
            self.authorize(gateway)
            start = gateway.running.rss_mib()
            load = replace(self.load, connections=MEMORY_CONNECTIONS, count=count, marks=4, seconds=MEMORY_SECONDS_MAX)
            found = drive(gateway, load, lambda n: marks.append({"answers": n, "mib": gateway.running.rss_mib()}))
        self.rows["memory"] = Row(f"verify, {MEMORY_CONNECTIONS} connections", [found])
        self.memory.append({
            "what": "verifies", "count": count, "answers": found.driver["answers"],
            "connections": MEMORY_CONNECTIONS, "start_mib": start, "marks": marks,
        })  # fmt: skip

    def measure_partners(self, only: set[str], payments: int) -> None:
        """What calls partners; memory first, of a worker that has done nothing yet."""
        with self.gateway(1) as gateway:
            rows = Payments(self, gateway, self._environment())
            if "memory-payments" in only:
                self.memory.append(rows.measure_memory(payments))
            if "payments" in only:
                rows.measure()
            if "ecard" in only:
                rows.measure_ecard()

    def measure_returns(self, only: set[str], file_lines: int) -> None:
        """Usage data returned: in bulks, and as a daily file."""
        with self.gateway(1) as gateway:
            if "bulk" in only:
                bulks = Bulks(self, gateway)
                for _ in range(self.rounds):
                    self.bulks.append(bulks.measure())
                    _log.print(f"  {self.bulks[-1]}")
            if "usage-file" in only:
                self.files.append(ingest_file(self.work, self._environment(), file_lines))
                _log.print(f"  {self.files[-1]}")

    def measure_engine(self, only: set[str], calls: int) -> None:
        """The partner engine by itself, in a process of its own."""
        if "engine" in only:
            _log.print("measuring the engine's own cost …")
            self.engine["cost"] = engine_cost(calls, 3 * self.rounds)
        if "iso-500" in only:
            _log.print("500 calls in flight on one ISO 8583 link …")
            self.engine["in_flight"] = link_in_flight(calls)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="measuring window of a run (1 to 60)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each row (1 to 15)")
    parser.add_argument("--cards", type=int, default=415_000)
    parser.add_argument(
        "--quick", action="store_true", help="3 s, 2 rounds, 50 000 verifies and 10 000 payments for memory"
    )
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--beside-rate", type=float, default=3000.0, help="verifies/s of the open loop beside SM2")
    parser.add_argument("--memory", type=int, default=1_000_000, help="verifies of the memory row")
    parser.add_argument("--payments", type=int, default=100_000, help="payments of the row memory-payments")
    parser.add_argument("--file-lines", type=int, default=1_000_000, help="lines of the row usage-file")
    parser.add_argument("--calls", type=int, default=10_000, help="calls of the rows engine (a round) and iso-500")
    given = parser.parse_args()
    if given.quick:
        given.seconds, given.rounds, given.memory, given.payments, given.calls = 3.0, 2, 50_000, 10_000, 3000
        given.file_lines = 100_000
    given.only = set(given.only.split(","))
    if not given.only <= set(PARTS):
        parser.error(f"--only: some of {','.join(PARTS)}")
    if not 10 <= given.beside_rate <= 50_000:
        parser.error("--beside-rate is out of bounds")
    if not (1 <= given.seconds <= 60 and 1 <= given.rounds <= 15 and 4 <= given.memory <= 3_000_000):
        parser.error("--seconds, --rounds or --memory is out of bounds")
    if not (4 <= given.payments <= 400_000 and 1000 <= given.calls <= 50_000):
        parser.error("--payments or --calls is out of bounds")
    if not 1000 <= given.file_lines <= 5_000_000:
        parser.error("--file-lines is out of bounds")
    return given


def main() -> None:
    given = arguments()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384), most))  # servers and driver inherit it
    bench = Bench(given.cards, given.seconds, given.rounds)
    facts = {
        "date": dt.datetime.now().astimezone().isoformat(timespec="seconds"), "machine": report.machine(),
        "fsync_ms": round(report.fsync_ms(bench.work), 3), "versions": report.versions(), "cards": given.cards,
        "seconds": given.seconds, "rounds": given.rounds,
    }  # fmt: skip
    broke_off = ""
    try:
        measure(bench, given)
    except (StartError, DriverError, CallError, subprocess.CalledProcessError) as error:
        broke_off = f"bench broke off: {error}"
    found = report.Found(
        bench.rows, bench.memory, bench.beside, bench.loadings, bench.bulks, bench.files, bench.engine, facts
    )
    report.show(found)
    file = report.write(found)
    print(f"written: {os.path.relpath(file, Path.cwd())}")
    if broke_off:
        sys.exit(broke_off)
    runs: list[Run | BesideRun] = [*(run for row in bench.rows.values() for run in row.runs), *bench.beside]
    if failed := sum(run.failed for run in runs):
        sys.exit(f"{failed} requests failed or were answered wrongly: these figures do not count")
    flight = bench.engine.get("in_flight")
    if flight and flight["calls"] != flight["correlated"]:
        sys.exit(f"calls over the link were not answered rightly: {flight['outcomes']}")


def measure(bench: Bench, given: argparse.Namespace) -> None:
    only: set[str] = given.only
    if any(bench.work.glob("lost-*.ndjson")):  # a bench that was broken off has left cards lost
        bench.measure_effects(set(), given.beside_rate)
    if "memory" in only:  # first: its million events make the log's files, which the other rows find to be used again
        bench.measure_memory(given.memory)
    if only & {"bare", "verify", "open", "ordinary"}:
        bench.measure_one_process(only)
    if "verify2" in only:
        bench.measure_two_processes()
    if "benefits" in only:
        bench.measure_benefits()
    if only & {"effect", "beside"}:
        bench.measure_effects(only, given.beside_rate)
    if only & {"payments", "ecard", "memory-payments"}:
        bench.measure_partners(only, given.payments)
    if only & {"engine", "iso-500"}:
        bench.measure_engine(only, given.calls)
    if "redeem" in only:
        bench.measure_redemptions()
    if only & {"bulk", "usage-file"}:
        bench.measure_returns(only, given.file_lines)
    if "load" in only:
        bench.measure_load()


if __name__ == "__main__":
    main()
