"""A lean HTTP/1.1 load driver on raw sockets, in a process of its own.

Closed loop: every connection sends its next request when the last is answered. Open loop (`--rate`): requests start at
a fixed rate whatever the server does; latency counts from the INTENDED start, so that a slow server cannot hide its
waiting times by slowing the driver down (no coordinated omission). A start that finds every connection busy waits in a
queue.

    python -m loadtests.driver --url http://127.0.0.1:8080 --path /v1/cards/verify --bodies bodies.ndjson \
        --headers headers.json --connections 64 --seconds 10

With `--requests` every request is sent as it stands in the file (wire.packed), once; the run ends when they are used
up. One that is answered 503 is sent again.

It prints `measuring`, `mark <answers>` and `measured` as they happen, so that whoever started it can read the servers'
CPU times over exactly that window. Loopback only.
"""

import argparse
import asyncio
import gc
import json
import os
import random
import signal
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from loadtests import wire
from loadtests.histogram import Histogram
from loadtests.wire import Connection, KeepingConnection, ticking_every

QUEUE_MAX = 200_000
"""Requests of an open loop that wait for a connection; further ones are not sent and counted as `queue_full`."""
REQUEST_TIMEOUT_S = 10.0
DRAIN_S = 10.0
DRAIN_LOOK_S = 0.01
CONNECT_TOGETHER = 50
RECONNECT_WAIT_S = 0.05
SETTLE_S = 0.2
"""A server accepts few connections per turn of its loop: let it take them all before it gets busy."""
TICK_NS = 200_000
"""How often an open loop looks for starts that are due: the precision of the starts."""

_clock = time.monotonic


@dataclass(frozen=True)
class Plan:
    """What to send, how and for how long."""

    host: str
    port: int
    requests: list[bytes]
    connections: int
    seconds: float
    warmup: float = 0.0
    rate: float = 0.0
    """Starts per second of an open loop; 0: closed loop."""
    count: int = 0
    """End after so many answers in the window; 0: only `seconds` ends it."""
    marks: int = 0
    """Print `mark <answers>` each time that 1/marks of `count` is done."""
    expect: bytes = b""
    """A text that every 2xx answer must hold; those that do not are counted as `unexpected`."""
    seed: int = 1
    once: bool = False
    """Send each request once, in their order, and end when they are used up. Closed loop only."""
    patient: bool = False
    """`once`: wait after a 503 for as long as its Retry-After says, and a part of that again."""
    keep_answers: bool = False


@dataclass
class Result:
    """What came of it, over the measuring window."""

    seconds: float = 0.0
    answers: int = 0
    ok: int = 0
    by_status: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)
    late: Histogram = field(default_factory=Histogram)
    """Open loop: from the intended start to the first byte sent."""
    driver_cpu_s: float = 0.0
    sample: str = ""

    def document(self, plan: Plan) -> dict[str, Any]:
        per_second = self.ok / self.seconds if self.seconds else 0.0
        found: dict[str, Any] = {
            "mode": "open" if plan.rate else "closed", "rate": plan.rate, "connections": plan.connections,
            "seconds": round(self.seconds, 3), "answers": self.answers, "ok": self.ok,
            "ok_per_second": round(per_second, 1), "by_status": {str(k): v for k, v in self.by_status.items()},
            "errors": dict(self.errors), "latency_ms": self.latency.summary_ms(),
            "driver_cpu_us": round(self.driver_cpu_s * 1e6 / self.answers, 2) if self.answers else 0.0,
            "sample": self.sample,
        }  # fmt: skip
        if plan.rate:
            found["late_ms"] = self.late.summary_ms()
        return found


class Load:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.result = Result()
        self._random = random.Random(plan.seed).random
        self._choices = len(plan.requests)
        self._all: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._queue: deque[float] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reconnects_left = 10 * plan.connections + 1000
        self._started = self._measuring = self._ending = False
        self._starts = 0
        self._window = (float("inf"), float("inf"))
        self._over = asyncio.Event()
        self._cpu_began = 0.0
        self._next_mark = plan.count // plan.marks if plan.marks else 0
        self.answers: list[bytes] | None = [] if plan.keep_answers else None
        self._kind = KeepingConnection if plan.once else Connection
        self._again: deque[bytes] = deque()
        self._used = 0
        self.next_request = self._next if plan.once else self._any

    def _any(self) -> bytes:
        return self.plan.requests[int(self._random() * self._choices)]

    def _next(self) -> bytes:
        """One that was answered 503, else the next; with the last one the run ends."""
        if self._again:
            return self._again.popleft()
        self._used += 1
        if self._used == self._choices:
            self._end_measuring()
        return self.plan.requests[self._used - 1]

    async def run(self) -> Result:
        for begin in range(0, self.plan.connections, CONNECT_TOGETHER):
            together = min(CONNECT_TOGETHER, self.plan.connections - begin)
            await asyncio.gather(*(self._connect() for _ in range(together)))
        await asyncio.sleep(SETTLE_S)
        loop, now = asyncio.get_running_loop(), _clock()
        begins = now + self.plan.warmup
        self._window = (begins, begins + self.plan.seconds)
        timers = [
            loop.call_later(self.plan.warmup, self._begin_measuring),
            loop.call_later(self.plan.warmup + self.plan.seconds, self._end_measuring),
        ]
        loop.add_signal_handler(signal.SIGTERM, self._end_measuring)
        sweeping = asyncio.create_task(self._sweep())
        ticker = -1
        if self.plan.rate:
            ticker = ticking_every(TICK_NS)
            loop.add_reader(ticker, self._pace, ticker, now)
        self._started = True
        while self._idle and not self.plan.rate:
            self._use(self._idle.popleft(), _clock())
        try:
            await self._over.wait()
            if self.plan.rate:
                loop.remove_reader(ticker)
                os.close(ticker)
            await self._drain()
        finally:
            for timer in timers:
                timer.cancel()
            for task in (sweeping, *self._tasks):
                task.cancel()
            for connection in self._all:
                connection.close()
        return self.result

    def answered(self, connection: Connection | None, intended: float, status: int, data: bytes) -> None:
        """An answer is complete; `connection` is None if it cannot be used again."""
        now, result = _clock(), self.result
        good = 200 <= status < 300
        if self._measuring:
            result.answers += 1
            result.by_status[status] += 1
            if good:
                result.ok += 1
                if self.plan.expect and self.plan.expect not in data:
                    result.errors["unexpected"] += 1
                    result.sample = result.sample or data.decode(errors="replace")
            elif not result.sample or (status != 503 and result.sample.startswith("HTTP/1.1 503")):
                result.sample = data.decode(errors="replace")
            if self._next_mark and result.answers >= self._next_mark:
                print(f"mark {result.answers}", flush=True)
                self._next_mark += self.plan.count // self.plan.marks
            if self.plan.count and result.answers >= self.plan.count:
                self._end_measuring()
        if good and (self._measuring if not self.plan.rate else self._counts(intended)):
            result.latency.record((now - intended) * 1e6)
        if self.answers is not None and good:
            self.answers.append(data)
        if connection is None:
            return
        if status == 503 and isinstance(connection, KeepingConnection):
            self._again.append(connection.request)
            if self.plan.patient:
                wait = wire.retry_after_s(data) * random.uniform(1, 1.5)  # as our clients do
                asyncio.get_running_loop().call_later(wait, self._resume, connection)
                return
        self._use(connection, now)

    def _resume(self, connection: Connection) -> None:
        if connection in self._all:
            self._use(connection, _clock())

    def _counts(self, intended: float) -> bool:
        return self._window[0] <= intended < self._window[1]

    def _use(self, connection: Connection, now: float) -> None:
        """A free connection: send the next request on it, if one is due."""
        if not self.plan.rate and self._started:
            if not self._ending:
                connection.send(now, now)
        elif self._queue:
            self._start(connection, self._queue.popleft(), now)
        else:
            self._idle.append(connection)

    def _start(self, connection: Connection, intended: float, now: float) -> None:
        if self._counts(intended):
            self.result.late.record((now - intended) * 1e6)
        connection.send(intended, now)

    def failed(self, error: str) -> None:
        if self._measuring or self._ending:
            self.result.errors[error] += 1

    def lost(self, connection: Connection) -> None:
        """A connection is gone: open another in its place, within bounds."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if self._ending:
            return
        self._reconnects_left -= 1
        if self._reconnects_left > 0:
            task = asyncio.create_task(self._reconnect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif not self._all:
            self.failed("no_connection_left")
            self._end_measuring()

    async def _reconnect(self) -> None:
        while not self._ending and self._reconnects_left > 0:
            try:
                await self._connect()
                return
            except OSError:
                self._reconnects_left -= 1
                self.failed("connect_failed")
                await asyncio.sleep(RECONNECT_WAIT_S)
        if not self._all:
            self._end_measuring()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: self._kind(self), self.plan.host, self.plan.port)
        self._all.add(connection)
        self._use(connection, _clock())

    def _pace(self, ticker: int, begins: float) -> None:
        """Start the requests of an open loop that are due."""
        os.read(ticker, 8)
        now, rate = _clock(), self.plan.rate
        due = min(int((now - begins) * rate) + 1, int((self._window[1] - begins) * rate))
        while self._starts < due:
            intended = begins + self._starts / rate
            self._starts += 1
            if self._idle:
                self._start(self._idle.popleft(), intended, now)
            elif len(self._queue) < QUEUE_MAX:
                self._queue.append(intended)
            else:
                self.failed("queue_full")

    async def _sweep(self) -> None:
        """Give up requests that have waited for too long."""
        while True:
            await asyncio.sleep(0.25)
            oldest = _clock() - REQUEST_TIMEOUT_S
            for connection in list(self._all):
                if connection.busy and connection.sent < oldest:
                    connection.fail("timeout")

    def _begin_measuring(self) -> None:
        if self._ending:
            return
        self._measuring = True
        self._cpu_began = time.process_time()
        self._window = (_clock(), self._window[1])
        print("measuring", flush=True)

    def _end_measuring(self) -> None:
        if self._ending:
            return
        now = _clock()
        self.result.driver_cpu_s = time.process_time() - self._cpu_began
        self.result.seconds = now - self._window[0] if self._measuring else 0.0
        self._window = (self._window[0], min(now, self._window[1]))
        self._measuring, self._ending = False, True
        print("measured", flush=True)
        self._over.set()

    async def _drain(self) -> None:
        """Let requests that are under way be answered; those of the window that are not are counted."""
        for _ in range(int(DRAIN_S / DRAIN_LOOK_S)):
            if not self._queue and not any(connection.busy for connection in self._all):
                return
            await asyncio.sleep(DRAIN_LOOK_S)
        unanswered = len(self._queue) + sum(connection.busy for connection in self._all)
        if unanswered:
            self.result.errors["unanswered"] += unanswered


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--method", default="POST")
    parser.add_argument("--path", default="/")
    parser.add_argument("--bodies", type=Path, help="one body a line; each request takes one at random")
    parser.add_argument("--headers", type=Path, help="a JSON object")
    parser.add_argument("--requests", type=Path, help="whole requests, each sent once, instead of all of the above")
    parser.add_argument("--patient", action="store_true", help="with --requests: wait after a 503, as our clients do")
    parser.add_argument("--answers", type=Path, help="where to write the bodies of all 2xx answers, one a line")
    parser.add_argument("--connections", type=int, default=64, choices=range(1, 5001), metavar="1-5000")
    parser.add_argument("--seconds", type=float, default=10.0, help="at most 900")
    parser.add_argument("--warmup", type=float, default=2.0, help="at most 60")
    parser.add_argument("--rate", type=float, default=0.0, help="starts per second: open loop")
    parser.add_argument("--count", type=int, default=0, help="end after so many answers")
    parser.add_argument("--marks", type=int, default=0)
    parser.add_argument("--expect", default="", help="a text that every 2xx answer must hold")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if not (0 < given.seconds <= 900 and 0 <= given.warmup <= 60 and 0 <= given.rate <= 100_000):
        parser.error("--seconds, --warmup or --rate is out of bounds")
    if given.requests and given.rate:
        parser.error("--requests is for the closed loop")
    try:
        given.target = wire.loopback(given.url)
    except ValueError as error:
        parser.error(str(error))
    return given


def requests_of(given: argparse.Namespace) -> list[bytes]:
    if given.requests:
        return wire.unpack(given.requests.read_bytes())
    bodies = given.bodies.read_bytes().splitlines() if given.bodies else []
    headers = json.loads(given.headers.read_text()) if given.headers else {}
    return wire.build_requests(given.method, given.url, given.path, headers, bodies)


def main() -> None:
    given = arguments()
    host, port = given.target
    plan = Plan(
        host, port, requests_of(given), given.connections, given.seconds, given.warmup, given.rate, given.count,
        given.marks, given.expect.encode(), given.seed, bool(given.requests), given.patient, bool(given.answers),
    )  # fmt: skip
    gc.freeze()
    gc.disable()  # a run is bounded and makes no cycles: no pauses of our own in the figures

    async def go() -> Load:
        load = Load(plan)
        await load.run()
        return load

    load = uvloop.run(go())
    if given.answers and load.answers is not None:
        bodies = [answer.partition(b"\r\n\r\n")[2] for answer in load.answers]
        given.answers.write_bytes(b"".join(body + b"\n" for body in bodies))
    text = json.dumps(load.result.document(plan))
    if given.out:
        given.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
