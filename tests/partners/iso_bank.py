"""The simulated ISO 8583 bank as a process of its own, and one call to it as the engine makes it."""

import datetime as dt
import itertools
import json
import time
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from adapters.bank_iso8583 import Adapter, Dialect
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation, Purchase, Reverse
from gateway.domain.outcome import NotSent, Outcome, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext
from gateway.partners.phases import NotSentError, UnknownError
from gateway.partners.transport_iso8583 import Link, LinkSettings
from tests.contract.case import Shared, crypto_for
from tests.partners.hosts import Host

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


def block(port: int, limits: str = "timeout_ms = 500") -> str:
    """The bank behind partners.toml; its key is in `iso.key` of the data folder."""
    return f"""
[partners.iso]
name = "示范银行"
adapter = "bank_iso8583"
operations = ["purchase", "reverse"]
{limits}
[partners.iso.link]
host = "127.0.0.1"
port = {port}
[partners.iso.keys.mac]
kind = "mac-sm4"
file = "iso.key"
[partners.iso.dialect]
merchant_id = "898330448161001"
terminal_id = "GATEWAY1"
"""


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


class Bank(Host):
    """With a rich account and a poor one."""

    def __init__(self, folder: Path, *options: str) -> None:
        files = ("--mac-key-file", str(folder / "mac.key"), "--accounts", str(folder / "accounts.json"))
        super().__init__(folder, "bank_iso8583_host", *files, *options)

    async def start(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "mac.key").write_text(KEY)
        (self.folder / "accounts.json").write_text(json.dumps({ACCOUNT: 10**11, POOR: 50}))
        return await super().start()

    async def book(self) -> dict[tuple[str, str], str]:
        """The state of each (reference, kind)."""
        return {(line["reference"], line["kind"]): line["state"] for line in await self.lines()}
