"""Planted bug: the bank is asked inside the transaction that records the intent, so before that is committed."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from gateway.domain.outcome import Outcome
from gateway.domain.payments import Question
from gateway.flows.effects import Begun
from gateway.flows.pay import Pay, Results
from gateway.flows.settle_payment import SettlePayment
from gateway.store.payments import Payment

_perform, _ask = Pay.perform, SettlePayment._ask
_said: dict[UUID, Outcome] = {}


async def perform(self: Pay, connection: Any, batch: Sequence[Any]) -> Results:
    results = await _perform(self, connection, batch)
    for each in results:
        if isinstance(each, Begun):
            _said[each.what.reference] = await _ask(self._settle, each.what, Question.FIRST)
    return results


async def ask(self: SettlePayment, payment: Payment, question: Question) -> Outcome:
    said = _said.pop(payment.reference, None)
    return await _ask(self, payment, question) if said is None else said


setattr(Pay, "perform", perform)  # noqa: B010
setattr(SettlePayment, "_ask", ask)  # noqa: B010
