"""Usage monitoring over a real feed: nothing is lost or told twice, wherever it stops; nothing is ever changed."""

import datetime as dt
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import asyncpg
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.flows import watch_usage
from gateway.flows.watch_usage import WatchUsage
from gateway.settings import Settings, load
from gateway.store import anomalies, usage_events
from gateway.store.pool import Pool
from tests.conftest import Database
from tests.running import ROOT

NOW = dt.datetime.now(dt.UTC)
CARD = uuid4()

_ADD = """
INSERT INTO usage_event (event_id, position, recorded_at, occurred_at, kind, caller, card_id, medium, region, scene,
                         terminal_id, reason, result, amount_fen, reversal_of, caller_event_id)
VALUES ($1, pg_current_xact_id()::text::bigint + (SELECT xid_offset FROM feed_origin), now(), $2, $3, $4, $5,
        'third_gen', '330424', 'market.till', $6, $7, $8, $9, $10, $11)
"""


class Bench:
    """A database with a feed, and watchers as the worker runs them."""

    def __init__(self, dsn: str, settings: Settings, pool: Pool, owner: "asyncpg.Connection[asyncpg.Record]") -> None:
        self.dsn, self.settings, self.pool, self.owner = dsn, settings, pool, owner
        self.watch = WatchUsage(settings, pool)

    async def verify(
        self, reason: str, minutes_ago: float, terminal: str = "WY-MK-1", card: UUID | None = None
    ) -> UUID:
        event_id = uuid4()
        occurred_at = NOW - dt.timedelta(minutes=minutes_ago)
        await self.owner.execute(
            _ADD, event_id, occurred_at, "verify", "demo-merchant", card, terminal, reason, None, None, None, None
        )
        return event_id

    async def returned(
        self, number: int, minutes_ago: float, reversal_of: str | None = None, card: UUID = CARD,
        event_id: UUID | None = None,
    ) -> None:  # fmt: skip
        """The caller's ids are of their card."""
        occurred_at = NOW - dt.timedelta(minutes=minutes_ago)
        await self.owner.execute(
            _ADD, event_id or uuid4(), occurred_at, "usage", "demo-bank", card, "WY-MK-1", None, "success", 200,
            reversal_of and f"{card}-{reversal_of}", f"{card}-r-{number}",
        )  # fmt: skip

    async def refuse(self, count: int, terminal: str = "WY-MK-1") -> None:
        for n in range(count):
            await self.verify("unrecognised", 20 - n / 10, terminal)

    async def rows(self) -> list[anomalies.Row]:
        """All that was ever written, in the order of its writing."""
        found = await self.owner.fetch("SELECT * FROM anomaly ORDER BY at, anomaly_id")
        return [anomalies.Row(**dict(row)) for row in found]

    async def found(self) -> list[tuple[str, int]]:
        return [(row.rule, row.weight) for row in await self.rows()]


@pytest.fixture
async def bench(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.setenv("CONFIG_DIR", str(tmp_path / "config"))
    settings = load()
    pool = Pool(Secret(database.dsn), settings.gateway.database, "test")
    await pool.open()
    owner = await asyncpg.connect(database.dsn)
    yield Bench(database.dsn, settings, pool, owner)
    await owner.close()
    await pool.close()


def counted(rule: str) -> float:
    return REGISTRY.get_sample_value("yikatong_anomalies_total", {"rule": rule}) or 0.0


async def test_what_is_odd_is_kept_counted_and_told_once(bench: Bench) -> None:
    await bench.refuse(8)
    await bench.verify("ok", 60, card=CARD)
    await bench.verify("ok", 56, "GP-MK-1", CARD)
    before = {rule: counted(rule) for rule in ("refusals", "two_places")}
    with capture_logs() as lines:
        await bench.watch.turn()
        await bench.watch.turn()
    refusals, two_places = await bench.rows()
    assert (refusals.rule, refusals.caller, refusals.terminal_id, refusals.weight) == (
        "refusals", "demo-merchant", "WY-MK-1", 8,
    )  # fmt: skip
    assert refusals.from_at == NOW - dt.timedelta(minutes=20) and len(refusals.event_ids) == 8
    assert (two_places.rule, two_places.card_id, two_places.terminal_id) == ("two_places", CARD, None)
    assert {rule: counted(rule) - was for rule, was in before.items()} == {"refusals": 1, "two_places": 1}
    told = [line for line in lines if line["event"] == "anomaly"]
    assert [line["rule"] for line in told] == ["refusals", "two_places"]
    assert not [line for line in told if "WY-MK-1" in str(line) or str(CARD) in str(line)]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "killed before it was kept"])
async def test_a_restart_loses_and_doubles_nothing(bench: Bench, kept: bool) -> None:
    await bench.refuse(7)
    await bench.watch.turn()
    if kept:
        await bench.watch.close()
    assert await bench.found() == []
    await bench.refuse(9)
    after = WatchUsage(bench.settings, bench.pool)
    await after.turn()
    assert await bench.found() == [("refusals", 8), ("refusals", 16)], "the seven of before count"
    again = WatchUsage(bench.settings, bench.pool)  # killed: what it told is looked at again
    with capture_logs() as lines:
        await again.turn()
    assert len(await bench.found()) == 2 and not [line for line in lines if line["event"] == "anomaly"]


async def test_control_without_a_kept_place_the_same_is_told_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of chance instead of the event's: what the restart's test would see."""
    from gateway.domain import anomalies as domain

    await bench.refuse(8)
    await bench.watch.turn()
    monkeypatch.setattr(domain, "_id", lambda *_: uuid4().bytes)
    await WatchUsage(bench.settings, bench.pool).turn()
    assert await bench.found() == [("refusals", 8)] * 2


async def test_two_workers_find_it_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_usage, "KEEP_AFTER_EVENTS", 1)  # each turn moves the place that both go by
    other = WatchUsage(bench.settings, bench.pool)
    for _ in range(5):
        await bench.refuse(2)
        await bench.watch.turn()
        await other.turn()
    assert await bench.found() == [("refusals", 8)]


async def test_a_failed_turn_is_taken_again(bench: Bench) -> None:
    await bench.refuse(8)
    await bench.owner.execute("ALTER TABLE anomaly RENAME TO elsewhere")
    with pytest.raises((Problem, asyncpg.PostgresError)):
        await bench.watch.turn()
    await bench.owner.execute("ALTER TABLE elsewhere RENAME TO anomaly")
    await bench.watch.turn()
    assert await bench.found() == [("refusals", 8)]


async def test_more_than_a_page(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_usage, "PAGE", 3)
    await bench.refuse(17)
    await bench.watch.turn()
    assert await bench.found() == [("refusals", 8), ("refusals", 16)]


async def rests(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds after each of three full pages, for which the database lets it wait."""
    slow = usage_events._PAGE.replace("ORDER BY", "AND (SELECT pg_sleep(0.1)::text) = '' ORDER BY")
    assert slow != usage_events._PAGE
    taken: list[float] = []

    async def rest(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(usage_events, "_PAGE", slow)
    monkeypatch.setattr(watch_usage, "PAGE", 3)
    monkeypatch.setattr(watch_usage, "asyncio", SimpleNamespace(sleep=rest))
    await bench.refuse(10)
    await bench.watch.turn()
    assert len(taken) == 3
    return taken


async def test_it_rests_for_what_it_worked_and_not_for_what_it_waited(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < min(await rests(bench, monkeypatch)) < watch_usage._REST_MAX_S


async def test_no_page_is_worth_more_than_a_short_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting taken for work, 30 times as long, which is also the control of the test above."""
    monkeypatch.setattr(watch_usage, "time", SimpleNamespace(thread_time=time.monotonic, monotonic=time.monotonic))
    assert await rests(bench, monkeypatch) == [watch_usage._REST_MAX_S] * 3


async def test_a_reversal_is_restated_and_shown_by_its_last_word(bench: Bench) -> None:
    for n in range(10):
        await bench.returned(n, 100 - n)
    await bench.watch.turn()
    await bench.returned(100, 5, reversal_of="r-3")
    await bench.watch.turn()
    first, last = await bench.rows()
    assert (first.stands, last.stands, last.restates) == (True, False, first.anomaly_id)
    async with bench.pool.acquire() as connection:
        shown = await anomalies.since(connection, NOW - dt.timedelta(hours=1), 10)
        assert [(row.anomaly_id, row.stands, row.figures) for row in shown] == [(last.anomaly_id, False, {"uses": 9})]
        assert await anomalies.since(connection, NOW + dt.timedelta(hours=1), 10) == []


@pytest.mark.parametrize("is_reversed", [False, True], ids=["restated", "reversed"])
async def test_the_last_word_on_what_one_bulk_returned(bench: Bench, is_reversed: bool) -> None:
    """All of a bulk is recorded at the same time: several findings, so that chance shows none of them right."""
    cards = [uuid4() for _ in range(12)]
    async with bench.owner.transaction():
        for card in cards:
            ids = sorted(uuid4() for _ in range(41))
            for n in range(10 if is_reversed else 40):
                await bench.returned(n, 200 - n, card=card, event_id=ids[n])
            if is_reversed:
                await bench.returned(100, 5, "r-3", card, ids[-1])
    await bench.watch.turn()
    assert len({row.at for row in await bench.rows()}) == 1
    async with bench.pool.acquire() as connection:
        rows = await anomalies.since(connection, NOW - dt.timedelta(hours=1), 500)
    shown = [(row.stands, row.weight) for row in rows if row.rule == "points_farming"]
    assert shown == [(False, 9) if is_reversed else (True, 40)] * len(cards)


async def test_a_late_event_is_judged_by_when_it_occurred(bench: Bench) -> None:
    for n in range(7):
        await bench.verify("unrecognised", 300 - n)
    await bench.verify("ok", 1)
    await bench.watch.turn()
    await bench.verify("unrecognised", 296)
    await bench.watch.turn()
    (row,) = await bench.rows()
    assert row.weight == 8 and row.until_at < NOW - dt.timedelta(minutes=290)


async def test_changed_rules_are_taken_up_and_a_mistake_is_not(bench: Bench) -> None:
    file = bench.settings.config_dir / "anomalies.toml"
    await bench.refuse(5)
    await bench.watch.turn()
    text = file.read_text()
    file.write_text(text.replace("refused_min = 8", "refused_min = 0 # a mistake"))
    await bench.refuse(1)
    with capture_logs() as lines:
        await bench.watch.turn()
    assert await bench.found() == [] and any(line["event"] == "configuration change refused" for line in lines)
    file.write_text(text.replace("refused_min = 8", "refused_min = 7"))
    await bench.refuse(1)
    await bench.watch.turn()
    assert await bench.found() == [("refusals", 7)], "what was seen before the change counts"


async def test_changed_rules_are_taken_up_when_the_mistake_of_another_file_is_mended(bench: Bench) -> None:
    rules, scenes = (bench.settings.config_dir / name for name in ("anomalies.toml", "scenes.toml"))
    good = scenes.read_text()
    await bench.refuse(5)
    scenes.write_text(good + "\n[broken")
    rules.write_text(rules.read_text().replace("refused_min = 8", "refused_min = 5"))
    await bench.watch.turn()
    assert await bench.found() == []
    scenes.write_text(good)
    await bench.refuse(1)
    await bench.watch.turn()
    assert [rule for rule, _ in await bench.found()] == ["refusals"]


async def test_the_application_can_change_no_anomaly(bench: Bench) -> None:
    await bench.refuse(8)
    await bench.watch.turn()
    async with bench.pool.acquire() as connection:
        for statement in ("UPDATE anomaly SET weight = 0", "DELETE FROM anomaly", "TRUNCATE anomaly"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_memory_of_another_version_is_no_end(bench: Bench) -> None:
    await bench.refuse(8)
    await bench.watch.turn()
    await bench.watch.close()
    await bench.owner.execute("UPDATE anomaly_watch SET memory = 'x'::bytea")
    await bench.refuse(8, "WY-MK-2")
    await WatchUsage(bench.settings, bench.pool).turn()
    assert [row.terminal_id for row in await bench.rows()] == ["WY-MK-1", "WY-MK-2"]


async def test_the_first_look_goes_back_a_day(bench: Bench) -> None:
    await bench.refuse(8)
    await bench.owner.execute("UPDATE usage_event SET recorded_at = now() - interval '25 hours'")
    await bench.refuse(8, "WY-MK-2")
    await bench.watch.turn()
    assert [row.terminal_id for row in await bench.rows()] == ["WY-MK-2"]
