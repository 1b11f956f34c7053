"""aiohttp's server, hardened: what its parser refuses becomes a problem document, and no traceback shows what was sent.

Deadlines of receiving: aiohttp closes a connection that is idle, or whose header block is not complete, after the
keep-alive time (it does not start anew with each byte); the body's deadline is in middleware.py.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any, cast

import structlog
from aiohttp import hdrs, http_parser, web
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from gateway.api.hot_lane import Head, HotLane
from gateway.api.middleware import request_id_of
from gateway.api.problems import problem_reply
from gateway.domain.errors import Problem
from gateway.log import describe
from gateway.metrics import CONNECTIONS_REFUSED, REQUESTS

log = structlog.get_logger()

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_REFUSALS = {404: "not_found", 405: "method_not_allowed", 417: "expectation_failed"}
_NO_ROUTE = "none"
"""The route, in the metrics, of what did not come to one."""

_FAREWELL_S = 1.0
"""How long a stopping worker still takes requests on open connections: the answers tell their clients to go."""

_BACKLOG_MAX = 1024
"""So many that have connected and were not accepted are taken at a stop; there are 128 places for them by default."""

_LEAST_S = 0.05
"""What a stop still gives requests that had all of their time already. aiohttp takes 0 for ever."""

_LINGER_S = 2.0
"""How long the rest of a refused body is still read, so that the client sees the answer."""


class Connection(RequestHandler):
    """A client connection. A request that the hot lane takes does not pass through aiohttp's request cycle.

    A terminal repeats its header block byte by byte. Between two requests the parser reads the same out of the same
    bytes, so a request that begins with the last block and is as long is not parsed again.
    """

    __slots__ = ("_between", "_block", "_hot_lane", "_on_hot_lane", "_whole_bytes", "ending", "head")

    def __init__(self, hot_lane: HotLane, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._hot_lane = hot_lane
        self._on_hot_lane = False
        self.head: Head | None = None
        self._between = True
        """Known for certain: the parser stands between two requests."""
        self._block = b""
        """The header block of the last request, as it arrived, if the hot lane took it: `head` is what it says."""
        self._whole_bytes = 0
        """That request's length."""
        self.ending = False
        """The next answer with nothing behind it says `Connection: close`."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def closes_now(self) -> bool:
        return self.ending and not self._messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if cast(HardenedServer, self._manager).has_too_many:  # not before its task has begun: that would fail
            CONNECTIONS_REFUSED.inc()
            cast(asyncio.Transport, transport).abort()

    def data_received(self, data: bytes) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done() or self._force_close or self._close:
            self._parse(data)
            self._fail_body()
            return
        if self._block and self._is_another(data) and self._take_another(data):
            return
        # the request cycle is waiting: parse without waking it, and wake it unless the hot lane takes the request
        self._waiter = None
        try:
            self._parse(data)
        finally:
            self._waiter = waiter
        if self._messages and not self._on_hot_lane and not self._begin_on_hot_lane(data):
            waiter.set_result(None)

    def _parse(self, data: bytes) -> None:
        """Follows where the parser stands: between two requests again if it was, and this was one, to its last byte."""
        was_between, count = self._between, self._request_count
        self._between, self._block = False, b""
        super().data_received(data)
        if was_between:
            # aiohttp feeds nothing to go on with what it has held back: then there is nothing
            self._between = not data or (self._request_count == count + 1 and self._was_whole(data))

    def _was_whole(self, data: bytes) -> bool:
        """Whether the request that has come last is all of these bytes."""
        message, payload = self._messages[-1]
        return (
            not isinstance(message, _ErrInfo)
            and not message.should_close
            and not message.upgrade
            and payload.is_eof()
            and data.find(b"\r\n\r\n") + 4 + payload.total_bytes == len(data)
        )

    def _is_another(self, data: bytes) -> bool:
        """Whether these bytes are one more request with the last one's header block."""
        return (
            self._between
            and len(data) == self._whole_bytes
            and data.startswith(self._block)
            and not (self._messages or self._on_hot_lane or self.writing_paused)
        )

    def _take_another(self, data: bytes) -> bool:
        assert self.head is not None, "it is kept with its block"
        if not self._hot_lane.take_body(self, self.head, data[len(self._block) :]):
            return False
        self._request_count += 1
        self._go_on_hot_lane()
        return True

    def _fail_body(self) -> None:
        """What is malformed inside the body that a handler waits for is that request's, not another one after it."""
        request = self._current_request
        if request is None or not self._messages or request._payload.is_eof():
            return
        if isinstance(self._messages[0][0], _ErrInfo):
            self._messages.clear()
            self.ending = True
            request._payload.set_exception(Problem("malformed_request"))

    def _begin_on_hot_lane(self, data: bytes) -> bool:
        message, payload = self._messages[0]
        if self.writing_paused or len(self._messages) > 1:  # the ordinary way waits for a client that does not read
            return False
        if isinstance(message, _ErrInfo) or not self._hot_lane.take(self, message, payload):
            return False
        self._messages.popleft()
        assert self._parser is not None
        self._parser.message_consumed()
        if self._between and self.head is not None:
            self._block, self._whole_bytes = data[: len(data) - payload.total_bytes], len(data)
        self._go_on_hot_lane()
        return True

    def _go_on_hot_lane(self) -> None:
        self._on_hot_lane = self._request_in_progress = True

    def _process_keepalive(self) -> None:
        if self._on_hot_lane:  # not idle, though aiohttp's request cycle is
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def finish_hot(self, answer: bytes) -> None:
        """Write the answer of the request on the hot lane; what was pipelined behind it goes the ordinary way."""
        self._on_hot_lane = self._request_in_progress = False
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self.transport is not None:
            if self.closes_now:
                self.transport.write(answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                self.force_close()
            else:
                self.transport.write(answer)
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if self._messages and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        code = "malformed_request" if status < 500 else "internal"
        if status >= 500 and exc is not None:
            log.error("request failed", exception=describe(type(exc), exc.__traceback__))
        response = problem_reply(code, "", (), request_id_of({}), {}).response()
        response.force_close()
        REQUESTS.add((_NO_ROUTE, str(response.status)))
        return response


class HardenedServer(web.Server):
    """Makes our Connection, and refuses further ones past the limit."""

    def __init__(self, *args: Any, hot_lane: HotLane, connections_max: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hot_lane = hot_lane
        self._connections_max = connections_max
        self._ending = False

    def __call__(self) -> RequestHandler:
        made = Connection(self._hot_lane, self, loop=self._loop, **self._kwargs)
        made.ending = self._ending
        return made

    def say_farewell(self) -> None:
        """From now on every connection ends with its next answer."""
        self._ending = True
        for connection in self.connections:
            cast(Connection, connection).ending = True

    @property
    def has_too_many(self) -> bool:
        return len(self._connections) > self._connections_max


class HardenedRunner(web.AppRunner):
    """An AppRunner whose server is a HardenedServer."""

    def __init__(
        self, app: web.Application, hot_lane: HotLane, *, connections_max: int, header_timeout_s: float, drain_s: float
    ) -> None:
        super().__init__(
            app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=header_timeout_s,
            auto_decompress=False,
            lingering_time=_LINGER_S,
        )
        self._hot_lane = hot_lane
        self._connections_max = connections_max
        self._drain_s = drain_s
        self._listener: socket.socket | None = None

    async def listen(self, listener: socket.socket) -> None:
        self._listener = listener.dup()
        await web.SockSite(self, listener).start()

    @property
    def open_connections(self) -> int:
        return len(self.server.connections) if self.server is not None else 0

    async def cleanup(self) -> None:
        """Stop accepting; answer what comes on open connections for a moment; then close the idle, finish the rest.

        What has not ended after drain_s is given up.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        for site in list(self.sites):
            await site.stop()
        if isinstance(self.server, HardenedServer):
            self.server.say_farewell()
            await self._take_who_waits(self.server)
            while self.open_connections and loop.time() < began + _FAREWELL_S:  # noqa: ASYNC110 - bounded
                await asyncio.sleep(0.02)
        await self._hot_lane.drain(began + self._drain_s - loop.time())
        # aiohttp waits so long twice: before and after it tells a handler that its client is gone
        self._shutdown_timeout = max((began + self._drain_s - loop.time()) / 2, _LEAST_S)
        await super().cleanup()
        await self._hot_lane.close()

    async def _take_who_waits(self, server: web.Server) -> None:
        """Whoever has connected and was not accepted yet: closing the listener would reset the connection, perhaps with
        a request on it."""
        if self._listener is None:
            return
        waiting: list[socket.socket] = []
        with contextlib.suppress(OSError):  # none is left
            while len(waiting) < _BACKLOG_MAX:
                waiting.append(self._listener.accept()[0])
        self._listener.close()
        # all at once: one after the other each would cost two turns of a loop that is busy when so many wait
        connect = asyncio.get_running_loop().connect_accepted_socket
        await asyncio.gather(*(connect(server, each) for each in waiting), return_exceptions=True)  # some have hung up

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return HardenedServer(
            _with_problems(plain.request_handler),
            request_factory=plain.request_factory,
            hot_lane=self._hot_lane,
            connections_max=self._connections_max,
            loop=plain._loop,
            **plain._kwargs,
        )


def _with_problems(handler: Handler) -> Handler:
    """What aiohttp refuses before a handler of ours is reached (no such route, method, expectation), as a problem."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            response = await handler(request)
        except web.HTTPException as refusal:
            code = _REFUSALS.get(refusal.status, "malformed_request")
            allow = refusal.headers.get(hdrs.ALLOW)
            headers = {"Allow": allow} if allow is not None else {}
            response = problem_reply(code, "", (), request_id_of(request.headers), headers).response()
            REQUESTS.add((_NO_ROUTE, str(response.status)))
        if cast(Connection, request.protocol).closes_now:
            response.force_close()
        return response

    return handle


def assert_c_parser() -> None:
    """The pure Python parser is slower and has had smuggling faults of its own: refuse to run on it."""
    if http_parser.HttpRequestParser is cast(Any, http_parser).HttpRequestParserPy:
        raise RuntimeError("aiohttp runs without its C parser: reinstall the wheel from requirements.txt")
