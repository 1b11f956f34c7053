"""What became of an operation, for the caller that asked for it."""

import datetime as dt
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec

from gateway.domain.loss_notices import NoticeKind
from gateway.domain.payments import PaymentState, public
from gateway.domain.redemptions import RedemptionState
from gateway.domain.times import CHINA
from gateway.flows.redeem_points import ReservePoints
from gateway.flows.tell_bank import ACCEPTED, NOT_CONNECTED, RELEASED, bank_side
from gateway.flows.visit_answers import visit_answer
from gateway.flows.write_outcomes import taken_off
from gateway.store import loss_notices, operations, payments, redemptions, visits
from gateway.store.redemptions import Redemption

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class OperationStep(msgspec.Struct, frozen=True):
    """`status` is finer than the operation's: `intent`, `unknown` and `reversing` are all `pending`."""

    at: dt.datetime
    status: str
    note: str | msgspec.UnsetType = msgspec.UNSET


class BankOutcome(msgspec.Struct, frozen=True):
    """The bank's half of a loss report, as in its answer, with its history: `intent` and `unknown` are `pending`."""

    status: str
    history: list[OperationStep]
    reason: str | msgspec.UnsetType = msgspec.UNSET


class OperationAnswer(msgspec.Struct, frozen=True):
    """An operation with its history. What does not apply is absent."""

    reference: str
    kind: str
    status: str
    history: list[OperationStep]
    reason: str | msgspec.UnsetType = msgspec.UNSET
    undoes: str | msgspec.UnsetType = msgspec.UNSET
    amount_fen: int | msgspec.UnsetType = msgspec.UNSET
    refunded_fen: int | msgspec.UnsetType = msgspec.UNSET
    merchant_order_id: str | msgspec.UnsetType = msgspec.UNSET
    decline_code: str | msgspec.UnsetType = msgspec.UNSET
    points: int | msgspec.UnsetType = msgspec.UNSET
    item: str | msgspec.UnsetType = msgspec.UNSET
    discount_fen: int | msgspec.UnsetType = msgspec.UNSET
    benefits: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    fee_fen: int | msgspec.UnsetType = msgspec.UNSET
    rate_percent: int | msgspec.UnsetType = msgspec.UNSET
    payment: str | msgspec.UnsetType = msgspec.UNSET
    bank: BankOutcome | msgspec.UnsetType = msgspec.UNSET
    """Of a loss report or release; `status` and `history` are of the social security side."""


async def show(connection: "AnyConnection", caller_id: str, reference: UUID) -> OperationAnswer | None:
    """None for an operation that does not exist, or is another caller's."""
    recorded = await operations.find(connection, reference)
    if recorded is None or recorded.operation.caller != caller_id:
        return None
    operation = recorded.operation
    undoes = str(operation.parent) if operation.parent else msgspec.UNSET
    if operation.kind.startswith("visit_"):
        return await _visited(connection, operation.kind, reference, operation.parent)
    payment = await payments.find(connection, reference)
    redemption = await redemptions.find(connection, reference) if payment is None else None
    if redemption is not None:
        return _redeemed(redemption)
    if payment is None:
        steps = [OperationStep(_at(recorded.recorded_at), operation.result)]
        if (operation.kind, operation.result) == (NoticeKind.LOSS, ACCEPTED):
            released_at = await operations.undone_at(connection, reference, NoticeKind.RELEASE, RELEASED)
            steps += [OperationStep(_at(released_at), RELEASED)] if released_at is not None else []
        return OperationAnswer(
            str(reference), operation.kind, steps[-1].status, steps, operation.reason or msgspec.UNSET, undoes,
            bank=await _bank(connection, reference) if operation.kind in set(NoticeKind) else msgspec.UNSET,
        )  # fmt: skip
    steps = [
        OperationStep(_at(step.at), step.state, step.note or msgspec.UNSET)
        for step in await payments.history(connection, reference)
    ]
    discount_fen, benefits = taken_off(payment)
    given_back = (await payments.refunded(connection, [reference])).get(reference)
    return OperationAnswer(
        str(reference), operation.kind, public(PaymentState(payment.state)), steps, undoes=undoes,
        amount_fen=payment.amount_fen, refunded_fen=given_back or msgspec.UNSET,
        merchant_order_id=payment.merchant_order_id, decline_code=payment.decline_code or msgspec.UNSET,
        discount_fen=discount_fen, benefits=benefits,
    )  # fmt: skip


async def _visited(connection: "AnyConnection", kind: str, reference: UUID, parent: UUID | None) -> OperationAnswer:
    """A visit; of the opening of one, the visit that it is of."""
    visit = await visits.find(connection, parent or reference)
    assert visit is not None, "visits are never deleted"
    told = visit_answer(visit)
    return OperationAnswer(
        str(reference), kind, told.status,
        [OperationStep(_at(step.at), step.state) for step in await visits.history(connection, visit.reference)],
        told.reason, amount_fen=told.amount_fen, discount_fen=told.discount_fen, benefits=told.benefits,
        fee_fen=told.fee_fen, rate_percent=told.rate_percent, payment=told.payment,
    )  # fmt: skip


def _redeemed(redemption: Redemption) -> OperationAnswer:
    """The operation says how it began; its row, what it came to."""
    steps = [(redemption.created_at, RedemptionState.RESERVED)] if redemption.expires_at else []
    if redemption.decided_at:
        steps.append((redemption.decided_at, redemption.state))
    return OperationAnswer(
        str(redemption.reference), ReservePoints.name, redemption.state,
        [OperationStep(_at(at), state) for at, state in steps], redemption.reason or msgspec.UNSET,
        points=redemption.points, item=redemption.item,
    )  # fmt: skip


async def _bank(connection: "AnyConnection", reference: UUID) -> BankOutcome:
    notice = await loss_notices.find(connection, reference)
    if notice is None:
        return BankOutcome(NOT_CONNECTED, [])
    steps = [OperationStep(_at(step.at), step.state) for step in await loss_notices.history(connection, reference)]
    side = bank_side(notice)
    return BankOutcome(side.status, steps, side.reason)


def _at(time: dt.datetime) -> dt.datetime:
    return time.astimezone(CHINA)
