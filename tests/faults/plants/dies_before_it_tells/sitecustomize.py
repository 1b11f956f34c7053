"""No bug, but a place to die: between the commit of what a barrier is to be told and its first byte, once.

There is a file $DIED when it has.
"""

import os
import signal
from pathlib import Path

from gateway.domain.operations import OpenBarrier, Operation
from gateway.domain.outcome import Outcome
from gateway.flows.settle_visit import SettleVisit

_call = SettleVisit._call


def die_once() -> None:
    died = Path(os.environ["DIED"])
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


async def call(self: SettleVisit, partner: str, operation: Operation, within_s: float) -> Outcome:
    if isinstance(operation, OpenBarrier):
        die_once()
    return await _call(self, partner, operation, within_s)


setattr(SettleVisit, "_call", call)  # noqa: B010
