"""What the database itself refuses: a second outcome, a step that is not in the table, a changed history."""

import asyncio
import datetime as dt
import itertools
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import asyncpg
import pytest

from gateway.domain.ids import uuid7
from gateway.domain.payments import BEGINNINGS, OPEN, TRANSITIONS, PaymentKind, PaymentState
from gateway.store import payments
from gateway.store.migrate import ensure_partitions
from gateway.store.payments import Move, Payment
from tests.conftest import Database

_S = PaymentState
LEASE = dt.timedelta(seconds=60)


def intent(kind: PaymentKind = PaymentKind.PAYMENT, state: PaymentState = _S.INTENT) -> Payment:
    now = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
    reference = UUID(bytes=uuid7(now, uuid4().bytes[:10]))
    parent = None if kind is PaymentKind.PAYMENT else reference
    return Payment(
        reference, payments.created_at(reference), kind, "demo-merchant", "key", str(reference), "T-1", parent,
        uuid4(), "bank-haiyan", b"sealed", 100, 1, state,
    )  # fmt: skip


@pytest.fixture
async def app(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    yield connection
    await connection.close()


async def test_the_databases_table_of_steps_is_the_domains(app: "asyncpg.Connection[asyncpg.Record]") -> None:
    rows = {tuple(row) for row in await app.fetch("SELECT kind, before, after FROM payment_step")}
    ours = {(kind, "", state) for kind, states in BEGINNINGS.items() for state in states}
    ours |= {(kind, before, after) for (kind, before), states in TRANSITIONS.items() for after in states}
    assert rows == ours


async def test_every_other_step_is_refused(app: "asyncpg.Connection[asyncpg.Record]", database: Database) -> None:
    owner = await asyncpg.connect(database.dsn)
    tried = 0
    try:
        for kind, before, after in itertools.product(PaymentKind, PaymentState, PaymentState):
            if before is after:
                continue
            payment = intent(kind)
            await payments.insert(app, [payment], LEASE)
            await owner.execute("SET session_replication_role = replica")  # its triggers rest: put it anywhere
            await owner.execute("UPDATE payment SET state = $2 WHERE reference = $1", payment.reference, before)
            await owner.execute("SET session_replication_role = origin")
            allowed = after in TRANSITIONS.get((kind, before), ())
            due = LEASE if after in OPEN else None
            try:
                assert await payments.move(app, Move(payment, (before,), after, None, due)) and allowed
            except asyncpg.CheckViolationError:
                assert not allowed
            tried += 1
    finally:
        await owner.close()
    assert tried == 3 * 7 * 6


async def test_of_two_writers_one_decides(app: "asyncpg.Connection[asyncpg.Record]", database: Database) -> None:
    payment = intent()
    await payments.insert(app, [payment], LEASE)
    other = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        async with app.transaction():
            assert await payments.move(app, Move(payment, (_S.INTENT,), _S.APPROVED))
            rival = asyncio.create_task(payments.move(other, Move(payment, (_S.INTENT,), _S.DECLINED, "do_not_honour")))
            while not await app.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                assert not rival.done(), "it waits for the first"
        assert not await rival
    finally:
        await other.close()
    found = await payments.find(app, payment.reference)
    assert found is not None and (found.state, found.decline_code) == (_S.APPROVED, None)
    assert [step.state for step in await payments.history(app, payment.reference)] == ["intent", "approved"]


async def test_a_long_history_is_shown_by_its_last_steps(app: "asyncpg.Connection[asyncpg.Record]") -> None:
    payment = intent()
    await payments.insert(app, [payment], LEASE)
    await app.execute(
        "INSERT INTO payment_history SELECT $1, $2, now() + n * interval '1 s', 'intent', n::text"
        " FROM generate_series(1, 100) n",
        payment.reference, payment.created_at,
    )  # fmt: skip
    notes = [step.note for step in await payments.history(app, payment.reference)]
    assert notes == [str(number) for number in range(1, 101)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payment SET amount_fen = 1", "UPDATE payment SET account_sealed = ''", "DELETE FROM payment",
        "UPDATE payment_history SET state = 'approved'", "DELETE FROM payment_history",
        "INSERT INTO payment_step VALUES ('payment', 'declined', 'approved')",
        "UPDATE payment_order SET reference = gen_random_uuid()",
    ],
)  # fmt: skip
async def test_the_application_cannot_rewrite_what_happened(
    app: "asyncpg.Connection[asyncpg.Record]", statement: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await app.execute(statement)


async def test_a_reference_is_unique_over_all_months(app: "asyncpg.Connection[asyncpg.Record]") -> None:
    payment = intent()
    await payments.insert(app, [payment], LEASE)
    with pytest.raises(asyncpg.UniqueViolationError):
        await payments.insert(app, [payment], LEASE)
    with pytest.raises(asyncpg.CheckViolationError):
        await payments.insert(app, [payment._replace(created_at=payment.created_at + dt.timedelta(days=31))], LEASE)


async def test_due_is_taken_by_one_and_left_until_its_lease_is_over(
    app: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    rows = [intent() for _ in range(20)]
    await payments.insert(app, rows, dt.timedelta(0))
    other = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        async with app.transaction():
            first = await payments.due(app, 12, LEASE)
            second = await payments.due(other, 12, LEASE)  # does not wait for the first
        taken = [payment.reference for payment in first + second]
        assert (len(first), len(second)) == (12, 8) and len(set(taken)) == 20
        assert await payments.due(other, 12, LEASE) == []
    finally:
        await other.close()
    assert {payment.tries for payment in first + second} == {1}
    assert await payments.count_open(app, dt.timedelta(0)) == (20, 20)
    assert await payments.count_open(app, dt.timedelta(hours=1)) == (20, 0)


async def test_a_lease_is_ended_by_its_holder_alone(app: "asyncpg.Connection[asyncpg.Record]") -> None:
    payment = intent()
    await payments.insert(app, [payment], LEASE)
    await payments.move(app, Move(payment, (_S.INTENT,), _S.UNKNOWN, None, -LEASE))
    await payments.move(app, Move(payment, (_S.UNKNOWN,), _S.REVERSING, None, -LEASE))
    await payments.move(app, Move(payment, (_S.REVERSING,), _S.REVERSED, None, -LEASE))
    (first,) = await payments.due(app, 1, -LEASE)
    (second,) = await payments.due(app, 1, LEASE)  # the first one's is over

    async def left() -> dt.timedelta | None:
        found: dt.timedelta | None = await app.fetchval(
            "SELECT next_try_at - now() FROM payment WHERE reference = $1", payment.reference
        )
        return found

    for after in (None, 2 * LEASE):
        await payments.try_again(app, first, after)
        ends_in = await left()
        assert ends_in is not None and ends_in < LEASE
    await payments.try_now(app, second)
    await payments.try_again(app, second, None)
    assert await left() is not None, "it was made due for another reason"
    (third,) = await payments.due(app, 1, LEASE)
    await payments.try_again(app, third, None)
    assert await left() is None


async def test_an_old_payment_that_has_just_been_reversed_is_not_stuck(
    app: "asyncpg.Connection[asyncpg.Record]", database: Database
) -> None:
    payment = intent()
    owner = await asyncpg.connect(database.dsn)
    try:
        await ensure_partitions(owner, dt.datetime.now(dt.UTC).date() - dt.timedelta(days=3))
        then = int(dt.datetime.now(dt.UTC).timestamp() * 1000) - 2 * 86_400_000
        reference = UUID(bytes=uuid7(then, uuid4().bytes[:10]))
        payment = payment._replace(reference=reference, created_at=payments.created_at(reference))
        await payments.insert(app, [payment], LEASE)
    finally:
        await owner.close()
    hour = dt.timedelta(hours=1)
    assert await payments.count_open(app, hour) == (1, 1)
    assert [row.reference for row in await payments.stuck(app, hour, 10)] == [reference]
    assert await payments.move(app, Move(payment, (_S.INTENT,), _S.APPROVED))
    assert await payments.count_open(app, hour) == (0, 0)
    assert await payments.move(app, Move(payment, (_S.APPROVED,), _S.REVERSED, None, LEASE))
    assert await payments.count_open(app, hour) == (1, 0)
    assert await payments.stuck(app, hour, 10) == []


async def test_an_order_id_is_its_callers_own(app: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Two callers may have the same; of one caller's the first has it, in one batch too, until it gives it back."""
    ours, theirs, again, later = (intent() for _ in range(4))
    orders = [("one", "order-1", ours), ("two", "order-1", theirs), ("one", "order-1", again)]
    won = await payments.take_orders(app, [(caller, order, payment.reference) for caller, order, payment in orders])
    assert theirs.reference in won and len(won & {ours.reference, again.reference}) == 1 == len(won) - 1
    assert await payments.take_orders(app, [("one", "order-1", later.reference)]) == set()
    (holder,) = won - {theirs.reference}
    for wrong in (theirs, later):
        await payments.free_order(app, wrong._replace(caller="one", merchant_order_id="order-1"))
    assert await payments.take_orders(app, [("one", "order-1", later.reference)]) == set()
    await payments.free_order(app, intent()._replace(reference=holder, caller="one", merchant_order_id="order-1"))
    assert await payments.take_orders(app, [("one", "order-1", later.reference)]) == {later.reference}
