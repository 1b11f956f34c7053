"""The bench's rows with effects: loss reports unsigned and signed, and verify beside SM2 callers.

Every run reports other cards lost than the one before, with requests that were signed just before it; after the run,
and outside of what is measured, all of them are released, so that the county is as it was.
"""

import json
import os
import random
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from loadtests.client import Caller, Session
from loadtests.measure import DriverError, Load, Server, drive, driving_beside
from loadtests.processes import CHECKOUT
from loadtests.signing import Maker, Signing

if TYPE_CHECKING:
    from loadtests.bench import Bench

REPORT = "/v1/cards/loss-reports"
ACCEPTED, RELEASED = '"status":"accepted"', '"status":"released"'
SAMPLE = 300_000
VERIFIED = 50_000
WARMUP_S = 1.0
AHEAD = 1.3
"""So many times the requests that a run should need are signed."""
RELEASE_SECONDS_MAX = 240.0
RELEASE_TRIES = 3
BESIDE_SLACK_S = 6.0
"""The second driver is at work for so much longer than verify is measured."""
DRAIN_S = 20.0
BESIDE_CONNECTIONS = 192  # more than a worker's lane takes from one caller ([sm2]: half of its places)
BESIDE_OPEN_CONNECTIONS = 256
_REFERENCE = re.compile(rb'"reference":"([0-9a-f-]{36})"')


class Kind(NamedTuple):
    """A row's caller; `expected` is the rate that its first run is prepared for."""

    key: str
    name: str
    caller: str
    signed: bool
    expected: float
    connections: int = 64


KINDS = (
    Kind("effect-unsigned", "effect, unsigned", "demo-kiosk", False, 9000.0),
    Kind("effect-ed25519", "effect, ed25519", "demo-kiosk", True, 7000.0),
    Kind("effect-p256", "effect, ecdsa-p256-sha256", "demo-bureau", True, 7000.0),
    # fewer than one caller's places in the lane of the SM2 checks: none is refused, and the row shows the lane's pace
    Kind("effect-sm2", "effect, sm2-sm3", "demo-bank", True, 300.0, 48),
)
SM2 = KINDS[3]


@dataclass(frozen=True)
class BesideRun:
    """What the SM2 callers got while verify was measured beside them."""

    mode: str
    accepted_per_second: float
    refused_per_second: float
    p99_ms: float
    failed: int

    @classmethod
    def of(cls, mode: str, found: dict[str, Any]) -> "BesideRun":
        refused = found["by_status"].get("503", 0)
        wrong = found["answers"] - found["ok"] - refused + sum(found["errors"].values())
        return cls(
            mode, found["ok_per_second"], refused / max(found["seconds"], 0.001), found["latency_ms"]["p99"], wrong
        )


def config_folder() -> Path:
    """Where the configuration in force is."""
    return Path(os.environ.get("CONFIG_DIR") or CHECKOUT / "config")


def config_copy(folder: Path) -> Path:
    """The configuration in force, with callers that may leave their signature out."""
    source = config_folder()
    folder.mkdir(exist_ok=True)
    for file in source.glob("*.toml"):
        shutil.copy(file, folder)
    text = (source / "callers.toml").read_text()
    for name in {kind.caller for kind in KINDS}:
        if "signature" not in tomllib.loads(text)["callers"][name]:
            text = text.replace(f"[callers.{name}]\n", f'[callers.{name}]\nsignature = "optional"\n')
    (folder / "callers.toml").write_text(text)
    return folder


def _report(card: bytes) -> bytes:
    presented = {"type": "chip_card"} | json.loads(card)
    return json.dumps({"presentation": presented, "kind": "temporary"}, separators=(",", ":")).encode()


class Effects:
    """The rows of one gateway that was started with config_copy()."""

    def __init__(self, bench: "Bench", gateway: Server) -> None:
        self._bench = bench
        self._gateway = gateway
        self._folder = bench.work
        self._sessions = {
            name: Session(gateway.url, Caller.read(bench.data_dir, name)) for name in {kind.caller for kind in KINDS}
        }
        self._rates: dict[str, float] = {}
        self._reports: list[bytes] = []
        self._next = 0
        self._sample()
        for kind in KINDS[1:]:  # what a bench that was broken off has left
            self._release(kind)

    def _sample(self) -> None:
        """Random normal cards, none twice: some to verify, the others to report, so that no verify meets a lost one."""
        cards = list(dict.fromkeys(self._bench.sampled(SAMPLE).splitlines()))
        verified = min(VERIFIED, len(cards) // 4)
        reported = cards[verified:]
        random.shuffle(reported)
        self._reports = [_report(card) for card in reported]
        known = set(cards[:verified])
        bodies = [
            body
            for body, card in zip(
                self._bench.load.bodies.read_bytes().splitlines(),
                (self._folder / "cards.ndjson").read_bytes().splitlines(),
                strict=True,
            )
            if card in known
        ]
        self._verifies = self._folder / "bodies-beside.ndjson"
        self._verifies.write_bytes(b"\n".join(bodies) + b"\n")

    def measure(self) -> None:
        """A round of every row, with a round of verify to compare with."""
        bench = self._bench
        for _ in range(bench.rounds):
            bench.authorize(self._gateway)
            bench.run("verify", "verify, 1 process", self._gateway, self._verify_load())
            for kind in KINDS:
                load = replace(
                    self._load(kind, bench.load.seconds + WARMUP_S), warmup=WARMUP_S, connections=kind.connections
                )
                found = bench.run(kind.key, kind.name, self._gateway, load)
                self._rates[kind.key] = max(found.per_second, self._rates.get(kind.key, 0.0))
                self._release(kind)

    def measure_beside(self, rate: float) -> None:
        """Verify alone and beside SM2 callers, in a closed loop and at a moderate rate, in turn."""
        bench = self._bench
        paced = replace(self._verify_load(), rate=rate, connections=BESIDE_OPEN_CONNECTIONS)
        modes = {"closed": (self._verify_load(), "closed loop"), "open": (paced, f"open loop at {rate:,.0f}/s")}
        for _ in range(bench.rounds):
            for mode, (load, words) in modes.items():
                bench.authorize(self._gateway)
                bench.run(f"alone-{mode}", f"verify alone, {words}", self._gateway, load)
                seconds = load.warmup + load.seconds + WARMUP_S + BESIDE_SLACK_S
                self._rates[SM2.key] = max(SM2.expected, self._rates.get(SM2.key, 0.0))  # they must not run out
                sm2 = replace(
                    self._load(SM2, seconds), seconds=seconds + DRAIN_S, warmup=WARMUP_S, patient=True,
                    connections=BESIDE_CONNECTIONS,
                )  # fmt: skip
                with driving_beside(self._gateway, sm2) as beside:
                    bench.run(f"beside-{mode}", f"verify beside sm2, {words}", self._gateway, load, beside)
                run = BesideRun.of(mode, beside.found)
                bench.beside.append(run)
                bench.say(
                    f"    sm2: {run.accepted_per_second:,.0f}/s accepted, {run.refused_per_second:,.0f}/s answered 503"
                    f", p99 {run.p99_ms:.1f} ms, failed {run.failed}"
                )
                if run.failed:
                    bench.say(
                        f"    {beside.found['by_status']} {beside.found['errors']} {beside.found['sample'][:300]}"
                    )
                self._release(SM2)

    def _verify_load(self) -> Load:
        return replace(self._bench.load, bodies=self._verifies)

    def _load(self, kind: Kind, seconds: float) -> Load:
        """Signed requests for so many seconds of the fastest run so far, or of what is expected."""
        count = int(self._rates.get(kind.key, kind.expected) * AHEAD * seconds)
        bodies = [self._reports[(self._next + number) % len(self._reports)] for number in range(count)]
        self._next += count
        if count > len(self._reports):
            self._bench.say(f"  {count:,} reports of {len(self._reports):,} cards: some are reported twice")
        requests = self._write(kind.caller, [(REPORT, body) for body in bodies], kind.signed)
        return replace(self._bench.load, requests=requests, answers=self._answers(kind), expect=ACCEPTED)

    def _write(self, caller: str, asked: Sequence[tuple[str, bytes]], signed: bool) -> Path:
        file = self._folder / "requests.bin"
        signing = Signing.read(self._bench.data_dir, caller) if signed else None
        authority = urlsplit(self._gateway.url).netloc
        Maker(authority, self._sessions[caller].authorization(fresh=True), signing).write(file, asked)
        return file

    def _answers(self, kind: Kind) -> Path:
        """It stays until what it tells of is released."""
        return self._folder / f"lost-{kind.caller}.ndjson"

    def _release(self, kind: Kind) -> None:
        """Release every report that was accepted, unsigned. Raises DriverError if some do not come free."""
        lost = self._answers(kind)
        if not lost.exists():
            return
        accepted = (line for line in lost.read_bytes().splitlines() if ACCEPTED.encode() in line)
        references = [found[1].decode() for line in accepted if (found := _REFERENCE.search(line))]
        asked = [(f"{REPORT}/{reference}/release", b"{}") for reference in references]
        answers, count = self._folder / "released.ndjson", 0
        for _ in range(RELEASE_TRIES if asked else 0):
            requests = self._write(kind.caller, asked, signed=False)
            load = replace(
                self._bench.load, requests=requests, answers=answers, warmup=0.0, seconds=RELEASE_SECONDS_MAX,
                expect=RELEASED,
            )  # fmt: skip
            drive(self._gateway, load)
            count = answers.read_bytes().count(RELEASED.encode())
            if count == len(asked):
                break
        if count < len(asked):
            raise DriverError(f"only {count} of {len(asked)} lost cards were released: {lost}")
        lost.unlink()
