"""What the database itself refuses of visits."""

import datetime as dt
import itertools
from collections.abc import AsyncIterator
from typing import Any, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.domain.scenes import VisitKind
from gateway.domain.visits import BEGINNINGS, OPEN, TRANSITIONS, VisitState
from gateway.flows.resolve_visits import ResolveVisits
from gateway.metrics import VISITS_UNKNOWN
from gateway.settings import load
from gateway.store import visits
from gateway.store.payments import created_at
from gateway.store.pool import Pool
from gateway.store.visits import Visit
from tests.conftest import Database

_S = VisitState
NOBODY: Any = None
LEASE = dt.timedelta(seconds=60)
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


def new_reference(age: dt.timedelta = dt.timedelta(0)) -> UUID:
    now = int((dt.datetime.now(dt.UTC) - age).timestamp() * 1000)
    return UUID(bytes=uuid7(now, uuid4().bytes[:10]))


def visit(state: VisitState = _S.ASKING, age: dt.timedelta = dt.timedelta(0)) -> Visit:
    reference = new_reference(age)
    made = Visit(
        reference, created_at(reference), VisitKind.EXIT, "demo-merchant", "key", "L-1", "lot", uuid4(), _S.ASKING,
        fee_fen=1500, discount_fen=500, expires_at=created_at(reference) + LEASE,
    )  # fmt: skip
    return made._replace(
        state=state, reason="x" if state is _S.REFUSED else None,
        details_sealed=None if state is _S.ASKING else b"sealed",
    )  # fmt: skip


@pytest.fixture
async def app(database: Database) -> AsyncIterator[Connection]:
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    yield connection
    await connection.close()


async def test_the_databases_table_of_steps_is_the_domains(app: Connection) -> None:
    rows = {tuple(row) for row in await app.fetch("SELECT before, after FROM visit_step")}
    steps = {(before.value, after.value) for before, states in TRANSITIONS.items() for after in states}
    assert rows == steps | {("", state.value) for state in BEGINNINGS}


async def test_every_other_step_is_refused(app: Connection, database: Database) -> None:
    owner = await asyncpg.connect(database.dsn)
    try:
        for before, after in itertools.permutations(VisitState, 2):
            made = visit()
            await visits.insert(app, [made], LEASE)
            await owner.execute("SET session_replication_role = replica")  # its triggers rest: put it anywhere
            goes_on = before in OPEN or before is _S.DUE
            await owner.execute(
                "UPDATE visit SET state = $2, reason = $3, next_try_at = $4, details_sealed = $5 WHERE reference = $1",
                made.reference, before, "x" if before is _S.REFUSED else None,
                dt.datetime.now(dt.UTC) if goes_on else None, b"sealed" if before in (_S.DUE, _S.INTENT) else None,
            )  # fmt: skip
            await owner.execute("SET session_replication_role = origin")
            moved = visit(after)._replace(
                reference=made.reference, created_at=made.created_at, expires_at=made.expires_at
            )
            again_in = LEASE if after in OPEN or after is _S.DUE else None
            allowed = after in TRANSITIONS.get(before, ())
            try:
                assert await visits.move(app, moved, {before}, again_in) and allowed
            except asyncpg.CheckViolationError:
                assert not allowed
    finally:
        await owner.close()


async def test_of_two_who_move_it_the_second_does_not(app: Connection) -> None:
    made = visit()
    await visits.insert(app, [made], LEASE)
    assert await visits.move(app, made._replace(state=_S.DUE, details_sealed=b"sealed"), {_S.ASKING}, LEASE)
    assert not await visits.move(app, made._replace(state=_S.NOT_SENT), {_S.ASKING}, None)
    assert [step.state for step in await visits.history(app, made.reference)] == ["asking", "due"]


async def test_a_long_history_is_shown_by_its_last_steps(app: Connection) -> None:
    made = visit()
    await visits.insert(app, [made], LEASE)
    await app.execute(
        "INSERT INTO visit_history SELECT $1, $2, now() + n * interval '1 s', 'due' FROM generate_series(1, 100) n",
        made.reference, made.created_at,
    )  # fmt: skip
    await app.execute(
        "INSERT INTO visit_history VALUES ($1, $2, now() + interval '101 s', 'opened')", made.reference, made.created_at
    )
    steps = await visits.history(app, made.reference)
    assert [step.state for step in steps] == ["due"] * 99 + ["opened"] and steps == sorted(steps)


async def test_what_is_being_opened_by_another_is_not_moved(app: Connection) -> None:
    made, others = visit(_S.INTENT)._replace(opening=uuid4()), uuid4()
    await visits.insert(app, [made], LEASE)
    due = made._replace(state=_S.DUE, opening=None)
    assert not await visits.move(app, due, {_S.INTENT}, LEASE, opening=others)
    assert await visits.move(app, due, {_S.INTENT}, LEASE, opening=made.opening)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE visit SET state = $2, next_try_at = $3, details_sealed = 'sealed' WHERE reference = $1",
        "UPDATE visit SET state = $2, next_try_at = $3 WHERE reference = $1",
    ],
    ids=["of a worker from before migration 16", "one that forgets it"],
)
@pytest.mark.parametrize("last", [_S.EXPIRED, _S.DONE, _S.UNSURE])
async def test_by_what_the_lot_knows_the_car_is_erased_by_the_step_that_ends_it(
    app: Connection, last: VisitState, statement: str
) -> None:
    """Whatever the statement says of it; afterwards it does not come back."""
    made = visit()
    await visits.insert(app, [made], LEASE)
    made = made._replace(state=_S.DUE, details_sealed=b"sealed")
    assert await visits.move(app, made, {_S.ASKING}, LEASE)
    if last is not _S.EXPIRED:
        assert await visits.move(app, made._replace(state=_S.INTENT), {_S.DUE}, LEASE)
    standing = await visits.find(app, made.reference)
    assert standing is not None and standing.details_sealed == b"sealed", "it may still have to be told"
    next_try_at = dt.datetime.now(dt.UTC) if last is _S.UNSURE else None
    await app.execute(statement, made.reference, last, next_try_at)
    over = await visits.find(app, made.reference)
    assert over is not None and over.state is last and over.details_sealed is None
    with pytest.raises(asyncpg.CheckViolationError, match="visit_details_while_needed"):
        await app.execute("UPDATE visit SET details_sealed = 'sealed' WHERE reference = $1", made.reference)


async def test_a_payment_belongs_to_one_visit_for_ever(app: Connection) -> None:
    payment, one, other = new_reference(), new_reference(), new_reference()
    assert await visits.take_payments(app, [(payment, one), (payment, other)]) == {(payment, min(one, other))}
    assert await visits.take_payments(app, [(payment, max(one, other))]) == {(payment, min(one, other))}
    for what in ("UPDATE visit_payment SET visit = $1", "DELETE FROM visit_payment WHERE visit = $1"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await app.execute(what, one)


async def test_of_whom_nobody_knows_the_gauge_shows_the_first_for_a_day(app: Connection, database: Database) -> None:
    pool = Pool(Secret(database.dsn), load({}).gateway.database, "test")
    await pool.open()
    resolve = ResolveVisits(pool, NOBODY, NOBODY)

    async def is_unknown(age: dt.timedelta) -> UUID:
        made = visit(_S.INTENT, age)
        await visits.insert(app, [made], LEASE)
        for before, after in ((_S.INTENT, _S.UNSURE), (_S.UNSURE, _S.UNKNOWN)):
            moved = made._replace(state=after, details_sealed=None)
            assert await visits.move(app, moved, {before}, LEASE if after in OPEN else None)
        return made.reference

    try:
        for age, shown in ((25, 0), (0, 1), (23, 2)):
            reference = await is_unknown(dt.timedelta(hours=age))
            await resolve.measure()
            assert VISITS_UNKNOWN._value.get() == shown
            listed = [row.reference for row in await visits.unknown(app, 10)]
            assert len(listed) == shown and (reference in listed) == (age < 24)
    finally:
        await pool.close()
