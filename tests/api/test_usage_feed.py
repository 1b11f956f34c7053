"""GET /v1/usage-events: the bureau's feed, in commit order, without gaps."""

import asyncio
import datetime as dt
import re
import secrets
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.store import usage_events
from gateway.store.usage_events import Cursor
from gateway.store.verify import Presented, verify_batch
from tests.conftest import Database
from tests.registry import CARDS
from tests.running import Client, verify_body

OK, SECOND = CARDS[0], CARDS[1]
CURSOR = re.compile("[0-9a-f]{48}")
FIRST = Cursor(0, UUID(int=0))


async def end_of_feed(bureau: Client, marker: Client) -> str:
    """A cursor behind everything so far."""
    await bureau.events_at("P-nowhere", marker)
    page, cursor = await bureau.feed(), ""
    while page["items"]:
        cursor = page["next"]
        page = await bureau.feed(cursor)
    return cursor


async def after(bureau: Client, cursor: str, limit: int) -> tuple[list[dict[str, Any]], list[int]]:
    """All events behind a cursor, and the sizes of the pages they came in."""
    items: list[dict[str, Any]] = []
    sizes = []
    while True:
        page = await bureau.feed(cursor, limit)
        assert page.keys() == {"items", "next", "more"} and CURSOR.fullmatch(page["next"])
        assert len(page["items"]) <= limit
        items += page["items"]
        sizes.append(len(page["items"]))
        if not page["more"]:
            return items, sizes
        cursor = page["next"]


async def test_an_event_says_what_the_contract_says_and_no_more(merchant: Client, bureau: Client) -> None:
    at = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=3)
    card, terminal = SECOND, "P-fields"
    answer = await merchant.verify(
        card.number, card.identifier, "library.loan", terminal_id=terminal, occurred_at=at.isoformat()
    )
    (event,) = await bureau.events_at(terminal, merchant)
    recorded, card_ref = dt.datetime.fromisoformat(event.pop("recorded_at")), event.pop("card_ref")
    assert event == {
        "event_id": answer["event_id"], "kind": "verify", "caller": "demo-merchant", "medium": "second_gen",
        "region": "330424", "scene": "library.loan", "terminal_id": terminal,
        "occurred_at": at.astimezone(dt.timezone(dt.timedelta(hours=8))).isoformat(),
        "verdict": "valid", "reason": "ok",
    }  # fmt: skip
    assert abs(dt.datetime.now(dt.UTC) - recorded) < dt.timedelta(minutes=1)
    assert recorded.utcoffset() == dt.timedelta(hours=8)
    assert re.fullmatch("[a-z][0-9a-f]{32}", card_ref)
    assert card_ref != answer["card_ref"], "the bureau has a pseudonym of its own for the card"


async def test_what_does_not_apply_is_absent(merchant: Client, bureau: Client) -> None:
    terminal = "P-absent"
    await merchant.verify("QX1111111", OK.identifier, terminal_id=terminal)
    (event,) = await bureau.events_at(terminal, merchant)
    assert event.keys() == {
        "event_id", "kind", "caller", "scene", "terminal_id", "occurred_at", "recorded_at", "verdict", "reason",
    }  # fmt: skip
    assert (event["verdict"], event["reason"]) == ("refused", "unrecognised")


async def test_one_card_has_one_reference_in_the_feed_whoever_verified_it(
    merchant: Client, kiosk: Client, bureau: Client
) -> None:
    terminal = "P-one-card"
    for client in (merchant, kiosk):
        await client.verify(OK.number, OK.identifier, "library.loan", terminal_id=terminal)
    await merchant.verify(SECOND.number, SECOND.identifier, terminal_id=terminal)
    refs = [event["card_ref"] for event in await bureau.events_at(terminal, merchant)]
    assert refs[0] == refs[1] != refs[2]


@pytest.mark.parametrize("limit", [1, 3, 10, 11, 1000])
async def test_pages_of_any_size_show_the_same_events_in_the_same_order(
    merchant: Client, bureau: Client, limit: int
) -> None:
    start = await end_of_feed(bureau, merchant)
    asked = [(await merchant.verify(OK.number, OK.identifier))["event_id"] for _ in range(10)]
    await bureau.events_at("P-nowhere", merchant)
    items, sizes = await after(bureau, start, limit)
    # one after the other is also the order of commits; the marker of events_at comes last
    assert [item["event_id"] for item in items[:-1]] == asked
    assert sizes[:-1] == [limit] * (11 // limit if limit < 11 else len(sizes) - 1)


async def test_the_cursor_of_an_empty_page_may_be_kept(merchant: Client, bureau: Client) -> None:
    end = await end_of_feed(bureau, merchant)
    for _ in range(3):
        page = await bureau.feed(end)
        assert page == {"items": [], "next": end, "more": False}
    answer = await merchant.verify(OK.number, OK.identifier)
    await bureau.events_at("P-nowhere", merchant)
    assert (await bureau.feed(end))["items"][0]["event_id"] == answer["event_id"]


async def test_a_cursor_from_the_future_is_told_of(merchant: Client, bureau: Client) -> None:
    """Damaged, or kept while the database was restored to an earlier time: its reader would wait in silence."""
    cursor = await end_of_feed(bureau, merchant)
    headers = await bureau.authorization()
    for ahead, status in [(0, 200), (1_000_000, 409)]:
        after = f"{int(cursor[:16], 16) + ahead:016x}{cursor[16:]}"
        async with bureau.session.get(f"/v1/usage-events?after={after}", headers=headers) as answer:
            assert answer.status == status
            assert (await answer.json()).get("code") == ("cursor_ahead" if ahead else None)


async def test_a_cursor_gives_the_same_page_again(merchant: Client, bureau: Client) -> None:
    for _ in range(3):
        await merchant.verify(OK.number, OK.identifier)
    await bureau.events_at("P-nowhere", merchant)
    assert await bureau.feed(None, 3) == await bureau.feed(None, 3)
    assert await bureau.feed("0" * 48, 3) == await bureau.feed(None, 3)


async def test_more_says_whether_to_ask_at_once(merchant: Client, bureau: Client) -> None:
    start = await end_of_feed(bureau, merchant)
    for _ in range(4):
        await merchant.verify(OK.number, OK.identifier)
    await bureau.events_at("P-nowhere", merchant)
    assert (await bureau.feed(start, 2))["more"] is True
    assert (await bureau.feed(start, 1000))["more"] is False


WRITERS, EACH = 16, 40


async def write(client: Client, number: int) -> list[str]:
    """Verdicts one after the other; every fourth with an idempotency key, whose transaction is a longer one."""
    ids = []
    for turn in range(EACH):
        key = {"Idempotency-Key": secrets.token_hex(8)} if turn % 4 == 3 else {}
        body = verify_body(OK.number, OK.identifier, terminal_id=f"P-busy-{number}")
        status, answer, _ = await client.post("/v1/cards/verify", body, **key)
        assert status in (200, 503), answer  # a pool that is used up is an honest answer, without an event
        if status == 200:
            ids.append(answer["event_id"])
    return ids


async def read_until(bureau: Client, cursor: str, written: "asyncio.Future[list[list[str]]]") -> list[str]:
    """Page all the time, until nothing has come for a while after the last write."""
    seen: list[str] = []
    wanted: set[str] | None = None
    async with asyncio.timeout(60):
        while wanted is None or not wanted <= set(seen):
            if wanted is None and written.done():
                wanted = {event_id for ids in written.result() for event_id in ids}
            page = await bureau.feed(cursor, 7)
            cursor = page["next"]
            seen += [item["event_id"] for item in page["items"]]
    return seen


async def test_a_reader_misses_nothing_while_sixteen_writers_are_busy(merchant: Client, bureau: Client) -> None:
    start = await end_of_feed(bureau, merchant)
    written = asyncio.gather(*(write(merchant, number) for number in range(WRITERS)))
    seen = await read_until(bureau, start, written)
    answered = [event_id for ids in await written for event_id in ids]
    assert len(answered) > WRITERS * EACH / 2
    assert len(seen) == len(set(seen)), "an event was shown twice"
    assert set(seen) == set(answered)
    later, _ = await after(bureau, start, 1000)
    assert [item["event_id"] for item in later] == seen, "the order of a later reading is another one"


NAIVE = """
SELECT position, event_id FROM usage_event WHERE (position, event_id) > ($1, $2) ORDER BY position, event_id LIMIT 100
"""
"""The feed's statement as it would be without its horizon."""


def presented() -> Presented:
    return Presented(
        str(uuid4()), "00" * 32, "", "demo-merchant", "parking.exit", "P-late", "1700000000000000", "14", "", ""
    )


class Reader:
    """Keeps its place in the feed, with or without a horizon."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", horizon: bool) -> None:
        self.connection = connection
        self.horizon = horizon
        self.cursor = FIRST
        self.seen: list[str] = []

    async def read(self) -> None:
        if self.horizon:
            rows = await usage_events.page(self.connection, self.cursor, 100)
            found = [Cursor(row.position, row.event_id) for row in rows]
        else:
            found = [Cursor(*row) for row in await self.connection.fetch(NAIVE, *self.cursor)]
        self.seen += [str(cursor.event_id) for cursor in found]
        self.cursor = found[-1] if found else self.cursor


async def test_an_event_that_commits_late_is_lost_without_the_horizon_and_not_with_it(database: Database) -> None:
    """The control: two transactions commit in the other order than they began in."""
    early, late, connection = [await asyncpg.connect(database.dsn) for _ in range(3)]
    ours, naive = Reader(connection, True), Reader(connection, False)
    age = dt.timedelta(days=1)
    first, second = presented(), presented()
    try:
        slow = early.transaction()
        await slow.start()
        await verify_batch(early, [first], age, 5)
        await verify_batch(late, [second], age, 5)
        for reader in (ours, naive):
            await reader.read()
        assert naive.seen == [second.event_id]
        assert ours.seen == [], "it waits for the transaction that is still running"
        await slow.commit()
        for reader in (ours, naive):
            await reader.read()
        assert ours.seen == [first.event_id, second.event_id]
        assert naive.seen == [second.event_id], "the planted reader should have lost the late event"
    finally:
        for opened in (early, late, connection):
            await opened.close()


async def test_the_lag_of_the_feed_is_the_age_of_what_it_holds_back(database: Database) -> None:
    early, late, connection = [await asyncpg.connect(database.dsn) for _ in range(3)]
    try:
        async with early.transaction():
            await early.execute("SELECT pg_current_xact_id()")
            await verify_batch(late, [presented()], dt.timedelta(days=1), 5)
            assert await usage_events.feed_lag_s(connection) > 0
        assert await usage_events.feed_lag_s(connection) == 0
    finally:
        for opened in (early, late, connection):
            await opened.close()
