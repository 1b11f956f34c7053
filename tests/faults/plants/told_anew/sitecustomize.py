"""Planted bug: a barrier without a clear answer is told once more, as if it were another one."""

from uuid import uuid4

import msgspec

from gateway.domain.operations import OpenBarrier, Operation
from gateway.domain.outcome import Outcome, Unknown
from gateway.flows.settle_visit import SettleVisit

_call = SettleVisit._call


async def call(self: SettleVisit, partner: str, operation: Operation, within_s: float) -> Outcome:
    outcome = await _call(self, partner, operation, within_s)
    if isinstance(operation, OpenBarrier) and isinstance(outcome, Unknown):
        return await _call(self, partner, msgspec.structs.replace(operation, reference=uuid4()), within_s)
    return outcome


setattr(SettleVisit, "_call", call)  # noqa: B010
