"""Promise 7: what is brought to a subscriber is complete and in order per card, whoever is killed or away."""

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import Database, prepare_data_dir
from tests.faults.home import Figure
from tests.faults.planted import plant
from tests.faults.waiting import until
from tests.running import MANY, Running
from tests.subscribers import Events, Peer, add_events, settings_for, subscriber, whole

WITHIN_S = 60
CHUNK = 12_000
PEAK_MIB = 256
TAKEN_OVER_S = 30
BACK_S = 180
"""After an outage without answers it is tried every two minutes."""
AWAY_S = float(os.environ.get("AWAY_S", "3600" if MANY else "0.5"))
PARTS = 50
"""The events of an absence come in so many parts, spread over it."""


@asynccontextmanager
async def workers(folder: Path, database: Database, peer: Peer, bug: str = "") -> AsyncIterator[list[Running]]:
    """A background worker, which has the subscriber in hand; a test may add others."""
    settings_for(folder, peer, timeout_ms=5000)
    config = folder / "config" / "gateway.toml"
    before, _, _ = config.read_text().partition("[outbox.subscribers.province]")
    config.write_text(before)
    rules = folder / "config" / "anomalies.toml"  # for them this would be a day full of oddities
    rules.write_text(rules.read_text().replace("enabled = true", "enabled = false"))
    prepare_data_dir(folder, 1)
    environment = {"DATABASE_URL": database.dsn, "CONFIG_DIR": str(folder / "config"), "OUTBOX_ENABLED": "true"}
    running = [Running(folder, "worker", **environment, **(plant(bug) if bug else {}))]
    try:
        await running[0].start()
        yield running
    finally:
        for worker in running:
            with contextlib.suppress(ProcessLookupError):
                await worker.kill()


def another(worker: Running) -> Running:
    """One more like it."""
    return Running(worker.data_dir, *worker.arguments, **worker.environment)


async def accepted(peer: Peer) -> int:
    return (await peer.figures())["accepted"]


async def more_than(peer: Peer, events: int, within_s: float) -> float:
    """Wait until the subscriber has taken more than so many; returns the seconds."""

    async def there() -> bool:
        return await accepted(peer) > events

    return await until(there, within_s, f"more than {events} events")


async def complete(peer: Peer, events: int, within_s: float) -> float:
    return await more_than(peer, events - 1, within_s)


async def test_a_killed_relay_is_followed_by_another(
    database: Database, tmp_path: Path, cycles: int, figure: Figure
) -> None:
    """Whoever has the subscriber in hand is killed in the middle; the other takes over, and is the next."""
    slowest_s, sent, kills = 0.0, 1, max(1, cycles // 2)
    async with subscriber(tmp_path) as peer, workers(tmp_path, database, peer) as running:
        await add_events(database.dsn, Events(1, 1))
        await complete(peer, 1, WITHIN_S)
        running.append(await another(running[0]).start())
        await peer.faults({"kind": "delay", "ms": 500})
        for cycle in range(kills):
            await add_events(database.dsn, Events(CHUNK, 500), start=sent)
            await more_than(peer, sent, WITHIN_S)
            sent += CHUNK
            await running[cycle % 2].kill()
            slowest_s = max(slowest_s, await complete(peer, sent, TAKEN_OVER_S))
            await running[cycle % 2].start()
        figures = await whole(database.dsn, peer)
    figure(kills=kills, events=sent, duplicates=figures["duplicates"], slowest_until_all_was_there_s=slowest_s)


async def test_control_a_cursor_that_moves_too_soon_is_noticed(database: Database, tmp_path: Path) -> None:
    async with subscriber(tmp_path) as peer:
        await peer.faults({"kind": "drop_before"})
        await add_events(database.dsn, Events(9000, 500))
        async with workers(tmp_path, database, peer, "cursor_before_acknowledgement"):
            await until(lambda: cursor_moved(database.dsn), WITHIN_S, "a page was sent")
        await peer.faults()
        async with workers(tmp_path, database, peer):
            await until(lambda: nothing_left(database.dsn), WITHIN_S, "the rest is brought")
        assert await accepted(peer) < 9000


async def cursor_moved(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return bool(await connection.fetchval("SELECT position > 0 FROM outbox_subscriber"))
    finally:
        await connection.close()


async def nothing_left(dsn: str) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        return not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM usage_event e, outbox_subscriber s"
            " WHERE (e.position, e.event_id) > (s.position, s.event_id)) OR EXISTS (SELECT FROM outbox_held)"
        )
    finally:
        await connection.close()


async def come_in_its_absence(dsn: str, total: int) -> None:
    """So many events, spread over AWAY_S."""
    began, part = time.monotonic(), total // PARTS
    for number in range(PARTS):
        events = Events(part, total // 4)
        await add_events(dsn, events, transactions=-(-part // 1000), start=number * part)
        until_s = AWAY_S * (number + 1) / PARTS - (time.monotonic() - began)
        await until(passed(until_s), until_s + 1, "the absence goes on")


def passed(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@pytest.mark.parametrize(
    "absence", ["gone", pytest.param("cut_off", marks=pytest.mark.skipif(not MANY, reason="many"))]
)
async def test_a_subscriber_that_was_away_gets_all(
    database: Database, tmp_path: Path, figure: Figure, absence: str
) -> None:
    """`make faults`: a million events in an hour without anybody who listens, or answers; then events as they come."""
    total = 1_000_000 if MANY else 6000
    async with subscriber(tmp_path) as peer, workers(tmp_path, database, peer) as running:
        await (peer.kill() if absence == "gone" else peer.faults({"kind": "drop_before"}))
        await come_in_its_absence(database.dsn, total)
        await (peer.start() if absence == "gone" else peer.faults())
        back_s = await more_than(peer, 0, BACK_S)
        began, first = time.monotonic(), await accepted(peer)
        await complete(peer, total, 900)
        drained_per_s = (total - first) / (time.monotonic() - began)
        figures = await whole(database.dsn, peer)
        trickle = 3000 if MANY else 100
        await add_events(database.dsn, Events(trickle, 500), transactions=trickle, start=total)
        await complete(peer, total + trickle, WITHIN_S)
        lags = await lags_s(database.dsn, peer, trickle)
        peak_mib = peak_memory_mib(running[0].pid)
    p99 = lags[int(len(lags) * 0.99)]
    figure(absence=absence, away_s=AWAY_S, events=total, first_after_s=back_s, drained_per_s=drained_per_s,
           duplicates=figures["duplicates"], lag_p99_s=p99, peak_mib=peak_mib)  # fmt: skip
    assert peak_mib < PEAK_MIB
    if MANY:
        assert drained_per_s >= 5000
        assert p99 <= 5


def peak_memory_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


async def lags_s(dsn: str, peer: Peer, last: int) -> list[float]:
    """From the record of an event to its arrival, of the last ones; sorted."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT event_id, extract(epoch FROM recorded_at)::float8 FROM usage_event"
            " ORDER BY position DESC, event_id DESC LIMIT $1",
            last,
        )
    finally:
        await connection.close()
    arrived = {event_id: at for event_id, _, _, at in peer.arrivals()}
    return sorted(arrived[str(event_id)] - recorded for event_id, recorded in rows)
