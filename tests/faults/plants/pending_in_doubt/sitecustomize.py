"""Planted bug: where the acknowledgement is lost (commit_unheard), what was not sent is said to be pending."""

import runpy
from pathlib import Path
from typing import Any

from gateway.domain.errors import Problem
from gateway.flows import visit_answers
from gateway.flows.settle_payment import SettlePayment
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.write_outcomes import answer_of

runpy.run_path(str(Path(__file__).parent.parent / "commit_unheard" / "sitecustomize.py"))
_first, _visit, _open = SettlePayment.first, SettleVisit.first, SettleVisit.open_paid


async def first(self: SettlePayment, payment: Any) -> Any:
    try:
        return await _first(self, payment)
    except Problem:
        return answer_of(payment)


async def first_of_visit(self: SettleVisit, arrival: Any) -> Any:
    try:
        return await _visit(self, arrival)
    except Problem:
        return visit_answers.answer_of(arrival.visit)


async def open_paid(self: SettleVisit, visit: Any) -> Any:
    try:
        return await _open(self, visit)
    except Problem:
        return visit_answers.answer_of(visit)


setattr(SettlePayment, "first", first)  # noqa: B010
setattr(SettleVisit, "first", first_of_visit)  # noqa: B010
setattr(SettleVisit, "open_paid", open_paid)  # noqa: B010
