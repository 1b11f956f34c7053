"""Decide by hand what cannot be found out: people have asked the bank, and what they learned is written, with why.

All goes with it as with an answer of the bank's: the payment of a reversal, its benefits, the answer its key is owed.
"""

from uuid import UUID

from gateway.domain.payments import OPEN, TRANSITIONS, PaymentState
from gateway.flows.write_outcomes import Step, WriteOutcomes
from gateway.store import payments
from gateway.store.payments import Move, Payment
from gateway.store.pool import Pool

_S = PaymentState


class NotDecided(Exception):
    """Why not, in words for the operator."""


async def decide(pool: Pool, outcomes: WriteOutcomes, reference: UUID, state: PaymentState, note: str) -> Payment:
    """How the operation stands now; its history keeps the note. Raises NotDecided, Problem 503."""
    async with pool.acquire() as connection:
        payment = await payments.find(connection, reference)
    if payment is None:
        raise NotDecided("there is no such payment, reversal or refund")
    choices = _choices(payment)
    if state not in choices:
        words = " or ".join(sorted(choices)) if choices else "nothing by hand"
        raise NotDecided(f"this {payment.kind} is {payment.state}: it may become {words}")
    written = await outcomes.write(Step(Move(payment, (payment.state,), state), answers=True))
    if not written.moved:
        raise NotDecided(f"it has become {written.payment.state} in this moment")
    async with pool.acquire() as connection:
        await payments.note(connection, payment, state, f"decided by hand: {note}")
    return written.payment


def _choices(payment: Payment) -> set[PaymentState]:
    """Nothing of an intent: whoever is at it may have the answer, and the resolver takes it up when it has not."""
    if payment.state is _S.INTENT or payment.state not in OPEN:
        return set()
    return set(TRANSITIONS[payment.kind, payment.state] - OPEN)
