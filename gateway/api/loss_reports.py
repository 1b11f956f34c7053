"""POST /v1/cards/loss-reports and …/{reference}/release."""

import datetime as dt
from typing import NamedTuple
from uuid import UUID

from gateway.api.ecards import ask_platform
from gateway.api.effects import do_once
from gateway.api.middleware import Call
from gateway.api.payloads import LossRelease, LossReport, effect_decoder
from gateway.api.references import reference_of
from gateway.api.reply import Reply
from gateway.domain.errors import invalid
from gateway.domain.ids import is_id_number
from gateway.domain.times import CHINA
from gateway.flows.report_loss import Release, ReleaseLoss, Report, ReportLoss
from gateway.flows.tell_bank import TellBank
from gateway.store.losses import Wanted

_decode_report = effect_decoder(LossReport)
_decode_release = effect_decoder(LossRelease)


class Losses(NamedTuple):
    """The kinds of effect."""

    report: ReportLoss
    release: ReleaseLoss


def losses_told_by(tell: TellBank) -> Losses:
    """Both by one: the composition root wires it."""
    return Losses(ReportLoss(tell), ReleaseLoss(tell))


async def report_loss(call: Call) -> Reply:
    asked: LossReport = _decode_report(call.body)
    wanted, preset, code_digest = await _wanted(call, asked)
    report = Report(wanted, asked.kind, preset, code_digest)
    return await do_once(call, call.gateway.losses.report, report)


async def release_loss(call: Call) -> Reply:
    asked: LossRelease = _decode_release(call.body)
    reference = reference_of(call.request.match_info["reference"])
    release = Release(reference)
    if (asked.presentation, asked.card_number, asked.id_number) != (None, None, None):
        release = Release(reference, *await _wanted(call, asked))
    return await do_once(call, call.gateway.losses.release, release)


async def _wanted(call: Call, asked: LossReport | LossRelease) -> tuple[Wanted, str, bytes | None]:
    """(how the card is found, a reason to refuse that is known already, the digest of a code that is to be claimed).

    Raises Problem 422 unless a presentation, or both numbers, are given; 503.
    """
    gateway = call.gateway
    if asked.presentation is not None:
        if asked.card_number is not None or asked.id_number is not None:
            raise invalid("$.presentation", "not beside card_number and id_number")
        key = await ask_platform(call, asked.presentation, gateway.find_card.of(asked.presentation, call.caller_id))
        chip_index = bytes.fromhex(key.chip_index) if key.chip_index else None
        code_digest = bytes.fromhex(key.code_digest) if key.code_digest else None
        return Wanted(chip_index, UUID(key.card_id) if key.card_id else None), key.preset, code_digest
    if asked.card_number is None or asked.id_number is None:
        raise invalid("$", "needs a presentation, or card_number and id_number")
    id_number = asked.id_number.upper()
    if not is_id_number(id_number, dt.datetime.now(CHINA).date()):
        raise invalid("$.id_number", "is not a GB 11643 number")
    index = gateway.index
    return Wanted(None, None, index.number(asked.card_number), index.id_number(id_number)), "", None
