"""Capped benefits on a real database: claimed exactly up to their caps, whoever asks at the same instant."""

import asyncio
import datetime as dt
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.crypto.key_store import KeyStore
from gateway.domain.benefits import CapHolder, Counter, Refusal, Span
from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store import benefits
from gateway.store.benefits import Want
from gateway.store.pool import FOR_EFFECTS, connect
from tests.conftest import Database
from tests.registry import add_cards, new_card

if TYPE_CHECKING:
    from gateway.store.pool import Connection

DAY = dt.date(2026, 11, 23)
MONTH = DAY.replace(day=1)
AT_ONCE = 8


class Shop:
    """Connections to claim with, and the cards of some people."""

    def __init__(self, database: Database, cards: list[UUID], tills: "list[Connection]") -> None:
        self.dsn, self.cards, self.tills = database.dsn, cards, tills

    async def claim(self, *wants: Want, till: int = 0) -> list[dict[str, Refusal] | None]:
        return await benefits.claim_batch(self.tills[till], wants, 10)

    async def sums(self) -> dict[tuple[str, str], tuple[int, int]]:
        """By benefit and span: (what the counts say, what the record says)."""
        owner = await asyncpg.connect(self.dsn)
        try:
            used = await owner.fetch("SELECT benefit, span, sum(used)::int AS n FROM benefit_use GROUP BY 1, 2")
            kept = await owner.fetch("SELECT benefit, span, sum(delta)::int AS n FROM benefit_claim GROUP BY 1, 2")
        finally:
            await owner.close()
        recorded = {(row["benefit"], row["span"]): row["n"] for row in kept}
        return {(row[0], row[1]): (row["n"], recorded.get((row[0], row[1]), 0)) for row in used}


@pytest.fixture
async def shop(database: Database, keys: KeyStore) -> AsyncIterator[Shop]:
    cards = await add_cards(database.dsn, keys, tuple(new_card() for _ in range(6)))
    settings = load({}).gateway.database
    tills = [await connect(Secret(database.dsn), settings, "till", FOR_EFFECTS) for _ in range(AT_ONCE)]
    yield Shop(database, cards, tills)
    for till in tills:
        await till.close()


def source() -> UUID:
    now = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    return UUID(bytes=uuid7(now, random.randbytes(10)))


def counter(span: Span = Span.DAY, most: int = 1, benefit: str = "a.b", per: CapHolder = CapHolder.PERSON) -> Counter:
    since = MONTH if span is Span.MONTH else DAY
    return Counter(benefit, span, since, None if span is Span.TOTAL else per, most)


def want(card: UUID, *counters: Counter) -> Want:
    return Want(source(), card, [counters])


async def test_the_first_gets_it_and_a_second_day_begins_anew(shop: Shop) -> None:
    first, second = await shop.claim(want(shop.cards[0], counter()), want(shop.cards[0], counter()))
    assert (first, second) == ({}, {"a.b": Refusal.CAP_DAY})
    assert await shop.claim(want(shop.cards[0], counter())) == [{"a.b": Refusal.CAP_DAY}]
    tomorrow = counter()._replace(since=DAY + dt.timedelta(days=1))
    assert await shop.claim(want(shop.cards[0], tomorrow), want(shop.cards[1], counter())) == [{}, {}]


async def test_a_replaced_card_does_not_bring_it_back_but_where_the_card_counts(shop: Shop) -> None:
    owner = await asyncpg.connect(shop.dsn)
    await owner.execute(
        "UPDATE card SET person_id = (SELECT person_id FROM card WHERE card_id = $1) WHERE card_id = $2",
        shop.cards[0], shop.cards[1],
    )  # fmt: skip
    await owner.close()
    by_card = counter(benefit="a.card", per=CapHolder.CARD)
    for card, expected in ((shop.cards[0], {}), (shop.cards[1], {"a.b": Refusal.CAP_DAY})):
        assert await shop.claim(Want(source(), card, [[counter()], [by_card]])) == [expected]


async def test_all_counts_are_raised_or_none(shop: Shop) -> None:
    card = shop.cards[0]
    all_three = [counter(Span.DAY, 1), counter(Span.MONTH, 5), counter(Span.TOTAL, 2)]
    assert await shop.claim(*(want(each, *all_three) for each in (card, card, *shop.cards[1:3]))) == [
        {}, {"a.b": Refusal.CAP_DAY}, {}, {"a.b": Refusal.CAP_TOTAL},
    ]  # fmt: skip
    assert await shop.claim(want(shop.cards[3], *all_three)) == [{"a.b": Refusal.CAP_TOTAL}]
    assert await shop.sums() == {("a.b", "day"): (2, 2), ("a.b", "month"): (2, 2), ("a.b", "total"): (2, 2)}


async def test_a_cap_that_was_lowered_or_raised_counts_at_once(shop: Shop) -> None:
    card = shop.cards[0]
    assert await shop.claim(*(want(card, counter(most=3)) for _ in range(2))) == [{}, {}]
    assert await shop.claim(want(card, counter(most=1))) == [{"a.b": Refusal.CAP_DAY}]
    assert await shop.claim(*(want(card, counter(most=4)) for _ in range(3))) == [{}, {}, {"a.b": Refusal.CAP_DAY}]


@pytest.mark.parametrize("mosts", sorted(set(itertools.permutations((1, 3, 3, 3)))))
async def test_a_batch_with_a_caps_old_and_new_value_gives_each_what_its_own_leaves(
    shop: Shop, mosts: tuple[int, ...]
) -> None:
    """Workers take up a change within seconds of each other, and what waits may have been asked before it."""
    given = 0
    for _ in range(3):
        refused = []
        for most in mosts:
            refused.append({} if given < most else {"a.b": Refusal.CAP_DAY})
            given += given < most
        assert await shop.claim(*(want(shop.cards[0], counter(most=most)) for most in mosts)) == refused
        assert await shop.sums() == {("a.b", "day"): (given, given)}


async def test_exactly_the_caps_are_given_to_all_who_ask_at_once(shop: Shop) -> None:
    """Batches of several tills, over the same people, in different orders: no cap is passed, nobody waits for ever."""
    asked = {
        "a.day": [counter(Span.DAY, 2, "a.day")], "a.month": [counter(Span.MONTH, 5, "a.month")],
        "a.total": [counter(Span.TOTAL, 7, "a.total")],
    }  # fmt: skip

    def batch(chance: random.Random) -> Sequence[Want]:
        wants = [Want(source(), card, list(asked.values())) for card in shop.cards]
        return chance.sample(wants, len(wants))

    async def till(number: int) -> list[dict[str, Refusal]]:
        chance, answers = random.Random(number), []
        for _ in range(8):
            answers += [refused or {} for refused in await shop.claim(*batch(chance), till=number)]
        return answers

    answers = [refused for each in await asyncio.gather(*map(till, range(AT_ONCE))) for refused in each]
    assert len(answers) == AT_ONCE * 8 * 6
    given = {name: sum(name not in refused for refused in answers) for name in asked}
    assert given == {"a.day": 2 * 6, "a.month": 5 * 6, "a.total": 7}
    assert await shop.sums() == {
        ("a.day", "day"): (12, 12), ("a.month", "month"): (30, 30), ("a.total", "total"): (7, 7)
    }  # fmt: skip


async def test_what_is_given_back_may_be_taken_again_once(shop: Shop) -> None:
    taken = Want(source(), shop.cards[0], [[counter(), counter(Span.TOTAL, 1)]])
    assert await shop.claim(taken) == [{}]

    async def give_back(till: int) -> None:
        async with shop.tills[till].transaction():
            await benefits.give_back(shop.tills[till], [taken.source])

    await asyncio.gather(*map(give_back, range(AT_ONCE)))
    assert await shop.sums() == {("a.b", "day"): (0, 0), ("a.b", "total"): (0, 0)}
    again = [want(shop.cards[0], counter(), counter(Span.TOTAL, 1)) for _ in range(2)]
    assert await shop.claim(*again) == [{}, {"a.b": Refusal.CAP_DAY}]
    await give_back(0)
    assert (await shop.sums())["a.b", "day"] == (1, 1)


async def test_many_give_back_together(shop: Shop) -> None:
    taken = [want(card, counter(Span.TOTAL, 9), counter()) for card in shop.cards]
    assert await shop.claim(*taken) == [{}] * 6
    async with shop.tills[0].transaction():
        await benefits.give_back(shop.tills[0], [each.source for each in taken[:4]])
    assert await shop.sums() == {("a.b", "day"): (2, 2), ("a.b", "total"): (2, 2)}


async def test_of_alternatives_the_first_that_is_left_is_claimed(shop: Shop) -> None:
    card, options = shop.cards[0], [[counter(benefit="a.best")], [counter(benefit="a.next")]]
    assert await shop.claim(*(Want(source(), card, options, only_one=True) for _ in range(3))) == [
        {}, {"a.best": Refusal.CAP_DAY}, {"a.best": Refusal.CAP_DAY, "a.next": Refusal.CAP_DAY}
    ]  # fmt: skip
    assert await shop.sums() == {("a.best", "day"): (1, 1), ("a.next", "day"): (1, 1)}


async def test_who_stands_still_with_a_count_holds_up_no_other(shop: Shop) -> None:
    """Its transaction is open: whoever wants the same count is not given it, and its mates of the batch are."""
    await shop.tills[1].execute("SET lock_timeout = 50")
    async with shop.tills[0].transaction():
        await benefits.claim(shop.tills[0], [want(shop.cards[0], counter(most=2))])
        wants = [want(card, counter(most=2)) for card in shop.cards]
        assert await shop.claim(*wants, till=1) == [None, {}, {}, {}, {}, {}]
    assert await shop.claim(wants[0], till=1) == [{}]
    assert await shop.sums() == {("a.b", "day"): (7, 7)}


async def test_nothing_is_given_back_of_who_took_nothing(shop: Shop) -> None:
    async with shop.tills[0].transaction():
        await benefits.give_back(shop.tills[0], [source(), source()])
    assert await shop.sums() == {}


async def test_the_database_itself_refuses_more_than_the_cap(shop: Shop) -> None:
    """Whatever a gateway with a mistake does."""
    await shop.claim(want(shop.cards[0], counter()))
    with pytest.raises(asyncpg.CheckViolationError):
        await shop.tills[0].execute("UPDATE benefit_use SET used = used + 1")
    for statement in ("UPDATE benefit_claim SET delta = -1", "DELETE FROM benefit_claim"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await shop.tills[0].execute(statement)


async def test_a_batch_that_fails_takes_nothing(shop: Shop) -> None:
    with pytest.raises(AssertionError, match="each card is there"):
        await shop.claim(want(shop.cards[0], counter()), want(uuid4(), counter()))
    assert await shop.claim(want(shop.cards[0], counter())) == [{}]


async def test_old_counts_are_swept_and_the_record_stays(shop: Shop) -> None:
    today = dt.datetime.now(dt.UTC).date()
    days = [today - dt.timedelta(days=benefits.KEPT_DAYS + 1 + ago) for ago in range(3)]
    await shop.claim(*(want(shop.cards[0], counter()._replace(since=day)) for day in [*days, today]))
    assert [await benefits.sweep(shop.tills[0], 2) for _ in range(3)] == [2, 1, 0]
    assert await shop.sums() == {("a.b", "day"): (1, 4)}
