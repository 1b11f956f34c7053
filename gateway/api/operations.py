"""GET /v1/operations/{reference}."""

import msgspec

from gateway.api.middleware import Call
from gateway.api.references import reference_of
from gateway.api.reply import Reply
from gateway.domain.callers import Scope
from gateway.domain.errors import Problem
from gateway.domain.loss_notices import NoticeKind
from gateway.domain.payments import PaymentKind
from gateway.domain.scenes import VisitKind
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, ReservePoints
from gateway.flows.show_operation import show
from gateway.flows.visit import OpenExit

_SCOPES = {kind.value: Scope.PAYMENTS_WRITE for kind in PaymentKind}
_SCOPES |= {kind.value: Scope.CARDS_LOSS for kind in NoticeKind}
_SCOPES |= dict.fromkeys([OpenExit.name, *(f"visit_{kind}" for kind in VisitKind)], Scope.PAYMENTS_WRITE)
_SCOPES |= {kind.name: Scope.POINTS_WRITE for kind in (ReservePoints, CommitRedemption, CancelRedemption)}
_encode = msgspec.json.Encoder().encode


async def show_operation(call: Call) -> Reply:
    reference = reference_of(call.request.match_info["reference"])
    async with call.gateway.pool.acquire() as connection:
        answer = await show(connection, call.caller_id, reference)
    if answer is None:
        raise Problem("not_found")
    if (scope := _SCOPES.get(answer.kind)) is not None and scope not in call.scopes:
        raise Problem("insufficient_scope")
    return Reply(_encode(answer))
