"""What the database itself refuses of loss notices, and the order in which it gives them out."""

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from typing import TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain.cards import CardStatus, LossKind
from gateway.domain.ids import uuid7
from gateway.domain.loss_notices import OPEN, TRANSITIONS, NoticeKind, NoticeState
from gateway.store import loss_notices, losses
from gateway.store.loss_notices import Notice
from gateway.store.payments import created_at
from tests.conftest import Database

_S = NoticeState
LEASE, NOW = dt.timedelta(seconds=60), dt.timedelta(0)
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def notice(card_id: UUID | None = None, behind_s: float = 0.0) -> Notice:
    """`behind_s`: by the clock of the machine that made it."""
    now = int((dt.datetime.now(dt.UTC).timestamp() - behind_s) * 1000)
    reference = UUID(bytes=uuid7(now, uuid4().bytes[:10]))
    return Notice(
        reference, created_at(reference), NoticeKind.LOSS, LossKind.TEMPORARY, "demo-kiosk", "key", card_id or uuid4(),
        CardStatus.LOST_TEMPORARY, "bank-jiaxing", b"sealed", uuid4(), b"sealed",
    )  # fmt: skip


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    yield connection
    await connection.close()


async def test_the_databases_table_of_steps_is_the_domains(app: Connection) -> None:
    rows = {tuple(row) for row in await app.fetch("SELECT before, after FROM loss_notice_step")}
    assert rows == {(before or "", after) for before, states in TRANSITIONS.items() for after in states}


async def test_every_other_step_is_refused(app: Connection, database: Database) -> None:
    owner = await asyncpg.connect(database.dsn)
    tried = 0
    try:
        for before, after in itertools.permutations(NoticeState, 2):
            made = notice()
            await loss_notices.insert(app, [made], [LEASE])
            await owner.execute("SET session_replication_role = replica")  # its triggers rest: put it anywhere
            await owner.execute(
                "UPDATE loss_notice SET state = $2, reason = $3, next_try_at = $4 WHERE reference = $1",
                made.reference, before, "x" if before is _S.REFUSED else None,
                dt.datetime.now(dt.UTC) if before in OPEN else None,
            )  # fmt: skip
            await owner.execute("SET session_replication_role = origin")
            allowed = after in TRANSITIONS.get(before, ())
            try:
                reason, again_in = "x" if after is _S.REFUSED else None, LEASE if after in OPEN else None
                assert await loss_notices.move(app, made, {before}, after, reason, again_in) and allowed
            except asyncpg.CheckViolationError:
                assert not allowed
            tried += 1
    finally:
        await owner.close()
    assert tried == 4 * 3


async def test_a_long_history_is_shown_by_its_last_steps(app: Connection) -> None:
    made = notice()
    await loss_notices.insert(app, [made], [LEASE])
    await app.execute(
        "INSERT INTO loss_notice_history SELECT $1, $2, now() + n * interval '1 s', n FROM generate_series(1, 100) n",
        made.reference, made.created_at,
    )  # fmt: skip
    states = [step.state for step in await loss_notices.history(app, made.reference)]
    assert states == [str(number) for number in range(1, 101)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE loss_notice SET account_sealed = ''", "UPDATE loss_notice SET turn = 0", "DELETE FROM loss_notice",
        "UPDATE loss_notice_history SET state = 'accepted'", "DELETE FROM loss_notice_history",
        "INSERT INTO loss_notice_step VALUES ('refused', 'accepted')",
    ],
)  # fmt: skip
async def test_the_application_cannot_rewrite_what_happened(app: Connection, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute(statement)


async def test_a_reference_is_unique_over_all_months(app: Connection) -> None:
    made = notice()
    await loss_notices.insert(app, [made], [LEASE])
    with pytest.raises(asyncpg.UniqueViolationError):
        await loss_notices.insert(app, [made], [LEASE])
    with pytest.raises(asyncpg.CheckViolationError):
        await loss_notices.insert(app, [made._replace(created_at=made.created_at + dt.timedelta(days=31))], [LEASE])


async def test_those_of_a_card_are_given_out_one_by_one_in_their_order(app: Connection) -> None:
    """That in which they were recorded, also where a later one was made by a clock that is behind."""
    cards = [uuid4() for _ in range(5)]
    turns = [[notice(card, behind_s=place) for place in range(3)] for card in cards]
    await loss_notices.insert(app, [one for place in range(3) for one in (turn[place] for turn in turns)], [NOW] * 15)
    assert await losses.change(app, {}, [*cards, uuid4()]) == set(cards)
    for place in range(3):
        due = await loss_notices.due(app, 100, LEASE)
        assert {one.reference for one in due} == {turn[place].reference for turn in turns}
        assert {one.tries for one in due} == {1}
        assert await loss_notices.due(app, 100, LEASE) == [], "each waits for the one before it"
        for one in due:
            assert await loss_notices.move(app, one, {one.state}, _S.UNKNOWN, None, LEASE)
        assert await loss_notices.due(app, 100, LEASE) == [], "which is not decided yet"
        for one in due:
            assert await loss_notices.move(app, one, OPEN, _S.ACCEPTED)
    assert await losses.change(app, {}, cards) == set()


async def test_due_is_taken_by_one(app: Connection, database: Database) -> None:
    await loss_notices.insert(app, [notice() for _ in range(20)], [NOW] * 20)
    other = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        async with app.transaction():
            first = await loss_notices.due(app, 12, LEASE)
            second = await loss_notices.due(other, 12, LEASE)  # does not wait for the first
    finally:
        await other.close()
    assert (len(first), len(second)) == (12, 8) and len({one.reference for one in first + second}) == 20
    assert await loss_notices.count_open(app, NOW) == (20, 20)
    assert await loss_notices.count_open(app, dt.timedelta(hours=1)) == (20, 0)
    assert len(await loss_notices.stuck(app, NOW, 15)) == 15


async def test_of_two_writers_one_decides(app: Connection, database: Database) -> None:
    made = notice()
    await loss_notices.insert(app, [made], [LEASE])
    other = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        async with app.transaction():
            assert await loss_notices.move(app, made, OPEN, _S.ACCEPTED)
            rival = asyncio.create_task(loss_notices.move(other, made, OPEN, _S.REFUSED, "not_allowed"))
            while not await app.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not rival.done(), "it waits for the first"
        assert not await rival
    finally:
        await other.close()
    found = await loss_notices.find(app, made.reference)
    assert found is not None and (found.state, found.reason) == (_S.ACCEPTED, None)
    assert [step.state for step in await loss_notices.history(app, made.reference)] == ["intent", "accepted"]
