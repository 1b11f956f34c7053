"""No bug of ours: that a message was not sent is committed, and its acknowledgement is lost.

So many times as a file says.
"""

import os
from pathlib import Path
from typing import Any

from gateway.domain.errors import unavailable
from gateway.domain.payments import PaymentState
from gateway.domain.visits import VisitState
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.write_outcomes import Step, WriteOutcomes, Written


def lose_one() -> None:
    file = Path(os.environ["DATA_DIR"]) / "unheard"
    left = int(file.read_text()) if file.exists() else 0
    if left:
        file.write_text(str(left - 1))
        raise unavailable("it is not known whether it was written")


_outcome, _visit = WriteOutcomes.write, SettleVisit._write


async def write(self: WriteOutcomes, step: Step) -> Written:
    written = await _outcome(self, step)
    if step.move.after is PaymentState.NOT_SENT:
        lose_one()
    return written


async def write_visit(self: SettleVisit, visit: Any, *rest: Any, **more: Any) -> Any:
    written = await _visit(self, visit, *rest, **more)
    if visit.state in (VisitState.NOT_SENT, VisitState.DUE):  # due again: it was paid
        lose_one()
    return written


setattr(WriteOutcomes, "write", write)  # noqa: B010
setattr(SettleVisit, "_write", write_visit)  # noqa: B010
