"""What the partner engine costs above a bare transport: CPU of this process per call, measured in turn.

A measurement, not a test: `make bench` starts it as a process, for loadtests know nothing of the gateway's inside.
The peer and the dialects do nothing, so what differs is the engine: deadline, bulkhead, breaker, retries, timestamps,
metrics, transcript. `python -m tests.partners.engine_cost --calls 5000 --rounds 5` prints one line of JSON.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import cast
from uuid import uuid4

import aiohttp
import msgspec
import uvloop

import adapters
from gateway.domain.operations import Purchase
from gateway.domain.outcome import Approved
from gateway.log import configure
from gateway.partners.call import Partners
from gateway.partners.contract import HttpReply
from gateway.partners.stopwatch import Stopwatch
from tests.contract.cases.example import PURCHASE
from tests.partners.bare_dialects import bare_http, bare_link
from tests.partners.peers import partners
from tests.running import ROOT

IN_FLIGHT = 32
_WITHIN_S = 30.0

Call = Callable[[Purchase], Awaitable[None]]


class Cost(msgspec.Struct, frozen=True):
    """µs of CPU a call, a figure for each round."""

    bare: list[float]
    """aiohttp's session as it comes; a socket with futures by key."""
    transport: list[float]
    """Ours: no redirects, bounded, stale connections seen; or the link."""
    call: list[float]
    """Partners.call."""

    def document(self) -> dict[str, object]:
        engine = [whole - bare for whole, bare in zip(self.call, self.bare, strict=True)]
        rounded = {name: [round(us, 1) for us in values] for name, values in msgspec.structs.asdict(self).items()}
        return rounded | {"engine": [round(us, 1) for us in engine], "engine_us": round(median(engine), 1)}


async def measure(calls: int, rounds: int) -> dict[str, Cost]:
    """By transport, `http` and `link`."""
    adapters.__path__ = [*adapters.__path__, str(ROOT / "tests/partners/bare_dialects")]
    with TemporaryDirectory() as folder:
        async with _peer() as (http_port, link_port):
            blocks = (
                _block("http", f'base_url = "http://127.0.0.1:{http_port}"'),
                _block("link", f'host = "127.0.0.1"\nport = {link_port}'),
            )
            async with (
                partners(Path(folder), *blocks) as made,
                _bare_http(http_port) as post,
                _bare_link(link_port) as ask,
            ):
                return {
                    "http": await _in_turn((post, _http_exchange(made), _call(made, "http")), calls, rounds),
                    "link": await _in_turn((ask, _link_exchange(made), _call(made, "link")), calls, rounds),
                }


def _block(transport: str, where: str) -> str:
    return f"""
[partners.{transport}]
name = "peer"
adapter = "bare_{transport}"
operations = ["purchase"]
concurrency_max = {IN_FLIGHT}
[partners.{transport}.{transport}]
{where}
"""


async def _in_turn(ways: tuple[Call, Call, Call], calls: int, rounds: int) -> Cost:
    for way in ways:  # connections, and what is made at first use
        await _cpu_us(way, 10 * IN_FLIGHT)
    turns = [[await _cpu_us(way, calls) for way in ways] for _ in range(rounds)]
    return Cost(*(list(figures) for figures in zip(*turns, strict=True)))


async def _cpu_us(way: Call, calls: int) -> float:
    """With IN_FLIGHT at a time, as in a worker with work; the operations are made beforehand."""
    each = max(calls // IN_FLIGHT, 1)
    shares = [[msgspec.structs.replace(PURCHASE, reference=uuid4()) for _ in range(each)] for _ in range(IN_FLIGHT)]

    async def work(share: list[Purchase]) -> None:
        for purchase in share:
            await way(purchase)

    began = time.process_time()
    await asyncio.gather(*(work(share) for share in shares))
    return (time.process_time() - began) / (each * IN_FLIGHT) * 1e6


def _nobody(_: object) -> None:
    """Takes late answers; there are none."""


def _call(made: Partners, name: str) -> Call:
    async def call(purchase: Purchase) -> None:
        outcome = await made.call(name, purchase, time.monotonic() + _WITHIN_S)
        assert isinstance(outcome, Approved), outcome

    return call


def _http_exchange(made: Partners) -> Call:
    working = made.registry.get("http")
    assert working is not None

    async def exchange(purchase: Purchase) -> None:
        now = time.monotonic()
        reply = await working.transport.exchange(bare_http.REQUEST, Stopwatch(now), now + _WITHIN_S, _nobody)
        assert cast(HttpReply, reply).status == 200

    return exchange


def _link_exchange(made: Partners) -> Call:
    working = made.registry.get("link")
    assert working is not None

    async def exchange(purchase: Purchase) -> None:
        now = time.monotonic()
        frame = bare_link.frame(purchase.reference.hex)
        assert (await working.transport.exchange(frame, Stopwatch(now), now + _WITHIN_S, _nobody)).body

    return exchange


@asynccontextmanager
async def _bare_http(port: int) -> AsyncIterator[Call]:
    request = bare_http.REQUEST
    url = f"http://127.0.0.1:{port}{request.target}"

    async def post(purchase: Purchase) -> None:
        async with session.post(url, headers=request.headers, data=request.body) as response:
            await response.read()
            assert response.status == 200

    async with aiohttp.ClientSession() as session:
        yield post


class _BareLink(asyncio.Protocol):
    def __init__(self) -> None:
        self.waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._held = b""

    def data_received(self, data: bytes) -> None:
        held, at = self._held + data, 0
        while len(held) >= at + 2 and len(held) >= (end := at + 2 + int.from_bytes(held[at : at + 2], "big")):
            message = held[at + 2 : end]
            self.waiting.pop(message.split(b" ", 2)[1]).set_result(message)
            at = end
        self._held = held[at:]


@asynccontextmanager
async def _bare_link(port: int) -> AsyncIterator[Call]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(_BareLink, "127.0.0.1", port)

    async def ask(purchase: Purchase) -> None:
        key = purchase.reference.hex
        body = bare_link.frame(key).body
        answer = protocol.waiting[key.encode()] = loop.create_future()
        transport.write(len(body).to_bytes(2, "big") + body)
        assert await answer

    yield ask
    transport.close()


@asynccontextmanager
async def _peer() -> AsyncIterator[tuple[int, int]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.partners.bare_peer", cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        _, http_port, link_port = (await asyncio.wait_for(process.stdout.readline(), 20)).split()
        yield int(http_port), int(link_port)
    finally:
        process.terminate()
        await process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5000, choices=range(32, 200_001), metavar="32-200000")
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 51), metavar="1-50")
    given = parser.parse_args()
    configure("info", "engine-cost")  # as in a worker: at `debug` each call would be a line
    found = uvloop.run(measure(given.calls, given.rounds))
    print(json.dumps({name: cost.document() for name, cost in found.items()}))


if __name__ == "__main__":
    main()
