"""Planted bug: a reversal that was not answered counts as done, and is not repeated."""

from gateway.domain.outcome import Outcome, Unknown
from gateway.domain.payments import PaymentKind, PaymentState, Question, learned
from gateway.flows import settle_payment


def forgetful(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None = None
) -> PaymentState | None:
    reverses = kind is PaymentKind.REVERSAL or question is Question.REVERSE
    if reverses and isinstance(outcome, Unknown):
        return PaymentState.REVERSED
    return learned(kind, question, outcome, parent)


setattr(settle_payment, "learned", forgetful)  # noqa: B010
