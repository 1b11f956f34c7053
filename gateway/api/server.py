"""aiohttp's server, hardened: what its parser refuses becomes a problem document, and no traceback shows what was sent.

Deadlines of receiving: aiohttp closes a connection that is idle, or whose header block is not complete, after the
keep-alive time (it does not start anew with each byte); the body's deadline is in middleware.py.
"""

from typing import Any, cast

import structlog
from aiohttp import http_parser, web
from aiohttp.web_protocol import RequestHandler

from gateway.api.problems import problem_response
from gateway.log import describe

log = structlog.get_logger()


class Connection(RequestHandler):
    """A client connection."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        code = "malformed_request" if status < 500 else "internal"
        if status >= 500 and exc is not None:
            log.error("request failed", exception=describe(type(exc), exc.__traceback__))
        response = problem_response(code, "", (), "unparsed", {})
        response.force_close()
        return response


class HardenedServer(web.Server):
    """Makes our Connection, and refuses further ones past the limit."""

    def __init__(self, *args: Any, connections_max: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connections_max = connections_max

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: Any) -> None:
        super().connection_made(handler, transport)
        if len(self._connections) > self._connections_max:
            transport.abort()


class HardenedRunner(web.AppRunner):
    """An AppRunner whose server is a HardenedServer."""

    def __init__(self, app: web.Application, *, connections_max: int, header_timeout_s: float, drain_s: float) -> None:
        super().__init__(
            app,
            handle_signals=False,
            access_log=None,
            keepalive_timeout=header_timeout_s,
            auto_decompress=False,
            shutdown_timeout=drain_s,
        )
        self._connections_max = connections_max

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return HardenedServer(
            plain.request_handler,
            request_factory=plain.request_factory,
            connections_max=self._connections_max,
            loop=plain._loop,
            **plain._kwargs,
        )


def assert_c_parser() -> None:
    """The pure Python parser is slower and has had smuggling faults of its own: refuse to run on it."""
    if http_parser.HttpRequestParser is cast(Any, http_parser).HttpRequestParserPy:
        raise RuntimeError("aiohttp runs without its C parser: reinstall the wheel from requirements.txt")


