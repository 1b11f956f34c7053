"""The worker's turns over points: lots past their day, reservations past their time."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from gateway.domain.masking import Secret
from gateway.domain.points import EXPIRED
from gateway.flows import expire_points
from gateway.flows.expire_points import ExpirePoints
from gateway.settings import load
from gateway.store import points
from gateway.store.pool import Pool
from tests.conftest import Database
from tests.ledger import add_people, broken_rules, open_points

PEOPLE = 25


@pytest.fixture
async def pool(database: Database) -> AsyncIterator[Pool]:
    made = Pool(Secret(database.dsn), load({}).gateway.database, "test")
    await made.open()
    yield made
    await made.close()


async def test_all_lots_past_their_day_go_in_bounded_batches(
    database: Database, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_points, "BATCH", 10)
    owner = await asyncpg.connect(database.dsn)
    try:
        people = await add_people(owner, PEOPLE)
        await open_points(owner, people, 100, lots=2)
        first = next(iter(people.values()))
        # the earlier half is over since yesterday; one person holds a part of it for a redemption
        await owner.execute(
            "UPDATE points_lot SET expires_on = current_date - 2"
            " WHERE expires_on = (SELECT min(expires_on) FROM points_lot)"
        )
        await owner.execute("UPDATE points_account SET reserved = 30 WHERE account_id = $1", first)
        await ExpirePoints(pool).lots()
        balances = await points.lock(owner, people.values())
        assert [account.balance for account in balances.values()].count(50) == PEOPLE - 1
        assert balances[first].balance == 80
        assert (await points.lock(owner, [EXPIRED]))[EXPIRED].balance == 50 * PEOPLE - 30
        await owner.execute("UPDATE points_account SET reserved = 0 WHERE account_id = $1", first)
        await ExpirePoints(pool).lots()
        assert (await points.lock(owner, [first]))[first].balance == 50
        left = await owner.fetch("SELECT DISTINCT expires_on > current_date, remaining FROM points_lot")
        assert [tuple(row) for row in left] == [(True, 50)], "empty lots of the past are swept"
        assert await broken_rules(owner) == {}
    finally:
        await owner.close()
