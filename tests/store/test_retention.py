"""What is kept for repeats (keys, assertions), rejected lines and dead letters go when their time is over; what is
younger, or still needed, stays."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from gateway.domain.masking import Secret
from gateway.settings import load
from gateway.store import assertions, idempotency, outbox, outbox_figures, usage_files
from gateway.store.migrate import ensure_partitions
from gateway.store.pool import Pool, connect
from gateway.store.usage_files import Pass
from gateway.worker import housekeeping
from tests.conftest import Database
from tests.running import eventually
from tests.subscribers import Events, Receiver, Relay, add_events, logged

if TYPE_CHECKING:
    from gateway.store.pool import Connection

DAYS = 400
NOW = dt.datetime.now(dt.UTC)
FILE = bytes(32)


@pytest.fixture
async def owner(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """With partitions as a gateway of some age has them."""
    connection = await asyncpg.connect(database.dsn)
    for back in (0, 200, DAYS, DAYS + 60):
        await ensure_partitions(connection, (NOW - dt.timedelta(days=back)).date())
    yield connection
    await connection.close()


@pytest.fixture
async def app(database: Database, owner: object) -> AsyncIterator["Connection"]:
    connection = await connect(Secret(database.dsn), load({}).gateway.database, "test")
    yield connection
    await connection.close()


async def add_rejected(owner: "asyncpg.Connection[asyncpg.Record]", days: list[float], state: Pass = Pass.DONE) -> None:
    """A line for each, so many days old."""
    await owner.execute(
        "INSERT INTO usage_file (file_id, caller, batch_no, lines, amount_fen, pass, at_line, moved_at)"
        " VALUES ($1, 'demo-bank', 'B1', 10, 0, $2, 0, '-infinity')",
        FILE, state.value,
    )  # fmt: skip
    await owner.executemany(
        "INSERT INTO usage_file_reject (file_id, line, code, errors, at) VALUES ($1, $2, 'unrecognised', '[]', $3)",
        [(FILE, place, NOW - dt.timedelta(days=ago)) for place, ago in enumerate(days)],
    )


async def add_letters(owner: "asyncpg.Connection[asyncpg.Record]", letters: list[tuple[float, float | None]]) -> None:
    """(days since it was given up, days since it was sent again)"""
    await owner.executemany(
        "INSERT INTO outbox_dead_letter VALUES ('bureau', $1, $2, $3, $2, NULL, 12, $3, $4)",
        [
            (place, uuid4(), NOW - dt.timedelta(days=dead), None if again is None else NOW - dt.timedelta(days=again))
            for place, (dead, again) in enumerate(letters)
        ],
    )


async def test_keys_go_after_seven_days_some_at_a_time(
    owner: "asyncpg.Connection[asyncpg.Record]", app: "Connection"
) -> None:
    week, minute = dt.timedelta(days=7), dt.timedelta(minutes=1)
    ages = [week + minute, week * 5, week + 2 * minute, week - minute, dt.timedelta()]
    keys = [("demo-kiosk", f"key-{place}") for place in range(len(ages))]
    async with app.transaction():
        assert len(await idempotency.claim(app, keys, [b"print"] * len(ages))) == len(ages)
        await idempotency.keep(app, dict.fromkeys(keys, b"answer"))
    await owner.executemany(
        "UPDATE idempotency_key SET created_at = now() - $2::interval WHERE key = $1",
        [(key, age) for (_, key), age in zip(keys, ages, strict=True)],
    )
    assert [await idempotency.sweep(app, 2) for _ in range(3)] == [2, 1, 0]
    assert await idempotency.stored(app, keys) == dict.fromkeys(keys[3:], idempotency.Stored(b"print", b"answer"))


async def test_assertions_go_five_minutes_after_they_expire_some_at_a_time(app: "Connection") -> None:
    """Clocks differ, and an assertion is taken for some seconds after its end."""
    minutes = [-5.1, -60, -6, -4.9, 0, 1]
    now = dt.datetime.now(dt.UTC)
    used = [(f"jti-{place}", now + dt.timedelta(minutes=end)) for place, end in enumerate(minutes)]
    assert all([await assertions.use(app, "demo-kiosk", jti, end) for jti, end in used])
    assert [await assertions.sweep(app, 2) for _ in range(3)] == [2, 1, 0]
    again = [await assertions.use(app, "demo-kiosk", jti, end) for jti, end in used]
    assert again == [True, True, True, False, False, False]


async def test_rejected_lines_go_after_their_days(
    owner: "asyncpg.Connection[asyncpg.Record]", app: "Connection"
) -> None:
    await add_rejected(owner, [DAYS + 1, DAYS + 50, DAYS + 2, DAYS - 1, 0])
    assert [await usage_files.sweep_rejected(app, 2, DAYS) for _ in range(3)] == [2, 1, 0]
    assert await usage_files.rejected_among(app, FILE, 0, 10) == {3, 4}


async def test_those_of_a_file_that_is_not_done_stay(
    owner: "asyncpg.Connection[asyncpg.Record]", app: "Connection"
) -> None:
    """Its second reading leaves them out."""
    await add_rejected(owner, [DAYS + 1, DAYS + 2], Pass.REVERSALS)
    assert await usage_files.sweep_rejected(app, 10, DAYS) == 0


async def test_dead_letters_go_after_their_days(owner: "asyncpg.Connection[asyncpg.Record]", app: "Connection") -> None:
    await add_letters(owner, [(DAYS + 1, None), (DAYS + 50, DAYS + 2), (DAYS + 30, None), (DAYS + 1, 3), (3, None)])
    assert [await outbox.sweep_dead_letters(app, 2, DAYS) for _ in range(3)] == [2, 1, 0]
    left = await owner.fetch("SELECT position FROM outbox_dead_letter ORDER BY position")
    assert [row[0] for row in left] == [3, 4], "one that was sent again is on record for as long"


async def given_up(relay: Relay, receiver: Receiver, event_id: str) -> None:
    receiver.poison = {event_id}
    await relay.run()
    assert await relay.rows_of("outbox_dead_letter WHERE replayed_at IS NULL") == 1


async def test_one_that_is_on_its_way_again_arrives_without_its_letter(database: Database, app: "Connection") -> None:
    await add_events(database.dsn, Events(3, 3))
    receiver, (bad, _) = Receiver(), (await logged(database.dsn))[1]
    async with Relay(database.dsn, receiver) as relay:
        await given_up(relay, receiver, bad)
        an_hour = dt.timedelta(hours=1)
        assert await outbox_figures.replay(app, "bureau", NOW - an_hour, NOW + an_hour, relay.now, 10) == 1
        assert await relay.rows_of("outbox_held WHERE replayed") == 1
        assert await outbox.sweep_dead_letters(app, 10, -DAYS) == 1
        await given_up(relay, receiver, bad)  # not taken again: a letter of its own
        assert await outbox_figures.replay(app, "bureau", NOW - an_hour, NOW + an_hour, relay.now, 10) == 1
        assert await outbox.sweep_dead_letters(app, 10, -DAYS) == 1
        receiver.poison = set()
        await relay.run()
        assert receiver.arrived[-1][0] == bad and receiver.arrived[-1][3]


async def test_sweeping_and_sending_again_at_once_take_turns(
    database: Database, owner: "asyncpg.Connection[asyncpg.Record]", app: "Connection"
) -> None:
    """The sweep comes to a letter that is being sent again: that is on record from now on, so it stays."""
    await add_letters(owner, [(DAYS + 1, None)])
    await outbox.subscribe(owner, "bureau")
    watching = await asyncpg.connect(database.dsn)

    async def waits() -> bool:
        found: bool = await watching.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = $1 AND NOT granted)", app.get_server_pid()
        )
        return found

    async with owner.transaction():
        assert await outbox_figures.replay(owner, "bureau", NOW - dt.timedelta(days=DAYS + 2), NOW, NOW, 10) == 1
        sweeping = asyncio.create_task(outbox.sweep_dead_letters(app, 10, DAYS))
        await eventually(waits, 10, "the sweep waits")
    assert await sweeping == 0
    await watching.close()


async def test_the_worker_sweeps_by_what_is_configured(
    database: Database, owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await add_rejected(owner, [50, 30])
    await add_letters(owner, [(DAYS + 1, None), (DAYS - 1, None)])
    config = load({}).gateway
    config = msgspec.structs.replace(config, usage_return=msgspec.structs.replace(config.usage_return, rejects_days=40))
    pool = Pool(Secret(database.dsn), config.database, "test")
    await pool.open()
    await housekeeping.sweep(pool, config)
    await pool.close()
    for table in ("usage_file_reject", "outbox_dead_letter"):
        assert await owner.fetchval(f"SELECT count(*) FROM {table}") == 1  # noqa: S608 - a name of ours
