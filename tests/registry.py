"""Cards of known state for tests. All synthetic: the id numbers use a county code that is not assigned."""

import datetime as dt
import os
import secrets
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import msgspec

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.crypto.sealing import Sealer, new_data_key
from gateway.domain.cards import CardStatus
from gateway.domain.ids import id_number_check
from gateway.flows.verify_card import HOLDER_COLUMN, SealedHolder
from gateway.store import data_keys

TODAY = dt.date.today()  # noqa: DTZ011 - only to be far from the edges
FAR = TODAY + dt.timedelta(days=2000)


class TestCard(NamedTuple):
    """A card and what a verify of it must say."""

    number: str
    identifier: str
    reason: str = "ok"
    status: CardStatus = CardStatus.NORMAL
    generation: int = 3
    valid_until: dt.date = FAR
    region: str = "330424"
    name: str = "张三"
    birth_date: dt.date = dt.date(TODAY.year - 65, 1, 1)
    source_id: int = 1
    id_number: str = ""
    """Of its holder; empty: one of chance, and nobody asks for it."""


TestCard.__test__ = False  # type: ignore[attr-defined]  # pytest: a class of values, not of tests


def identifier(number: int, region: str = "330424") -> str:
    return f"{region}D156000005{number:016X}"


CARDS = (
    TestCard("AB1234567", identifier(0xA1)),
    TestCard("AB1234568", identifier(0xA2), generation=2, name="欧阳小明", birth_date=dt.date(TODAY.year - 30, 1, 1)),
    TestCard("AB1234569", identifier(0xA3), "not_activated", CardStatus.SEALED),
    TestCard("AB1234570", identifier(0xA4), "lost_formal", CardStatus.LOST_FORMAL),
    TestCard("AB1234571", identifier(0xA5), "locked", CardStatus.LOCKED),
    TestCard("AB1234572", identifier(0xA6), "lost_temporary", CardStatus.LOST_TEMPORARY),
    TestCard("AB1234573", identifier(0xA7), "void", CardStatus.VOID),
    TestCard("AB1234574", identifier(0xA8), "cancelled", CardStatus.CANCELLED),
    TestCard("AB1234575", identifier(0xA9), "expired", valid_until=TODAY - dt.timedelta(days=3)),
    TestCard("AB1234576", identifier(0xAA), "status_stale", source_id=3),
    TestCard("CD7654321", identifier(0xB1, "310104"), region="310104", source_id=2),
)

LOSABLE = TestCard("EF0000001", identifier(0xC1), id_number="330499196001010014")
"""Reported and released by whoever likes: nobody relies on its state."""


_given: set[str] = set()


def new_id_number(birth_date: dt.date) -> str:
    """None twice in one process: among tens of thousands two would be alike, and a person's number is its own."""
    for _ in range(1000):
        first17 = f"330499{birth_date:%Y%m%d}{secrets.randbelow(1000):03}"
        if first17 not in _given:
            break
    _given.add(first17)
    return first17 + id_number_check(first17)


def new_card(status: CardStatus = CardStatus.NORMAL, **more: Any) -> TestCard:
    """A card that no other test knows, with its holder's id number."""
    chance = int.from_bytes(os.urandom(8), "big")
    birth_date = dt.date(1930, 1, 1) + dt.timedelta(days=chance % 30_000)
    return TestCard(
        f"LR{chance % 10**7:07}", identifier(chance), status=status, birth_date=birth_date,
        id_number=new_id_number(birth_date), **more,
    )  # fmt: skip


async def add_sources(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """1 and 2 are fresh; 3 is an upstream that has said nothing for a week."""
    await connection.execute(
        "INSERT INTO registry_source VALUES (1, 'county', now()), (2, 'elsewhere', now()),"
        " (3, 'silent', now() - interval '7 days') ON CONFLICT DO NOTHING"
    )


async def add_cards(dsn: str, keys: KeyStore, cards: tuple[TestCard, ...] = CARDS) -> list[UUID]:
    """Insert cards as the registry keeps them; returns their ids."""
    index, sealer, ids = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1]), Sealer(), []
    connection = await asyncpg.connect(dsn)
    try:
        await add_sources(connection)
        key_id = await data_keys.for_month(connection, "registry", TODAY, new_data_key(keys))
        sealer.add(await data_keys.load(connection), keys)
        for card in cards:
            person, card_id = uuid4(), uuid4()
            ids.append(card_id)
            id_number = card.id_number or new_id_number(card.birth_date)
            holder = msgspec.json.encode(SealedHolder(card.name, card.birth_date))
            await connection.execute(
                "INSERT INTO person VALUES ($1, $2, $3, $4, '武原')",
                person, index.id_number(card.id_number or id_number + str(person)),
                sealer.seal(key_id, b"person.id_number_sealed", person.bytes, id_number.encode()), card.birth_date.year,
            )  # fmt: skip
            await connection.execute(
                "INSERT INTO card VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                card_id, person, index.chip(card.number, card.identifier), index.number(card.number),
                sealer.seal(key_id, b"card.number_sealed", card_id.bytes, card.number.encode()),
                sealer.seal(key_id, b"card.identifier_sealed", card_id.bytes, card.identifier.encode()),
                sealer.seal(key_id, HOLDER_COLUMN, card_id.bytes, holder),
                card.generation, card.status.value, dt.datetime.now(dt.UTC) - dt.timedelta(days=30),
                dt.date(2022, 1, 1), card.valid_until, card.region, card.source_id,
            )  # fmt: skip
    finally:
        await connection.close()
    return ids
