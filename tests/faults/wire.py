"""HTTP/1.1 byte by byte: for clients that hang up, pipeline, or send half a request."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from tests.faults.load import VERIFY
from tests.registry import CARDS
from tests.running import verify_body

ANSWER_S = 10.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: Any


def get(path: str, **headers: str) -> bytes:
    return _head("GET", path, headers) + b"\r\n"


def verify(authorization: str, terminal_id: str, number: int = 0, scene: str = "parking.exit", **headers: str) -> bytes:
    """A verify of one of the test cards; `X_Request_Id=…` gives a header."""
    card = CARDS[number % len(CARDS)]
    body = json.dumps(verify_body(card.number, card.identifier, scene, terminal_id=terminal_id)).encode()
    given = {"Authorization": authorization, "Content-Type": "application/json", "Content-Length": str(len(body))}
    return _head("POST", VERIFY, given | headers) + b"\r\n" + body


def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    lines += [f"{name}: {value}" for name, value in {name.replace("_", "-"): headers[name] for name in headers}.items()]
    return "".join(f"{line}\r\n" for line in lines).encode()


@asynccontextmanager
async def wires(port: int, count: int) -> AsyncIterator[list["Wire"]]:
    """So many connections, hung up at the end."""
    opened: list[Wire] = []
    try:
        for _ in range(count):
            opened.append(Wire(*await asyncio.open_connection("127.0.0.1", port)))  # noqa: PERF401 - kept if one fails
        yield opened
    finally:
        for wire in opened:
            wire.hang_up()


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, sent: bytes) -> None:
        self.writer.write(sent)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """The next one. Raises IncompleteReadError, ConnectionError or TimeoutError if none comes."""
        async with asyncio.timeout(ANSWER_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(head[0].split()[1]), headers, json.loads(body) if body else None)

    async def ask(self, sent: bytes) -> Answer:
        await self.send(sent)
        return await self.answer()

    def hang_up(self, reset: bool = False) -> None:
        """Close at once; with `reset` the gateway gets an RST instead of a FIN."""
        if reset:
            at_once = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.writer.transport.abort()
