"""POST /v1/payments, …/{reference}/reversals and …/{reference}/refunds."""

from typing import NamedTuple
from uuid import UUID

from gateway.api.ecards import ask_platform
from gateway.api.effects import do_once, refuse
from gateway.api.middleware import Call
from gateway.api.payloads import PaymentRequest, RefundRequest, ReversalRequest, effect_decoder
from gateway.api.references import reference_of
from gateway.api.reply import Reply
from gateway.directory import KnownScene
from gateway.domain.errors import Problem, invalid
from gateway.flows.pay import Pay, PayOrder, RefundPayment, ReversePayment, Undo

_decode_payment = effect_decoder(PaymentRequest)
_decode_reversal = effect_decoder(ReversalRequest)
_decode_refund = effect_decoder(RefundRequest)


class Payments(NamedTuple):
    """The kinds of effect, as the composition root wires them."""

    pay: Pay
    reverse: ReversePayment
    refund: RefundPayment


async def pay(call: Call) -> Reply:
    gateway = call.gateway
    asked: PaymentRequest = _decode_payment(call.body)
    try:
        scene = _scene(call, asked)
    except Problem as problem:
        return await refuse(call, problem)
    presented = gateway.verify_card.present(
        call.caller_id, asked.presentation, asked.scene, scene.media[call.caller.caller.kind],
        asked.terminal_id, None,
    )  # fmt: skip
    presented = await ask_platform(call, asked.presentation, presented)
    rules = scene.benefits if asked.apply_benefits else None
    order = PayOrder(presented, asked.amount_fen, asked.merchant_order_id, asked.apply_benefits, rules)
    try:
        return await do_once(call, gateway.payments.pay, order)
    finally:
        order.count(scene.field, call.caller_id)


async def reverse_payment(call: Call) -> Reply:
    _decode_reversal(call.body)
    return await do_once(call, call.gateway.payments.reverse, Undo(_reference(call)))


async def refund_payment(call: Call) -> Reply:
    asked: RefundRequest = _decode_refund(call.body)
    return await do_once(call, call.gateway.payments.refund, Undo(_reference(call), asked.amount_fen))


def _scene(call: Call, asked: PaymentRequest) -> KnownScene:
    """Raises Problem 422: this may not be paid there."""
    gateway = call.gateway
    scene = gateway.directory.scenes.get(asked.scene)
    if scene is None:
        raise invalid("$.scene", "is not a scene of this gateway")
    if not scene.money:
        raise invalid("$.scene", "is one where no money moves")
    if asked.amount_fen > gateway.settings.gateway.payments.amount_max_fen:
        raise invalid("$.amount_fen", "is more than may be paid at once")
    return scene


def _reference(call: Call) -> UUID:
    return reference_of(call.request.match_info["reference"])
