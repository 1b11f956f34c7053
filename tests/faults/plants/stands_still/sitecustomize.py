"""No bug, but a place to stand: $STAND_AT (`send`, `write`) of an operation's first message, until $STAND/go is there.

There is a file $STAND/standing-<reference> when it stands, and $STAND/ended-<reference> when its request has an answer.
Of the workers that serve; the resolver goes on.
"""

import asyncio
import os
from pathlib import Path
from uuid import UUID

from gateway.domain.outcome import Outcome
from gateway.domain.payments import PaymentState, Question
from gateway.flows.kept_answers import Answer
from gateway.flows.settle_payment import SettlePayment
from gateway.store.payments import Payment

_first, _ask, _write = SettlePayment.first, SettlePayment._ask, SettlePayment._write
_AT = os.environ["STAND_AT"]
_FOLDER = Path(os.environ["STAND"])


async def _stand(reference: UUID) -> None:
    (_FOLDER / f"standing-{reference}").touch()
    while not (_FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)


async def first(self: SettlePayment, payment: Payment) -> Answer:
    try:
        return await _first(self, payment)
    finally:
        (_FOLDER / f"ended-{payment.reference}").touch()


async def ask(self: SettlePayment, payment: Payment, question: Question) -> Outcome:
    if _AT == "send" and question is Question.FIRST:
        await _stand(payment.reference)
    return await _ask(self, payment, question)


async def write(
    self: SettlePayment, payment: Payment, before: tuple[PaymentState, ...], state: PaymentState,
    outcome: Outcome | None,
) -> Payment:  # fmt: skip
    if _AT == "write" and PaymentState.INTENT in before and outcome is not None:
        await _stand(payment.reference)
    return await _write(self, payment, before, state, outcome)


setattr(SettlePayment, "first", first)  # noqa: B010
setattr(SettlePayment, "_ask", ask)  # noqa: B010
setattr(SettlePayment, "_write", write)  # noqa: B010
