"""No bug of ours: that a message was not sent is committed, and its acknowledgement is lost, while a file says so."""

import os
from pathlib import Path
from typing import Any

from gateway.domain.errors import unavailable
from gateway.domain.payments import PaymentState
from gateway.domain.visits import VisitState
from gateway.flows.settle_visit import SettleVisit
from gateway.flows.write_outcomes import Step, WriteOutcomes, Written


def unheard() -> bool:
    return (Path(os.environ["DATA_DIR"]) / "unheard").exists()


_outcome, _visit = WriteOutcomes.write, SettleVisit._write


async def write(self: WriteOutcomes, step: Step) -> Written:
    written = await _outcome(self, step)
    if step.move.after is PaymentState.NOT_SENT and unheard():
        raise unavailable("it is not known whether it was written")
    return written


async def write_visit(self: SettleVisit, visit: Any, *rest: Any, **more: Any) -> Any:
    written = await _visit(self, visit, *rest, **more)
    if visit.state is VisitState.NOT_SENT and unheard():
        raise unavailable("it is not known whether it was written")
    return written


setattr(WriteOutcomes, "write", write)  # noqa: B010
setattr(SettleVisit, "_write", write_visit)  # noqa: B010
