"""HTTP/1.1 on a raw socket, as little of it as the load driver needs."""

import asyncio
import ctypes
import ipaddress
import os
import re
import struct
import time
from typing import Protocol, cast
from urllib.parse import urlsplit

HEAD_MAX_BYTES = 65_536
_RETRY_AFTER = re.compile(rb"(?i)\r\nretry-after: *([0-9]{1,4})\r\n")
_LENGTH = struct.Struct("<I")


class Answers(Protocol):
    """Who gives a connection its requests and takes its answers."""

    def next_request(self) -> bytes: ...

    def answered(self, connection: "Connection | None", intended: float, status: int, data: bytes) -> None: ...

    def failed(self, error: str) -> None: ...

    def lost(self, connection: "Connection") -> None: ...


class UnreadableError(Exception):
    """An answer that this small parser cannot read."""


def read_answer(data: bytes) -> tuple[int, int] | None:
    """(status, its length in bytes) of the answer at the start of data; None: more bytes are needed."""
    head = data.find(b"\r\n\r\n")
    if head < 0:
        if len(data) > HEAD_MAX_BYTES:
            raise UnreadableError("a head without end")
        return None
    at = data.find(b"ontent-Length: ", 0, head)
    if at < 0:
        at = data.find(b"ontent-length: ", 0, head)
    if at < 0 or not data.startswith(b"HTTP/1."):
        raise UnreadableError("no Content-Length")
    end = head + 4 + int(data[at + 15 : data.index(b"\r", at)])
    return (int(data[9:12]), end) if len(data) >= end else None


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request on it."""

    __slots__ = ("_load", "_pending", "_transport", "busy", "intended", "sent")

    def __init__(self, load: Answers) -> None:
        self._load = load
        self._pending = b""
        self._transport: asyncio.Transport | None = None
        self.busy = False
        self.intended = 0.0
        self.sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, intended: float, now: float) -> None:
        self.busy = True
        self.intended = intended
        self.sent = now
        assert self._transport is not None
        self._transport.write(self._load.next_request())

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        try:
            answer = read_answer(data)
        except (UnreadableError, ValueError):
            self.fail("unreadable")
            return
        if answer is None:
            self._pending = data
            return
        status, end = answer
        if not self.busy or end != len(data):
            self.fail("unasked_bytes")
            return
        self._pending = b""
        self.busy = False
        if status != 200 and b"onnection: close" in data and self._transport is not None:
            self._load.answered(None, self.intended, status, data)
            self._transport.close()
            return
        self._load.answered(self, self.intended, status, data)

    def fail(self, error: str) -> None:
        """Give this request up, and the connection with it."""
        self.busy = False
        self._load.failed(error)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.busy = False
            self._load.failed("connection_lost")
        self._load.lost(self)


class KeepingConnection(Connection):
    """A connection that knows its last request, so that it can be sent again."""

    __slots__ = ("request",)

    def __init__(self, load: Answers) -> None:
        super().__init__(load)
        self.request = b""

    def send(self, intended: float, now: float) -> None:
        self.busy = True
        self.intended = intended
        self.sent = now
        assert self._transport is not None
        self.request = self._load.next_request()
        self._transport.write(self.request)


def retry_after_s(answer: bytes) -> float:
    """What Retry-After says; 1 s if it says nothing."""
    found = _RETRY_AFTER.search(answer)
    return float(found[1]) if found else 1.0


def ticking_every(ns: int) -> int:
    """A descriptor that becomes readable every `ns` (timerfd): the loop's own timers are only good to 1 ms."""
    libc = ctypes.CDLL(None, use_errno=True)
    ticker: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if ticker < 0 or libc.timerfd_settime(ticker, 0, struct.pack("qqqq", 0, ns, 0, ns), None) < 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return ticker


def build_requests(method: str, url: str, path: str, headers: dict[str, str], bodies: list[bytes]) -> list[bytes]:
    """The bytes of every request."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join(lines).encode()
    if not bodies:
        return [head + b"\r\n\r\n"]
    return [head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body for body in bodies]


def packed(request: bytes) -> bytes:
    """One request in a file of requests: its length as 32 bits, little-endian, and its bytes."""
    return _LENGTH.pack(len(request)) + request


def unpack(data: bytes) -> list[bytes]:
    """The requests of such a file. Raises ValueError if it ends within one."""
    requests, at = [], 0
    while at < len(data):
        begin = at + _LENGTH.size
        if begin > len(data) or (at := begin + _LENGTH.unpack_from(data, at)[0]) > len(data):
            raise ValueError("the file of requests is cut off")
        requests.append(data[begin:at])
    return requests


def loopback(url: str) -> tuple[str, int]:
    """Host and port of a URL. Raises ValueError unless it is plain HTTP to a loopback address."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    if parts.scheme != "http" or not ipaddress.ip_address(host).is_loopback:
        raise ValueError("only http:// on a loopback address: this driver is not for other machines")
    return host, parts.port or 80
