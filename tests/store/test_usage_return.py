"""Returned usage in the database: sums that later data restate, ids that are the caller's own, rows that stay."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import pytest

from gateway.domain.points import EarnRules
from gateway.domain.times import CHINA
from gateway.domain.usage import UsageLine, UsageResult
from gateway.flows import return_usage
from gateway.flows.earn_points import EarnPoints
from gateway.flows.return_usage import ReturnUsage, Taken, in_transaction
from gateway.flows.usage_lines import Given
from gateway.store.pool import FOR_EFFECTS
from gateway.store.usage_return import Known, NewEvent, Sums, usage_sums
from tests.conftest import Database
from tests.ledger import add_people

if TYPE_CHECKING:
    from gateway.store.pool import Connection

DAY = dt.datetime(2026, 11, 20, tzinfo=CHINA)
NEXT = DAY + dt.timedelta(days=1)


class Book(NamedTuple):
    app: "Connection"
    dsn: str
    cards: list[UUID]

    def given(self, line_id: str, card: int = 0, hour: float = 12, amount: int = 100, **more: object) -> Given:
        at = DAY + dt.timedelta(hours=hour)
        fields = {"scene": "market.till", "discount_fen": 1, "result": UsageResult.SUCCESS, "occurred_at": at} | more
        line = UsageLine(id=line_id, terminal_id="T", amount_fen=amount, **fields)  # type: ignore[arg-type]
        return Given(0, line, "", self.cards[card].hex)

    async def take(self, *given: Given, caller: str = "demo-bank") -> Taken:
        flow = ReturnUsage(EarnPoints(lambda: EarnRules({}, 24)))
        return await in_transaction(self.app, lambda: flow.take(self.app, caller, given))

    async def sums(self) -> list[Sums]:
        return (await usage_sums(self.app, DAY, NEXT))[1]


@pytest.fixture
async def book(database: Database) -> AsyncIterator[Book]:
    owner = await asyncpg.connect(database.dsn)
    app = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"} | FOR_EFFECTS)
    yield Book(app, database.dsn, list(await add_people(owner, 3)))
    await app.close()
    await owner.close()


FAR = DAY.astimezone(dt.timezone(dt.timedelta(hours=16)))
"""As RFC 3339 allows, and PostgreSQL does not read."""


async def test_the_offset_of_a_time_is_the_callers(book: Book) -> None:
    assert (await book.take(book.given("far", occurred_at=FAR))).created == 1
    assert await book.app.fetchval("SELECT occurred_at FROM usage_event WHERE caller_event_id = 'far'") == DAY


async def test_control_a_time_written_with_its_offset_fails_its_neighbours_too(
    book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = return_usage._event

    def with_its_offset(event_id: str, given: Given, known: Known) -> NewEvent:
        return msgspec.structs.replace(event(event_id, given, known), occurred_at=given.line.occurred_at.isoformat())

    monkeypatch.setattr(return_usage, "_event", with_its_offset)
    with pytest.raises(asyncpg.InvalidTimeZoneDisplacementValueError):
        await book.take(book.given("near"), book.given("far", occurred_at=FAR))
    assert await book.app.fetchval("SELECT count(*) FROM usage_event") == 0


async def test_late_data_and_reversals_restate_a_day(book: Book) -> None:
    await book.take(book.given("a"), book.given("b", 1, amount=50), book.given("c", 0, scene="dining.till"))
    before, first = await usage_sums(book.app, DAY, NEXT)
    assert first == [Sums("dining.till", 1, 100, 1, 1), Sums("market.till", 2, 150, 2, 2)]
    await book.take(book.given("late", 2, hour=23.99, amount=7), book.given("next", 2, hour=24))
    assert await book.sums() == [Sums("dining.till", 1, 100, 1, 1), Sums("market.till", 3, 157, 3, 3)]
    # reversed a day later: the day of the use is restated, and no other has a negative figure
    await book.take(book.given("back", 0, hour=30, reversal_of="a"))
    assert await book.sums() == [Sums("dining.till", 1, 100, 1, 1), Sums("market.till", 2, 57, 2, 2)]
    after, next_day = await usage_sums(book.app, NEXT, NEXT + dt.timedelta(days=1))
    assert next_day == [Sums("market.till", 1, 100, 1, 1)]
    assert after > before, "a figure is one of its moment"


async def test_what_failed_is_in_no_sum(book: Book) -> None:
    taken = await book.take(book.given("a", result=UsageResult.FAILED))
    assert (taken.created, await book.sums()) == (1, [])


async def test_ids_are_the_callers_own(book: Book) -> None:
    assert (await book.take(book.given("a"))).created == 1
    assert (await book.take(book.given("a", amount=5), caller="demo-transit")).created == 1
    (reject,) = (await book.take(book.given("b", reversal_of="a"), caller="demo-region")).rejected
    assert reject.code == "unknown_original", "nobody takes back another's use"


async def test_a_collision_is_tried_again_and_finds_what_the_other_wrote(book: Book) -> None:
    """Another transaction takes the id between our look and our write."""
    other = Book(await asyncpg.connect(book.dsn, server_settings={"role": "yikatong_app"}), book.dsn, book.cards)
    flow, tries = ReturnUsage(EarnPoints(lambda: EarnRules({}, 24))), 0

    async def work() -> Taken:
        nonlocal tries
        tries += 1
        await book.app.fetchval("SELECT pg_current_xact_id()")
        if tries == 1:
            await other.take(book.given("a"), book.given("back", reversal_of="a"))
            # as if the look had been before: the rows that it would have written
            await book.app.execute("INSERT INTO usage_return VALUES ('demo-bank', 'a', gen_random_uuid(), 1, now())")
        return await flow.take(book.app, "demo-bank", [book.given("a"), book.given("back", reversal_of="a")])

    try:
        taken = await in_transaction(book.app, work)
    finally:
        await other.app.close()
    assert (tries, taken.created, taken.duplicate) == (2, 0, 2)


@pytest.mark.parametrize("table", ["usage_return", "usage_reversal", "usage_event"])
async def test_rows_stay_as_they_are(book: Book, table: str) -> None:
    for change in ("DELETE FROM", "TRUNCATE"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await book.app.execute(f"{change} {table}")
    column = await book.app.fetchval(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 1", table
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await book.app.execute(f"UPDATE {table} SET {column} = NULL")  # noqa: S608 - names of ours
