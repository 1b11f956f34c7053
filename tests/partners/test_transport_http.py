"""What aiohttp would do by itself, and the engine does not: redirects, proxies, second tries, late answers."""

import asyncio
import ssl
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler

from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.partners.call import Partners
from gateway.partners.contract import CallContext, HttpRequest
from gateway.partners.phases import UnknownError, Why
from gateway.partners.stopwatch import Stopwatch
from gateway.partners.transport_http import HttpTransport
from tests.contract.dialects import example
from tests.partners.peers import Talk, approval, block, partners, peer, purchase
from tests.tls import make_certificates


async def call(made: Partners, name: str = "bad") -> Outcome:
    return await made.call(name, purchase(), time.monotonic() + 5)


class Builds(example.Adapter):
    """Whatever it was given."""

    def __init__(self, request: HttpRequest) -> None:
        super().__init__(example.DialectSettings(merchant_id="M1"))
        self._request = request

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        return self._request


class Trusting(HttpTransport):
    """The planted bug: aiohttp's own reading of a connection."""

    def _opened(self) -> aiohttp.ClientSession:
        session = super()._opened()
        assert session.connector is not None
        session.connector._factory = partial(ResponseHandler, loop=asyncio.get_running_loop())
        return session


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    async with peer() as elsewhere:

        async def redirect(talk: Talk) -> None:
            await talk.request()
            await talk.send(
                b"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:%d/\r\nContent-Length: 0\r\n\r\n" % elsewhere.port
            )
            await talk.for_ever()

        async with peer(redirect) as bad, partners(tmp_path, block("bad", bad.port)) as made:
            assert isinstance(await call(made), Unknown)
        assert elsewhere.connections == 0


async def test_the_environments_proxy_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer() as proxy, peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert isinstance(await call(made, "bank"), Approved)
        assert proxy.connections == 0


async def test_a_get_is_not_sent_twice_behind_our_back(tmp_path: Path) -> None:
    """aiohttp repeats idempotent requests on a connection that was closed meanwhile; retries are call.py's alone."""

    async def once(talk: Talk) -> None:
        await talk.request()
        await talk.answer(b"{}")
        await talk.request()  # and closes

    async with peer(once) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        working = made.registry.get("bad")
        assert working is not None
        get = HttpRequest("GET", "/x", {}, b"")
        await working.transport.exchange(get, Stopwatch(1.0), 0, print)
        with pytest.raises(UnknownError):
            await working.transport.exchange(get, Stopwatch(1.0), 0, print)
        assert len(bad.requests) == 2


@pytest.mark.parametrize(("keepalive", "connections"), [("true", 1), ("false", 5)])
async def test_a_connection_is_used_again_unless_it_shall_not(keepalive: str, connections: int, tmp_path: Path) -> None:
    http = f"keepalive = {keepalive}"
    async with peer() as bank, partners(tmp_path, block("bank", bank.port, http=http)) as made:
        for _ in range(5):
            assert isinstance(await call(made, "bank"), Approved)
        assert bank.connections == connections


async def twice(talk: Talk) -> None:
    """Answers, and again when the gateway has long gone on."""
    while True:
        body = approval(await talk.request())
        await talk.answer(body)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await talk.reader.read(1)
        await talk.answer(body)
        talk.peer.said.set()


async def test_a_second_answer_is_not_taken_for_the_next_ones(tmp_path: Path) -> None:
    """A duplicate that comes while the connection is idle: the next call gets its own answer, on another connection."""

    async with peer(twice) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        for _ in range(3):
            assert isinstance(await call(made), Approved)
            await bad.said.wait()
            bad.said.clear()
        assert bad.connections == 3


async def test_a_transport_that_takes_it_is_caught(tmp_path: Path) -> None:
    async with peer(twice) as bad, partners(tmp_path, block("bad", bad.port)) as made:
        working = made.registry.get("bad")
        assert working is not None and working.block.http is not None
        working.transport = Trusting(working.block.http, tmp_path, 1, working.block.body_max_bytes)
        assert isinstance(await call(made), Approved)
        await bad.said.wait()
        assert await call(made) == Unknown("answers another operation"), "only the reference has saved it"


@pytest.mark.parametrize(
    "request_",
    [
        HttpRequest("POST", "/x", {"X-Order": "1\r\nX-Evil: 1"}, b""),
        HttpRequest("POST", "@evil.example/x", {}, b""),
        HttpRequest("PO ST", "/x", {}, b""),
    ],
    ids=["a line feed in a header", "another host", "no method"],
)
async def test_what_is_no_request_is_not_sent_and_not_the_partners_fault(request_: HttpRequest, tmp_path: Path) -> None:
    async with peer() as bank, partners(tmp_path, block("bank", bank.port)) as made:
        working = made.registry.get("bank")
        assert working is not None
        working.adapter = Builds(request_)
        for _ in range(10):
            assert await call(made, "bank") == NotSent(Why.CANNOT_BUILD)
        assert bank.requests == []


async def test_a_client_certificate_is_shown(tmp_path: Path) -> None:
    ca, context = make_certificates(tmp_path / "tls")
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(ca)
    own = tmp_path / "tls/server.pem"  # the one certificate that this authority has given
    own.chmod(0o600)
    async with peer(tls=context) as bank:
        with_it = f'ca_file = "{ca}"\nclient_cert_file = "{own}"\nclient_key_file = "{own}"'
        blocks = (
            block("bank", bank.port, scheme="https", http=with_it),
            block("bare", bank.port, scheme="https", http=f'ca_file = "{ca}"'),
        )
        async with partners(tmp_path, *blocks) as made:
            assert isinstance(await call(made, "bank"), Approved)
            assert isinstance(await call(made, "bare"), NotSent | Unknown)
        assert len(bank.requests) == 1
