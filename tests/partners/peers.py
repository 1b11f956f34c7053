"""Partners on real sockets that misbehave, byte by byte, and partners.toml blocks that lead to them."""

import asyncio
import re
import shutil
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from uuid import uuid4

import msgspec

from gateway.domain.operations import Purchase
from gateway.partners.call import OnLateOutcome, Partners
from gateway.settings import Settings, load
from tests.contract.cases.example import PARTNER, PURCHASE
from tests.running import ROOT

Behaviour = Callable[["Talk"], Awaitable[None]]
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Talk:
    """One connection as the peer sees it."""

    def __init__(self, peer: "Peer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = peer
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The body of the next request. Raises IncompleteReadError when the gateway has closed."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        body = await self.reader.readexactly(int(length[1])) if length else b""
        self.peer.requests.append(body)
        return body

    async def send(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))
        await self.writer.drain()

    async def answer(self, body: bytes, status: int = 200) -> None:
        mac = PARTNER.mac("mac", body).hex()
        await self.send(f"HTTP/1.1 {status} X\r\nX-Mac: {mac}\r\nContent-Length: {len(body)}\r\n\r\n".encode(), body)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.close()

    async def for_ever(self) -> None:
        """Until the gateway closes."""
        while await self.reader.read(65_536):
            pass


def approval(request: bytes) -> bytes:
    reference = msgspec.json.decode(request)["reference"]
    return f'{{"reference":"{reference}","code":"00"}}'.encode()


async def good(talk: Talk) -> None:
    while True:
        await talk.answer(approval(await talk.request()))


class Peer:
    """A partner on a loopback port of its own; what it does is replaced at will."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = good
        self.connections = 0
        self.requests: list[bytes] = []
        self.said = asyncio.Event()
        """For a behaviour to tell the test how far it is."""
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            await self.behaviour(Talk(self, reader, writer))
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@asynccontextmanager
async def peer(behaviour: Behaviour = good, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    made = Peer()
    made.behaviour = behaviour
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=1 << 20, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


def block(name: str, port: int, more: str = "", scheme: str = "http", http: str = "") -> str:
    return f"""
[partners.{name}]
name = "示范"
adapter = "example"
operations = ["purchase", "reverse", "query_status"]
timeout_ms = 400
{more}
[partners.{name}.http]
base_url = "{scheme}://127.0.0.1:{port}/api"
{http}
[partners.{name}.keys.mac]
kind = "hmac-sha256"
file = "mac.key"
[partners.{name}.dialect]
merchant_id = "M1"
"""


def configure(folder: Path, *blocks: str) -> Settings:
    """A configuration in a folder, with the key that the blocks share. Raises SettingsError."""
    config, key = folder / "config", folder / "mac.key"
    if not config.exists():
        shutil.copytree(ROOT / "config", config)
        key.write_text("00112233445566778899aabbccddeeff\n")
        key.chmod(0o600)
    (config / "partners.toml").write_text("".join(blocks))
    return load({"CONFIG_DIR": str(config), "DATA_DIR": str(folder)})


@asynccontextmanager
async def partners(folder: Path, *blocks: str, on_late: OnLateOutcome | None = None) -> AsyncIterator[Partners]:
    made = Partners(configure(folder, *blocks), on_late)
    await made.open()
    try:
        yield made
    finally:
        await made.close()


def purchase() -> Purchase:
    return msgspec.structs.replace(PURCHASE, reference=uuid4())
