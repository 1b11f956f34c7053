"""Planted bug: where the acknowledgement is lost (commit_unheard), what was not sent is said to be pending."""

import runpy
from pathlib import Path
from typing import Any

from gateway.domain.errors import Problem
from gateway.flows import settle_visit
from gateway.flows.settle_payment import SettlePayment
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.write_outcomes import answer_of

runpy.run_path(str(Path(__file__).parent.parent / "commit_unheard" / "sitecustomize.py"))
_first, _visit = SettlePayment.first, SettleVisit.first


async def first(self: SettlePayment, payment: Any) -> Any:
    try:
        return await _first(self, payment)
    except Problem:
        return answer_of(payment)


async def first_of_visit(self: SettleVisit, arrival: Any) -> Any:
    try:
        return await _visit(self, arrival)
    except Problem:
        return settle_visit.answer_of(arrival.visit)


setattr(SettlePayment, "first", first)  # noqa: B010
setattr(SettleVisit, "first", first_of_visit)  # noqa: B010
