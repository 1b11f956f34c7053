"""Planted bug: the code of a kind of effect breaks on what one caller may ask for: a formal report."""

from collections.abc import Sequence
from typing import Any

from gateway.domain.cards import LossKind
from gateway.flows.effects import Asked
from gateway.flows.report_loss import ReportLoss

_real = ReportLoss.perform


async def perform(self: ReportLoss, connection: Any, batch: Sequence[Asked]) -> Any:
    if any(asked.what.kind is LossKind.FORMAL for asked in batch):
        raise ZeroDivisionError
    return await _real(self, connection, batch)


setattr(ReportLoss, "perform", perform)  # noqa: B010
