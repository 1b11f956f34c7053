"""Hundreds of purchases in flight on one ISO 8583 link to the simulated bank, which answers each after a delay.

A measurement, not a test: `make bench` starts it as a process. Each answer is compared with the bank's own book, so
that none can have gone to another call unnoticed. `python -m tests.partners.link_in_flight` prints one line of JSON.
"""

import argparse
import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import msgspec
import uvloop

from gateway.domain.operations import Purchase
from gateway.domain.outcome import Approved, Outcome
from gateway.log import configure as configure_log
from gateway.partners.call import Partners
from tests.partners.iso_bank import KEY, Bank, block, purchase
from tests.partners.peers import configure, partners

_WITHIN_S = 20.0


class Found(msgspec.Struct, frozen=True):
    calls: int
    in_flight_max: int
    """Most calls that waited for the bank at once, as the engine counts them."""
    outcomes: dict[str, int]
    correlated: int
    """Approved with the very number that the bank's book has for this reference."""
    delay_ms: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: float
    """A call, dialect (build, mac, parse, redact) and link included."""


async def measure(in_flight: int, calls: int, delay_ms: int) -> Found:
    """`calls` purchases by `in_flight` tasks, each with one at a time."""
    with TemporaryDirectory() as folder:
        bank = await Bank(Path(folder) / "bank").start()
        try:
            configure(Path(folder))
            key = Path(folder) / "iso.key"
            key.write_text(KEY)
            key.chmod(0o600)
            limits = f"timeout_ms = {int(_WITHIN_S * 1000)}\nconcurrency_max = {in_flight}\nwaiting_max = 0"
            async with partners(Path(folder), block(bank.port, limits)) as made:
                await _warm_up(made)
                await bank.faults({"kind": "delay", "ms": delay_ms})
                load = _Load(made)
                await load.run(in_flight, calls)
            return load.found(await _retrievals(bank), delay_ms)
        finally:
            await bank.stop()


async def _warm_up(made: Partners) -> None:
    """The link is there, and what is made at first use."""
    for _ in range(100):
        assert isinstance(await made.call("iso", purchase(), time.monotonic() + _WITHIN_S), Approved)


class _Load:
    def __init__(self, made: Partners) -> None:
        working = made.registry.get("iso")
        assert working is not None
        self._made = made
        self._working = working
        self._in_flight_max = 0
        self._ended: list[tuple[Purchase, Outcome, float]] = []
        self._seconds = self._cpu_s = 0.0

    async def run(self, in_flight: int, calls: int) -> None:
        shares = [[purchase() for _ in range(calls // in_flight)] for _ in range(in_flight)]
        began, cpu_began = time.monotonic(), time.process_time()
        await asyncio.gather(*(self._work(share) for share in shares))
        self._seconds, self._cpu_s = time.monotonic() - began, time.process_time() - cpu_began

    async def _work(self, share: list[Purchase]) -> None:
        for op in share:
            began = time.monotonic()
            outcome = await self._made.call("iso", op, began + _WITHIN_S)
            ended = time.monotonic()
            # this call has left already
            self._in_flight_max = max(self._in_flight_max, self._working.bulkhead.in_flight + 1)
            self._ended.append((op, outcome, ended - began))

    def found(self, retrievals: dict[str, str], delay_ms: int) -> Found:
        outcomes = Counter(type(outcome).__name__ for _, outcome, _ in self._ended)
        correlated = sum(
            isinstance(outcome, Approved) and outcome.partner_reference == retrievals.get(op.reference.hex)
            for op, outcome, _ in self._ended
        )
        ms = sorted(seconds * 1000 for _, _, seconds in self._ended)
        calls = len(ms)
        p50, p99, most = (round(ms[int(share * (calls - 1))], 1) for share in (0.5, 0.99, 1.0))
        return Found(
            calls, self._in_flight_max, dict(outcomes), correlated, delay_ms, round(calls / self._seconds, 1),
            p50, p99, most, round(self._cpu_s / calls * 1e6, 1),
        )  # fmt: skip


async def _retrievals(bank: Bank) -> dict[str, str]:
    """The bank's number of each reference that it approved."""
    async with aiohttp.ClientSession() as session, session.get(f"{bank.control}/book") as answer:
        items: list[dict[str, Any]] = (await answer.json())["items"]
    return {item["reference"]: item["facts"]["retrieval"] for item in items if item["state"] == "approved"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=500, choices=range(1, 1001), metavar="1-1000")
    parser.add_argument("--calls", type=int, default=5000, choices=range(1, 100_001), metavar="1-100000")
    parser.add_argument("--delay-ms", type=int, default=1000, choices=range(0, 10_001), metavar="0-10000")
    given = parser.parse_args()
    configure_log("warning", "link-in-flight")  # as in a worker: at `debug` each call would be a line
    found = uvloop.run(measure(given.in_flight, max(given.calls, given.in_flight), given.delay_ms))
    print(json.dumps(msgspec.structs.asdict(found)))


if __name__ == "__main__":
    main()
