"""HTTP to one partner: its own connections, no redirect, no proxy, no cookie, no second try, bounded answers."""

import functools
import re
import select
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from yarl import URL

from gateway.domain.partners import PartnerHttp
from gateway.partners.contract import CannotBuild, HttpReply, HttpRequest, WireRequest
from gateway.partners.phases import NotSentError, UnknownError
from gateway.partners.stopwatch import Stopwatch
from gateway.partners.tls import tls_context
from gateway.partners.working import OnLate

_KEEPALIVE_S = 4.0
"""Shorter than servers' own: a connection that they close while we write to it makes an outcome unknown."""
_LINE_MAX_BYTES = 8190
_HEADERS_MAX = 64
_INTERIM = b"\r\n\r\nHTTP/1.1 1"
_INTERIM_MAX = 16
_BREAKS = re.compile(r"[\r\n\x00]")
_BUFFER_BYTES = 65_536

_stopwatch: ContextVar[Stopwatch] = ContextVar("stopwatch of the exchange")


class _Answers(ResponseHandler):
    """aiohttp's reading of a connection, which believes two kinds of partner too much.

    What comes when nothing is asked would be taken for the next request's answer: a late duplicate becomes somebody
    else's approval. And `100 Continue` for ever would be queued whole, and read without a pause.
    """

    used = False
    _answered = True
    _interim = 0

    def set_response_params(self, **options: Any) -> None:
        """aiohttp calls it before it sends a request."""
        self.used = True
        self._answered, self._interim = False, 0
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        if data and self._answered and (self._payload is None or self._payload.is_eof()):
            self._give_up("said more than was asked")
        elif not self._answered and data.count(_INTERIM) > _INTERIM_MAX:
            self._give_up("too many interim answers")
        else:
            super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A message that was parsed."""
        if self._answered:
            self.force_close()
        elif 100 <= data[0].code < 200:
            self._interim += 1
            if self._interim == _INTERIM_MAX:
                self._give_up("too many interim answers")
        else:
            self._answered = True
            super().feed_data(data, size)

    def _give_up(self, why: str) -> None:
        self.abort()
        self.set_exception(aiohttp.ClientPayloadError(why))


class _Connector(aiohttp.TCPConnector):
    """Notes when a request has got its connection: from then on a byte may have left."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # aiohttp's private name (it is pinned by hash, and tests hold what this is for)
        self._factory = functools.partial(_Answers, loop=self._loop)  # type: ignore[assignment]

    async def connect(self, req: ClientRequest, traces: list[Any], timeout: aiohttp.ClientTimeout) -> Connection:
        stopwatch = _stopwatch.get()
        if stopwatch.sent:  # aiohttp would send a GET again when its connection turns out to be closed
            raise UnknownError("closed before an answer")
        connection = await super().connect(req, traces, timeout)
        while _is_stale(connection):
            connection.close()
            connection = await super().connect(req, traces, timeout)
        stopwatch.sent = time.monotonic()
        return connection


def _is_stale(connection: Connection) -> bool:
    """Whether there is something to read on a connection that was used before: its end, or what nobody asked for."""
    protocol, transport = connection.protocol, connection.transport
    if not isinstance(protocol, _Answers) or not protocol.used or transport is None:
        return False
    readable = select.poll()
    readable.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(readable.poll(0))


class HttpTransport:
    """Made for one event loop. Raises OSError (ssl.SSLError among them) for certificates that cannot be read."""

    def __init__(self, http: PartnerHttp, data_dir: Path, concurrency_max: int, body_max_bytes: int) -> None:
        self._base_url = http.base_url.rstrip("/")
        self._keepalive = http.keepalive
        self._body_max_bytes = body_max_bytes
        self._context = tls_context(http, data_dir)
        self._concurrency_max = concurrency_max
        self._session: aiohttp.ClientSession | None = None

    async def exchange(self, request: WireRequest, stopwatch: Stopwatch, deadline: float, on_late: OnLate) -> HttpReply:
        """Raises CannotBuild, NotSentError, UnknownError. Cancelled (at the deadline), it closes its connection."""
        if not isinstance(request, HttpRequest) or not request.target.startswith("/"):
            raise CannotBuild("not an HTTP request with a target that begins with /")
        if any(_BREAKS.search(text) for header in request.headers.items() for text in header):
            raise CannotBuild("a header with a line feed")  # aiohttp would notice with the connection in hand
        _stopwatch.set(stopwatch)
        try:
            async with self._opened().request(
                request.method,
                URL(self._base_url + request.target, encoded=True),
                headers=request.headers,
                data=request.body or None,
                allow_redirects=False,
            ) as response:
                stopwatch.first_byte = time.monotonic()
                body = await self._read(response)
                return HttpReply(response.status, response.headers, body)
        # the texts of these exceptions quote what was received
        except (aiohttp.ClientError, OSError) as error:
            kind = type(error).__name__
            raise (UnknownError(kind) if stopwatch.sent else NotSentError(kind)) from None
        except ValueError as error:
            if stopwatch.sent:
                raise UnknownError(type(error).__name__) from None
            raise CannotBuild("aiohttp does not take the request") from None

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UnknownError("the answer is encoded, which was not asked for")
        if (response.content_length or 0) > self._body_max_bytes:
            raise UnknownError("the answer is larger than allowed")
        body = bytearray()
        async for part in response.content.iter_any():
            body += part
            if len(body) > self._body_max_bytes:
                raise UnknownError("the answer is larger than allowed")
        return bytes(body)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    limit=self._concurrency_max,
                    ssl=self._context if self._context is not None else True,
                    keepalive_timeout=_KEEPALIVE_S if self._keepalive else None,
                    force_close=not self._keepalive,
                ),
                headers={"Accept-Encoding": "identity", "User-Agent": "yikatong-gateway"},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                read_bufsize=_BUFFER_BYTES,
                max_line_size=_LINE_MAX_BYTES,
                max_field_size=_LINE_MAX_BYTES,
                max_headers=_HEADERS_MAX,
            )
        return self._session

    async def open(self) -> None:
        """Connections are made when they are needed."""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
