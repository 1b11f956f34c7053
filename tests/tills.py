"""A till: a gateway with a bank behind it, a merchant in front, and the worker's resolver in the test's own hands."""

import datetime as dt
import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from gateway.domain.operations import Operation
from gateway.domain.outcome import Outcome
from gateway.settings import load
from gateway.store.embedded import EmbeddedPostgres
from tests.bank import Bank, Resolver, banks, give_account
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.registry import TestCard, add_cards, new_card
from tests.running import Client
from tests.served import Served, short_config

PATH = "/v1/payments"
_orders = itertools.count()


class Till(NamedTuple):
    """A gateway, its bank, the merchant at it, and the worker's resolver."""

    gateway: Served
    bank: Bank
    merchant: Client
    resolver: Resolver
    dsn: str

    async def card(self, status: CardStatus = CardStatus.NORMAL, account: bool = True, **more: Any) -> TestCard:
        card, keys = new_card(status, **more), open_folder(self.gateway.data_dir / "keys")
        (card_id,) = await add_cards(self.dsn, keys, (card,))
        if account:
            await give_account(self.dsn, keys, card_id)
        return card

    async def pay(self, card: TestCard, amount_fen: int = 1250, **changes: Any) -> tuple[int, dict[str, Any]]:
        status, answer, _ = await self.merchant.effect(PATH, order(card, amount_fen), **changes)
        return status, json.loads(answer)

    async def paid(self, amount_fen: int = 1250) -> str:
        """The reference of an approved payment."""
        status, answer = await self.pay(await self.card(), amount_fen)
        assert (status, answer["status"]) == (200, "approved"), answer
        return str(answer["reference"])

    async def undo(self, reference: str, what: str, **body: Any) -> tuple[int, dict[str, Any]]:
        status, answer, _ = await self.merchant.effect(f"{PATH}/{reference}/{what}", body)
        return status, json.loads(answer)

    async def operation(self, reference: str, client: Client | None = None) -> tuple[int, dict[str, Any]]:
        client = client or self.merchant
        headers = await client.authorization()
        async with client.session.get(f"/v1/operations/{reference}", headers=headers) as answer:
            return answer.status, await answer.json()

    async def status(self, reference: str) -> str:
        status, answer = await self.operation(reference)
        assert status == 200, answer
        return str(answer["status"])

    async def steps(self, reference: str) -> list[str]:
        return [step["status"] for step in (await self.operation(reference))[1]["history"]]

    async def notes(self, reference: str) -> list[str]:
        return [step["note"] for step in (await self.operation(reference))[1]["history"] if step.get("note")]

    async def hear_late(self, reference: str, outcome: Outcome) -> None:
        """What an operation's own message came to, though nobody waits for it any more."""
        operation = Operation(reference=UUID(reference), at=dt.datetime.now(dt.UTC))
        await self.resolver.settle.take_late(operation, outcome)


def order(card: TestCard, amount_fen: int = 1250, order_id: str = "") -> dict[str, Any]:
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    return order_of(presentation, amount_fen, order_id)


def order_of(presentation: dict[str, Any], amount_fen: int, order_id: str = "") -> dict[str, Any]:
    """By a card of any medium."""
    return {
        "presentation": presentation, "scene": "market.till", "terminal_id": "T-1", "amount_fen": amount_fen,
        "merchant_order_id": order_id or f"order-{os.getpid()}-{next(_orders)}",
    }  # fmt: skip


@asynccontextmanager
async def till_at(folder: Path, postgres: EmbeddedPostgres, template: str, **environment: str) -> AsyncIterator[Till]:
    database = await make_database(postgres, template)
    bank = await Bank(folder / "book").open()
    config = str(short_config(folder))
    environment |= {"DATABASE_URL": database.dsn, "CONFIG_DIR": config, "BANK_PORT": str(bank.port)}
    gateway = Served(folder / "data", **environment)
    prepare_data_dir(gateway.data_dir, gateway.port)
    await gateway.start()
    settings = load({"DATA_DIR": str(gateway.data_dir), "CONFIG_DIR": config})
    async with (
        Client(gateway, "demo-merchant") as merchant,
        Resolver(settings, database.dsn, banks(bank.port)) as resolver,
    ):
        yield Till(gateway, bank, merchant, resolver, database.dsn)
    await gateway.stop()
    await bank.close()
    await drop_database(postgres, database)


@pytest.fixture(scope="module")
async def till(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Till]:
    async with till_at(tmp_path_factory.mktemp("till"), postgres, template) as made:
        yield made
