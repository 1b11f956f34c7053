"""The worker's turns over points: lots past their day, reservations past their time."""

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.domain.masking import Secret
from gateway.domain.points import EXPIRED
from gateway.flows import expire_points
from gateway.flows.expire_points import CLOCKS_APART_MAX, ExpirePoints
from gateway.settings import load
from gateway.store import points
from gateway.store.pool import Pool
from tests.conftest import Database
from tests.ledger import add_people, broken_rules, open_points

PEOPLE = 25
YEARS = dt.timedelta(days=4 * 366)
"""More than any of these points are good for."""


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


@pytest.mark.parametrize("control", [False, True], ids=["as it is", "control"])
async def test_a_clock_that_leaps_ahead_expires_nothing(
    database: Database, pool: Pool, monkeypatch: pytest.MonkeyPatch, control: bool
) -> None:
    def clock() -> dt.datetime:
        return dt.datetime.now(dt.UTC) + YEARS

    async def own_time(_: Any) -> dt.datetime:
        return clock()

    if control:  # planted: the day is that of the process
        monkeypatch.setattr(points, "database_time", own_time)
    owner = await asyncpg.connect(database.dsn)
    try:
        await open_points(owner, await add_people(owner, 3), 100, lots=2)
        await ExpirePoints(pool, clock).lots()
        assert (await points.lock(owner, [EXPIRED]))[EXPIRED].balance == (300 if control else 0)
    finally:
        await owner.close()


@pytest.mark.parametrize("apart", [-2 * CLOCKS_APART_MAX, CLOCKS_APART_MAX / -2, CLOCKS_APART_MAX / 2, YEARS])
async def test_clocks_that_differ_are_told_of_once_a_turn(database: Database, pool: Pool, apart: dt.timedelta) -> None:
    owner = await asyncpg.connect(database.dsn)
    try:
        await open_points(owner, await add_people(owner, 1), 100)
        await owner.execute("UPDATE points_lot SET expires_on = current_date - 2")
        with capture_logs() as lines:
            await ExpirePoints(pool, lambda: dt.datetime.now(dt.UTC) + apart).lots()
        differ = abs(apart) > CLOCKS_APART_MAX
        assert [line["log_level"] for line in lines] == ["warning"] * differ
        assert (await points.lock(owner, [EXPIRED]))[EXPIRED].balance == (0 if differ else 100)
    finally:
        await owner.close()


@pytest.mark.parametrize(("moment", "over"), [("15:59:59", False), ("16:00:01", True)])
async def test_the_day_is_the_databases_in_china(
    database: Database, pool: Pool, monkeypatch: pytest.MonkeyPatch, moment: str, over: bool
) -> None:
    """Points good until the 30th are good until midnight there, whatever day it is in UTC."""
    now = dt.datetime.fromisoformat(f"2026-11-30T{moment}+00:00")

    async def frozen(_: Any) -> dt.datetime:
        return now

    monkeypatch.setattr(points, "database_time", frozen)
    owner = await asyncpg.connect(database.dsn)
    try:
        await open_points(owner, await add_people(owner, 1), 100)
        await owner.execute("UPDATE points_lot SET expires_on = '2026-11-30'")
        await ExpirePoints(pool, lambda: now + dt.timedelta(seconds=2)).lots()
        assert (await points.lock(owner, [EXPIRED]))[EXPIRED].balance == (100 if over else 0)
    finally:
        await owner.close()
