"""Redemptions while processes are killed: no points are made or lost, and each is carried out once."""

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator

import aiohttp
import asyncpg
import pytest

from gateway.crypto.key_files import open_folder
from tests.faults.home import Figure, Home
from tests.faults.test_effects_kill import Desk, Outcome, Wanted, check, connected, kill_under_load
from tests.ledger import open_points, persons_of, rules_broken_at
from tests.registry import add_cards, new_card
from tests.running import MANY

PATH = "/v1/points/redemptions"
PRICE, HELD = 20, 1_000_000
CARDS = 40
_random = random.Random(20261126)


class Outlet(Desk):
    """A kiosk that reserves, and ends what was reserved."""

    open: list[str]

    def wanted(self) -> Wanted:
        self.open = self.__dict__.get("open", [])
        if self.open and _random.random() < 0.5:
            how = "commit" if _random.random() < 0.8 else "cancel"
            return self.signed(f"{PATH}/{self.open.pop()}/{how}", {})
        card = _random.choice(self.cards)
        presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
        body = {"presentation": presentation, "points": PRICE, "item": "blood-pressure-check"}
        return self.signed(PATH, body | {"outlet_id": "wuyuan-01"})

    async def ask(self, session: aiohttp.ClientSession, wanted: Wanted) -> Outcome:
        outcome = await super().ask(session, wanted)
        if outcome.status == 200 and not outcome.replayed and wanted.path == PATH:
            self.open.append(json.loads(outcome.body)["reference"])
        return outcome

    def committed(self) -> int:
        """Of what was acknowledged."""
        return sum(
            any(b'"status":"committed"' in outcome.body for outcome in outcomes) for _, outcomes in self.told.values()
        )


@contextlib.asynccontextmanager
async def outlet_at(home: Home) -> AsyncIterator[tuple[Outlet, aiohttp.ClientSession]]:
    """With people of its own, who have many points."""
    cards = [new_card() for _ in range(CARDS)]
    ids = await add_cards(home.dsn, open_folder(home.data_dir / "keys"), tuple(cards))
    owner = await asyncpg.connect(home.dsn)
    try:
        await open_points(owner, await persons_of(owner, ids), HELD, lots=3)
        async with connected(home, cards, Outlet) as (outlet, session):
            yield outlet, session
    finally:
        await owner.close()


async def spent(home: Home) -> tuple[int, int]:
    """(points that were paid for redemptions, points that have come to the issuer for them)."""
    owner = await asyncpg.connect(home.dsn)
    try:
        row = await owner.fetchrow(
            "SELECT (SELECT coalesce(-sum(points), 0)::bigint FROM points_transfer WHERE kind = 'redeem'), balance"
            " FROM points_account WHERE account_id = 'ffffffff-ffff-8000-8000-000000000002'"
        )
    finally:
        await owner.close()
    assert row is not None
    return row[0], row[1]


@pytest.mark.parametrize(
    "what", ["gateway", pytest.param("postgres", marks=pytest.mark.skipif(not MANY, reason="many"))]
)
async def test_killed_under_load_no_points_are_made_or_lost(home: Home, cycles: int, what: str, figure: Figure) -> None:
    totals: Counter[str] = Counter()
    for cycle in range(cycles if MANY else 1):
        if cycle % 2 == 0:  # a supervisor gives up when its workers end too often
            await home.end()
            await home.start()
        before, _ = await spent(home)
        async with outlet_at(home) as (outlet, session):
            await kill_under_load(home, outlet, session, what)
            assert await rules_broken_at(home.dsn) == {}
            unanswered = [
                wanted for wanted, told in outlet.told.values() if all(outcome.status != 200 for outcome in told)
            ]
            for wanted in unanswered:
                await outlet.until_done(session, wanted)
            for wanted, _ in list(outlet.told.values())[:200]:
                again = await outlet.ask(session, wanted)
                assert again.status == 200 and again.replayed
            findings = await check(outlet)
            assert findings.clean and findings.acknowledged == findings.rows == len(outlet.told), findings
            assert await rules_broken_at(home.dsn) == {}
            after, credited = await spent(home)
            assert after - before == PRICE * outlet.committed() and credited == after
            totals.update(effects=len(outlet.told), retried=len(unanswered), committed=outlet.committed())
    figure(kills=cycles if MANY else 1, **totals)
    assert totals["committed"] > 0


async def test_control_lots_that_are_written_apart_are_noticed(home: Home, figure: Figure) -> None:
    """A worker is killed between the two transactions sooner or later; a snapshot between them sees it at once."""
    await home.start("lots_apart")
    async with outlet_at(home) as (outlet, session):
        done = asyncio.Event()

        async def keep_asking() -> None:
            while not done.is_set():
                await outlet.ask(session, outlet.wanted())

        askers = [asyncio.create_task(keep_asking()) for _ in range(8)]
        broken: dict[str, tuple[str, ...]] = {}
        snapshots = 0
        try:
            async with asyncio.timeout(60):
                while not broken:
                    broken = await rules_broken_at(home.dsn)
                    snapshots += 1
        finally:
            done.set()
            await asyncio.gather(*askers)
    figure(snapshots=snapshots)
    assert set(broken) == {"a person's lots are what the person has"}
