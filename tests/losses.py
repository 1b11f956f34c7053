"""A desk where losses are reported: a gateway in its own processes and the open bank, real bytes between them."""

import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from gateway.sandbox.peers.open_bank_host import OpenBank, open_keys
from gateway.store.embedded import EmbeddedPostgres
from tests.bank import give_account
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.faults.home import configuration
from tests.faults.planted import plant
from tests.partners.open_bank import Caller, open_bank
from tests.registry import TestCard, add_cards, new_card
from tests.running import Client, Running, eventually, free_port

PATH = "/v1/cards/loss-reports"
ENDS_S = 20
"""A notice that can be told is, on a busy machine too."""
KEYS = "keys-of-bank"
_accounts = itertools.count(int.from_bytes(os.urandom(3), "big") * 1000)

BLOCK = """
[partners.bank-jiaxing]
name = "示范银行(合成)"
adapter = "bank_signed_http"
operations = ["notify_loss", "query_status", "purchase", "reverse", "refund"]
timeout_ms = 3000
concurrency_max = 10
waiting_max = 10
breaker = {{ failures = 5, open_s = 1 }}
http = {{ base_url = "http://127.0.0.1:{port}" }}
[partners.bank-jiaxing.keys]
sign = {{ kind = "sm2", file = "{keys}/keys/sign.key" }}
encrypt = {{ kind = "sm4-cbc", file = "{keys}/keys/encrypt.key" }}
partner = {{ kind = "sm2", file = "{keys}/keys/partner.key" }}
[partners.bank-jiaxing.dialect]
app_id = "yikatong"
bank_id = "330424"
merchants = {{ demo-merchant = {{ account = "6217000000000009001", name = "示范商户(合成)" }} }}
"""


def new_account() -> str:
    """Of a range that no bank was given, and not one of the open bank's dead ones."""
    return f"999999{next(_accounts) % 10**12:012}7"


def connect_bank(config: Path, data_dir: Path, port: int, **changes: int) -> None:
    """A copy of the house's configuration with a bank that takes notices; `changes` are of [losses]."""
    values = {"retry_base_ms": 50, "retry_cap_s": 1, "deadline_ms": 1000} | changes
    routes = '{ bank-jiaxing = "bank-jiaxing" }'
    configuration(config, **{f"losses.{name}": value for name, value in values.items()}, **{"losses.routes": routes})
    (config / "partners.toml").write_text(BLOCK.format(port=port, keys=KEYS))
    open_keys(data_dir / KEYS / "keys")


class Desk:
    """A kiosk at a gateway, and the bank of its cards."""

    def __init__(self, running: Running, dsn: str, port: int) -> None:
        self.running = running
        self.dsn = dsn
        self._port = port
        self.kind: type[OpenBank] = OpenBank
        """Of the bank when it opens next."""
        self._bank = AsyncExitStack()
        self._at_work: Caller | None = None
        self.kiosk: Client

    @property
    def bank(self) -> Caller:
        assert self._at_work is not None, "the bank is closed"
        return self._at_work

    async def open_bank(self) -> None:
        """With the book that it has."""
        folder = self.running.data_dir / KEYS
        self._at_work = await self._bank.enter_async_context(open_bank(folder, bank=self.kind, port=self._port))

    async def close_bank(self) -> None:
        self._at_work = None
        await self._bank.aclose()

    async def card(self, account: str | None = "", bank: str = "bank-jiaxing") -> TestCard:
        """A card of its own, with an account of its own; None: without one."""
        card, keys = new_card(CardStatus.NORMAL), open_folder(self.running.data_dir / "keys")
        (card_id,) = await add_cards(self.dsn, keys, (card,))
        if account is not None:
            await give_account(self.dsn, keys, card_id, bank, account or new_account())
        return card

    async def breaker_is_closed(self) -> None:
        """Whatever an earlier fault has done to it, and left to tell: our own tries while it was open too."""

        async def accepted() -> bool:
            answer = await self.kiosk.report_loss(await self.card())
            return bool(answer["bank"]["status"] == "accepted")

        async def told_all() -> bool:
            return bool(await self.fetch("SELECT count(*) FROM loss_notice WHERE next_try_at IS NOT NULL") == 0)

        await eventually(accepted, ENDS_S, "the bank is told at once")
        await eventually(told_all, ENDS_S, "nothing is left to tell")

    async def pending(self, card: TestCard, *faults: dict[str, Any]) -> dict[str, Any]:
        """The answer to a report of which the bank does not say yes or no."""
        await self.bank.faults(*faults)
        answer = await self.kiosk.report_loss(card)
        assert answer["social_security"]["status"] == "accepted" and answer["bank"] == {"status": "pending"}, answer
        return answer

    async def operation(self, reference: str) -> dict[str, Any]:
        headers = await self.kiosk.authorization()
        async with self.kiosk.session.get(f"/v1/operations/{reference}", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return dict(await answer.json())

    async def shown(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What is said later of the bank's half of an answer, without its history."""
        bank = dict((await self.operation(answer["reference"]))["bank"])
        bank.pop("history")
        return bank

    async def steps(self, reference: str) -> list[str]:
        return [step["status"] for step in (await self.operation(reference))["bank"]["history"]]

    async def came_to(self, reference: str, within_s: float = ENDS_S) -> dict[str, Any]:
        """What the bank's half of an operation says in the end, without its history."""

        async def decided() -> dict[str, Any] | None:
            bank = dict((await self.operation(reference))["bank"])
            return bank if bank["status"] != "pending" else None

        found = await eventually(decided, within_s, "the bank's half is decided")
        assert found is not None
        found.pop("history")
        return found

    async def told(self, *references: str) -> list[str]:
        """The verbs (2 temporary, 3 formal, 4 release) that the bank has of these, in the order of its book."""
        book = await self.bank.book()
        return [line["facts"]["verb"] for line in book if line["reference"] in references]

    async def fetch(self, sql: str, *values: object) -> Any:
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()


@asynccontextmanager
async def desk_at(folder: Path, postgres: EmbeddedPostgres, bug: str = "", **changes: int) -> AsyncIterator[Desk]:
    """`bug` is a plant; `changes` are of the configuration's [losses]. The session's template is there."""
    database = await make_database(postgres, "yikatong")
    port = free_port()
    connect_bank(folder / "config", folder / "data", port, **changes)
    environment = {"DATABASE_URL": database.dsn, "CONFIG_DIR": str(folder / "config"), "WORKERS": "1"}
    running = Running(folder / "data", "serve", **environment, **(plant(bug) if bug else {}))
    prepare_data_dir(folder / "data", running.port)
    desk = Desk(running, database.dsn, port)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(drop_database, postgres, database)
        await desk.open_bank()
        stack.push_async_callback(desk.close_bank)
        await running.start()
        stack.push_async_callback(running.stop)
        desk.kiosk = await stack.enter_async_context(Client(running, "demo-kiosk"))
        yield desk


def body_of(card: TestCard, kind: str = "temporary") -> bytes:
    return json.dumps({"card_number": card.number, "id_number": card.id_number, "kind": kind}).encode()
