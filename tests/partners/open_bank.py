"""The simulated open bank with its adapter in front of it, and operations to send there."""

import datetime as dt
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
from aiohttp import web

from adapters.bank_signed_http import Adapter, BankSettings, Merchant
from gateway.crypto.shared_keys import read_key
from gateway.domain.cards import LossKind
from gateway.domain.masking import Secret
from gateway.domain.operations import (
    AccountCheck,
    Balance,
    BatchLine,
    BatchTransfer,
    NotifyLoss,
    Operation,
    Purchase,
    Refund,
    Reverse,
    Transfer,
)
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.domain.partners import KeyKind, PartnerKey
from gateway.partners.contract import CallContext, HttpReply, HttpRequest
from gateway.partners.keys import Keys
from gateway.sandbox.peers.control import HOST, Book, Faults, control_application
from gateway.sandbox.peers.open_bank_host import OPENING_FEN, OpenBank, open_keys
from gateway.sandbox.peers.open_bank_ledger import Ledger

AT = dt.datetime(2026, 11, 23, 10, 0, tzinfo=dt.timezone(dt.timedelta(hours=8)))
PAYER, PAYEE = "6217000000000000004", "6217000000000000012"
ID_NUMBER = "330424190001010016"
ELSEWHERE, NOWHERE = "6228000000000000017", "6228000000000010000"
SETTLED_S = 600
"""Past absent_after_s."""
MERCHANT = Merchant(account="6217000000000009001", name="海盐停车")
SETTINGS = BankSettings(app_id="yikatong", bank_id="330424", merchants={"M-0001": MERCHANT})
_KINDS: dict[str, KeyKind] = {"sign": "sm2", "encrypt": "sm4-cbc", "partner": "sm2"}


def gateway_keys(folder: Path) -> Keys:
    """What a config block that names the files of the bank's keys folder gives to the adapter."""
    return Keys(
        {name: read_key(PartnerKey(kind=kind), (folder / f"{name}.key").read_text()) for name, kind in _KINDS.items()}
    )


class Caller:
    """Plays the engine's transport for one bank: builds, sends once, parses."""

    def __init__(self, base: str, control: str, keys: Any, session: aiohttp.ClientSession) -> None:
        self.adapter = Adapter(SETTINGS)
        self.keys = keys
        self.tamper: Callable[[HttpReply], HttpReply] = lambda reply: reply
        self.requests: list[HttpRequest] = []
        self._base, self._control, self._session = base, control, session

    async def call(self, op: Operation, *, later_s: int = 0, timeout_s: float = 5) -> Outcome:
        """`later_s` after the operation was made."""
        now = op.at + dt.timedelta(seconds=later_s)
        ctx = CallContext(now=now, nonce=os.urandom(16), attempt=1, crypto=self.keys)
        request = self.adapter.build(op, ctx)
        self.requests.append(request)
        try:
            reply = await self.send(request, timeout_s)
        except aiohttp.ClientConnectorError:
            return NotSent("refused")
        except (aiohttp.ClientError, TimeoutError):
            return Unknown("no answer")
        return self.adapter.parse(op, ctx, self.tamper(reply))

    async def send(self, request: HttpRequest, timeout_s: float = 5) -> HttpReply:
        async with self._session.request(
            request.method, self._base + request.target, headers=request.headers, data=request.body,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
        ) as answer:  # fmt: skip
            return HttpReply(answer.status, dict(answer.headers), await answer.read())

    async def ask(self, op: Operation, *, later_s: int = 0) -> Outcome:
        """What became of it, by the adapter's own question."""
        query = self.adapter.query_for(op)
        assert query is not None
        return await self.call(query, later_s=later_s)

    async def faults(self, *faults: dict[str, Any]) -> None:
        async with self._session.post(f"{self._control}/faults", json=list(faults)) as answer:
            assert answer.status == 200, await answer.text()

    async def heal(self) -> None:
        async with self._session.delete(f"{self._control}/faults") as answer:
            assert answer.status == 200

    async def book(self) -> list[dict[str, Any]]:
        async with self._session.get(f"{self._control}/book") as answer:
            items: list[dict[str, Any]] = (await answer.json())["items"]
            return items

    async def line(self, reference: UUID) -> dict[str, Any] | None:
        """What the bank has of a reference."""
        found = [item for item in await self.book() if item["reference"] == str(reference)]
        assert len(found) <= 1
        return found[0] if found else None


@asynccontextmanager
async def open_bank(
    folder: Path, ledger: type[Ledger] = Ledger, bank: type[OpenBank] = OpenBank, port: int = 0
) -> AsyncIterator[Caller]:
    """A bank in this process, on sockets of its own; `ledger` and `bank` may have planted bugs, `port` be given."""
    book, faults = Book(folder / "book.ndjson"), Faults()
    host = bank(open_keys(folder / "keys"), ledger(book, OPENING_FEN), faults)
    apps = (host.application(), control_application(faults, book))
    runners = [web.AppRunner(app, access_log=None, shutdown_timeout=0.5) for app in apps]
    addresses = []
    for runner, wanted in zip(runners, (port, 0), strict=True):
        await runner.setup()
        await web.TCPSite(runner, HOST, wanted).start()
        addresses.append(f"http://{HOST}:{runner.addresses[0][1]}")
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(addresses[0], addresses[1], gateway_keys(folder / "keys"), session)
    finally:
        for runner in runners:
            await runner.cleanup()
        book.close()


def purchase(amount_fen: int = 1234, *, account: str = PAYER, merchant: str = "M-0001") -> Purchase:
    return Purchase(
        reference=uuid4(), at=AT, account=Secret(account), amount_fen=amount_fen, merchant_id=merchant,
        terminal_id="P-0001", order_id="ORDER-1", trace=1,
    )  # fmt: skip


def transfer(amount_fen: int = 1234, *, to: str = PAYEE, account: str = PAYER) -> Transfer:
    return Transfer(
        reference=uuid4(), at=AT, from_account=Secret(account), to_account=Secret(to), to_name=Secret("王五"),
        amount_fen=amount_fen, purpose="工资",
    )  # fmt: skip


def payroll(*accounts: str, amount_fen: int = 5000, number: str = "PAY-202611") -> BatchTransfer:
    lines = tuple(BatchLine(i, Secret(account), Secret("王五"), amount_fen) for i, account in enumerate(accounts, 1))
    return BatchTransfer(
        reference=uuid4(), at=AT, from_account=Secret(PAYER), batch_no=number, lines=lines,
        total_fen=amount_fen * len(lines),
    )  # fmt: skip


async def balance_fen(bank: Caller, account: str = PAYER) -> int:
    outcome = await bank.call(Balance(reference=uuid4(), at=AT, account=Secret(account), trace=1))
    assert isinstance(outcome, Approved)
    balance = outcome.facts["balance_fen"]
    assert isinstance(balance, int)
    return balance


def loss(kind: LossKind = LossKind.TEMPORARY, *, release: bool = False, person: str = ID_NUMBER) -> NotifyLoss:
    return NotifyLoss(
        reference=uuid4(), at=AT, account=Secret(PAYER), id_number=Secret(person), kind=kind, release=release
    )


def check(name: str, account: str = PAYER) -> AccountCheck:
    return AccountCheck(
        reference=uuid4(), at=AT, account=Secret(account), name=Secret(name), id_number=Secret(ID_NUMBER)
    )


def refund(original: Any, amount_fen: int) -> Refund:
    return Refund(reference=uuid4(), at=AT, original=original, amount_fen=amount_fen, trace=2)


def reversal(original: Any) -> Reverse:
    return Reverse(reference=uuid4(), at=AT, original=original)
