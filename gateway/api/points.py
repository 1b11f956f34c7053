"""POST /v1/points/redemptions, …/{reference}/commit and …/cancel; GET /v1/points/{card_ref}."""

import datetime as dt
import re
from typing import NamedTuple
from uuid import UUID

import msgspec

from gateway.api.ecards import ask_platform
from gateway.api.effects import do_once, refuse
from gateway.api.middleware import Call
from gateway.api.payloads import RedemptionEnd, RedemptionRequest, effect_decoder
from gateway.api.references import reference_of
from gateway.api.reply import Reply
from gateway.crypto.pseudonym import CARD_REF_PATTERN
from gateway.domain.errors import Problem, invalid
from gateway.domain.redemptions import Outlet
from gateway.flows.redeem_points import CancelRedemption, CommitRedemption, End, ReservePoints, Wish
from gateway.store import points

_decode_redemption = effect_decoder(RedemptionRequest)
_decode_end = effect_decoder(RedemptionEnd)
_CARD_REF = re.compile(CARD_REF_PATTERN)
_encode = msgspec.json.Encoder().encode


class Redemptions(NamedTuple):
    """The kinds of effect, as the composition root wires them."""

    reserve: ReservePoints
    commit: CommitRedemption
    cancel: CancelRedemption


class ExpiringPoints(msgspec.Struct, frozen=True):
    """`on` is the last day on which they can be used."""

    points: int
    on: dt.date


class PointsAnswer(msgspec.Struct, frozen=True):
    """What a card's holder has; `available` is the balance less what is reserved."""

    balance: int
    available: int
    expiring: list[ExpiringPoints]


async def redeem(call: Call) -> Reply:
    gateway = call.gateway
    asked: RedemptionRequest = _decode_redemption(call.body)
    settings = gateway.directory.points
    try:
        outlet = _outlet(call, asked)
    except Problem as problem:
        return await refuse(call, problem)
    scene = gateway.directory.scenes[settings.scene]
    presented = gateway.verify_card.present(
        call.caller_id, asked.presentation, settings.scene, scene.media[call.caller.caller.kind], asked.outlet_id, None
    )
    presented = await ask_platform(call, asked.presentation, presented)
    reserved_for = dt.timedelta(seconds=settings.reserved_for_s)
    wish = Wish(presented, asked.points, asked.item, asked.outlet_id, outlet.credit, reserved_for)
    try:
        response = await do_once(call, gateway.redemptions.reserve, wish)
    finally:
        wish.count(scene.field, call.caller_id)
    wish.count_state(call.caller_id)
    return response


async def commit_redemption(call: Call) -> Reply:
    return await _end(call, call.gateway.redemptions.commit)


async def cancel_redemption(call: Call) -> Reply:
    return await _end(call, call.gateway.redemptions.cancel)


async def show_points(call: Call) -> Reply:
    card_ref = call.request.match_info["card_ref"]
    if not _CARD_REF.match(card_ref):
        raise Problem("not_found")
    card_id = UUID(bytes=call.gateway.pseudonyms.card_id(call.caller_id, card_ref))
    async with call.gateway.pool.acquire() as connection:
        held = await points.held_by(connection, card_id)
    if held is None:
        raise Problem("not_found")
    account, lots = held
    expiring = [ExpiringPoints(lot.remaining, lot.expires_on) for lot in lots]
    return Reply(_encode(PointsAnswer(account.balance, account.available, expiring)))


async def _end(call: Call, kind: CommitRedemption | CancelRedemption) -> Reply:
    _decode_end(call.body)
    end = End(reference_of(call.request.match_info["reference"]))
    response = await do_once(call, kind, end)
    end.count(call.caller_id)
    return response


def _outlet(call: Call, asked: RedemptionRequest) -> Outlet:
    """The caller's own outlet, which gives out the item for these points. Raises Problem 422."""
    settings = call.gateway.directory.points
    outlet = settings.outlets.get(asked.outlet_id)
    if outlet is None or outlet.caller != call.caller_id:
        raise invalid("$.outlet_id", "is not an outlet of this caller")
    if asked.item not in outlet.items:
        raise invalid("$.item", "is not given out at this outlet")
    if asked.points != settings.items[asked.item].points:
        raise invalid("$.points", "is not the price of the item")
    return outlet
