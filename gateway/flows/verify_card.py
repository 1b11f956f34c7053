"""Verify a presented card: the verdict leaves after its usage event is on disk."""

import datetime as dt
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from asyncpg.pgproto.pgproto import UUID

from gateway.crypto.pseudonym import Pseudonyms
from gateway.crypto.randomness import RandomBytes
from gateway.crypto.sealing import Sealer, UnknownDataKey
from gateway.domain.cards import Medium
from gateway.domain.errors import FieldError, Problem
from gateway.domain.ids import uuid7
from gateway.domain.masking import age_band, mask_name
from gateway.domain.presentations import Presentation
from gateway.domain.times import CHINA
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.flows.effects import Answer, Asked, Done
from gateway.flows.find_card import FindCard
from gateway.metrics import VERDICTS
from gateway.store.verify import Judged, Presented, verify_batch

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

OCCURRED_AT_MOST_AGO_US = 24 * 3600 * 1_000_000
OCCURRED_AT_MOST_AHEAD_US = 5 * 60 * 1_000_000
HOLDER_COLUMN = b"card.holder_sealed"


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


encode = msgspec.json.Encoder().encode
_decode_holder = msgspec.json.Decoder(SealedHolder).decode
_REASONS = {reason.value: reason for reason in Reason}
_NOBODY = (msgspec.UNSET, msgspec.UNSET)
_MEDIA = {medium.value: medium for medium in Medium}


@functools.lru_cache(maxsize=1024)
def _in_china(seconds: float) -> dt.datetime:
    """To the second. Many cards share the moment of their registry's last report."""
    return dt.datetime.fromtimestamp(int(seconds), CHINA)


class VerifyCard:
    """The use case in its two halves: present() before the statement that decides and records, answer() after it."""

    def __init__(self, find_card: FindCard, pseudonyms: Pseudonyms, sealer: Sealer) -> None:
        self._find_card = find_card
        self._pseudonyms = pseudonyms
        self._sealer = sealer
        self._random = RandomBytes()

    def present(
        self,
        caller_id: str,
        presentation: Presentation,
        scene_id: str,
        media: str,
        terminal_id: str,
        occurred_at: dt.datetime | None,
    ) -> Presented:
        """What the statement is to judge; `media` are those that the scene takes (KnownScene).

        Raises Problem 422 for a time out of bounds or card data of one shape.
        """
        now_us = time.time_ns() // 1000
        occurred_us = now_us if occurred_at is None else int(occurred_at.timestamp() * 1_000_000)
        if not -OCCURRED_AT_MOST_AGO_US <= occurred_us - now_us <= OCCURRED_AT_MOST_AHEAD_US:
            raise Problem(
                "validation_failed",
                errors=[FieldError("$.occurred_at", "must be at most 24 hours ago and 5 minutes ahead")],
            )
        key = self._find_card.of(presentation, caller_id)
        event_id = str(UUID(uuid7(now_us // 1000, self._random.take(10))))
        return Presented(
            event_id, key.chip_index, key.card_id, caller_id, scene_id, terminal_id, str(occurred_us),
            media, key.preset, key.medium,
        )  # fmt: skip

    def answer(self, presented: Presented, judged: Judged) -> VerifyAnswer:
        """The verdict for the caller. Raises UnknownDataKey if the card was sealed with a key made after our start."""
        reason, card_id, medium, region, status_as_of, holder_sealed = judged
        verdict = VERDICT_OF[reason]
        caller_id, event_id = presented.caller, presented.event_id
        known_medium = _MEDIA[medium] if medium else msgspec.UNSET
        if card_id is None:
            answer = VerifyAnswer(verdict, _REASONS[reason], event_id, medium=known_medium)
        else:
            card_ref = self._pseudonyms.card_ref(caller_id, card_id.bytes)
            as_of = _in_china(status_as_of) if status_as_of is not None else msgspec.UNSET
            holder, benefits = self._holder(card_id.bytes, holder_sealed) if holder_sealed else _NOBODY
            answer = VerifyAnswer(
                verdict, _REASONS[reason], event_id, card_ref, known_medium, region or msgspec.UNSET,
                holder, benefits, as_of,
            )  # fmt: skip
        return answer

    def _holder(self, card_id: bytes, sealed: bytes) -> tuple[Holder, list[str]]:
        plain = _decode_holder(self._sealer.open(HOLDER_COLUMN, card_id, sealed))
        return Holder(mask_name(plain.name), age_band(plain.birth_date, dt.datetime.now(CHINA).date())), []


def count(answer: VerifyAnswer, field: str, caller_id: str) -> None:
    """For the metrics, once its event is committed."""
    medium = "none" if answer.medium is msgspec.UNSET else answer.medium
    VERDICTS.add((answer.verdict, answer.reason, medium, field, caller_id))


class Once:
    """A verify with an Idempotency-Key; `answer` is there when it was carried out."""

    def __init__(self, presented: Presented) -> None:
        self.presented = presented
        self.answer: VerifyAnswer | None = None


class VerifyOnce:
    """Verifies with an Idempotency-Key, as a kind of effect. The event is its record."""

    name = "verify"

    def __init__(
        self,
        verify_card: VerifyCard,
        load_data_keys: Callable[[], Awaitable[None]],
        status_max_age: dt.timedelta,
        timeout_s: float,
    ) -> None:
        self._verify_card = verify_card
        self._load_data_keys = load_data_keys
        self._status_max_age = status_max_age
        self._timeout_s = timeout_s

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> list[Done]:
        items: list[Once] = [asked.what for asked in batch]
        presented = [item.presented for item in items]
        judged = await verify_batch(connection, presented, self._status_max_age, self._timeout_s)
        try:
            answers = list(map(self._verify_card.answer, presented, judged))
        except UnknownDataKey:
            await self._load_data_keys()
            answers = list(map(self._verify_card.answer, presented, judged))
        for item, answer in zip(items, answers, strict=True):
            item.answer = answer
        return [Done(Answer(200, encode(answer))) for answer in answers]
