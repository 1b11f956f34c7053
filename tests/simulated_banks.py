"""Both simulated banks as processes, the blocks that lead a gateway to them, and cards whose accounts are there."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from gateway.crypto.key_files import write_private
from gateway.crypto.key_store import KeyStore
from gateway.sandbox.peers.open_bank_host import open_keys
from tests.bank import give_account
from tests.partners.hosts import Host
from tests.registry import TestCard, add_cards, new_card

HAIYAN, JIAXING = "bank-haiyan", "bank-jiaxing"
BANKS = (HAIYAN, JIAXING)
OPENING_FEN = 1_000_000
"""Of every account at either bank."""
_MAC = "0123456789abcdeffedcba9876543210"
_accounts = itertools.count(1)

QUICK = {
    "payments.deadline_ms": 800, "payments.queries_max": 3, "payments.retry_base_ms": 50, "payments.retry_cap_s": 1,
    "payments.look_again_s": 2,
}  # fmt: skip
"""Numbers of gateway.toml with which a test can wait for the end of what a bank did not answer."""


class Customer(NamedTuple):
    """A good card, and the bank of its account."""

    card: TestCard
    bank: str


class Line(NamedTuple):
    """What a bank has of a payment or refund."""

    kind: str
    amount_fen: int
    state: str


class Banks:
    """The ISO 8583 host and the open bank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        haiyan, jiaxing = folder / HAIYAN, folder / JIAXING
        haiyan.mkdir(parents=True)
        write_private(haiyan / "mac.key", _MAC + "\n")
        open_keys(jiaxing)
        self.haiyan = Host(
            haiyan, "bank_iso8583_host", "--mac-key-file", str(haiyan / "mac.key"), "--opening-fen", str(OPENING_FEN)
        )
        self.jiaxing = Host(jiaxing, "open_bank_host", "--keys", str(jiaxing))

    async def start(self) -> None:
        await asyncio.gather(self.haiyan.start(), self.jiaxing.start())

    async def kill(self) -> None:
        await asyncio.gather(self.haiyan.kill(), self.jiaxing.kill())

    async def faults(self, *faults: dict[str, Any]) -> None:
        """At both; none: all is well again."""
        await asyncio.gather(self.haiyan.faults(*faults), self.jiaxing.faults(*faults))

    async def book(self) -> dict[str, dict[UUID, Line]]:
        """Payments and refunds, by bank and reference."""
        books = await asyncio.gather(self.haiyan.lines(), self.jiaxing.lines())
        return {
            bank: {
                UUID(line["reference"]): Line(line["kind"], line["amount_fen"], line["state"])
                for line in lines
                if line["kind"] in ("purchase", "refund")
            }
            for bank, lines in zip(BANKS, books, strict=True)
        }

    def blocks(
        self, timeout_ms: int = 500, places: int = 64, open_s: int = 1, haiyan: int = 0, jiaxing: int = 0
    ) -> str:
        """partners.toml. `haiyan`, `jiaxing`: other ports than the banks' own, where something stands in between."""
        common = f"""timeout_ms = {timeout_ms}
concurrency_max = {places}
waiting_max = {places}
breaker = {{ failures = 5, open_s = {open_s} }}"""
        return f"""
[partners.{HAIYAN}]
name = "海盐示范银行(合成)"
adapter = "bank_iso8583"
operations = ["purchase", "reverse", "refund", "balance"]
{common}
link = {{ host = "127.0.0.1", port = {haiyan or self.haiyan.port}, reconnect_max_s = 1 }}
[partners.{HAIYAN}.keys]
mac = {{ kind = "mac-sm4", file = "{self.folder}/{HAIYAN}/mac.key" }}
[partners.{HAIYAN}.dialect]
merchant_id = "898330448161001"
terminal_id = "GATEWAY1"

[partners.{JIAXING}]
name = "嘉兴示范银行(合成)"
adapter = "bank_signed_http"
operations = ["purchase", "reverse", "refund", "balance", "check_file", "query_status"]
{common}
http = {{ base_url = "http://127.0.0.1:{jiaxing or self.jiaxing.port}" }}
[partners.{JIAXING}.keys]
sign = {{ kind = "sm2", file = "{self.folder}/{JIAXING}/sign.key" }}
encrypt = {{ kind = "sm4-cbc", file = "{self.folder}/{JIAXING}/encrypt.key" }}
partner = {{ kind = "sm2", file = "{self.folder}/{JIAXING}/partner.key" }}
[partners.{JIAXING}.dialect]
app_id = "yikatong"
bank_id = "330424"
absent_after_s = 3
merchants = {{ demo-merchant = {{ account = "6217000000000009001", name = "示范商户(合成)" }} }}
"""


@asynccontextmanager
async def banks(folder: Path) -> AsyncIterator[Banks]:
    made = Banks(folder)
    await made.start()
    try:
        yield made
    finally:
        await made.kill()


async def add_customers(dsn: str, keys: KeyStore, per_bank: int) -> list[Customer]:
    """Of both banks in turn, each with an account of its own."""
    customers = [Customer(new_card(), bank) for _ in range(per_bank) for bank in BANKS]
    card_ids = await add_cards(dsn, keys, tuple(customer.card for customer in customers))
    for customer, card_id in zip(customers, card_ids, strict=True):
        await give_account(dsn, keys, card_id, customer.bank, f"99999910000{next(_accounts):07}1")
    return customers


def of_bank(customers: Sequence[Customer], bank: str) -> list[Customer]:
    return [customer for customer in customers if customer.bank == bank]
