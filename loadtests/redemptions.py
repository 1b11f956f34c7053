"""The bench's rows of points: reservations, then their commits, all of them against the issuer's one account.

Every run reserves anew, with requests that were made just before it; what it reserved is committed by the next row, so
no reservation is left. The people are the 20 000 to whom the sandbox gives points, and the item costs one point, so
that they last for a great many runs.
"""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from loadtests.client import Caller, Session
from loadtests.measure import Load, Server
from loadtests.processes import CHECKOUT
from loadtests.signing import Maker, Signing

if TYPE_CHECKING:
    from loadtests.bench import Bench

PATH = "/v1/points/redemptions"
CALLER = "demo-kiosk"
WISH = {"points": 1, "item": "blood-pressure-check", "outlet_id": "wuyuan-01"}
RESERVED, COMMITTED = '"status":"reserved"', '"status":"committed"'
CARDS = 200_000
"""Drawn; some are drawn more than once."""
WARMUP_S = 1.0
AHEAD = 1.3
"""So many times the requests that a run should need are made."""
_REFERENCE = re.compile(rb'"reference":"([0-9a-f-]{36})"')


class Kind(NamedTuple):
    """A row of reservations; `expected` is the rate that its first run is prepared for."""

    key: str
    name: str
    signed: bool
    expected: float


KINDS = (
    Kind("redeem", "redemption, reserve, unsigned", False, 6000.0),
    Kind("redeem-ed25519", "redemption, reserve, ed25519", True, 4000.0),
)
COMMIT = Kind("redeem-commit", "redemption, commit, unsigned", False, 0.0)


def with_a_cheap_item(folder: Path) -> Path:
    """The configuration in which the item costs one point."""
    text = (folder / "points.toml").read_text()
    name = WISH["item"]
    cheap, found = re.subn(rf'(?ms)^(\[items\."{name}"\].*?^points = )\d+', rf"\g<1>{WISH['points']}", text, count=1)
    assert found == 1, f"points.toml has no item {name}"
    (folder / "points.toml").write_text(cheap)
    return folder


class Redemptions:
    """The rows of one gateway that was started with with_a_cheap_item()."""

    def __init__(self, bench: "Bench", gateway: Server, environment: dict[str, str]) -> None:
        self._bench = bench
        self._gateway = gateway
        self._session = Session(gateway.url, Caller.read(bench.data_dir, CALLER))
        self._rates: dict[str, float] = {}
        done = subprocess.run(
            [sys.executable, "-m", "gateway", "sample-cards", "--points", "--count", str(CARDS)],
            cwd=CHECKOUT, env=os.environ | environment, capture_output=True, check=True, timeout=600,
        )  # fmt: skip
        self._bodies = [
            json.dumps(
                {"presentation": {"type": "chip_card"} | json.loads(line)} | WISH, separators=(",", ":")
            ).encode()
            for line in dict.fromkeys(done.stdout.splitlines())
        ]

    def measure(self) -> None:
        """A round of each row; reservations are committed right after they were made."""
        answers = self._bench.work / "reserved.ndjson"
        for _ in range(self._bench.rounds):
            for kind in KINDS:
                seconds = self._bench.load.seconds + WARMUP_S
                count = int(self._rates.get(kind.key, kind.expected) * AHEAD * seconds)
                asked = [(PATH, body) for body in random.choices(self._bodies, k=count)]
                load = replace(self._load(asked, kind.signed, RESERVED), warmup=WARMUP_S, answers=answers)
                found = self._bench.run(kind.key, kind.name, self._gateway, load)
                self._rates[kind.key] = max(found.per_second, self._rates.get(kind.key, 0.0))
                self._commit(answers)

    def _commit(self, answers: Path) -> None:
        """All that was reserved, in no order."""
        references = [found[1].decode() for found in _REFERENCE.finditer(answers.read_bytes())]
        random.shuffle(references)
        asked = [(f"{PATH}/{reference}/commit", b"{}") for reference in references]
        load = replace(self._load(asked, False, COMMITTED), warmup=WARMUP_S, seconds=60.0)
        self._bench.run(COMMIT.key, COMMIT.name, self._gateway, load)
        answers.unlink()

    def _load(self, asked: list[tuple[str, bytes]], signed: bool, expect: str) -> Load:
        requests = self._bench.work / "requests.bin"
        signing = Signing.read(self._bench.data_dir, CALLER) if signed else None
        authority = urlsplit(self._gateway.url).netloc
        Maker(authority, self._session.authorization(fresh=True), signing).write(requests, asked)
        return replace(self._bench.load, requests=requests, expect=expect)
