"""A street of merchants: a gateway in its own processes, simulated merchants and an open bank, real bytes between."""

import datetime as dt
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from gateway.crypto.key_files import open_folder
from gateway.crypto.sealing import Sealer
from gateway.domain.cards import CardStatus
from gateway.sandbox.merchants import BLOCKS
from gateway.sandbox.peers import merchant_host
from gateway.sandbox.peers.open_bank_host import open_keys
from gateway.store import data_keys
from gateway.store.embedded import EmbeddedPostgres
from tests.bank import give_account
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.faults.home import configuration
from tests.faults.planted import plant
from tests.losses import BLOCK, KEYS, new_account
from tests.partners.hosts import Host
from tests.partners.open_bank import open_bank
from tests.registry import TODAY, TestCard, add_cards, new_card
from tests.running import Client, Running, eventually, free_port

PATH = "/v1/visits"
ENDS_S = 20
"""What is asked after ends, on a busy machine too."""
DEAR, CHEAP = "浙F12344", "浙F12345"
"""Plates of cars that owe 15 and 5 yuan (merchant_host.py)."""


class Street:
    """demo-merchant's terminals: L-1 and L-2 at a lot, H-1 in a hotel, D-1 in a restaurant."""

    def __init__(self, running: Running, dsn: str, host: Host) -> None:
        self.running = running
        self.dsn = dsn
        self.host = host
        self.merchant: Client

    async def card(
        self, status: CardStatus = CardStatus.NORMAL, account: bool = False, age: int = 30, **more: Any
    ) -> TestCard:
        keys = open_folder(self.running.data_dir / "keys")
        card = new_card(status, **more)._replace(birth_date=dt.date(TODAY.year - age, 1, 1))
        (card_id,) = await add_cards(self.dsn, keys, (card,))
        if account:
            await give_account(self.dsn, keys, card_id, account=new_account())
        return card

    async def visit(
        self, card: TestCard, scene: str, terminal_id: str, key: str = "", **details: Any
    ) -> tuple[int, dict[str, Any]]:
        status, raw, _ = await self.merchant.effect(
            PATH, body_of(card, scene, terminal_id, **details), **({"key": key} if key else {})
        )
        return status, json.loads(raw)

    async def due(self, card: TestCard, plate: str = DEAR) -> dict[str, Any]:
        status, answer = await self.visit(card, "parking.exit", "L-2", plate=plate)
        assert (status, answer["status"]) == (200, "due"), answer
        return answer

    async def pay(self, card: TestCard, amount_fen: int) -> str:
        """The reference of an approved payment."""
        body = body_of(card, "parking.exit", "L-2")
        body |= {"amount_fen": amount_fen, "merchant_order_id": f"o-{card.number}-{amount_fen}"}
        status, raw, _ = await self.merchant.effect("/v1/payments", body)
        answer = json.loads(raw)
        assert (status, answer["status"]) == (200, "approved"), answer
        return str(answer["reference"])

    async def open(self, visit: str, payment: str, **changes: Any) -> tuple[int, dict[str, Any]]:
        status, raw, _ = await self.merchant.effect(f"{PATH}/{visit}/open", {"payment": payment}, **changes)
        return status, json.loads(raw)

    async def operation(self, reference: str) -> dict[str, Any]:
        headers = await self.merchant.authorization()
        async with self.merchant.session.get(f"/v1/operations/{reference}", headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return dict(await answer.json())

    async def steps(self, reference: str) -> list[str]:
        return [step["status"] for step in (await self.operation(reference))["history"]]

    async def came_to(self, reference: str, within_s: float = ENDS_S) -> str:
        async def decided() -> str:
            try:
                status = str((await self.operation(reference))["status"])
            except aiohttp.ClientConnectionError:  # a killed worker is being started again
                return ""
            return status if status != "pending" else ""

        return await eventually(decided, within_s, "the visit is decided")

    async def breaker_is_closed(self) -> None:
        """Whatever an earlier fault has done to the lot's."""
        await self.host.faults()
        card = await self.card()

        async def opened() -> bool:
            return (await self.visit(card, "parking.entry", "L-1"))[0] == 200

        await eventually(opened, ENDS_S, "the lot is told at once")

    async def book(self, reference: str) -> list[dict[str, Any]]:
        """What the merchants did for a reference."""
        return [line for line in await self.host.lines() if line["reference"] == reference]

    async def stored(self) -> bytes:
        """All that the database holds: its rows as text, and what is sealed in those of operations, opened."""
        connection = await asyncpg.connect(self.dsn)
        try:
            sealer = Sealer()
            sealer.add(await data_keys.load(connection), open_folder(self.running.data_dir / "keys"))
            held = []
            for (table,) in await connection.fetch(_TABLES):
                held += [row[0].encode() for row in await connection.fetch(f"SELECT t::text FROM {table} t")]  # noqa: S608
            for column, row_id in _SEALED.items():
                table, _, name = column.partition(".")
                sql = f"SELECT *, {row_id} AS row_id FROM {table} WHERE {name} IS NOT NULL"  # noqa: S608 - as above
                rows = await connection.fetch(sql)
                held += [sealer.open(column.encode(), row["row_id"], row[name]) for row in rows]
        finally:
            await connection.close()
        return b"\n".join(held)

    async def fetch(self, sql: str, *values: object) -> Any:
        connection = await asyncpg.connect(self.dsn)
        try:
            return await connection.fetchval(sql, *values)
        finally:
            await connection.close()


_TABLES = """
SELECT oid::regclass::text FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
"""
_SEALED = {
    "operation.proof_sealed": "uuid_send(reference)", "visit.details_sealed": "uuid_send(reference)",
    "idempotency_key.answer_sealed": "substr(sha256(convert_to(caller || ' ' || key, 'UTF8')), 1, 16)",
}  # fmt: skip
"""By what each row's values are bound to it."""


def body_of(card: TestCard, scene: str, terminal_id: str, **details: Any) -> dict[str, Any]:
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    body = {"presentation": presentation, "scene": scene, "terminal_id": terminal_id}
    return body | ({"details": details} if details else {})


MERCHANTS = "keys-of-merchants"


def blocks(port: int) -> str:
    """The merchants' part of partners.toml."""
    text = BLOCKS.replace("{keys}", MERCHANTS).format(merchants=port)
    return text.replace("timeout_ms = 3000\n", "timeout_ms = 3000\nbreaker = { failures = 5, open_s = 1 }\n")


def connect_merchants(config: Path, data_dir: Path, port: int, bank_port: int, **changes: int) -> None:
    """A copy of the house's configuration with these partners; `changes` are of [visits]."""
    values = {"deadline_ms": 1000, "lifetime_s": 3, "retry_ms": 100} | changes
    configuration(config, **{f"visits.{name}": value for name, value in values.items()})
    (config / "partners.toml").write_text(blocks(port) + BLOCK.format(port=bank_port, keys=KEYS))
    merchant_host.open_keys(data_dir / MERCHANTS)
    open_keys(data_dir / KEYS / "keys")


@asynccontextmanager
async def street_at(
    folder: Path, postgres: EmbeddedPostgres, bug: str = "", environment: Mapping[str, str] = {}, **changes: int
) -> AsyncIterator[Street]:
    """`bug` is a plant; `changes` are of the configuration's [visits]. The session's template is there."""
    database = await make_database(postgres, "yikatong")
    data_dir, bank_port = folder / "data", free_port()
    merchant_host.open_keys(data_dir / MERCHANTS)
    host = Host(folder / "merchants", "merchant_host", "--keys", str(data_dir / MERCHANTS))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(drop_database, postgres, database)
        await host.start()
        stack.push_async_callback(host.kill)
        connect_merchants(folder / "config", data_dir, host.port, bank_port, **changes)
        more = {"DATABASE_URL": database.dsn, "CONFIG_DIR": str(folder / "config"), "WORKERS": "1"}
        running = Running(data_dir, "serve", **more, **environment, **(plant(bug) if bug else {}))
        prepare_data_dir(data_dir, running.port)
        await stack.enter_async_context(open_bank(data_dir / KEYS, port=bank_port))
        await running.start()
        stack.push_async_callback(running.stop)
        street = Street(running, database.dsn, host)
        street.merchant = await stack.enter_async_context(Client(running, "demo-merchant"))
        yield street


def barriers(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Which way each has opened."""
    return [line["facts"]["way"] for line in lines if line["kind"] == "barrier"]
