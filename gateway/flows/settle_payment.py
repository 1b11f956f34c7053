"""Find out what became of a payment, a reversal or a refund, and write it down: once, with the answer that is owed.

Used by the request that began it and, when that could not find out, by the worker's resolver. No connection is held
while the bank is asked. Of two who try to decide, the guarded update lets one; the other reads what it wrote.
"""

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from random import SystemRandom
from typing import TYPE_CHECKING, NamedTuple

import structlog

from gateway.configuration import Payments
from gateway.domain.errors import Problem, unavailable
from gateway.domain.masking import Secret
from gateway.domain.operations import Operation, Purchase, QueryStatus, Refund, Reverse
from gateway.domain.outcome import Approved, Declined, NotSent, Outcome
from gateway.domain.payments import (
    OPEN,
    PaymentKind,
    PaymentState,
    Question,
    backoff_s,
    found_nothing,
    learned,
    next_question,
    reversal_reference,
)
from gateway.flows.data_keys import DataKeys
from gateway.flows.kept_answers import Answer
from gateway.flows.not_now import NOT_NOW, in_two_tries
from gateway.flows.write_outcomes import WRITING_S, Step, WriteOutcomes, answer_of
from gateway.metrics import PAYMENTS
from gateway.partners.call import Partners
from gateway.partners.phases import Why
from gateway.store import payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

log = structlog.get_logger()

Ask = Callable[[str, Operation, float], Awaitable[Outcome]]
"""The partner engine's call(name, operation, deadline in s). It never raises."""
Can = Callable[[str, type[Operation]], bool]
"""Whether a partner's dialect has an operation."""

ACCOUNT_COLUMN = b"card.account_sealed"
_S = PaymentState
_ASKED = (_S.INTENT, _S.UNKNOWN)
"""Its first message is out, or may be, and the bank's word decides it."""
_APPROVED_LATE = "approved late: people have to look"
_AT_ONCE = 2
"""Connections of the pool for all that is not an outcome: many at once must not take it from everybody, and each waits
its turn: it is not given up after the pool's 250 ms."""

_AT_BANK_MAX = 256
"""Operations of one worker that wait for one bank: one that does not answer takes no place of another's."""

_chance = SystemRandom()


class Banks(NamedTuple):
    """How the banks are reached."""

    ask: Ask
    can: Can


async def _nobody(name: str, operation: Operation, deadline_s: float) -> Outcome:
    return NotSent("no partner is connected")


NOT_CONNECTED = Banks(_nobody, lambda name, kind: kind is QueryStatus)
"""Where there is no partner engine: every payment ends as not sent."""


def banks_of(partners: Partners) -> Banks:
    """Through the partner engine."""

    async def ask(name: str, operation: Operation, within_s: float) -> Outcome:
        return await partners.call(name, operation, time.monotonic() + within_s)

    def can(name: str, kind: type[Operation]) -> bool:
        working = partners.registry.get(name)
        return working is not None and kind in working.operations

    return Banks(ask, can)


class SettlePayment:
    """first() for the request, again() for the resolver, take_late() for an answer nobody waits for any more."""

    def __init__(
        self, pool: Pool, data_keys: DataKeys, outcomes: WriteOutcomes, banks: Banks, settings: Payments
    ) -> None:
        self._pool = pool
        self._data_keys = data_keys
        self._outcomes = outcomes
        self._banks = banks
        self._settings = settings
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._at_bank: Counter[str] = Counter()

    @property
    def lease(self) -> dt.timedelta:
        """For so long an operation is left to whoever is at it: the call, and the writing of its outcome."""
        return dt.timedelta(milliseconds=self._settings.deadline_ms, seconds=WRITING_S)

    def partner_of(self, bank: str) -> str | None:
        """Through which a new payment goes; None: the bank is not connected."""
        return self._settings.routes.get(bank)

    def has_place(self, bank: str) -> bool:
        """Whether one more operation may begin; a batch that begins at once may be more, and is bounded itself."""
        return self._at_bank[bank] < _AT_BANK_MAX

    async def first(self, payment: Payment) -> Answer:
        """Send an intent's own message. Raises Problem 503 or 422: not sent. What is not known is pending."""
        if dt.datetime.now(dt.UTC) - payment.created_at > self.lease:  # we stood still: the resolver may have it
            async with self._database() as connection:
                taken = await payments.find(connection, payment.reference)
            assert taken is not None, "payments are never deleted"
            return answer_of(taken)
        bank = payment.bank or ""
        self._at_bank[bank] += 1
        outcome: Outcome | None = None
        try:
            outcome = await self._ask(payment, Question.FIRST)
            state = await self._learned(payment, Question.FIRST, outcome)
            assert state is not None
            # what the bank has said is taken from a request that was overtaken too
            before = _ASKED if _is_final_word(payment.kind, state) else (_S.INTENT,)
            write = partial(self._write, payment, before, state, outcome)
            now = await (in_two_tries(write) if state is _S.NOT_SENT else write())
        except NOT_NOW as error:
            log.warning("an outcome was not written", reference=str(payment.reference), error=type(error).__name__)
            if isinstance(outcome, NotSent):
                # perhaps it was, and key and order are free: this reference must not be heard of as pending
                raise _not_taken(outcome) from None
            return answer_of(payment)  # the intent is there: the resolver finds out, and answers the key
        finally:
            self._at_bank[bank] -= 1
        if now.state is _S.NOT_SENT:
            raise _not_taken(outcome)
        return answer_of(now)

    async def again(self, payment: Payment) -> None:
        """One try at an operation that was taken up (store due()). Raises Problem 503."""
        if payment.state is _S.INTENT:  # whoever was at it is gone: perhaps it was sent
            payment = await self._write(payment, (_S.INTENT,), _S.UNKNOWN, None)
            if payment.state is not _S.UNKNOWN:
                return None
        if payment.state not in OPEN and payment.state is not _S.REVERSED:
            return await self._rest(payment, None)
        if not self._is_reached(payment):  # a gap in the configuration is no reason to reverse
            return await self._rest(payment, self._backoff(payment))
        question = next_question(
            payment.kind, payment.state, payment.tries, self._can_query(payment), self._settings.queries_max
        )
        if question is Question.NONE:
            return await self._rest(payment, self._backoff(payment))
        if question is Question.REVERSE and payment.state is _S.UNKNOWN and payment.kind is PaymentKind.PAYMENT:
            payment = await self._write(payment, (_S.UNKNOWN,), _S.REVERSING, None)  # the wish before its message
            if payment.state is not _S.REVERSING:
                return None
        outcome = await self._ask(payment, question)
        if payment.state is _S.REVERSED:
            return await self._looked_again(payment, outcome)
        state = await self._learned(payment, question, outcome)
        if state is None or self._too_young(payment, question, outcome):
            return await self._rest(payment, self._backoff(payment))
        await self._write(payment, (payment.state,), state, outcome)
        return None

    async def take_late(self, operation: Operation, outcome: Outcome) -> None:
        """An answer that came after who waited for it had given up. Does not raise.

        What was only asked is asked again: "not found" was of that moment, and the message may have been on its way.
        Nor is a no to a reversal taken: it may be one to a repetition.
        """
        if isinstance(operation, QueryStatus) or not isinstance(outcome, Approved | Declined):
            return
        try:
            async with self._database() as connection:
                payment = await payments.find(connection, operation.reference)
            if payment is None or (payment.kind is PaymentKind.REVERSAL and isinstance(outcome, Declined)):
                return
            state = learned(payment.kind, Question.FIRST, outcome)
            assert state is not None, "a first message has led somewhere"
            if payment.state in _ASKED and _is_final_word(payment.kind, state):
                await self._write(payment, _ASKED, state, outcome)
            elif isinstance(outcome, Approved):
                await self._too_late(payment)
        except NOT_NOW as error:
            log.warning("a late answer was not written", reference=str(operation.reference), error=type(error).__name__)

    @asynccontextmanager
    async def _database(self) -> "AsyncIterator[AnyConnection]":
        async with self._turns, self._pool.acquire() as connection:
            yield connection

    async def _too_late(self, payment: Payment) -> None:
        """Approved, though we have told everybody that it was reversed: it is reversed again.

        What we have told to be declined is not made undone: people have to, with the bank's check file. A bank may say
        it ten thousand times: it is noted once.
        """
        if payment.state in (_S.DECLINED, _S.NOT_SENT):
            async with self._database() as connection, connection.transaction():
                is_new = await payments.note_once(connection, payment, payment.state, _APPROVED_LATE)
            if is_new:
                log.error("the bank approved late what is ended", reference=str(payment.reference), kind=payment.kind)
            return
        if payment.kind is not PaymentKind.PAYMENT or payment.state is not _S.REVERSED:
            return  # REVERSING: its reversal is under way
        async with self._database() as connection, connection.transaction():
            is_new = await payments.note_once(connection, payment, _S.REVERSED, "approved late: reversed again")
            await payments.try_now(connection, payment)
        if is_new:
            log.warning("an approval came after the reversal: it is reversed again", reference=str(payment.reference))

    async def _looked_again(self, payment: Payment, outcome: Outcome) -> None:
        """The reversal after the reversal, for a message that was still on its way then."""
        if isinstance(outcome, Approved):
            async with self._database() as connection, connection.transaction():
                await payments.note_once(connection, payment, _S.REVERSED, "a late approval was reversed")
                await payments.try_again(connection, payment, None)
        else:
            await self._rest(payment, None if found_nothing(outcome) else self._backoff(payment))

    async def _write(
        self, payment: Payment, before: tuple[PaymentState, ...], state: PaymentState, outcome: Outcome | None
    ) -> Payment:
        """Move it on, with all that goes with the move; returns how it stands, if somebody else was first too."""
        code = outcome.code.value if isinstance(outcome, Declined) and state is _S.DECLINED else None
        move = Move(payment, before, state, code, self._due_in(payment.kind, state, outcome))
        step = Step(
            move,
            answers=state not in OPEN or self._stays_unknown(move.done(), outcome),
            look_again_in=self._due_in(PaymentKind.PAYMENT, state, outcome) if move.is_reversal else None,
        )
        written = await self._outcomes.write(step)
        if written.moved:
            PAYMENTS.labels(payment.kind, payment.bank or "none", state).inc()
        elif isinstance(outcome, Approved) and written.payment.state is not state:
            await self._too_late(written.payment)
        return written.payment._replace(tries=payment.tries)  # the lease may be another's meanwhile

    def _stays_unknown(self, payment: Payment, outcome: Outcome | None) -> bool:
        """Whether a 202 is all that there is to answer: its request has asked in vain, or the dialect cannot ask.

        Else who finds out what an unknown operation came to owes its key that answer.
        """
        cannot_ask = payment.kind is PaymentKind.REFUND and not self._can_query(payment)
        return payment.state is _S.UNKNOWN and (outcome is not None or cannot_ask)

    def _due_in(self, kind: PaymentKind, state: PaymentState, outcome: Outcome | None) -> dt.timedelta | None:
        """When something is to be done after a move."""
        if state is _S.REVERSED:  # nothing was found to reverse: the payment may yet arrive, and is looked for again
            look = kind is PaymentKind.PAYMENT and outcome is not None and found_nothing(outcome)
            return dt.timedelta(seconds=self._settings.look_again_s) if look else None
        if state not in OPEN:
            return None
        if outcome is None:  # taken up by us: the try goes on
            return self.lease
        return dt.timedelta(seconds=backoff_s(0, self._settings.retry_base_ms / 1000, self._settings.retry_cap_s, 1.0))

    def _backoff(self, payment: Payment) -> dt.timedelta:
        settings = self._settings
        wait = backoff_s(payment.tries, settings.retry_base_ms / 1000, settings.retry_cap_s, _chance.random())
        return dt.timedelta(seconds=wait)

    async def _learned(self, payment: Payment, question: Question, outcome: Outcome) -> PaymentState | None:
        """The state that an answer leads to; None: it says nothing. Raises Problem 503."""
        parent = None
        if payment.kind is PaymentKind.REVERSAL and isinstance(outcome, Declined):
            assert payment.parent is not None, "a reversal is of a payment"
            async with self._database() as connection:
                reversed_one = await payments.find(connection, payment.parent)
            assert reversed_one is not None, "payments are never deleted"
            parent = reversed_one.state
            if parent is _S.APPROVED and found_nothing(outcome):
                log.error("the bank does not find what it has approved", reference=str(payment.parent))
        return learned(payment.kind, question, outcome, parent)

    async def _rest(self, payment: Payment, after: dt.timedelta | None) -> None:
        async with self._database() as connection:
            await payments.try_again(connection, payment, after)

    def _too_young(self, payment: Payment, question: Question, outcome: Outcome) -> bool:
        """A refund that the bank does not know may be on its way; later on it was never there."""
        if payment.kind is not PaymentKind.REFUND or question is not Question.QUERY or not found_nothing(outcome):
            return False
        age = dt.datetime.now(dt.UTC) - payment.created_at
        return age < dt.timedelta(seconds=self._settings.look_again_s)

    def _can_query(self, payment: Payment) -> bool:
        name = self._partner(payment)
        return name is not None and self._banks.can(name, QueryStatus)

    def _partner(self, payment: Payment) -> str | None:
        """Another one would not find the payment, which looks as if it had never been there."""
        return payment.partner or self.partner_of(payment.bank or "")

    def _is_reached(self, payment: Payment) -> bool:
        """By a partner that is routed, or was and is still configured."""
        name = self._partner(payment)
        return name is not None and (name in self._settings.routes.values() or self._banks.can(name, Reverse))

    async def _ask(self, payment: Payment, question: Question) -> Outcome:
        """Does not raise."""
        name = self._partner(payment)
        if name is None:  # taken out of the configuration since
            return NotSent("the bank is not routed")
        try:
            operation = await self._operation(payment)
        except NOT_NOW as error:
            log.warning("a bank was not asked", reference=str(payment.reference), error=type(error).__name__)
            return NotSent("its data key or its payment is not here now")
        if question is Question.QUERY:
            operation = QueryStatus(reference=operation.reference, at=operation.at, original=operation)
        elif question is Question.REVERSE and isinstance(operation, Purchase):
            reference = reversal_reference(payment.reference, payment.state is _S.REVERSED)
            operation = Reverse(reference=reference, at=payment.created_at, original=operation)
        return await self._banks.ask(name, operation, self._settings.deadline_ms / 1000)

    async def _operation(self, payment: Payment) -> Operation:
        """As it was first made: the same fields in every try. Raises one of NOT_NOW."""
        if payment.parent is None:
            return await self._purchase(payment)
        async with self._database() as connection:
            parent = await payments.find(connection, payment.parent)
        assert parent is not None, "payments are never deleted"
        original = await self._purchase(parent)
        if payment.kind is PaymentKind.REVERSAL:
            return Reverse(reference=payment.reference, at=payment.created_at, original=original)
        assert payment.trace is not None
        return Refund(
            reference=payment.reference, at=payment.created_at, original=original, amount_fen=payment.amount_fen,
            trace=payment.trace,
        )  # fmt: skip

    async def _purchase(self, payment: Payment) -> Purchase:
        assert payment.account_sealed and payment.card_id and payment.trace, "what is sent has an account"
        account = await self._data_keys.open(ACCOUNT_COLUMN, payment.card_id.bytes, payment.account_sealed)
        return Purchase(
            reference=payment.reference,
            at=payment.created_at,
            account=Secret(account.decode()),
            amount_fen=payment.amount_fen,
            merchant_id=payment.caller,
            terminal_id=payment.terminal_id,
            order_id=payment.merchant_order_id,
            trace=payment.trace,
        )


def _is_final_word(kind: PaymentKind, state: PaymentState) -> bool:
    """Whether a bank's first answer decides an operation that the resolver has taken up meanwhile.

    A no to a reversal does not: the resolver's message may have been done, and this have been the repetition.
    """
    if state in (_S.UNKNOWN, _S.NOT_SENT):
        return False
    return kind is not PaymentKind.REVERSAL or state is not _S.DECLINED


def _not_taken(outcome: Outcome) -> Problem:
    if outcome == NotSent(Why.CANNOT_BUILD):  # nor will it be, however often it is tried again
        return Problem("not_at_this_bank", "its messages cannot carry this terminal_id, order or amount")
    return unavailable("the card's bank was told nothing")
