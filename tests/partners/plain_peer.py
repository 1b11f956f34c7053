"""A peer whose every move a test decides, and a dialect that is only keys: the link by itself, on real sockets."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from gateway.domain.operations import LinkMessage, Operation, QueryStatus
from gateway.domain.outcome import Outcome, Unknown
from gateway.partners.contract import CallContext, LinkFrame, Transport, WireReply
from gateway.partners.phases import NotSentError, UnknownError
from gateway.partners.transport_iso8583 import Link, LinkSettings
from tests.faults.waiting import until
from tests.partners.iso_bank import Late, context


class Plain:
    """`? key …` asks, `! key …` answers."""

    TRANSPORT: ClassVar[Transport] = Transport.ISO8583
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset()
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[msgspec.Struct]] = msgspec.Struct

    def __init__(self, settings: Any = None) -> None: ...

    def build(self, op: Operation, ctx: CallContext) -> LinkFrame:
        raise NotImplementedError

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        return Unknown("")

    def query_for(self, op: Operation) -> QueryStatus | None:
        return None

    def redact(self, wire: bytes) -> str:
        return ""

    def correlate(self, message: bytes) -> str | None:
        parts = message.split(b" ")
        return parts[1].decode("latin-1") if len(parts) > 1 and parts[0] in (b"?", b"!") else None

    def is_reply(self, message: bytes) -> bool:
        return message.startswith(b"!")

    def link_message(self, kind: LinkMessage, ctx: CallContext, trace: int) -> LinkFrame:
        return LinkFrame(f"? {kind}-{trace}".encode())

    def link_accepted(self, reply: bytes) -> bool:
        return not reply.endswith(b"no")


class Peer:
    """Listens, keeps what it received, and answers only the link's own messages (of the kinds in `answers`)."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes] = {"sign_on": b"yes", "echo": b"yes", "sign_off": b"yes"}
        self.reading = asyncio.Event()
        self.reading.set()
        self.asked: list[str] = []
        """Keys of the calls received, on any connection."""
        self.link_asked: list[str] = []
        self.link_traces: list[int] = []
        self.connections = 0
        self.hangs_up = False
        """After each sign-on."""
        self.on_call: Callable[[str], None] = lambda key: None
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> "Peer":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()

    def hang_up(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()

    def send(self, raw: bytes) -> None:
        assert self._writer is not None
        self._writer.write(raw)

    def answer(self, key: str) -> None:
        self.send(framed(f"! {key} done".encode()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writer = writer
        try:
            while True:
                await self.reading.wait()
                length = int.from_bytes(await reader.readexactly(2), "big")
                self._take(await reader.readexactly(length), writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    def _take(self, message: bytes, writer: asyncio.StreamWriter) -> None:
        key = message.split(b" ")[1].decode()
        kind = key.partition("-")[0]
        if kind in ("sign_on", "echo", "sign_off"):
            self.link_asked.append(kind)
            self.link_traces.append(int(key.partition("-")[2]))
            if kind in self.answers:
                writer.write(framed(f"! {key} ".encode() + self.answers[kind]))
            if self.hangs_up:
                writer.close()
            return
        self.asked.append(key)
        self.on_call(key)


def framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def link_to(
    peer: Peer, late: Late | None = None, kind: type[Link] = Link, chance: Callable[[], float] = random.random,
    **settings: Any,
) -> Link:  # fmt: skip
    quick = {"connect_s": 2.0, "answer_s": 2.0, "backoff_first_s": 0.01, "backoff_cap_s": 0.05}
    return kind(
        "peer", LinkSettings(host="127.0.0.1", port=peer.port, **{**quick, **settings}), Plain(),
        context=context, on_late=late or Late(), chance=chance,
    )  # fmt: skip


async def ready(link: Link) -> Link:
    if link.state == "down" and link.counts.opened + link.counts.failed_to_open == 0:
        await link.open()
    await until(lambda: link.state == "ready", 5, "the link is ready")
    return link


async def ask(link: Link, key: str, within_s: float = 5.0, filler: int = 0) -> str:
    """`done`, `not sent: why` or `unknown: why`."""
    frame = LinkFrame(f"? {key} ".encode() + b"x" * filler)
    try:
        reply = await link.exchange(frame, key, time.monotonic() + within_s)
    except NotSentError as error:
        return f"not sent: {error}"
    except UnknownError as error:
        return f"unknown: {error}"
    assert reply.body == f"! {key} done".encode()
    return "done"
