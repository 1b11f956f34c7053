"""Verify a presented card: the verdict leaves after its usage event is on disk."""

import datetime as dt
import functools
import re
import time

import msgspec
from asyncpg.pgproto.pgproto import UUID

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.card_proof import is_genuine
from gateway.crypto.key_store import Key
from gateway.crypto.pseudonym import CARD_REF_PATTERN, Pseudonyms
from gateway.crypto.randomness import RandomBytes
from gateway.crypto.sealing import Sealer
from gateway.domain.cards import Medium, tell_apart
from gateway.domain.errors import FieldError, Problem
from gateway.domain.ids import uuid7
from gateway.domain.masking import age_band, mask_name
from gateway.domain.presentations import CardRef, ChipCard, EcardCode, Presentation
from gateway.domain.times import CHINA
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.metrics import VERDICTS
from gateway.store.verify import Judged, Presented

OCCURRED_AT_MOST_AGO_US = 24 * 3600 * 1_000_000
OCCURRED_AT_MOST_AHEAD_US = 5 * 60 * 1_000_000
HOLDER_COLUMN = b"card.holder_sealed"

_CARD_REF = re.compile(CARD_REF_PATTERN)


class Holder(msgspec.Struct, frozen=True, gc=False):
    """What a verdict shows of a person."""

    name: str
    """Masked: `*三`."""
    age_band: str


class VerifyAnswer(msgspec.Struct, frozen=True, gc=False):
    """The verdict. What does not apply is absent."""

    verdict: Verdict
    reason: Reason
    event_id: str
    card_ref: str | msgspec.UnsetType = msgspec.UNSET
    medium: Medium | msgspec.UnsetType = msgspec.UNSET
    region: str | msgspec.UnsetType = msgspec.UNSET
    holder: Holder | msgspec.UnsetType = msgspec.UNSET
    benefits: list[str] | msgspec.UnsetType = msgspec.UNSET
    status_as_of: dt.datetime | msgspec.UnsetType = msgspec.UNSET


class SealedHolder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The plaintext of card.holder_sealed."""

    name: str
    birth_date: dt.date


_decode_holder = msgspec.json.Decoder(SealedHolder).decode
_REASONS = {reason.value: reason for reason in Reason}
_NOBODY = (msgspec.UNSET, msgspec.UNSET)
_MEDIA = {medium.value: medium for medium in Medium}


@functools.lru_cache(maxsize=1024)
def _in_china(moment: dt.datetime) -> dt.datetime:
    """To the second. Many cards share the moment of their registry's last report."""
    return moment.astimezone(CHINA).replace(microsecond=0)


class VerifyCard:
    """The use case in its two halves: present() before the statement that decides and records, answer() after it."""

    def __init__(self, index: BlindIndex, pseudonyms: Pseudonyms, sealer: Sealer, proof_key: Key) -> None:
        self._index = index
        self._pseudonyms = pseudonyms
        self._sealer = sealer
        self._proof_key = proof_key
        self._random = RandomBytes()

    def present(
        self,
        caller_id: str,
        presentation: Presentation,
        scene_id: str,
        generations: str,
        terminal_id: str,
        occurred_at: dt.datetime | None,
    ) -> Presented:
        """What the statement is to judge; `generations` are those that the scene takes (KnownScene).

        Raises Problem 422 for a time out of bounds or card data of one shape.
        """
        now_us = time.time_ns() // 1000
        occurred_us = now_us if occurred_at is None else int(occurred_at.timestamp() * 1_000_000)
        if not -OCCURRED_AT_MOST_AGO_US <= occurred_us - now_us <= OCCURRED_AT_MOST_AHEAD_US:
            raise Problem(
                "validation_failed",
                errors=[FieldError("$.occurred_at", "must be at most 24 hours ago and 5 minutes ahead")],
            )
        chip_index, card_id, preset, medium = self._facts(presentation, caller_id)
        event_id = str(UUID(uuid7(now_us // 1000, self._random.take(10))))
        return Presented(
            event_id, chip_index, card_id, caller_id, scene_id, terminal_id, str(occurred_us),
            generations, preset, medium,
        )  # fmt: skip

    def answer(self, presented: Presented, judged: Judged, field: str) -> VerifyAnswer:
        """The verdict for the caller. Raises UnknownDataKey if the card was sealed with a key made after our start."""
        reason, card_id, medium, region, status_as_of, holder_sealed = judged
        verdict = VERDICT_OF[reason]
        caller_id, event_id = presented.caller, presented.event_id
        known_medium = _MEDIA[medium] if medium else msgspec.UNSET
        if card_id is None:
            answer = VerifyAnswer(verdict, _REASONS[reason], event_id, medium=known_medium)
        else:
            card_ref = self._pseudonyms.card_ref(caller_id, card_id.bytes)
            as_of = _in_china(status_as_of) if status_as_of else msgspec.UNSET
            holder, benefits = self._holder(card_id.bytes, holder_sealed) if holder_sealed else _NOBODY
            answer = VerifyAnswer(
                verdict, _REASONS[reason], event_id, card_ref, known_medium, region or msgspec.UNSET,
                holder, benefits, as_of,
            )  # fmt: skip
        VERDICTS.add((verdict, reason, medium or "none", field, caller_id))
        return answer

    def _holder(self, card_id: bytes, sealed: bytes) -> tuple[Holder, list[str]]:
        plain = _decode_holder(self._sealer.open(HOLDER_COLUMN, card_id, sealed))
        return Holder(mask_name(plain.name), age_band(plain.birth_date, dt.datetime.now(CHINA).date())), []

    def _facts(self, presentation: Presentation, caller_id: str) -> tuple[str, str, str, str]:
        """(chip index, card id, preset reason, medium) of a presentation, empty for what does not apply."""
        if type(presentation) is ChipCard:
            pair = tell_apart(presentation.card_number, presentation.card_identifier)
            if pair is None:
                needs = "needs a card number (9 characters) and a card identifier (32 hex digits)"
                raise Problem("validation_failed", errors=[FieldError("$.presentation", needs)])
            proof = presentation.proof
            failed = proof and not is_genuine(self._proof_key, pair[1], proof.challenge, proof.cryptogram)
            return self._index.chip(*pair).hex(), "", Reason.PROOF_FAILED.value if failed else "", ""
        if type(presentation) is CardRef:
            if not _CARD_REF.match(presentation.card_ref):
                return "", "", "", ""
            return "", self._pseudonyms.card_id(caller_id, presentation.card_ref).hex(), "", ""
        # the national platform and the transit keys are not connected: never guess
        medium = Medium.ECARD.value if type(presentation) is EcardCode else ""
        return "", "", Reason.PLATFORM_UNAVAILABLE.value, medium
