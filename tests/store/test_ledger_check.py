"""`ledger check`: every rule has a planted row that it finds, and writers may be busy meanwhile."""

import asyncio
import datetime as dt
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain.points import EarnRules, PointsRule
from gateway.flows.correct_points import NotCorrected, correct
from gateway.flows.earn_points import EarnFigures, EarnPoints, Use
from gateway.store import points
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.ledger_check import RULES, check
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.ledger import add_people, broken_rules, earn, new_id, open_points
from tests.running import ROOT, free_port

if TYPE_CHECKING:
    from gateway.store.pool import Connection


NOW = dt.datetime(2026, 11, 20, tzinfo=dt.UTC)


class Ledger(NamedTuple):
    owner: "Connection"
    dsn: str
    people: dict[UUID, UUID]

    @property
    def person(self) -> UUID:
        return next(iter(self.people.values()))


USED, BACK, KEPT = new_id(), new_id(), new_id()
"""Events of the second of them: a use that earned 50 points, its reversal, 30 short, and a use that is not reversed."""


async def use_and_reverse(owner: "Connection", card: UUID, person: UUID) -> None:
    flow = EarnPoints(lambda: EarnRules({"market.till": PointsRule(per_yuan=1, daily_max=1000)}, 24))
    uses = [Use(event, card, person, "market.till", 5000, NOW) for event in (USED, KEPT)]
    reserve = "UPDATE points_account SET reserved = $2 WHERE account_id = $1"
    async with owner.transaction():
        await earn(owner, flow, uses)
        await owner.execute(reserve, person, 180)
        figures = await earn(owner, flow, [Use(BACK, card, person, "market.till", 5000, NOW, USED)])
        assert figures == EarnFigures(0, 20, 30)
        await owner.execute(reserve, person, 0)


@pytest.fixture(scope="module")
async def ledger(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[Ledger]:
    database = await make_database(postgres, template)
    owner = await asyncpg.connect(database.dsn)
    people = await add_people(owner, 10)
    await open_points(owner, people, 100, lots=2)
    await use_and_reverse(owner, *list(people.items())[1])
    await owner.execute("SET session_replication_role = replica")  # no trigger minds what is planted
    yield Ledger(owner, database.dsn, people)
    await owner.close()
    await drop_database(postgres, database)


ENTRY = "UPDATE points_entry SET {} WHERE transfer_id = LAST AND account_id = PERSON"
PLANTED = {
    "the entries of a transfer sum up to 0": (
        ENTRY.format("points = points + 1, current = current + 1"),
        ENTRY.format("points = points - 1, current = current - 1"),
        "LAST",
    ),
    "a transfer has one entry on each of its two sides": (
        "UPDATE points_transfer SET points = points + 1 WHERE transfer_id = LAST",
        "UPDATE points_transfer SET points = points - 1 WHERE transfer_id = LAST",
        "LAST",
    ),
    "the entries of an account are numbered, and each begins where the last one ended": (
        ENTRY.format("previous = previous + 1, current = current + 1"),
        ENTRY.format("previous = previous - 1, current = current - 1"),
        "PERSON",
    ),
    "an account's balance is the sum of its entries": (
        "UPDATE points_account SET balance = balance + 1 WHERE account_id = PERSON",
        "UPDATE points_account SET balance = balance - 1 WHERE account_id = PERSON",
        "PERSON",
    ),
    "only the issuer's balance is below 0": (
        "ALTER TABLE points_account DROP CONSTRAINT points_account_check;"
        "UPDATE points_account SET balance = -1 WHERE kind = 'expiry'",
        "UPDATE points_account SET balance = 0 WHERE kind = 'expiry';"
        "ALTER TABLE points_account ADD CONSTRAINT points_account_check CHECK (balance >= 0 OR kind = 'issuer')",
        "'ffffffff-ffff-8000-8000-000000000003'",
    ),
    "a person's lots are what the person has": (
        "UPDATE points_lot SET remaining = remaining + 1 WHERE person_id = PERSON",
        "UPDATE points_lot SET remaining = remaining - 1 WHERE person_id = PERSON",
        "PERSON",
    ),
    "what an account has reserved is what its open redemptions hold": (
        "UPDATE points_account SET reserved = 1 WHERE account_id = PERSON",
        "UPDATE points_account SET reserved = 0 WHERE account_id = PERSON",
        "PERSON",
    ),
    "a committed redemption was paid once, and no other was": (
        "INSERT INTO points_redemption SELECT transfer_id, created_at, 'x', 'x', 'x', 1, person_id, card_id, person_id,"
        " 'committed', NULL, now(), now() FROM points_transfer WHERE transfer_id = LAST",
        "DELETE FROM points_redemption",
        "LAST",
    ),
    "not more is taken back than was earned": (
        "ALTER TABLE points_transfer DROP CONSTRAINT IF EXISTS points_transfer_check;"
        "INSERT INTO points_transfer (transfer_id, created_at, kind, person_id, counter, points, shortfall, day,"
        " corrects) SELECT '01890000-0000-7000-8000-000000000000', created_at, 'take_back', person_id, counter, 0, 1,"
        " day, transfer_id FROM points_transfer WHERE transfer_id = LAST",
        "DELETE FROM points_transfer WHERE transfer_id = '01890000-0000-7000-8000-000000000000'",
        "LAST",
    ),
    "what was earned is a returned use's": (
        "DELETE FROM usage_return WHERE event_id = USED",
        "INSERT INTO usage_return VALUES ('test', 'again', USED, 0, now())",
        "USED",
    ),
    "what was taken back is a reversed use's": (
        "UPDATE usage_reversal SET reversal = KEPT WHERE original = USED",
        "UPDATE usage_reversal SET reversal = BACK WHERE original = USED",
        "BACK",
    ),
    "what a reversed use had earned is taken back, or recorded as missing": (
        "INSERT INTO usage_reversal VALUES (KEPT, BACK)",
        "DELETE FROM usage_reversal WHERE original = KEPT",
        "KEPT",
    ),
}
"""Rule: (how it is broken, how that is undone, what is found)."""


def of_person(ledger: Ledger, statement: str) -> str:
    """PERSON is one of them, LAST the last transfer of that one; USED, BACK and KEPT are events."""
    for name, event in {"USED": USED, "BACK": BACK, "KEPT": KEPT}.items():
        statement = statement.replace(name, f"'{event}'::uuid")
    last = "(SELECT transfer_id FROM points_entry WHERE account_id = PERSON ORDER BY number DESC LIMIT 1)"
    return statement.replace("LAST", last).replace("PERSON", f"'{ledger.person}'::uuid")


@pytest.mark.parametrize("rule", RULES)
async def test_a_planted_row_is_found(ledger: Ledger, rule: str) -> None:
    plant, undo, wanted = PLANTED[rule]
    assert await broken_rules(ledger.owner) == {}
    offender = await ledger.owner.fetchval(of_person(ledger, "SELECT " + wanted))
    await ledger.owner.execute(of_person(ledger, plant))
    try:
        assert str(offender) in (await broken_rules(ledger.owner))[rule]
    finally:
        await ledger.owner.execute(of_person(ledger, undo))
    assert await broken_rules(ledger.owner) == {}


async def test_a_shortfall_that_is_not_recorded_is_found(ledger: Ledger) -> None:
    less = "UPDATE points_transfer SET shortfall = shortfall - $2 WHERE transfer_id = $1"
    for points_less in (1, -1):
        await ledger.owner.execute(less, BACK, points_less)
        found = await broken_rules(ledger.owner)
        missing = "what a reversed use had earned is taken back, or recorded as missing"
        assert found == ({missing: (str(USED),)} if points_less > 0 else {})


async def test_it_holds_in_every_snapshot_while_writers_are_busy(ledger: Ledger) -> None:
    rules = EarnRules({"market.till": PointsRule(per_yuan=1, daily_max=1_000_000)}, 24)
    done = asyncio.Event()

    async def write() -> None:
        connection = await asyncpg.connect(ledger.dsn, server_settings={"role": "yikatong_app"})
        try:
            while not done.is_set():
                uses = [Use(new_id(), *holder, "market.till", 500, NOW) for holder in ledger.people.items()]
                async with connection.transaction():
                    await earn(connection, EarnPoints(lambda: rules), uses)
        finally:
            await connection.close()

    writers = [asyncio.create_task(write()) for _ in range(2)]
    reader = await asyncpg.connect(ledger.dsn, server_settings={"role": "yikatong_app"})
    seen: set[int] = set()
    try:
        async with asyncio.timeout(60):
            while len(seen) < 12:  # snapshots of so many different moments
                sums, findings = await check(reader)
                assert findings == []
                seen.add(sums.transfers)
    finally:
        done.set()
        await asyncio.gather(*writers)
        await reader.close()


async def test_a_correction_is_a_new_transfer_that_names_the_old(ledger: Ledger) -> None:
    old = await ledger.owner.fetchval(of_person(ledger, "SELECT LAST"))
    before = await ledger.owner.fetchrow("SELECT * FROM points_transfer WHERE transfer_id = $1", old)
    for amount in (7, -7):
        made = await correct(ledger.owner, new_id(), old, amount, "counted wrong", 24)
        assert (made.points, made.corrects) == (amount, old)
    account = (await points.lock(ledger.owner, [ledger.person]))[ledger.person]
    with pytest.raises(NotCorrected):
        await correct(ledger.owner, new_id(), old, -account.available - 1, "too much", 24)
    with pytest.raises(NotCorrected):
        await correct(ledger.owner, new_id(), new_id(), 1, "of nothing", 24)
    assert await ledger.owner.fetchrow("SELECT * FROM points_transfer WHERE transfer_id = $1", old) == before
    assert await broken_rules(ledger.owner) == {}


async def test_what_was_corrected_and_then_reversed_is_no_finding(ledger: Ledger) -> None:
    card, person = list(ledger.people.items())[-1]
    flow = EarnPoints(lambda: EarnRules({"its.own": PointsRule(per_yuan=1, daily_max=100)}, 24))
    for amount, taken_back in ((30, 80), (-30, 20)):
        used = Use(new_id(), card, person, "its.own", 5000, NOW)
        back = Use(new_id(), card, person, "its.own", 5000, NOW, used.event_id)
        async with ledger.owner.transaction():
            assert (await earn(ledger.owner, flow, [used])).earned == 50
        await correct(ledger.owner, new_id(), used.event_id, amount, "counted wrong", 24)
        async with ledger.owner.transaction():
            assert (await earn(ledger.owner, flow, [back])).taken_back == taken_back
        assert await broken_rules(ledger.owner) == {}


async def test_the_command_says_what_is_broken_and_ends_with_1(ledger: Ledger, tmp_path: Path) -> None:
    port = free_port()
    prepare_data_dir(tmp_path, port)
    environment = os.environ | {"DATA_DIR": str(tmp_path), "DATABASE_URL": ledger.dsn, "PORT": str(port)}

    async def run(*arguments: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "ledger", *arguments, cwd=ROOT, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    old = str(await ledger.owner.fetchval(of_person(ledger, "SELECT LAST")))
    code, said = await run("correct", old, "--note", "a typing mistake", "--", "-3")
    assert code == 0 and "-3 points" in said and old in said, said
    made, rest = said.split()[1].rstrip(":"), ("--note", "a typing mistake", "--", "-3")
    for transfer_id, ended, last in (
        (made, 0, "it was corrected already"), (str(uuid4()), 1, "an earlier try has said"),
    ):  # fmt: skip
        code, said = await run("correct", old, "--transfer-id", transfer_id, *rest)
        assert code == ended and said.endswith(f"{last}\n"), said
    code, said = await run("check")
    assert code == 0 and said.count("good ") == len(RULES), said
    plant, undo, _ = PLANTED["an account's balance is the sum of its entries"]
    await ledger.owner.execute(of_person(ledger, plant))
    code, said = await run("check")
    await ledger.owner.execute(of_person(ledger, undo))
    assert code == 1 and "BROKEN  an account's balance is the sum of its entries" in said, said
    assert str(ledger.person) in said
