"""Decide by hand what cannot be found out: people have asked the bank, and what they learned is written, with why.

All goes with it as with an answer of the bank's: the payment of a reversal, its benefits, the answer its key is owed.
"""

from uuid import UUID

from gateway.domain.outcome import DeclineCode
from gateway.domain.payments import OPEN, TRANSITIONS, PaymentKind, PaymentState
from gateway.flows.write_outcomes import Step, WriteOutcomes
from gateway.store import payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import Pool

_S = PaymentState


class NotDecided(Exception):
    """Why not, in words for the operator."""


async def decide(pool: Pool, outcomes: WriteOutcomes, reference: UUID, state: PaymentState, note: str) -> Payment:
    """How the operation stands now; its history keeps the note. Raises NotDecided; Problem 503: look whether it was."""
    async with pool.acquire() as connection:
        payment = await payments.find(connection, reference)
        if payment is None:
            raise NotDecided("there is no such payment, reversal or refund")
        parent = await payments.find(connection, payment.parent) if payment.parent is not None else None
    by_hand = f"decided by hand: {note}"
    if payment.state is state is _S.REVERSED and await _let_rest(pool, payment, by_hand):
        return payment
    choices = _choices(payment, parent)
    if state not in choices:
        words = " or ".join(sorted(choices)) if choices else "nothing by hand"
        raise NotDecided(f"this {payment.kind} is {payment.state}: it may become {words}")
    code = DeclineCode.DO_NOT_HONOUR.value if state is _S.DECLINED else None
    move = Move(payment, (payment.state,), state, code)
    written = await outcomes.write(Step(move, answers=True, note=by_hand))
    if not written.moved:
        raise NotDecided(f"it has become {written.payment.state} in this moment")
    return written.payment


async def _let_rest(pool: Pool, payment: Payment, note: str) -> bool:
    """End the looking for a payment that we have reversed, which a bank's no does not; False: nobody looks for it."""
    async with pool.acquire() as connection, connection.transaction():
        ended = await payments.end_looking(connection, payment)
        if ended:
            await payments.note(connection, payment, payment.state, note)
        return ended


def _choices(payment: Payment, parent: Payment | None) -> set[PaymentState]:
    """Nothing of an intent: whoever is at it may have the answer, and the resolver takes it up when it has not. Nor is
    a reversal declined whose payment is being reversed by us."""
    if payment.state is _S.INTENT or payment.state not in OPEN:
        return set()
    choices = set(TRANSITIONS[payment.kind, payment.state] - OPEN)
    if payment.kind is PaymentKind.REVERSAL and parent is not None and parent.state is not _S.APPROVED:
        choices.discard(_S.DECLINED)
    return choices
