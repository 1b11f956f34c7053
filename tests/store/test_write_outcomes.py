"""Outcomes that are written in one transaction: each for itself all the same."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import asyncpg
import pytest

from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.payments import PaymentState
from gateway.flows.write_outcomes import Step, WriteOutcomes, Written
from gateway.settings import load
from gateway.store import payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import FOR_EFFECTS, connect
from tests.conftest import Database
from tests.keyed import keyed
from tests.store.test_payments import LEASE, intent

_S = PaymentState


@pytest.fixture
async def outcomes(database: Database, tmp_path: Path) -> AsyncIterator[WriteOutcomes]:
    """What is asked before its serve() is one batch."""
    connected = partial(connect, Secret(database.dsn), load({}).gateway.database, "test", FOR_EFFECTS)
    async with keyed(database.dsn, tmp_path / "keys") as (_, data_keys, _):
        yield WriteOutcomes(connected, data_keys)


async def together(outcomes: WriteOutcomes, *steps: Step) -> list[Written | BaseException]:
    waiting = [asyncio.create_task(outcomes.write(step)) for step in steps]
    await asyncio.sleep(0)  # they have all asked
    serving = asyncio.create_task(outcomes.serve())
    try:
        async with asyncio.timeout(20):
            return await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def step(payment: Payment, after: PaymentState, code: str | None = None) -> Step:
    return Step(Move(payment, (_S.INTENT,), after, code), True)


async def begun(database: Database, count: int) -> list[Payment]:
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        rows = [intent() for _ in range(count)]
        await payments.insert(connection, rows, LEASE)
    finally:
        await connection.close()
    return rows


async def history(database: Database, payment: Payment) -> list[str]:
    connection = await asyncpg.connect(database.dsn)
    try:
        return [step.state for step in await payments.history(connection, payment.reference)]
    finally:
        await connection.close()


async def test_of_two_steps_of_one_operation_the_first_is_taken(outcomes: WriteOutcomes, database: Database) -> None:
    (one, other) = await begun(database, 2)
    first, second, beside = await together(
        outcomes, step(one, _S.APPROVED), step(one, _S.DECLINED, "do_not_honour"), step(other, _S.APPROVED)
    )
    approved = one._replace(state=_S.APPROVED)
    assert (first, second) == (Written(approved, True), Written(approved, False))
    assert isinstance(beside, Written) and beside.moved
    assert await history(database, one) == ["intent", "approved"]


async def test_one_that_the_database_refuses_fails_alone(outcomes: WriteOutcomes, database: Database) -> None:
    good, wrong, declined = await begun(database, 3)
    written = await together(
        outcomes, step(good, _S.APPROVED), step(wrong, _S.REVERSED), step(declined, _S.DECLINED, "lost_card")
    )
    assert [isinstance(each, Written) and each.moved for each in written] == [True, False, True]
    assert isinstance(written[1], Problem) and written[1].status == 503
    assert [await history(database, each) for each in (good, wrong, declined)] == [
        ["intent", "approved"], ["intent"], ["intent", "declined"]
    ]  # fmt: skip
