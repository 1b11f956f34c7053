"""The simulated ISO 8583 bank as a process of its own, and one call to it as the engine makes it."""

import asyncio
import datetime as dt
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp

from adapters.bank_iso8583 import Adapter, Dialect
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation, Purchase, Reverse
from gateway.domain.outcome import NotSent, Outcome, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext
from gateway.partners.phases import NotSentError, UnknownError
from gateway.partners.transport_iso8583 import Link, LinkSettings
from tests.contract.case import Shared, crypto_for

KEY = "0123456789abcdeffedcba9876543210"
ACCOUNT = "6217330424000000018"
POOR = "6217330424000000026"
CRYPTO = crypto_for({"mac": Shared("mac-sm4", KEY)})

traces = itertools.count(1)
"""F11: unique for all tests of a run, which share a day and a bank."""


def context(attempt: int = 1) -> CallContext:
    return CallContext(now=dt.datetime.now(CHINA), nonce=bytes(16), attempt=attempt, crypto=CRYPTO)


def adapter(**more: Any) -> Adapter:
    return Adapter(Dialect(merchant_id="898330448161001", terminal_id="GATEWAY1", **more))


def purchase(amount_fen: int = 100, account: str = ACCOUNT) -> Purchase:
    return Purchase(
        reference=uuid4(), at=dt.datetime.now(CHINA), account=Secret(account), amount_fen=amount_fen,
        merchant_id="898330448169999", terminal_id="TILL0001", order_id="o-1", trace=next(traces),
    )  # fmt: skip


def reverse(original: Purchase) -> Reverse:
    return Reverse(reference=uuid4(), at=dt.datetime.now(CHINA), original=original)


class Late:
    """What a link hands on."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def __call__(self, message: bytes) -> None:
        self.messages.append(message)


def make_link(port: int, late: Late | None = None, speaks: Adapter | None = None, **settings: Any) -> Link:
    quick = {"connect_s": 2.0, "answer_s": 2.0, "backoff_first_s": 0.01, "backoff_cap_s": 0.05}
    return Link(
        "bank", LinkSettings(host="127.0.0.1", port=port, **{**quick, **settings}), speaks or adapter(),
        context=context, on_late=late or Late(),
    )  # fmt: skip


async def call(link: Link, speaks: Adapter, op: Operation, within_s: float = 5.0) -> Outcome:
    """Build, exchange, parse: what the engine does, without its breaker and bulkhead."""
    ctx = context()
    frame = speaks.build(op, ctx)
    key = speaks.correlate(frame.body)
    assert key is not None
    try:
        reply = await link.exchange(frame, key, time.monotonic() + within_s)
    except NotSentError as error:
        return NotSent(str(error))
    except UnknownError as error:
        return Unknown(str(error))
    return speaks.parse(op, ctx, reply)


class Bank:
    """start() it, set its faults, look into its book, stop() it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._options = options
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0
        self.control = ""

    async def start(self) -> "Bank":
        self.folder.mkdir(exist_ok=True)
        (self.folder / "mac.key").write_text(KEY)
        (self.folder / "accounts.json").write_text(json.dumps({ACCOUNT: 10**11, POOR: 50}))
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway.sandbox.peers.bank_iso8583_host", "--port", str(self.port),
            "--control-port", "0", "--book", str(self.folder / "book.ndjson"),
            "--mac-key-file", str(self.folder / "mac.key"), "--accounts", str(self.folder / "accounts.json"),
            *self._options, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PARENT_PID": str(os.getpid())},
        )  # fmt: skip
        assert self._process.stdout is not None
        _, port, control_port = (await asyncio.wait_for(self._process.stdout.readline(), 20)).split()
        self.port, self.control = int(port), f"http://127.0.0.1:{int(control_port)}"
        return self

    async def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return await self._process.wait()

    async def faults(self, *faults: dict[str, Any]) -> None:
        async with aiohttp.ClientSession() as session, session.post(f"{self.control}/faults", json=faults) as answer:
            assert answer.status == 200, await answer.text()

    async def book(self) -> dict[tuple[str, str], str]:
        """The state of each (reference, kind)."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.control}/book") as answer:
            items = (await answer.json())["items"]
        return {(item["reference"], item["kind"]): item["state"] for item in items}
