"""Exits that are opened in one batch: of the payments no more is taken than opens. And who writes takes turns."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.configuration import Visits
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.payments import PaymentState
from gateway.domain.visits import VisitState
from gateway.flows import settle_visit
from gateway.flows.effects import Asked, Begun
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.visit import OpenExit, Paid
from gateway.settings import load
from gateway.store import payments, visits
from gateway.store.pool import Pool
from tests.conftest import Database
from tests.store.test_payments import intent
from tests.store.test_visits import LEASE, new_reference, visit

NOBODY: Any = None
SETTINGS = Visits(deadline_ms=1000, lifetime_s=3, pay_within_s=60, retry_ms=100, resolve_max=10)


def settle() -> SettleVisit:
    """Of which only what needs neither a key nor a partner is asked."""
    return SettleVisit(NOBODY, NOBODY, NOBODY, SETTINGS)


def answers(done: Any) -> list[str]:
    return [one.code if isinstance(one, Problem) else type(one).__name__ for one in done]


async def test_only_one_payment_is_taken_for_a_visit(database: Database) -> None:
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        made = [visit(), visit()]
        await visits.insert(connection, made, LEASE)
        for begun in made:
            assert await visits.move(
                connection, begun._replace(state=VisitState.DUE, details_sealed=b"x"), {begun.state}, LEASE
            )
        paid = [intent()._replace(amount_fen=1000, state=PaymentState.INTENT) for _ in range(3)]
        await payments.insert(connection, paid, LEASE)
        for payment in paid:
            move = payments.Move(payment, (PaymentState.INTENT,), PaymentState.APPROVED)
            assert await payments.move(connection, move)
        (one, other), (first, second, third) = (v.reference for v in made), (p.reference for p in paid)

        def ask(of: UUID, payment: UUID) -> Asked:
            return Asked("demo-merchant", new_reference(), Paid(of, payment), "key")

        kind = OpenExit(settle())
        async with connection.transaction():
            done = await kind.perform(connection, [ask(one, first), ask(one, second), ask(one, first)])
        assert answers(done) == [Begun.__name__, "visit_state", "visit_state"]
        async with connection.transaction():
            done = await kind.perform(connection, [ask(other, first), ask(other, second)])
        assert answers(done) == ["payment_used", "unavailable"]
        async with connection.transaction():
            done = await kind.perform(connection, [ask(other, second), ask(other, third)])
        assert answers(done) == [Begun.__name__, "visit_state"], "the second is not bound to the first visit"
        taken = {row[0] for row in await connection.fetch("SELECT payment FROM visit_payment")}
        assert taken == {first, second}
    finally:
        await connection.close()


async def test_who_waits_for_its_turn_to_write_is_told_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle_visit, "_WRITING_S", 0.1)
    pool = Pool(Secret(database.dsn), load({}).gateway.database, "test")
    await pool.open()
    try:
        one = SettleVisit(pool, NOBODY, NOBODY, SETTINGS)
        async with one._turn, asyncio.timeout(5):  # somebody writes, and comes to no end
            with pytest.raises(Problem, match="unavailable"):
                await one._look(visit())
        with pytest.raises(AssertionError, match="never deleted"):  # its turn has come
            await one._look(visit())
    finally:
        await pool.close()
