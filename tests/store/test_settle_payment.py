"""What becomes of a payment, reversal or refund whose message cannot be made: its data key, or its payment, is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
import pytest

from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, Outcome
from gateway.domain.payments import PaymentKind, PaymentState, Question
from gateway.flows.settle_payment import Banks, SettlePayment
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.settings import load
from gateway.store import idempotency, payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import FOR_EFFECTS, Pool, connect
from tests.conftest import Database
from tests.keyed import add_data_key, keyed
from tests.store.test_payments import LEASE, intent
from tests.store.test_visits import Connection, new_reference

_K, _S = PaymentKind, PaymentState
KEY_OF_NOBODY = b"\1" + (12_345).to_bytes(4, "big") + bytes(60)


class Escaping(SettlePayment):
    """The planted bug: what keeps a message from being made ends the first try with nothing known."""

    async def _ask(self, payment: Payment, question: Question) -> Outcome:
        await self._operation(payment)
        return await super()._ask(payment, question)


class Hasty(SettlePayment):
    """The planted bug: an intent that was left is taken for one that was never sent."""

    async def again(self, payment: Payment) -> None:
        await self.first(payment)


class Desk(NamedTuple):
    """One that settles at a bank that approves; `asked` is what came to the bank."""

    settle: SettlePayment
    pool: Pool
    asked: list[Operation]
    connection: Connection
    kek_id: str


@asynccontextmanager
async def desk(database: Database, folder: Path, kind: type[SettlePayment]) -> AsyncIterator[Desk]:
    asked: list[Operation] = []

    async def ask(name: str, operation: Operation, deadline_s: float) -> Outcome:
        asked.append(operation)
        return Approved()

    config = load({}).gateway
    connected = partial(connect, Secret(database.dsn), config.database, "test", FOR_EFFECTS)
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    async with keyed(database.dsn, folder) as (pool, data_keys, store):
        await data_keys.current(connection, ("answers", "operations"))  # as the payment's own effect has
        outcomes = WriteOutcomes(connected, data_keys)
        serving = asyncio.create_task(outcomes.serve())
        try:
            settle = kind(pool, data_keys, outcomes, Banks(ask, lambda name, operation: True), config.payments)
            yield Desk(settle, pool, asked, connection, store.wrap(bytes(16))[0])
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await connection.close()


async def begun(connection: Connection, kind: PaymentKind) -> Payment:
    """As its request leaves it, with an account that cannot be opened here; a child's payment is there."""
    paid = intent(state=_S.APPROVED)._replace(account_sealed=KEY_OF_NOBODY)
    one = intent(kind)._replace(account_sealed=KEY_OF_NOBODY, idempotency_key=str(new_reference()))
    if kind is not _K.PAYMENT:
        one = one._replace(parent=paid.reference)
    await payments.insert(connection, [paid, one], LEASE)
    assert all(await is_free(connection, one)), "they are taken now"
    return one


async def is_free(connection: Connection, payment: Payment) -> tuple[bool, bool]:
    """(its key, its order): takes them."""
    key, order = (payment.caller, payment.idempotency_key), (payment.caller, payment.merchant_order_id)
    return (
        (await idempotency.claim(connection, [key], [b"f" * 32])).keys() == {key},
        await payments.take_orders(connection, [(*order, payment.reference)]) == {payment.reference},
    )


async def told(settle: SettlePayment, payment: Payment) -> int:
    try:
        return (await settle.first(payment)).status
    except Problem as problem:
        return problem.status


@pytest.mark.parametrize("away", ["data key", "its KEK", "the right KEK", "database"])
@pytest.mark.parametrize("kind", [SettlePayment, Escaping], ids=["as it is", "control"])
async def test_what_cannot_be_made_into_a_message_is_not_sent(
    database: Database, tmp_path: Path, kind: type[SettlePayment], away: str
) -> None:
    async with desk(database, tmp_path / "keys", kind) as (settle, pool, asked, connection, kek_id):
        if away == "database":  # outcomes have a connection of their own, which is there
            await pool.close()
        elif away != "data key":
            await add_data_key(connection, "kek-9" if away == "its KEK" else kek_id)
        for what in PaymentKind:
            one = await begun(connection, what)
            status = await told(settle, one)
            stands = await payments.find(connection, one.reference)
            key, order = await is_free(connection, one)
            assert stands is not None and not asked
            ended = (status, stands.state, key, order)
            # an order is the payment's own, not its reversal's or refund's
            mended = (503, _S.NOT_SENT, True, what is _K.PAYMENT)
            assert ended == (mended if kind is SettlePayment else (202, _S.INTENT, False, False)), what


@pytest.mark.parametrize("kind", [SettlePayment, Hasty], ids=["as it is", "control"])
async def test_what_may_have_been_sent_stays_unknown_when_it_cannot_be_asked_about(
    database: Database, tmp_path: Path, kind: type[SettlePayment]
) -> None:
    async with desk(database, tmp_path / "keys", kind) as (settle, _, asked, connection, _):
        for what in PaymentKind:
            one = await begun(connection, what)
            for _ in range(2):  # as a first look finds it, and as the next
                stands = await payments.find(connection, one.reference)
                assert stands is not None
                try:
                    await settle.again(stands)
                except Problem as problem:
                    assert kind is Hasty, problem
            stands = await payments.find(connection, one.reference)
            assert stands is not None and not asked
            ended = (stands.state, *await is_free(connection, one))
            unknown = (_S.UNKNOWN, False, False)
            assert (ended == unknown) == (kind is SettlePayment), (what, ended)


async def test_who_was_overtaken_at_its_intent_does_not_end_the_lease_of_another(
    database: Database, tmp_path: Path
) -> None:
    async with desk(database, tmp_path / "keys", SettlePayment) as (settle, _, _, connection, _):
        one = await begun(connection, _K.PAYMENT)
        await payments.try_now(connection, one)
        (first,) = await payments.due(connection, 1, -LEASE)
        (second,) = await payments.due(connection, 1, LEASE)
        assert await payments.move(connection, Move(second, (_S.INTENT,), _S.UNKNOWN, None, LEASE))
        ends_at = "SELECT next_try_at FROM payment WHERE reference = $1"
        before = await connection.fetchval(ends_at, one.reference)
        await settle.again(first)
        assert await connection.fetchval(ends_at, one.reference) == before
        await settle.again(second._replace(state=_S.UNKNOWN))
        assert await connection.fetchval(ends_at, one.reference) < before, "its own it ends"
