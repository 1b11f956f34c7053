"""POST /v1/cards/loss-reports and …/{reference}/release."""

import datetime as dt
from uuid import UUID

from aiohttp import web

from gateway.api.effects import do_once
from gateway.api.middleware import Call
from gateway.api.payloads import LossRelease, LossReport, decoder
from gateway.api.references import reference_of
from gateway.domain.errors import FieldError, Problem
from gateway.domain.ids import is_id_number
from gateway.domain.times import CHINA
from gateway.flows.report_loss import Report
from gateway.store.losses import Wanted

_decode_report = decoder(LossReport)
_decode_release = decoder(LossRelease)


async def report_loss(call: Call) -> web.Response:
    asked: LossReport = _decode_report(call.body)
    return await do_once(call, call.gateway.report_loss, _report(call, asked))


async def release_loss(call: Call) -> web.Response:
    _decode_release(call.body)
    reference = reference_of(call.request.match_info["reference"])
    return await do_once(call, call.gateway.release_loss, reference)


def _report(call: Call, asked: LossReport) -> Report:
    """Raises Problem 422 unless a presentation, or both numbers, are given."""
    gateway = call.gateway
    if asked.presentation is not None:
        if asked.card_number is not None or asked.id_number is not None:
            raise _invalid("$.presentation", "not beside card_number and id_number")
        key = gateway.find_card.of(asked.presentation, call.caller_id)
        wanted = Wanted(
            bytes.fromhex(key.chip_index) if key.chip_index else None, UUID(key.card_id) if key.card_id else None
        )
        return Report(wanted, asked.kind, key.preset)
    if asked.card_number is None or asked.id_number is None:
        raise _invalid("$", "needs a presentation, or card_number and id_number")
    id_number = asked.id_number.upper()
    if not is_id_number(id_number, dt.datetime.now(CHINA).date()):
        raise _invalid("$.id_number", "is not a GB 11643 number")
    index = gateway.index
    return Report(Wanted(None, None, index.number(asked.card_number), index.id_number(id_number)), asked.kind)


def _invalid(field: str, message: str) -> Problem:
    return Problem("validation_failed", errors=[FieldError(field, message)])
