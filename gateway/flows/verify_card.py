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
from gateway.domain.benefits import NOTHING, Facts, Refusal, SceneBenefits
from gateway.domain.cards import Medium
from gateway.domain.errors import FieldError, Problem, unavailable
from gateway.domain.ids import uuid7
from gateway.domain.masking import age_band, age_on, mask_name
from gateway.domain.presentations import Presentation
from gateway.domain.times import CHINA, china_day
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.flows.effects import Answer, Asked, Done
from gateway.flows.find_card import FindCard
from gateway.metrics import BENEFITS, VERDICTS
from gateway.store import benefits
from gateway.store.benefits import Refusals, Want
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
    """On the day of the use."""


class BenefitRefusal(msgspec.Struct, frozen=True, gc=False):
    """A benefit of the scene that is not given, and why."""

    benefit: str
    reason: Refusal


class VerifyAnswer(msgspec.Struct, frozen=True, gc=False):
    """The verdict. What does not apply is absent."""

    verdict: Verdict
    reason: Reason
    event_id: str
    card_ref: str | msgspec.UnsetType = msgspec.UNSET
    medium: Medium | msgspec.UnsetType = msgspec.UNSET
    region: str | msgspec.UnsetType = msgspec.UNSET
    holder: Holder | msgspec.UnsetType = msgspec.UNSET
    benefits: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    status_as_of: dt.datetime | msgspec.UnsetType = msgspec.UNSET
    benefits_refused: list[BenefitRefusal] | msgspec.UnsetType = msgspec.UNSET
    """Only where the request said `explain`."""


class SealedHolder(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The plaintext of card.holder_sealed."""

    name: str
    birth_date: dt.date


encode = msgspec.json.Encoder().encode
_decode_holder = msgspec.json.Decoder(SealedHolder).decode
_REASONS = {reason.value: reason for reason in Reason}
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
        self._random = RandomBytes(10)

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
        event_id = str(UUID(uuid7(now_us // 1000, self._random.take())))
        return Presented(
            event_id, key.chip_index, key.card_id, caller_id, scene_id, terminal_id, str(occurred_us),
            media, key.preset, key.medium,
        )  # fmt: skip

    def answer(
        self, presented: Presented, judged: Judged, rules: SceneBenefits | None
    ) -> tuple[VerifyAnswer, Want | None]:
        """The verdict for the caller, and the capped benefits that are to be claimed before it may leave (given()).

        `rules` are those of the scene. Raises UnknownDataKey if the card was sealed with a key made after our start.
        """
        reason, card_id, medium, region, status_as_of, holder_sealed = judged
        verdict = VERDICT_OF[reason]
        caller_id, event_id = presented.caller, presented.event_id
        known_medium = _MEDIA[medium] if medium else msgspec.UNSET
        if card_id is None:
            return VerifyAnswer(verdict, _REASONS[reason], event_id, medium=known_medium), None
        card_ref = self._pseudonyms.card_ref(caller_id, card_id.bytes)
        as_of = _in_china(status_as_of) if status_as_of is not None else msgspec.UNSET
        if not holder_sealed:
            answer = VerifyAnswer(
                verdict, _REASONS[reason], event_id, card_ref, known_medium, region or msgspec.UNSET, status_as_of=as_of
            )
            return answer, None
        plain = _decode_holder(self._sealer.open(HOLDER_COLUMN, card_id.bytes, holder_sealed))
        facts = _facts(presented, judged, plain)
        holder = Holder(mask_name(plain.name), age_band(facts.age))
        entitled, want = NOTHING, None
        if rules is not None:
            entitled = rules.entitled(facts)
            if entitled.capped:
                want = Want(
                    UUID(event_id), card_id, [rules.counters(benefit, facts.day) for benefit in entitled.capped]
                )
        answer = VerifyAnswer(
            verdict, _REASONS[reason], event_id, card_ref, known_medium, region, holder, entitled.free_of_caps, as_of
        )
        return answer, want

    def facts(self, presented: Presented, judged: Judged) -> Facts:
        """What benefits are decided by, of a card that is `ok`. Raises UnknownDataKey."""
        _, card_id, _, _, _, holder_sealed = judged
        return _facts(presented, judged, _decode_holder(self._sealer.open(HOLDER_COLUMN, card_id.bytes, holder_sealed)))

    def explain(
        self, answer: VerifyAnswer, presented: Presented, judged: Judged, rules: SceneBenefits | None, capped: Refusals
    ) -> VerifyAnswer:
        """With why each benefit of the scene is not given; only a valid card has any. Raises UnknownDataKey."""
        if answer.verdict is not Verdict.VALID:
            return answer
        refused: list[BenefitRefusal] = []
        if rules is not None:
            why = rules.refused(self.facts(presented, judged))
            for benefit, reason in why.items():
                BENEFITS.add((benefit, reason))
            why |= capped
            refused = [BenefitRefusal(benefit, why[benefit]) for benefit in rules.in_order(why)]
        return msgspec.structs.replace(answer, benefits_refused=refused)


def _facts(presented: Presented, judged: Judged, plain: SealedHolder) -> Facts:
    day = china_day(int(presented.occurred_us))
    return Facts(age_on(plain.birth_date, day), judged[2], judged[3], day)


def given(answer: VerifyAnswer, rules: SceneBenefits, want: Want, refused: Refusals) -> VerifyAnswer:
    """With the capped benefits that were claimed."""
    assert answer.benefits is not msgspec.UNSET, "who wants benefits has some, or none yet"
    for benefit, reason in refused.items():
        BENEFITS.add((benefit, reason))
    claimed = [counters[0].benefit for counters in want.benefits if counters[0].benefit not in refused]
    return msgspec.structs.replace(answer, benefits=rules.in_order((*answer.benefits, *claimed)))


def count(answer: VerifyAnswer, field: str, caller_id: str) -> None:
    """For the metrics, once its event is committed."""
    medium = "none" if answer.medium is msgspec.UNSET else answer.medium
    VERDICTS.add((answer.verdict, answer.reason, medium, field, caller_id))
    if answer.benefits is not msgspec.UNSET:
        for benefit in answer.benefits:
            BENEFITS.add((benefit, "granted"))


def undecided(judged: Judged) -> Problem | None:
    """Of an effect whose card is `unknown`: neither done nor refused. Its key stays free, and it may be asked again."""
    if VERDICT_OF[judged[0]] is not Verdict.UNKNOWN:
        return None
    return unavailable("the state of the card is not known now")


class Once:
    """A verify with an Idempotency-Key; `answer` is there when it was carried out."""

    def __init__(self, presented: Presented, rules: SceneBenefits | None, explain: bool) -> None:
        self.presented = presented
        self.rules = rules
        self.explain = explain
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
        rules = [item.rules for item in items]
        try:
            begun = list(map(self._verify_card.answer, presented, judged, rules))
        except UnknownDataKey:
            await self._load_data_keys()
            begun = list(map(self._verify_card.answer, presented, judged, rules))
        wants = [want for _, want in begun if want is not None]
        claimed = iter(await benefits.claim(connection, wants) if wants else ())
        done = []
        for item, row, (answer, want) in zip(items, judged, begun, strict=True):
            refused: Refusals = {}
            if want is not None and item.rules is not None:
                refused = next(claimed)
                answer = given(answer, item.rules, want, refused)
            if item.explain:
                answer = self._verify_card.explain(answer, item.presented, row, item.rules, refused)
            item.answer = answer
            done.append(Done(Answer(200, encode(answer))))
        return done
