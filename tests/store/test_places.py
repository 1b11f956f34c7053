"""Rows found again by their place: nobody moves what is locked, whoever waited has where it is now, and a place that is
not one any more is no silent loss."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.crypto.key_store import KeyStore
from gateway.domain.cards import CardStatus
from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store import idempotency, losses, operations
from gateway.store.losses import Card, Change, Wanted
from gateway.store.operations import Operation
from gateway.store.pool import FOR_EFFECTS, connect
from tests.conftest import Database
from tests.faults.waiting import until
from tests.registry import add_cards, new_card

if TYPE_CHECKING:
    from gateway.store.pool import Connection

LOST, NORMAL = CardStatus.LOST_TEMPORARY, CardStatus.NORMAL
WAYS = ("chip", "card id", "report", "twice")


class Two:
    """Two workers' connections, and a card that both of them want."""

    def __init__(self, owner: "Connection", one: "Connection", other: "Connection", card: tuple[UUID, bytes]) -> None:
        self.owner, self.one, self.other = owner, one, other
        self.card_id, self._chip = card
        self.report = UUID(bytes=uuid7(int(dt.datetime.now(dt.UTC).timestamp() * 1000), uuid4().bytes[:10]))

    async def lock(self, connection: "Connection", way: str) -> Card:
        if way == "report":
            found = await losses.lock_reported(connection, [self.report], ["demo-kiosk"], "loss_report")
            return found[0][0]
        by_chip, by_id = Wanted(chip_index=self._chip), Wanted(card_id=self.card_id)
        wanted = {"chip": [by_chip], "card id": [by_id], "twice": [by_chip, by_id]}[way]
        first, *again = (await losses.lock_wanted(connection, wanted)).values()
        assert again == [first] * (len(wanted) - 1), "one card is in one place"
        return first

    async def waits(self) -> bool:
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock'"
        return bool(await self.owner.fetchval(waiting, self.other.get_server_pid()))

    async def status(self) -> CardStatus:
        return CardStatus(await self.owner.fetchval("SELECT status FROM card WHERE card_id = $1", self.card_id))


@pytest.fixture
async def two(database: Database, keys: KeyStore) -> AsyncIterator[Two]:
    (card_id,) = await add_cards(database.dsn, keys, (new_card(),))
    settings = load({}).gateway.database
    one, other = [await connect(Secret(database.dsn), settings, name, FOR_EFFECTS) for name in ("one", "other")]
    owner = await asyncpg.connect(database.dsn)
    chip = await owner.fetchval("SELECT chip_index FROM card WHERE card_id = $1", card_id)
    both = Two(owner, one, other, (card_id, chip))
    report = Operation(both.report, "loss_report", "demo-kiosk", card_id, None, "accepted", None, NORMAL, LOST)
    await operations.record(one, [report], {})
    yield both
    for connection in (one, other, owner):
        await connection.close()


@pytest.mark.parametrize("way", WAYS)
async def test_who_has_waited_for_a_card_changes_it_where_it_is_now(two: Two, way: str) -> None:
    async with two.one.transaction():
        before = await two.lock(two.one, way)
        mine = two.other.transaction()
        await mine.start()
        waiting = asyncio.create_task(two.lock(two.other, way))
        await until(two.waits, 5, "the other one waits for the card")
        await losses.change(two.one, {before.place: Change(LOST, lost=True)}, [])
    found = await waiting
    assert (found.status, found.place != before.place) == (LOST, True)
    await losses.change(two.other, {found.place: Change(NORMAL)}, [])
    await mine.commit()
    assert await two.status() is NORMAL


async def test_a_place_that_a_card_has_left_is_refused(two: Two) -> None:
    async with two.one.transaction():
        left = (await two.lock(two.one, "chip")).place
        await losses.change(two.one, {left: Change(LOST, lost=True)}, [])
        with pytest.raises(AssertionError, match="stays in its place"):
            await losses.change(two.one, {left: Change(NORMAL)}, [])
    assert await two.status() is LOST


async def test_an_answer_whose_key_is_not_there_is_refused(two: Two) -> None:
    key = ("demo-kiosk", str(uuid4()))
    async with two.one.transaction():
        place = (await idempotency.claim(two.one, [key], [b"f" * 32]))[key]
        await operations.record(two.one, [], {place: b"the answer"})
        with pytest.raises(AssertionError, match="stays in its place"):
            await operations.record(two.one, [], {place: b"another one"})
    assert (await idempotency.stored(two.one, [key]))[key].answer_sealed == b"the answer"
