"""Points for uses: once for an event, by rule and within the day's limit, taken back when it is reversed."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace

from gateway.domain.masking import Secret
from gateway.domain.points import ISSUED, EarnRules, PointsRule
from gateway.domain.times import CHINA
from gateway.flows.earn_points import EarnFigures, EarnPoints, Use
from gateway.flows.expire_points import ExpirePoints
from gateway.settings import load
from gateway.store import points
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.points import Transfer
from gateway.store.pool import Pool
from tests.conftest import drop_database, make_database
from tests.ledger import add_people, broken_rules, earn, new_id, persons_of

if TYPE_CHECKING:
    from gateway.store.pool import Connection

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=CHINA)
RULES = EarnRules(
    {"market.till": PointsRule(per_yuan=1, daily_max=100), "transit.bus": PointsRule(per_use=2, daily_max=4)}, 24
)


class Ledger(NamedTuple):
    app: "Connection"
    owner: "Connection"
    dsn: str
    cards: list[UUID]
    people: dict[UUID, UUID]

    async def earn(self, *uses: Use) -> EarnFigures:
        async with self.app.transaction():
            holders = await persons_of(self.app, [each.card_id for each in uses])
            held = [replace(each, person_id=holders[each.card_id]) for each in uses]
            return await earn(self.app, EarnPoints(lambda: RULES), held)

    async def balance(self, card: UUID) -> int:
        found = await points.lock(self.app, [self.people[card]])
        return found[self.people[card]].balance if found else 0


@pytest.fixture(scope="module")
async def connected(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Ledger]:
    database = await make_database(postgres, template)
    owner = await asyncpg.connect(database.dsn)
    app = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    yield Ledger(app, owner, database.dsn, [], {})
    await app.close()
    await owner.close()
    await drop_database(postgres, database)


@pytest.fixture
async def ledger(connected: Ledger) -> AsyncIterator[Ledger]:
    """With five people of this test's own."""
    people = await add_people(connected.owner, 5)
    yield connected._replace(cards=list(people), people=people)
    assert await broken_rules(connected.owner) == {}


def use(card: UUID, amount_fen: int = 1250, scene: str = "market.till", at: dt.datetime = NOON) -> Use:
    """Its holder is looked up as it is given (Ledger.earn)."""
    return Use(new_id(), card, card, scene, amount_fen, at)


def reversal(of: Use, card: UUID | None = None) -> Use:
    return replace(of, event_id=new_id(), card_id=card or of.card_id, reverses=of.event_id)


async def test_a_use_earns_by_the_rule_of_its_scene_rounded_down(ledger: Ledger) -> None:
    first, second = ledger.cards[:2]
    issued = (await points.lock(ledger.app, [ISSUED]))[ISSUED].balance
    figures = await ledger.earn(
        use(first, 1299), use(first, 0, "transit.bus"), use(second, 99), use(second, 5000, "exam.checkin"),
    )  # fmt: skip
    assert figures == EarnFigures(14, 0, 0)
    assert (await ledger.balance(first), await ledger.balance(second)) == (14, 0)
    assert (await points.lock(ledger.app, [ISSUED]))[ISSUED].balance == issued - 14
    lots = await points.lots_of(ledger.app, ledger.people.values())
    assert [tuple(lot) for lot in lots[ledger.people[first]]] == [(dt.date(2028, 11, 30), 14)]


async def test_an_event_earns_once(ledger: Ledger) -> None:
    one = use(ledger.cards[0])
    assert (await ledger.earn(one, one)).earned == 12
    with pytest.raises(asyncpg.UniqueViolationError):
        await ledger.earn(one)
    assert await ledger.balance(one.card_id) == 12


async def test_the_limit_is_of_a_person_a_scene_and_a_day_in_china(ledger: Ledger) -> None:
    card = ledger.cards[0]
    midnight = dt.datetime(2026, 11, 20, 16, tzinfo=dt.UTC)
    before, after = midnight - dt.timedelta(seconds=1), midnight
    assert (await ledger.earn(use(card, 7000, at=before), use(card, 7000, at=before))).earned == 100
    assert (await ledger.earn(use(card, 7000, at=before))).earned == 0
    assert (await ledger.earn(use(card, 7000, at=after), use(ledger.cards[1], 7000, at=before))).earned == 140
    assert (await ledger.earn(*(use(card, scene="transit.bus", at=before) for _ in range(3)))).earned == 4


async def test_a_replaced_card_earns_for_the_same_person(ledger: Ledger) -> None:
    old, new = ledger.cards[:2]
    await ledger.owner.execute("UPDATE card SET person_id = $2 WHERE card_id = $1", new, ledger.people[old])
    one = use(old)
    await ledger.earn(one, use(new))
    assert await ledger.balance(old) == 24
    assert (await ledger.earn(reversal(one, new))).taken_back == 12


async def test_a_reversal_takes_back_once_and_frees_the_day(ledger: Ledger) -> None:
    card = ledger.cards[0]
    one, other = use(card, 10_000), use(card, 500)
    assert (await ledger.earn(one, other)).earned == 100
    assert await ledger.earn(reversal(one)) == EarnFigures(0, 100, 0)
    assert await ledger.earn(reversal(one), reversal(other)) == EarnFigures(0, 0, 0)
    assert (await ledger.earn(use(card, 500))).earned == 5
    back = "SELECT points FROM points_transfer WHERE corrects = $1"
    assert [tuple(row) for row in await ledger.app.fetch(back, one.event_id)] == [(-100,)]


async def test_a_use_and_its_reversal_may_come_together(ledger: Ledger) -> None:
    one = use(ledger.cards[0], 5000)
    assert await ledger.earn(reversal(one), one) == EarnFigures(50, 50, 0)
    assert await ledger.balance(one.card_id) == 0


async def test_another_persons_reversal_takes_nothing(ledger: Ledger) -> None:
    one = use(ledger.cards[0])
    await ledger.earn(one, use(ledger.cards[1]))
    assert await ledger.earn(reversal(one, ledger.cards[1])) == EarnFigures(0, 0, 0)


async def test_what_is_spent_or_reserved_is_not_taken_back_and_recorded_as_missing(ledger: Ledger) -> None:
    card = ledger.cards[0]
    person = ledger.people[card]
    one = use(card, 6000)
    await ledger.earn(one, use(card, 1000, at=NOON - dt.timedelta(days=40)))
    await ledger.owner.execute("UPDATE points_account SET reserved = 30 WHERE account_id = $1", person)
    assert await ledger.earn(reversal(one)) == EarnFigures(0, 40, 20)
    assert await ledger.balance(card) == 30
    row = await ledger.app.fetchrow("SELECT points, shortfall FROM points_transfer WHERE corrects = $1", one.event_id)
    assert row is not None and tuple(row) == (-40, 20)
    # out of the lot it came from; what it leaves of that one is what the older lot does not cover
    lots = (await points.lots_of(ledger.app, [person]))[person]
    assert [(lot.expires_on.month, lot.remaining) for lot in lots] == [(10, 10), (11, 20)]
    two = use(card, 1000)
    await ledger.earn(two)
    await ledger.owner.execute("UPDATE points_account SET reserved = balance WHERE account_id = $1", person)
    assert await ledger.earn(reversal(two)) == EarnFigures(0, 0, 10)
    await ledger.owner.execute("UPDATE points_account SET reserved = 0 WHERE account_id = $1", person)


@pytest.mark.parametrize("control", [False, True], ids=["as it is", "control"])
@pytest.mark.parametrize("reserved", [0, 30])
async def test_what_expired_is_not_taken_back_from_other_points(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, reserved: int, control: bool
) -> None:
    async def nothing(_: object, earnings: Sequence[tuple[Transfer, dt.date]]) -> dict[UUID, int]:
        return {transfer.transfer_id: 0 for transfer, _ in earnings}

    if control:  # planted: what the use's lot lacks was spent
        monkeypatch.setattr(points, "expired_after", nothing)
    card = ledger.cards[0]
    one = use(card, 10_000, at=dt.datetime(2024, 10, 15, 12, tzinfo=CHINA))
    await ledger.earn(one)
    await ledger.earn(use(card, 8000))
    hold = "UPDATE points_account SET reserved = $2 WHERE account_id = $1"
    await ledger.owner.execute(hold, ledger.people[card], reserved)
    expire = ExpirePoints(Pool(Secret(ledger.dsn), load({}).gateway.database, "unopened"))
    async with ledger.app.transaction():
        await expire.end_lots(ledger.app, dt.date(2026, 11, 1))
    assert await ledger.balance(card) == 80 + reserved
    taken = 80 if control else reserved
    assert await ledger.earn(reversal(one)) == EarnFigures(0, taken, 100 - taken)
    assert await ledger.earn(reversal(one)) == EarnFigures()
    assert await ledger.balance(card) == 80 + reserved - taken
    await ledger.owner.execute(hold, ledger.people[card], 0)


async def test_what_was_spent_is_not_earned_again_on_that_day(ledger: Ledger) -> None:
    """Buy, redeem, give the goods back, buy again: at most the day's limit in all."""
    card = ledger.cards[0]
    one = use(card, 6000)
    await ledger.earn(one)
    await ledger.owner.execute("UPDATE points_account SET reserved = 40 WHERE account_id = $1", ledger.people[card])
    assert await ledger.earn(reversal(one)) == EarnFigures(0, 20, 40)
    assert (await ledger.earn(use(card, 10_000))).earned == 60
    await ledger.owner.execute("UPDATE points_account SET reserved = 0 WHERE account_id = $1", ledger.people[card])


async def test_rivals_earn_for_the_same_people_without_a_loss(ledger: Ledger) -> None:
    async def rival(seed: int) -> int:
        connection = await asyncpg.connect(ledger.dsn, server_settings={"role": "yikatong_app"})
        total = 0
        try:
            for turn in range(5):
                cards = ledger.cards[:: -1 if (seed + turn) % 2 else 1]
                uses = [replace(use(card, 300), person_id=ledger.people[card]) for card in cards]
                async with connection.transaction():
                    total += (await earn(connection, EarnPoints(lambda: RULES), uses)).earned
        finally:
            await connection.close()
        return total

    totals = await asyncio.gather(*(rival(seed) for seed in range(6)))
    assert sum(totals) == 5 * 90  # 6 x 5 x 3 would be 90 for each: below the limit of 100
    assert [await ledger.balance(card) for card in ledger.cards] == [90] * 5


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE points_transfer SET points = 1", "DELETE FROM points_transfer", "TRUNCATE points_transfer",
        "UPDATE points_entry SET points = 1", "DELETE FROM points_entry", "DELETE FROM points_account",
        "UPDATE points_account SET kind = 'issuer'", "DELETE FROM points_redemption",
        "UPDATE points_redemption SET points = 1",
    ],
)  # fmt: skip
async def test_the_application_cannot_rewrite_what_happened(ledger: Ledger, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await ledger.app.execute(statement)


async def test_the_database_refuses_a_citizen_below_zero_and_an_id_twice(ledger: Ledger) -> None:
    one = use(ledger.cards[0])
    await ledger.earn(one)
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger.app.execute("UPDATE points_account SET balance = -1 WHERE kind = 'citizen'")
    for error, later in ((asyncpg.UniqueViolationError, 0), (asyncpg.CheckViolationError, 31)):
        with pytest.raises(error):
            await ledger.app.execute(
                "INSERT INTO points_transfer (transfer_id, created_at, kind, person_id, counter, points, day)"
                " SELECT transfer_id, created_at + make_interval(days => $1), kind, person_id, counter, points, day"
                " FROM points_transfer WHERE transfer_id = $2",
                later,
                one.event_id,
            )
