"""Planted bug: a first message without an answer counts as not sent, and the order may be paid again."""

from gateway.domain.outcome import NotSent, Outcome, Unknown
from gateway.domain.payments import PaymentKind, PaymentState, Question, learned
from gateway.flows import settle_payment


def optimistic(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None = None
) -> PaymentState | None:
    if question is Question.FIRST and isinstance(outcome, Unknown):
        outcome = NotSent("surely")
    return learned(kind, question, outcome, parent)


setattr(settle_payment, "learned", optimistic)  # noqa: B010
