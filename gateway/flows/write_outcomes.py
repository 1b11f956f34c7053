"""Write down what payments, reversals and refunds came to: many in one transaction, each with the answer that is owed.

Of two who try to move an operation on, the guarded update lets one; the other is told how it stands.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import structlog

from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.sealing import SealError
from gateway.domain.errors import Problem, unavailable
from gateway.domain.payments import OPEN, PaymentKind, PaymentState, public
from gateway.flows.data_keys import DataKeys
from gateway.flows.kept_answers import Answer, KeptAnswers
from gateway.store import benefits, idempotency, payments
from gateway.store.batch import Batcher
from gateway.store.payments import Move, Payment
from gateway.store.pool import GONE, cut_off

if TYPE_CHECKING:
    from gateway.store.pool import Connection

log = structlog.get_logger()

BATCH_MAX = 128
QUEUE_MAX = 1024
"""More than can be at the banks at once."""
WRITING_S = 5.0
"""What an outcome may take to be written; past it, it is somebody else's to find out."""

_S = PaymentState
_encode = msgspec.json.Encoder().encode


class PaymentAnswer(msgspec.Struct, frozen=True, gc=False):
    """What an operation came to: `approved`, `declined` with its code, `reversed`, or `pending` (202): ask again."""

    reference: str
    status: str
    amount_fen: int
    merchant_order_id: str
    decline_code: str | msgspec.UnsetType = msgspec.UNSET
    discount_fen: int | msgspec.UnsetType = msgspec.UNSET
    """What `benefits` took off what was asked for; `amount_fen` is charged. Absent where they were not applied."""
    benefits: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    payment: str | msgspec.UnsetType = msgspec.UNSET
    """Of a reversal or refund: the payment's reference."""


def answer_of(payment: Payment) -> Answer:
    """The same bytes for the same state, whoever makes them."""
    body = PaymentAnswer(
        str(payment.reference), public(payment.state), payment.amount_fen, payment.merchant_order_id,
        payment.decline_code or msgspec.UNSET, *taken_off(payment),
        str(payment.parent) if payment.parent else msgspec.UNSET,
    )  # fmt: skip
    return Answer(202 if payment.state in OPEN else 200, _encode(body))


def taken_off(payment: Payment) -> tuple[int | msgspec.UnsetType, tuple[str, ...] | msgspec.UnsetType]:
    """(discount_fen, benefits) of an answer, absent where nobody asked for them."""
    if payment.discount_fen is None:
        return msgspec.UNSET, msgspec.UNSET
    return payment.discount_fen, (payment.benefit,) if payment.benefit else ()


class Step(NamedTuple):
    """One operation's way on. `answers`: the answer is kept with its key, unless one is."""

    move: Move
    answers: bool
    look_again_in: dt.timedelta | None = None
    """Of a reversal that found nothing: when its payment is to be looked for once more."""
    note: str = ""
    """Why, for its history, where it was not the bank's own word."""


class Written(NamedTuple):
    """How an operation stands now, and whether it was this step that moved it."""

    payment: Payment
    moved: bool


class WriteOutcomes:
    """write() for one; serve() is the loop that carries them out."""

    def __init__(self, connect: "Callable[[], Awaitable[Connection]]", data_keys: DataKeys) -> None:
        self._data_keys = data_keys
        self._kept = KeptAnswers(data_keys)
        self._batcher: Batcher[Step, Written | Problem] = Batcher(
            connect,
            self._execute,
            batch_max=BATCH_MAX,
            queue_max=QUEUE_MAX,
            deadline_s=WRITING_S,
            on_batch=lambda _: None,
            worth_a_second=BATCH_MAX,
            not_known="the outcome could not be written: ask for the operation",
        )
        self.serve = self._batcher.run

    async def write(self, step: Step) -> Written:
        """After the commit. Raises Problem 503."""
        written = await self._batcher.ask(step)
        if isinstance(written, Problem):
            raise written
        return written

    async def _execute(
        self, connection: "Connection", batch: Sequence[Step], timeout: float
    ) -> Sequence[Written | Problem]:
        with cut_off(connection, timeout):
            try:
                data_keys = await self._data_keys.current(connection, ("answers",))
                return await self._attempt(connection, batch, data_keys["answers"])
            except (KeyStoreError, SealError) as error:  # made by another machine under a KEK that is not here yet
                log.error("outcomes have no data key", error=str(error))
                return [unavailable("a key is missing") for _ in batch]

    async def _attempt(
        self, connection: "Connection", batch: Sequence[Step], data_key_id: int
    ) -> Sequence[Written | Problem]:
        try:
            async with connection.transaction():
                return await self._transact(connection, batch, data_key_id)
        except asyncpg.PostgresError as error:
            if isinstance(error, GONE):
                raise
            if len(batch) == 1:
                log.error(
                    "outcome not written", reference=str(batch[0].move.payment.reference), sqlstate=error.sqlstate
                )
                return [unavailable("the outcome could not be written")]
        # one of them fails: each by itself, so that it is the only one
        return [(await self._attempt(connection, [step], data_key_id))[0] for step in batch]

    async def _transact(self, connection: "Connection", batch: Sequence[Step], data_key_id: int) -> list[Written]:
        steps = {step.move.payment.reference: step for step in reversed(batch)}  # of two for one operation the first
        moved = await payments.move_all(connection, [step.move for step in steps.values()])
        went = [step for reference, step in steps.items() if reference in moved]
        if cheaper := await self._follow(connection, went, data_key_id):
            await benefits.give_back(connection, cheaper)
        written = []
        for step in batch:
            reference = step.move.payment.reference
            if reference in moved and steps[reference] is step:
                written.append(Written(step.move.done(), True))
            else:
                stands = await payments.find(connection, reference)
                assert stands is not None, "payments are never deleted"
                written.append(Written(stands, False))
        return written

    async def _follow(self, connection: "Connection", steps: Sequence[Step], data_key_id: int) -> list[UUID]:
        """What moves bring with them. Returns the payments that came to nothing and had a benefit: it is given back
        for all at once, because counts are locked in one order."""
        cheaper: list[UUID] = []
        answers: dict[idempotency.KeyOf, bytes] = {}
        unused: list[idempotency.KeyOf] = []
        for step in steps:
            payment = step.move.done()
            key = (payment.caller, payment.idempotency_key)
            if payment.benefit is not None and payment.state in (_S.NOT_SENT, _S.DECLINED, _S.REVERSED):
                cheaper.append(payment.reference)
            if step.note:
                await payments.note(connection, payment, payment.state, step.note)
            if payment.state is _S.NOT_SENT:
                unused.append(key)
                if payment.kind is PaymentKind.PAYMENT:
                    await payments.free_order(connection, payment)
            elif step.answers:
                answers[key] = self._kept.seal(data_key_id, key, answer_of(payment))
        if answers:
            await idempotency.keep(connection, answers)
        if unused:
            await idempotency.give_back(connection, unused)
        if reversals := [step for step in steps if step.move.is_reversal]:
            cheaper += await self._reverse_parents(connection, reversals, data_key_id)
        return cheaper

    async def _reverse_parents(
        self, connection: "Connection", reversals: Sequence[Step], data_key_id: int
    ) -> list[UUID]:
        """A payment is reversed with its reversal."""
        steps: dict[UUID, Step] = {}
        for reversal in reversals:
            reference = reversal.move.payment.parent
            assert reference is not None, "a reversal is of a payment"
            parent = await payments.find(connection, reference)
            assert parent is not None, "payments are never deleted"
            move = Move(parent, (_S.APPROVED, _S.REVERSING), _S.REVERSED, None, reversal.look_again_in)
            steps[reference] = Step(move, True)
        moved = await payments.move_all(connection, [step.move for step in steps.values()])
        return await self._follow(connection, [step for parent, step in steps.items() if parent in moved], data_key_id)
