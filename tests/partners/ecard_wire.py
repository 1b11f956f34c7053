"""The e-card platform's simulation on loopback, and a client that carries the adapter's bytes to it."""

import asyncio
import datetime as dt
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

from adapters.ecard_platform import Adapter, Dialect
from gateway.crypto.shared_keys import read_key
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation, VerifyEcardCode
from gateway.domain.outcome import NotSent, Outcome, Unknown
from gateway.domain.partners import PartnerKey
from gateway.partners.contract import CallContext, HttpReply, HttpRequest
from gateway.partners.keys import Keys
from gateway.sandbox.county import Citizen, County
from gateway.sandbox.peers import ecard_platform_host as host
from gateway.sandbox.peers.control import Book, Faults
from tests.registry import TODAY
from tests.running import free_port

COUNTY = County(7, 2000, TODAY)
DIALECT = Dialect(
    access_key=host.ACCESS_KEY, channel_no=host.CHANNEL_NO, access_no=host.ACCESS_NO, system_name=host.SYSTEM_NAME
)
REPLY_MAX_BYTES = 65_536


class Clock:
    """The wall clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return dt.datetime.now(dt.UTC).timestamp() + self.ahead_s


class Peer:
    """A running platform: its addresses, its book, and the client that asks it."""

    def __init__(self, port: int, control_port: int, keys: host.SharedKeys) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.control = f"http://127.0.0.1:{control_port}"
        self.keys = keys
        self.adapter = Adapter(DIALECT)
        self.clock = Clock()
        self.asked = 0
        """Requests that were sent."""
        self._crypto = Keys({
            "signing": read_key(PartnerKey(kind="hmac-sha1"), keys.signing.hex()),
            "body": read_key(PartnerKey(kind="aes-ecb"), keys.body.hex()),
        })  # fmt: skip

    def context(self) -> CallContext:
        return CallContext(dt.datetime.now(dt.UTC), os.urandom(16), 1, self._crypto)

    async def ask(self, op: Operation, deadline: float) -> Outcome:
        """What the engine does at least: one try inside the deadline."""
        context = self.context()
        request = self.adapter.build(op, context)
        self.asked += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()), aiohttp.ClientSession() as session:
                return self.adapter.parse(op, context, await self._send(session, request))
        except aiohttp.ClientConnectorError:
            return NotSent("no connection")
        except TimeoutError:
            return Unknown("no answer in time")
        except (aiohttp.ClientError, OSError) as error:
            return Unknown(type(error).__name__)

    async def _send(self, session: aiohttp.ClientSession, request: HttpRequest) -> HttpReply:
        async with session.post(self.url + request.target, data=request.body, headers=request.headers) as reply:
            return HttpReply(reply.status, dict(reply.headers), await reply.content.read(REPLY_MAX_BYTES))

    async def ask_code(self, code: str, within_s: float = 5) -> Outcome:
        op = VerifyEcardCode(reference=uuid4(), at=dt.datetime.now(dt.UTC), code=Secret(code))
        return await self.ask(op, time.monotonic() + within_s)

    async def get(self, path: str) -> tuple[int, Any]:
        """Of the control port."""
        async with aiohttp.ClientSession() as session, session.get(self.control + path) as answer:
            return answer.status, await answer.json()

    async def show(self, card_number: str) -> str:
        status, answer = await self.get(f"/show?card_number={card_number}")
        assert status == 200, answer
        return str(answer["code"])

    async def faults(self, *faults: dict[str, Any]) -> None:
        """None: all is well again."""
        url = f"{self.control}/faults"
        async with aiohttp.ClientSession() as session, session.post(url, data=json.dumps(faults)) as answer:
            assert answer.status == 200, await answer.text()

    async def book(self) -> list[dict[str, Any]]:
        return list((await self.get("/book"))[1]["items"])


class Forgetful(host.Platform):
    """A platform that approves a code as often as it is asked while it is fresh."""

    def _verify(self, asked: Mapping[str, str]) -> host.Answer:
        answer = super()._verify(asked)
        if answer[0] == host.REPLAYED:
            line = self._book.find(host._digest(asked["qrCode"]), "ecard_code")
            assert line is not None
            self._turn(line, "shown")
            return super()._verify(asked)
        return answer


@asynccontextmanager
async def platform(
    folder: Path, county: County = COUNTY, kind: type[host.Platform] = host.Platform
) -> AsyncIterator[Peer]:
    """In this process, on sockets, with a clock that can be put forward."""
    keys = host.shared_keys(folder)
    peer = Peer(free_port(), free_port(), keys)
    book, faults = Book(folder / "book.ndjson"), Faults()
    core = kind(county, book, peer.clock)
    apps = {
        peer.url: host.Host(core, keys, faults, peer.clock).application(),
        peer.control: host.control(core, faults, book),
    }
    runners = []
    for url, app in apps.items():
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(url.rsplit(":", 1)[1])).start()
        runners.append(runner)
    try:
        yield peer
    finally:
        for runner in runners:
            await runner.cleanup()
        book.close()


def first(county: County = COUNTY, **wanted: Any) -> Citizen:
    """The first citizen with these values."""
    for i in range(county.cards):
        citizen = county.citizen(i)
        if all(getattr(citizen, name) == value for name, value in wanted.items()):
            return citizen
    raise AssertionError(f"the county has nobody with {wanted}")
