"""A usage event as those see it who read the feed, or to whom it is brought: the card by their own pseudonym."""

import msgspec

from gateway.crypto.pseudonym import Pseudonyms
from gateway.domain.times import CHINA
from gateway.domain.usage import UsageEvent, UsageResult
from gateway.domain.verdicts import VERDICT_OF, Reason
from gateway.store.usage_events import Row


def shown(row: Row, pseudonyms: Pseudonyms, caller_id: str) -> UsageEvent:
    return UsageEvent(
        event_id=str(row.event_id),
        kind=row.kind,
        caller=row.caller,
        scene=row.scene,
        terminal_id=row.terminal_id,
        occurred_at=row.occurred_at.astimezone(CHINA),
        recorded_at=row.recorded_at.astimezone(CHINA),
        verdict=VERDICT_OF[Reason(row.reason)] if row.reason else msgspec.UNSET,
        reason=row.reason or msgspec.UNSET,
        card_ref=pseudonyms.card_ref(caller_id, row.card_id.bytes) if row.card_id else msgspec.UNSET,
        medium=row.medium or msgspec.UNSET,
        region=row.region or msgspec.UNSET,
        result=UsageResult(row.result) if row.result else msgspec.UNSET,
        amount_fen=msgspec.UNSET if row.amount_fen is None else row.amount_fen,
        discount_fen=msgspec.UNSET if row.discount_fen is None else row.discount_fen,
        reversal_of=row.reversal_of or msgspec.UNSET,
        caller_event_id=row.caller_event_id or msgspec.UNSET,
    )
