"""The control port of a simulated partner (api.md, The sandbox): its faults and its book.

The book is the partner's own record of what it did; a line is on disk before the partner answers, so that it outlives
the process, however that ends.
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec
from aiohttp import web

from gateway.processes import end_with_parent

HOST = "127.0.0.1"

FaultKind = Literal[
    "delay", "drop_before", "drop_after", "half_close", "garbage", "duplicate", "late", "bad_signature", "decline"
]


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`drop_before`: the request is lost before the partner acts on it; `drop_after`: it acts, and its answer is lost.

    `ms` is of delay and late (the answer comes after the caller has given up); `code` is of decline, in the dialect's
    own words.
    """

    kind: FaultKind
    probability: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0
    code: str = ""


class BookLine(msgspec.Struct, frozen=True):
    """What the partner did for one reference; a later line of the same reference and kind replaces an earlier one."""

    reference: str
    kind: str
    amount_fen: int
    state: str
    facts: dict[str, Any] = {}


class Faults:
    """What is set to go wrong; seeded, so that a run can be repeated."""

    def __init__(self, seed: int = 0) -> None:
        self._set: list[Fault] = []
        self._chance = random.Random(seed)  # noqa: S311 - faults of a simulation

    def replace(self, faults: list[Fault]) -> None:
        self._set = faults

    def drawn(self) -> Mapping[str, Fault]:
        """What one request meets, by kind."""
        return {fault.kind: fault for fault in self._set if self._chance.random() < fault.probability}


class Book:
    """Append-only NDJSON, read whole at start."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lines: dict[tuple[str, str], BookLine] = {}
        if file.exists():
            whole, _, _ = file.read_bytes().rpartition(b"\n")
            for text in whole.splitlines():
                self._keep(msgspec.json.decode(text, type=BookLine))
            # what follows the last line feed was being written when the process ended, and was never answered
            os.truncate(file, len(whole) + 1 if whole else 0)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        # an object, not the number: closed twice, or written to when closed, the number may be somebody else's by then
        self._file = os.fdopen(descriptor, "ab", buffering=0)

    def __len__(self) -> int:
        return len(self._lines)

    def write(self, line: BookLine) -> None:
        """On return the line survives the process (not the machine: it is a simulation)."""
        rest = memoryview(msgspec.json.encode(line) + b"\n")
        while rest:  # a long line may take more than one write
            rest = rest[self._file.write(rest) :]
        self._keep(line)

    def find(self, reference: str, kind: str) -> BookLine | None:
        return self._lines.get((reference, kind))

    def lines(self) -> list[BookLine]:
        return list(self._lines.values())

    def close(self) -> None:
        self._file.close()

    def _keep(self, line: BookLine) -> None:
        self._lines[line.reference, line.kind] = line


class Lines(Protocol):
    """What GET /book shows."""

    def lines(self) -> list[BookLine]: ...


def control_application(
    faults: Faults, book: Lines, extra: Mapping[str, Callable[[web.Request], Any]] | None = None
) -> web.Application:
    """`POST /faults`, `DELETE /faults`, `GET /book`, and what a partner adds (`GET` routes by path)."""

    async def post_faults(request: web.Request) -> web.Response:
        try:
            sent = json.loads(await request.read())
            faults.replace(msgspec.convert(sent if isinstance(sent, list) else [sent], list[Fault]))
        except (ValueError, msgspec.ValidationError) as error:
            return web.json_response({"detail": str(error)}, status=422)
        return web.json_response({"faults": len(sent) if isinstance(sent, list) else 1})

    async def delete_faults(_: web.Request) -> web.Response:
        faults.replace([])
        return web.json_response({"faults": 0})

    async def get_book(_: web.Request) -> web.Response:
        return web.Response(
            body=msgspec.json.encode({"items": book.lines()}), headers={"Content-Type": "application/json"}
        )

    app = web.Application()
    app.router.add_post("/faults", post_faults)
    app.router.add_delete("/faults", delete_faults)
    app.router.add_get("/book", get_book)
    for path, handler in (extra or {}).items():
        app.router.add_get(path, handler)
    return app


Met = Mapping[str, Fault]
"""The faults that one request meets, by kind."""


def under_faults(
    faults: Faults, act: Callable[[web.Request, bytes, Met], Awaitable[web.Response]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler whose requests, with their bodies, first meet what goes wrong before the partner acts."""

    async def handle(request: web.Request) -> web.Response:
        met = faults.drawn()
        body = await request.read()
        if "delay" in met:
            await asyncio.sleep(met["delay"].ms / 1000)
        if "drop_before" in met:
            return cut(request, b"")
        return await act(request, body, met)

    return handle


async def deliver(request: web.Request, body: bytes, headers: dict[str, str], met: Met) -> web.Response:
    """The answer, in the manner of the faults that it meets."""
    if "late" in met:
        await asyncio.sleep(met["late"].ms / 1000)
    if "drop_after" in met:
        return cut(request, b"")
    if "garbage" in met:
        return web.Response(body=b"\x00\xff{" + secrets.token_bytes(200), content_type="application/json")
    head = "HTTP/1.1 200 OK\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    raw = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    if "half_close" in met:
        return cut(request, raw[: -len(body) // 2])
    if "duplicate" in met:
        return cut(request, raw + raw)
    return web.Response(body=body, headers=headers)


def cut(request: web.Request, sent: bytes) -> web.Response:
    """Send these bytes and hang up; what is returned goes nowhere."""
    if (transport := request.transport) is not None:
        transport.write(sent)
        transport.close()
    return web.Response()


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """What every simulated partner is started with, of which `doc` tells; started() reads them."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control-port", type=int, required=True)
    parser.add_argument("--book", type=Path, required=True)
    return parser


def started(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of a process that from now on ends with the one that started it."""
    given = parser.parse_args()
    end_with_parent(int(os.environ.get("PARENT_PID", os.getppid())))
    return given


async def serve_until_told(host: web.Application, port: int, control: web.Application, control_port: int) -> None:
    """A simulated partner on loopback until SIGTERM or SIGINT. Prints `ready` and both ports for who started it."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    runners = [web.AppRunner(app, access_log=None, shutdown_timeout=1) for app in (host, control)]
    for runner, wanted in zip(runners, (port, control_port), strict=True):
        await runner.setup()
        await web.TCPSite(runner, HOST, wanted).start()
    print("ready", *(runner.addresses[0][1] for runner in runners), flush=True)  # noqa: T201 - who started it waits
    await stopping.wait()
    for runner in runners:
        await runner.cleanup()
