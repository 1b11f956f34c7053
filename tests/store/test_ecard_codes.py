"""E-card codes in the verify statement, on a real database: claimed once, judged by the physical card's state."""

import asyncio
import datetime as dt
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.domain.cards import STATUS_REASON, CardStatus
from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store import ecards, idempotency, verify
from gateway.store.ecards import Wanted
from gateway.store.pool import connect
from gateway.store.verify import Presented, verify_batch
from tests.conftest import Database
from tests.registry import CARDS, TestCard, add_cards, new_card

if TYPE_CHECKING:
    from gateway.store.pool import Connection

MAX_AGE = dt.timedelta(days=1)
CODES = 8
AT_ONCE = 64


@pytest.fixture
async def connection(database: Database) -> AsyncIterator["Connection"]:
    made = await connect(Secret(database.dsn), load({}).gateway.database, "test")
    yield made
    await made.close()


async def sign_on(dsn: str, card_ids: Sequence[UUID]) -> None:
    owner = await asyncpg.connect(dsn)
    await owner.executemany("INSERT INTO ecard VALUES ($1, 1, '2022-01-01')", [(card_id,) for card_id in card_ids])
    await owner.close()


async def add_ecards(database: Database, keys: KeyStore, cards: tuple[TestCard, ...]) -> list[UUID]:
    ids = await add_cards(database.dsn, keys, cards)
    await sign_on(database.dsn, ids)
    return ids


def shown(card_id: UUID | None, digest: bytes = b"", **changes: str) -> Presented:
    """A code that the platform has approved, for this card."""
    now_us = int(dt.datetime.now(dt.UTC).timestamp() * 1_000_000)
    made = Presented(
        str(uuid4()), "", card_id.hex if card_id else "", "demo-merchant", "parking.exit", "P-1", str(now_us),
        "14", "", "ecard", (digest or os.urandom(32)).hex(),
    )  # fmt: skip
    return made._replace(**changes)


async def judge(connection: Any, *batch: Presented) -> list[tuple[Any, ...]]:
    """(reason, card_id, medium) of each."""
    return [tuple(row)[:3] for row in await verify_batch(connection, batch, MAX_AGE, 5)]


@pytest.mark.parametrize("status", CardStatus, ids=lambda status: status.name)
async def test_an_ecard_follows_its_physical_card(
    database: Database, keys: KeyStore, connection: "Connection", status: CardStatus
) -> None:
    (card_id,) = await add_ecards(database, keys, (new_card(status),))
    assert await judge(connection, shown(card_id)) == [(STATUS_REASON[status].value, card_id, "ecard")]


async def test_who_has_signed_no_ecard_is_refused(database: Database, keys: KeyStore, connection: "Connection") -> None:
    card, lost = await add_cards(database.dsn, keys, (new_card(), new_card(CardStatus.LOST_TEMPORARY)))
    found = await judge(connection, shown(card), shown(lost))
    assert found == [("not_activated", card, "ecard"), ("lost_temporary", lost, "ecard")]


async def test_a_scene_may_refuse_ecards(database: Database, keys: KeyStore, connection: "Connection") -> None:
    (card_id,) = await add_ecards(database, keys, (new_card(),))
    found = await judge(connection, shown(card_id, media="12"), shown(card_id, media="2"))
    assert [row[0] for row in found] == ["scene_not_allowed", "ok"]


@pytest.mark.parametrize("reason", ["code_expired", "code_replayed", "code_invalid", "platform_unavailable"])
async def test_what_was_found_before_the_card_goes_first(connection: "Connection", reason: str) -> None:
    assert await judge(connection, shown(None, preset=reason, code_digest="")) == [(reason, None, "ecard")]


async def test_an_approved_code_of_a_card_we_do_not_know_is_unrecognised_and_used_up(connection: "Connection") -> None:
    digest = os.urandom(32)
    assert await judge(connection, shown(None, digest)) == [("unrecognised", None, "ecard")]
    assert await judge(connection, shown(None, digest)) == [("code_replayed", None, "ecard")]


async def test_the_second_of_a_batch_is_a_replay_and_learns_nothing_of_the_card(
    database: Database, keys: KeyStore, connection: "Connection"
) -> None:
    (card_id,) = await add_ecards(database, keys, (new_card(),))
    digest = os.urandom(32)
    found = await judge(connection, shown(card_id, digest), shown(card_id), shown(card_id, digest))
    assert found == [("ok", card_id, "ecard"), ("ok", card_id, "ecard"), ("code_replayed", None, "ecard")]
    rows = await connection.fetch("SELECT reason, card_id, medium FROM usage_event ORDER BY reason")
    assert [tuple(row) for row in rows] == [("code_replayed", None, "ecard")] + [("ok", card_id, "ecard")] * 2


async def test_chip_cards_beside_a_reference_or_a_code_are_judged_as_ever(
    database: Database, keys: KeyStore, connection: "Connection"
) -> None:
    """All their reasons, by the statement for chip cards, by the one with references, and by the one with codes."""
    card_id, *_ = await add_cards(database.dsn, keys, CARDS)
    index = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1])

    def chips() -> list[Presented]:
        return [
            shown(None, chip_index=index.chip(card.number, card.identifier).hex(), medium="", code_digest="")
            for card in CARDS
        ]

    def referred() -> Presented:
        return shown(card_id, medium="", code_digest="")

    alone = await judge(connection, *chips())
    beside = await judge(connection, *chips(), referred())
    with_code = await judge(connection, *chips(), referred(), shown(None))
    assert [row[0] for row in alone] == [card.reason for card in CARDS]
    assert beside == [*alone, alone[0]]
    assert with_code[:-1] == beside


async def was_used(connection: "Connection", digest: bytes) -> bool:
    (found,) = await ecards.look(connection, [Wanted(code_digest=digest)], 5)
    assert found.card_id is None
    return found.used


async def test_a_key_is_its_callers_own(connection: "Connection") -> None:
    """Two callers may have the same: what one has used says nothing of the other's."""
    key, other = "key-1", "key-2"
    async with connection.transaction():
        await idempotency.claim(connection, [("one", key), ("two", other)], [b"f" * 32] * 2)
    asked = [("one", key), ("two", key), ("two", other), ("one", other)]
    found = await ecards.look(connection, [Wanted(caller=caller, key=name) for caller, name in asked], 5)
    assert [each.used for each in found] == [True, False, True, False]


async def storm(database: Database, card_id: UUID) -> Counter[str]:
    """Codes, each presented at once on many connections: how often each was said to be valid, by code."""
    settings = load({}).gateway.database
    digests = [os.urandom(32) for _ in range(CODES)]
    connections = await asyncio.gather(*(connect(Secret(database.dsn), settings, "storm") for _ in range(AT_ONCE // 4)))

    async def present(place: int, one: "Connection") -> list[str]:
        # each batch has every code, in an order of its own: claims in that order would wait in a circle
        batch = [shown(card_id, digests[(place + step) % CODES]) for step in range(CODES)]
        turns = [await judge(one, *batch) for _ in range(4)]
        return [
            presented.code_digest
            for turn in turns
            for presented, row in zip(batch, turn, strict=True)
            if row[0] == "ok"
        ]  # fmt: skip

    found = await asyncio.gather(*(present(place, one) for place, one in enumerate(connections)))
    await asyncio.gather(*(one.close() for one in connections))
    return Counter({digest.hex(): 0 for digest in digests}) + Counter(digest for one in found for digest in one)


async def test_each_code_is_good_once_over_many_connections(database: Database, keys: KeyStore) -> None:
    (card_id,) = await add_ecards(database, keys, (new_card(),))
    valid = await storm(database, card_id)
    assert len(valid) == CODES and set(valid.values()) == {1}


async def test_control_a_claim_that_looks_before_it_inserts_is_noticed(
    database: Database, keys: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (card_id,) = await add_ecards(database, keys, (new_card(),))
    owner = await asyncpg.connect(database.dsn)
    await owner.execute("ALTER TABLE code_use DROP CONSTRAINT code_use_pkey")
    await owner.close()
    looked = verify._SQL_WITH_CODES.replace(
        "FROM coded ORDER BY",
        # between the look and the insert there is time for the others to look
        "FROM coded WHERE code_digest NOT IN (SELECT code_digest FROM code_use) AND pg_sleep(0.02)::text = '' ORDER BY",
    )
    assert looked != verify._SQL_WITH_CODES
    monkeypatch.setattr(verify, "_SQL_WITH_CODES", looked)
    valid = await storm(database, card_id)
    assert max(valid.values()) > 1


async def test_a_claim_goes_with_its_event(database: Database, keys: KeyStore, connection: "Connection") -> None:
    """What is rolled back has claimed nothing: the code may be presented again."""
    (card_id,) = await add_ecards(database, keys, (new_card(),))
    digest = os.urandom(32)
    undone = connection.transaction()
    await undone.start()
    assert (await judge(connection, shown(card_id, digest)))[0][0] == "ok"
    await undone.rollback()
    assert not await was_used(connection, digest)
    assert (await judge(connection, shown(card_id, digest)))[0][0] == "ok"
    assert await was_used(connection, digest)


async def test_a_claim_is_swept_after_a_day(database: Database, connection: "Connection") -> None:
    owner = await asyncpg.connect(database.dsn)
    await owner.executemany(
        "INSERT INTO code_use VALUES ($1, $2, now() - make_interval(hours => 24, mins => $3))",
        [(bytes([place]) * 32, uuid4(), minutes) for place, minutes in enumerate([1, 5, 600, -1, -600])],
    )
    await owner.close()
    assert [await ecards.sweep(connection, 2) for _ in range(3)] == [2, 1, 0]
    assert [await was_used(connection, bytes([place]) * 32) for place in range(5)] == [False] * 3 + [True] * 2


async def test_the_application_cannot_give_a_code_back(connection: "Connection") -> None:
    """It may delete what is old, for the sweep; it never changes a claim."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("UPDATE code_use SET used_at = now()")


async def test_the_card_of_a_person_by_its_number(database: Database, keys: KeyStore, connection: "Connection") -> None:
    """A replaced card keeps its number: the one that is not cancelled; and both numbers have to belong together."""
    index = BlindIndex(keys.working_keys(KeyUse.INDEX)[-1])
    card, other = new_card(), new_card()
    card_id, _ = await add_cards(database.dsn, keys, (card, other))
    owner = await asyncpg.connect(database.dsn)
    await owner.execute(
        "INSERT INTO card SELECT gen_random_uuid(), person_id, sha256(chip_index), number_index, number_sealed,"
        " identifier_sealed, holder_sealed, generation, 9, status_as_of, issued_on + 100, valid_until, region,"
        " source_id FROM card WHERE card_id = $1", card_id,
    )  # fmt: skip
    await owner.close()

    async def find(number: str, id_number: str) -> UUID | None:
        wanted = Wanted(None, index.number(number), index.id_number(id_number))
        nothing, found = await ecards.look(connection, [Wanted(), wanted], 5)
        assert nothing == (False, None) and not found.used
        return found.card_id

    assert await find(card.number, card.id_number) == card_id
    assert await find(card.number, other.id_number) is None
    assert await find("ZZ0000000", card.id_number) is None


def test_the_ordinary_statement_knows_nothing_of_references_and_codes() -> None:
    """Chip cards do not pay for them: their lines are comments."""
    lines = [line for line in Path(verify.__file__).with_suffix(".sql").read_text().splitlines() if "--" not in line]
    assert "code_" not in "\n".join(lines) and "FROM card WHERE card_id" not in "\n".join(lines)
    for statement, marks in ((verify._SQL_WITH_REFS, ("\n--ref",)), (verify._SQL_WITH_CODES, ("\n--ref", "\n--code"))):
        assert "FROM card WHERE card_id" in statement
        assert not any(mark in statement for mark in marks)
    assert "code_use" in verify._SQL_WITH_CODES
