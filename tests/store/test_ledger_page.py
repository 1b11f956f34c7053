"""The worked example of LEDGER.md, lived on a database: its table is written anew and must be the page's."""

import datetime as dt
import time
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from gateway.directory import earn_rules_of
from gateway.domain.masking import Secret
from gateway.domain.points import EXPIRED, ISSUED, REDEEMED
from gateway.domain.times import CHINA
from gateway.flows.earn_points import EarnPoints, Use
from gateway.flows.effects import Asked, Done
from gateway.flows.expire_points import ExpirePoints
from gateway.flows.redeem_points import CommitRedemption, End, ReservePoints, Wish
from gateway.settings import load
from gateway.store import points
from gateway.store.pool import Pool
from gateway.store.verify import Presented
from tests.conftest import Database
from tests.ledger import add_people, broken_rules, earn, new_id
from tests.running import ROOT

if TYPE_CHECKING:
    from gateway.store.pool import Connection


class Life:
    """One person's."""

    def __init__(self, app: "Connection", card_id: UUID, person_id: UUID, pool: Pool) -> None:
        self.app, self.card_id, self.person_id = app, card_id, person_id
        self.settings = load({})
        self.rules = earn_rules_of(self.settings)
        self.expiry = ExpirePoints(pool)
        self.transfers = 0
        self.table: list[str] = []

    def use(self, day: str, fen: int, scene: str, reverses: UUID | None = None) -> Use:
        noon = dt.datetime.combine(dt.date.fromisoformat(day), dt.time(12), CHINA)
        return Use(new_id(), self.card_id, self.person_id, scene, fen, noon, reverses)

    async def earn(self, what: str, use: Use) -> None:
        async with self.app.transaction():
            await earn(self.app, EarnPoints(lambda: self.rules), [use])
        await self.write(what)

    async def reserve(self, what: str, item: str) -> UUID:
        now_us = str(time.time_ns() // 1000)
        presented = Presented(
            str(new_id()), "", str(self.card_id), "kiosk", "points.redeem", "outlet", now_us, "14", "", ""
        )
        wish = Wish(presented, self.settings.points.items[item].points, item, "outlet", REDEEMED, dt.timedelta(hours=1))
        reference = new_id()
        async with self.app.transaction():
            done = await ReservePoints(dt.timedelta(days=1), 10).perform(self.app, [Asked("kiosk", reference, wish)])
        assert isinstance(done[0], Done)
        await self.write(what)
        return reference

    async def commit(self, what: str, reference: UUID) -> None:
        async with self.app.transaction():
            done = await CommitRedemption().perform(self.app, [Asked("kiosk", new_id(), End(reference))])
        assert isinstance(done[0], Done)
        await self.write(what)

    async def expire(self, what: str, today: dt.date) -> None:
        async with self.app.transaction():
            await self.expiry.end_lots(self.app, today)
        await self.write(what)

    async def write(self, what: str) -> None:
        """A row, from what the database holds now."""
        made = await self.app.fetch(
            "SELECT t.kind, t.points, t.shortfall, e.previous, e.current FROM points_entry e"
            " JOIN points_transfer t USING (transfer_id) WHERE e.account_id = $1 AND number > $2",
            self.person_id, self.transfers,
        )  # fmt: skip
        assert len(made) <= 1
        cells = ["–", "", ""]
        for kind, amount, shortfall, previous, _ in made:
            self.transfers += 1
            cells = [f"{kind}, {shortfall} short" if shortfall else kind, f"{amount:+}", str(previous)]
        accounts = await points.lock(self.app, [self.person_id, ISSUED, REDEEMED, EXPIRED])
        mine = accounts[self.person_id]
        assert not made or made[0]["current"] == mine.balance
        cells += [str(mine.balance), str(mine.available)]
        cells += [str(accounts[account].balance) for account in (ISSUED, REDEEMED, EXPIRED)]
        assert sum(account.balance for account in accounts.values()) == 0
        lots = (await points.lots_of(self.app, [self.person_id])).get(self.person_id, [])
        cells.append(", ".join(f"{lot.remaining} until {lot.expires_on}" for lot in lots))
        self.table.append("".join(f"| {cell} " if cell else "| " for cell in [what, *cells]) + "|")


async def test_the_example_of_the_page_is_what_happens(database: Database) -> None:
    owner = await asyncpg.connect(database.dsn)
    app = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        ((card_id, person_id),) = (await add_people(owner, 1)).items()
        life = Life(app, card_id, person_id, Pool(Secret(database.dsn), load({}).gateway.database, "test"))
        market = life.use("2026-01-10", 128_50, "market.till")
        await life.earn("2026-01-10, 128.50 yuan at a market", market)
        await life.earn("2026-03-05, 60.00 yuan at a restaurant", life.use("2026-03-05", 60_00, "dining.till"))
        reference = await life.reserve("two towels are reserved", "towel-set")
        await life.commit("… and handed over", reference)
        back = life.use("2026-04-19", 128_50, "market.till", market.event_id)
        await life.earn("the market takes its goods back", back)
        again = life.use("2026-04-20", 250_00, "market.till")
        await life.earn("2026-04-20, 250.00 yuan at a market", again)
        await life.earn("the file of that day comes again", again)
        reference = await life.reserve("two towels are reserved", "towel-set")
        await life.commit("… and handed over", reference)
        await life.earn("2026-05-02, 100.00 yuan at a restaurant", life.use("2026-05-02", 100_00, "dining.till"))
        await life.expire("2028-05-01", dt.date(2028, 5, 1))
        late = life.use("2028-05-02", 250_00, "market.till", again.event_id)
        await life.earn("the market takes the goods of 2026-04-20 back", late)
        assert await broken_rules(owner) == {}
    finally:
        await app.close()
        await owner.close()
    page = (ROOT / "gateway" / "LEDGER.md").read_text()
    assert [line for line in page.splitlines() if line.count("|") == 11][2:] == life.table
