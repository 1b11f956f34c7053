"""Planted bug: the bank is told before a loss is committed."""

from typing import Any

from gateway.domain.loss_notices import Question
from gateway.flows import report_loss
from gateway.flows.effects import Begun

_end = report_loss._end


async def end(connection: Any, tell: Any, *rest: Any) -> Any:
    ended = await _end(connection, tell, *rest)
    for each in ended:
        if isinstance(each, Begun):
            await tell._ask(each.what, Question.TELL)
    return ended


setattr(report_loss, "_end", end)  # noqa: B010
