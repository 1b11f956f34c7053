"""Everything that moves points, at once and for the same people: nobody waits in a circle, nothing is made or lost."""

import asyncio
import datetime as dt
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg
import pytest
from msgspec.structs import replace

from gateway.domain.masking import Secret
from gateway.domain.points import REDEEMED, EarnRules, PointsRule, merchant_account
from gateway.flows.earn_points import EarnPoints, Use
from gateway.flows.effects import Asked, Done
from gateway.flows.expire_points import ExpirePoints, end_reservations
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, End, ReservePoints, Wish
from gateway.settings import load
from gateway.store import points
from gateway.store.pool import FOR_EFFECTS, FOR_RETURNS, Pool
from gateway.store.verify import Presented
from tests.conftest import Database
from tests.faults.home import Figure
from tests.ledger import add_people, broken_rules, earn, new_id, open_points
from tests.running import MANY

if TYPE_CHECKING:
    from gateway.store.pool import Connection

TURNS = 300 if MANY else 10
PEOPLE = 120
RULES = EarnRules({"till": PointsRule(per_yuan=1, daily_max=100)}, 24)
CREDITS = {"county": REDEEMED, "shop-1": merchant_account("shop-1"), "shop-2": merchant_account("shop-2")}
DAYS = dt.date(2026, 1, 1), dt.date(2028, 11, 1), dt.date(2028, 12, 1)
CONTROL_S = 60


class Market:
    """Each method is one transaction of one rival."""

    def __init__(self, cards: Mapping[UUID, UUID], pool: Pool) -> None:
        self._holders = list(cards.items())
        self._cards, self._persons = list(cards), sorted(cards.values(), reverse=True)
        self._past: deque[Use] = deque(maxlen=200)
        self._reserved: deque[tuple[str, UUID]] = deque(maxlen=500)
        self._expire = ExpirePoints(pool)
        self.done: Counter[str] = Counter()

    async def earn(self, connection: "Connection", chance: random.Random) -> None:
        now = dt.datetime.now(dt.UTC)
        uses = [
            Use(new_id(), *chance.choice(self._holders), "till", chance.randrange(3000),
                now - dt.timedelta(days=chance.randrange(40)))
            for _ in range(200)
        ]  # fmt: skip
        undone = chance.sample([*self._past, *uses], 60)
        reversals = [replace(use, event_id=new_id(), reverses=use.event_id) for use in undone]
        figures = await earn(connection, EarnPoints(lambda: RULES), uses + reversals)
        self._past.extend(uses)
        self.done.update(earned=figures.earned, taken_back=figures.taken_back)

    async def reserve(self, connection: "Connection", chance: random.Random) -> None:
        asked = []
        for _ in range(60):
            caller, card = chance.choice(list(CREDITS)), str(chance.choice(self._cards))
            now_us = str(time.time_ns() // 1000)
            presented = Presented(str(new_id()), "", card, caller, "points.redeem", "outlet", now_us, "14", "", "")
            lasts = dt.timedelta(milliseconds=chance.choice([1, 600_000]))
            wish = Wish(presented, chance.randrange(1, 60), "item", "outlet", CREDITS[caller], lasts)
            asked.append(Asked(caller, new_id(), wish))
        await ReservePoints(dt.timedelta(days=1), 10).perform(connection, asked)
        self._reserved.extend((each.caller_id, each.reference) for each in asked)

    async def end(self, connection: "Connection", chance: random.Random) -> None:
        if not self._reserved:
            await self.reserve(connection, chance)
            return
        some = [chance.choice(self._reserved) for _ in range(50)]
        kind: CommitRedemption | CancelRedemption = CommitRedemption() if chance.random() < 0.7 else CancelRedemption()
        ended = await kind.perform(connection, [Asked(caller, new_id(), End(reference)) for caller, reference in some])
        self.done[kind.name] += sum(isinstance(each, Done) for each in ended)

    async def expire(self, connection: "Connection", chance: random.Random) -> None:
        if chance.random() < 0.5:
            self.done["reservations"] += len(await end_reservations(connection))
        else:
            self.done["lots"] += len(await self._expire.end_lots(connection, chance.choice(DAYS)))

    async def lock_backwards(self, connection: "Connection", _: random.Random) -> None:
        """Whoever locks in another order than all."""
        for person in self._persons:
            await points.lock(connection, [person])


Turn = Callable[["Connection", random.Random], Awaitable[None]]


@pytest.mark.parametrize("control", [False, True], ids=["as it is", "control"])
async def test_nobody_waits_in_a_circle(database: Database, figure: Figure, control: bool) -> None:
    owner = await asyncpg.connect(database.dsn)
    people = await add_people(owner, PEOPLE)
    await open_points(owner, people, 300, lots=3)
    market = Market(people, Pool(Secret(database.dsn), load({}).gateway.database, "unopened"))
    circles: Counter[str] = Counter()
    until = time.monotonic() + CONTROL_S

    async def rival(turn: Turn, name: str, seed: int, turns: int) -> None:
        more = FOR_RETURNS if name == "earn" else FOR_EFFECTS
        connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app", **more})
        chance = random.Random(seed)
        try:
            for _ in range(turns):
                if control and (circles or time.monotonic() > until):
                    break
                try:
                    async with connection.transaction():
                        await turn(connection, chance)
                except asyncpg.DeadlockDetectedError:
                    circles[name] += 1
        finally:
            await connection.close()

    often = 100_000 if control else TURNS
    flows: list[tuple[Turn, str, int, int]] = [
        (market.earn, "earn", 3, often), (market.reserve, "reserve", 2, often), (market.end, "end", 3, 2 * often),
        (market.expire, "expire", 2, 4 * often), (market.lock_backwards, "lock backwards", 2 * control, often),
    ]  # fmt: skip
    await asyncio.gather(
        *(rival(turn, name, seed, turns) for turn, name, rivals, turns in flows for seed in range(rivals))
    )
    assert bool(circles) == control, circles
    assert await broken_rules(owner) == {}
    assert control or all(market.done[what] for what in ("earned", "taken_back", "points_commit", "lots")), market.done
    figure(deadlocks=sum(circles.values()), **market.done)
    await owner.close()
