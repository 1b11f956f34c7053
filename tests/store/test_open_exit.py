"""Exits that are opened in one batch: of the payments no more is taken than opens. And who writes takes turns."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from gateway.configuration import Visits
from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.sealing import SealError, UnknownDataKey
from gateway.domain.errors import Problem, unavailable
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Unknown
from gateway.domain.payments import PaymentKind, PaymentState
from gateway.domain.visits import VisitState
from gateway.flows import not_now, settle_visit
from gateway.flows.data_keys import DataKeys
from gateway.flows.effects import Asked, Begun
from gateway.flows.kept_answers import Answer
from gateway.flows.settle_visit import Arrival, Details, SettleVisit
from gateway.flows.visit import OpenExit, Paid
from gateway.flows.visit_answers import answer_of
from gateway.partners.phases import Why
from gateway.settings import load
from gateway.store import idempotency, payments, visits
from gateway.store.pool import Pool
from gateway.store.visits import Visit
from tests.conftest import Database
from tests.keyed import add_data_key, keyed
from tests.store.test_payments import intent
from tests.store.test_visits import LEASE, NOBODY, new_reference, visit

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


A_FEN, AN_HOUR = 1, dt.timedelta(hours=1)


@pytest.mark.parametrize("states, more_fen, age, keeps", [
    ((), 0, LEASE, True), ((PaymentState.UNKNOWN,), A_FEN, AN_HOUR - LEASE, True),
    ((PaymentState.UNKNOWN, PaymentState.REVERSING), 0, LEASE, False), ((PaymentState.APPROVED,), 0, LEASE, False),
    ((), -A_FEN, LEASE, False), ((), 0, AN_HOUR + LEASE, False),
])  # fmt: skip
async def test_an_exit_stays_due_while_its_payment_may_yet_be_approved(
    database: Database, states: tuple[PaymentState, ...], more_fen: int, age: dt.timedelta, keeps: bool
) -> None:
    """`states` are those that it has come to since; APPROVED: and its caller's reversal is under way."""
    connection = await asyncpg.connect(database.dsn, server_settings={"role": "yikatong_app"})
    try:
        begun, soon = visit(), dt.timedelta(seconds=5)
        await visits.insert(connection, [begun], LEASE)
        due = begun._replace(
            state=VisitState.DUE, details_sealed=b"x", expires_at=begun.created_at + soon, benefits="parking.x"
        )
        assert await visits.move(connection, due, {begun.state}, soon)
        reference = new_reference(age)
        paid = intent()._replace(
            reference=reference, created_at=payments.created_at(reference), amount_fen=due.amount_fen + more_fen
        )
        await payments.insert(connection, [paid], LEASE)
        before = paid.state
        for after in states:
            assert await payments.move(connection, payments.Move(paid, (before,), after, None, LEASE))
            before = after
        if states == (PaymentState.APPROVED,):
            await payments.insert(connection, [intent(PaymentKind.REVERSAL)._replace(parent=reference)], LEASE)
        asked = Asked("demo-merchant", new_reference(), Paid(due.reference, reference), "key")
        async with connection.transaction():
            assert answers(await OpenExit(settle()).perform(connection, [asked])) == ["payment_pending"]
        until = payments.created_at(asked.reference) + dt.timedelta(seconds=SETTINGS.pay_within_s)
        stands = await visits.find(connection, due.reference)
        assert stands == (due._replace(expires_at=until) if keeps else due)
        left_s = await connection.fetchval(
            "SELECT extract(epoch FROM next_try_at - now()) FROM visit WHERE reference = $1", due.reference
        )
        assert (left_s > SETTINGS.pay_within_s - 5) == keeps, "so long nobody ends it"
    finally:
        await connection.close()


class Unheard(SettleVisit):
    """It does not hear that its first word, the exit is due again, is committed. Another opens the exit meanwhile."""

    def __init__(self, pool: Pool, data_keys: DataKeys, guarded: bool) -> None:
        super().__init__(pool, data_keys, NOBODY, SETTINGS)
        self._guarded = guarded
        self.other: UUID | None = None

    async def _call(self, partner: str, operation: Operation, within_s: float) -> Outcome:
        return NotSent("no connection")

    async def _write(self, visit: Visit, before: Any, owes: bool = True, opening: UUID | None = None) -> Visit:
        written = await super()._write(visit, before, owes, opening if self._guarded else None)
        if self.other is None:
            self.other = new_reference()
            again = visit._replace(state=VisitState.INTENT, payment=new_reference(), opening=self.other)
            async with self._database() as connection:
                assert await visits.move(connection, again, {VisitState.DUE}, LEASE)
            raise unavailable("it is not known whether it was written")
        return written


@pytest.mark.parametrize("guarded", [True, False], ids=["as it is", "control"])
async def test_the_second_try_does_not_take_an_exit_from_who_opens_it_meanwhile(
    database: Database, tmp_path: Path, guarded: bool
) -> None:
    async with keyed(database.dsn, tmp_path / "keys") as (pool, data_keys, _):
        one = Unheard(pool, data_keys, guarded)
        begun = visit(VisitState.INTENT)._replace(payment=new_reference(), opening=new_reference())
        async with pool.acquire() as connection:
            await visits.insert(connection, [begun], LEASE)
        with pytest.raises(Problem, match="unavailable"):
            await one._tell(begun, Details(), "")
        stands = await one._look(begun)
        assert (stands.state is VisitState.INTENT and stands.opening == one.other) == guarded


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


class Mute(SettleVisit):
    """What the merchant's system is asked comes to `outcome`; `writes`: the database takes it."""

    def __init__(self, pool: Pool, data_keys: DataKeys, outcome: Outcome, writes: bool) -> None:
        super().__init__(pool, data_keys, NOBODY, SETTINGS)
        self._outcome, self._writes = outcome, writes
        self.asked = 0

    async def _call(self, partner: str, operation: Operation, within_s: float) -> Outcome:
        self.asked += 1
        return self._outcome

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Any]:
        if not self._writes:
            raise unavailable("the database is away")
        async with super()._database() as connection:
            yield connection


FEE = Approved(facts={"fee_fen": 1000})
TOLD_NOTHING, NOT_WRITTEN = "the merchant's system was told nothing", "the fee could not be written"


@pytest.mark.parametrize("outcome, code, detail", [
    (NotSent(Why.CANNOT_BUILD), "validation_failed", ""), (NotSent(Why.NO_CONNECTION), "unavailable", TOLD_NOTHING),
    (Declined(DeclineCode.NOT_FOUND), "unavailable", NOT_WRITTEN), (FEE, "unavailable", NOT_WRITTEN),
])  # fmt: skip
async def test_only_an_answer_that_is_not_written_is_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, outcome: Outcome, code: str, detail: str
) -> None:
    monkeypatch.setattr(not_now, "_PAUSE_S", 0)
    with pytest.raises(Problem) as raised:
        await Mute(NOBODY, NOBODY, outcome, writes=False).first(Arrival(visit(), Details(), "", None, NOBODY))
    assert (raised.value.code, raised.value.detail) == (code, detail)


class Overlooked(Mute):
    """The planted bug: the visit stays as it is, and its resolver takes it for told."""

    async def open_paid(self, visit: Visit) -> Answer:
        try:
            await self._data_keys.open(b"", visit.reference.bytes, visit.details_sealed or b"")
        except (UnknownDataKey, KeyStoreError, SealError):
            return answer_of(visit)
        raise AssertionError("it has a key")


@pytest.mark.parametrize("away", ["data key", "its KEK", "the right KEK"])
@pytest.mark.parametrize("kind", [Mute, Overlooked], ids=["as it is", "control"])
async def test_a_paid_exit_without_its_data_key_is_due_again(
    database: Database, tmp_path: Path, kind: type[Mute], away: str
) -> None:
    async with keyed(database.dsn, tmp_path / "keys") as (pool, data_keys, store):
        one = kind(pool, data_keys, Approved(), writes=True)
        key_of_nobody = b"\1" + (12_345).to_bytes(4, "big") + bytes(60)
        begun = visit(VisitState.INTENT)._replace(
            payment=new_reference(), opening=new_reference(), details_sealed=key_of_nobody
        )
        key = (begun.caller, begun.idempotency_key)
        async with pool.acquire() as connection:
            await visits.insert(connection, [begun], LEASE)
            await idempotency.claim(connection, [key], [b"f" * 32])
            await data_keys.current(connection, ("answers", "operations"))  # as the exit's own effect has
            if away != "data key":
                await add_data_key(connection, "kek-9" if away == "its KEK" else store.wrap(bytes(16))[0])
        status = 0
        try:
            status = (await one.open_paid(begun)).status
        except Problem as problem:
            assert problem.code == "unavailable"
        stands = await one._look(begun)
        async with pool.acquire() as connection:
            is_free = (await idempotency.claim(connection, [key], [b"f" * 32])).keys() == {key}
        assert one.asked == 0
        mended = (status, stands.state, stands.payment, is_free) == (0, VisitState.DUE, None, True)
        assert mended == (kind is Mute), (status, stands, is_free)


@pytest.mark.parametrize("outcome, over_s, state", [
    (NotSent(Why.BREAKER_OPEN), 60, VisitState.UNSURE), (NotSent(Why.NO_CONNECTION), 60, VisitState.UNSURE),
    (NotSent(Why.BREAKER_OPEN), 400, VisitState.UNKNOWN), (NotSent(Why.NO_PARTNER), 60, VisitState.UNKNOWN),
    (Unknown(Why.LATE), 60, VisitState.UNKNOWN), (Approved(), 400, VisitState.DONE),
    (Unknown(Why.LATE), 0, VisitState.UNSURE), (Declined(DeclineCode.NOT_FOUND), 0, VisitState.UNSURE),
])  # fmt: skip
async def test_who_could_not_be_asked_in_time_is_asked_a_while_longer(
    database: Database, tmp_path: Path, outcome: Outcome, over_s: int, state: VisitState
) -> None:
    async with keyed(database.dsn, tmp_path / "keys") as (pool, data_keys, _):
        one, begun = Mute(pool, data_keys, outcome, writes=True), visit(VisitState.INTENT)
        one._settings = msgspec.structs.replace(SETTINGS, deadline_ms=10_000)  # what was sent last may be on its way
        unsure = begun._replace(
            state=VisitState.UNSURE, expires_at=begun.created_at - dt.timedelta(seconds=over_s), details_sealed=None
        )
        async with pool.acquire() as connection:
            await visits.insert(connection, [begun], LEASE)
            assert await visits.move(connection, unsure, {VisitState.INTENT}, LEASE)
        await one.again(unsure)
        assert (await one._look(begun)).state is state


async def test_who_read_that_it_is_over_does_not_end_an_exit_that_is_due_anew(
    database: Database, tmp_path: Path
) -> None:
    async with keyed(database.dsn, tmp_path / "keys") as (pool, data_keys, _):
        one = Mute(pool, data_keys, NotSent(Why.NO_CONNECTION), writes=True)
        begun, at_once = visit(), dt.timedelta(0)
        async with pool.acquire() as connection:
            await visits.insert(connection, [begun], LEASE)
            keys = await data_keys.current(connection, ("answers", "operations"))
            car = data_keys.sealer.seal(
                keys["operations"], b"visit.details_sealed", begun.reference.bytes, b'["\xe6\xb5\x99",""]'
            )
            over = begun._replace(state=VisitState.DUE, details_sealed=car)
            assert await visits.move(connection, over, {VisitState.ASKING}, at_once)
            (read,) = await visits.due(connection, 1, LEASE)
            opened = read._replace(state=VisitState.INTENT, payment=new_reference(), opening=new_reference())
            assert await visits.move(connection, opened, {VisitState.DUE}, LEASE)
        with pytest.raises(Problem, match="unavailable"):  # the lot cannot be told: it is due for as long again
            await one.open_paid(opened)
        anew = await one._look(begun)
        await one.again(read)
        assert await one._look(begun) == anew and anew.state is VisitState.DUE
        await one.again(anew)
        assert (await one._look(begun)).state is VisitState.EXPIRED
