"""Planted bug: a loss is not taken while too many notices wait for a bank."""

from collections.abc import Sequence
from typing import Any

from gateway.domain.errors import overloaded
from gateway.flows.effects import Answer, Asked
from gateway.flows.report_loss import ReportLoss
from gateway.flows.tell_bank import TellBank
from gateway.store.loss_notices import Notice

_MAX = 20
_first, _perform = TellBank.first, ReportLoss.perform
_waiting: set[Notice] = set()


async def first(self: TellBank, notice: Notice) -> Answer:
    _waiting.add(notice)
    try:
        return await _first(self, notice)
    finally:
        _waiting.discard(notice)


async def perform(self: ReportLoss, connection: Any, batch: Sequence[Asked]) -> Any:
    if len(_waiting) >= _MAX:
        return [overloaded("too many notices wait for a bank") for _ in batch]
    return await _perform(self, connection, batch)


setattr(TellBank, "first", first)  # noqa: B010
setattr(ReportLoss, "perform", perform)  # noqa: B010
