"""POST /v1/visits and …/{reference}/open."""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from gateway.api.ecards import ask_platform
from gateway.api.effects import do_once, refuse
from gateway.api.middleware import Call
from gateway.api.payloads import VisitDetails, VisitOpening, VisitRequest, effect_decoder
from gateway.api.references import reference_of
from gateway.api.reply import Reply
from gateway.directory import KnownScene
from gateway.domain.errors import FieldError, Problem, invalid
from gateway.domain.masking import Secret
from gateway.domain.scenes import VisitKind
from gateway.domain.visits import DOES, NEEDS
from gateway.flows.settle_visit import Details
from gateway.flows.visit import BeginVisit, OpenExit, Paid, VisitOrder

_decode_visit = effect_decoder(VisitRequest)
_decode_opening = effect_decoder(VisitOpening)


class Visits(NamedTuple):
    """The kinds of effect, as the composition root wires them."""

    begin: Mapping[VisitKind, BeginVisit]
    open: OpenExit


async def visit(call: Call) -> Reply:
    gateway = call.gateway
    asked: VisitRequest = _decode_visit(call.body)
    try:
        scene, kind, order = _order(call, asked)
    except Problem as problem:
        return await refuse(call, problem)
    order.presented = await ask_platform(call, asked.presentation, order.presented)
    try:
        # it names plate, ticket and booking
        return await do_once(call, gateway.visits.begin[kind], order, keep_body=False)
    finally:
        order.count(scene.field, call.caller_id)


async def open_exit(call: Call) -> Reply:
    asked: VisitOpening = _decode_opening(call.body)
    reference = reference_of(call.request.match_info["reference"])
    return await do_once(call, call.gateway.visits.open, Paid(reference, UUID(asked.payment)))


def _order(call: Call, asked: VisitRequest) -> tuple[KnownScene, VisitKind, VisitOrder]:
    """Raises Problem 422: no such visit is possible there."""
    gateway = call.gateway
    scene = gateway.directory.scenes.get(asked.scene)
    if scene is None:
        raise invalid("$.scene", "is not a scene of this gateway")
    if scene.visit is None:
        raise invalid("$.scene", "is one where no merchant's own system acts")
    details = _details(scene.visit, asked.details)
    if details.amount_fen > gateway.settings.gateway.payments.amount_max_fen:
        raise invalid("$.details.amount_fen", "is more than may be paid at once")
    partner = _partner(call, asked.terminal_id, scene.visit)
    presented = gateway.verify_card.present(
        call.caller_id, asked.presentation, asked.scene, scene.media[call.caller.caller.kind], asked.terminal_id, None
    )
    return scene, scene.visit, VisitOrder(presented, partner, details, scene.benefits)


def _partner(call: Call, terminal_id: str, kind: VisitKind) -> str:
    """The merchant's own system behind the caller's terminal. Raises Problem 422."""
    working = call.gateway.partners.registry.merchant_at(call.caller_id, terminal_id)
    if working is None:
        raise invalid("$.terminal_id", "is no terminal of this caller with a merchant's own system behind it")
    if not working.operations.issuperset(DOES[kind]):
        raise invalid("$.scene", "is one where the system behind this terminal does not act")
    return working.name


def _details(kind: VisitKind, given: VisitDetails | None) -> Details:
    """Raises Problem 422 for those that are missing, and those that do not belong to this kind of visit."""
    given = given or VisitDetails()
    there = {name for name in given.__struct_fields__ if getattr(given, name) is not None}
    needed, taken = NEEDS[kind]
    errors = [FieldError(f"$.details.{name}", "is missing") for name in sorted(needed - there)]
    errors += [FieldError(f"$.details.{name}", "does not belong to this scene") for name in sorted(there - taken)]
    if kind is VisitKind.EXIT and not there & taken:
        errors.append(FieldError("$.details", "needs a plate or a ticket"))
    if errors:
        raise Problem("validation_failed", errors=errors)
    return Details(Secret(given.plate or ""), given.ticket or "", given.booking or "", given.amount_fen or 0)
