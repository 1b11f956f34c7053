"""Ask the national platform whose e-card a code is; the card's own state decides the verdict (domain.md §2.1).

A code is asked before the statement that judges it, with no connection held. It is good once: what the platform has
approved is claimed by that statement (of a loss report: by its transaction), under a keyed digest, so that one event
alone can say `valid`, over all workers and after a crash. Where the platform did not decide (slow, down, unreadable),
nothing is claimed and the verdict is `unknown/platform_unavailable`: the same code may be presented again, and the
platform knows whether it was used.

Nothing is asked for an Idempotency-Key that is known: it has its answer, and another body under it is not to use up a
code. Two first uses at once, at two workers, may both ask: one of them is told `code_replayed`, and if it claims the
key before the other does, that is the key's answer.
"""

import asyncio
import datetime as dt
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar
from uuid import UUID

import structlog

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.randomness import RandomBytes
from gateway.domain.cards import Medium
from gateway.domain.errors import Problem, overloaded
from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.domain.operations import VerifyEcardCode
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Unknown
from gateway.domain.presentations import EcardCode
from gateway.domain.verdicts import Reason
from gateway.flows.find_card import CardKey
from gateway.metrics import ECARD_ANSWERS
from gateway.store.batch import Batcher
from gateway.store.ecards import Found, Wanted
from gateway.store.idempotency import KeyOf
from gateway.store.verify import Presented

log = structlog.get_logger()

Ask = Callable[[VerifyEcardCode, float], Awaitable[Outcome]]
"""Carries a question to the platform, until a time of time.monotonic() (partners/call.py). Does not raise."""

Lookups = Batcher[Wanted, Found]
"""Together and on connections of their own: one by one they would wait for the pool while many codes are shown."""

Shown = TypeVar("Shown", Presented, CardKey)
"""What is presented, with how its card is found."""

LOOKUP_S = 0.5

QUESTIONS_MAX = 1000
"""Codes of one worker that are being asked; past it: 503."""

_ECARD: Final = Medium.ECARD.value
_UNAVAILABLE = CardKey(preset=Reason.PLATFORM_UNAVAILABLE.value, medium=_ECARD)
_REPLAYED = CardKey(preset=Reason.CODE_REPLAYED.value, medium=_ECARD)
_REFUSED = {
    DeclineCode.CODE_EXPIRED: CardKey(preset=Reason.CODE_EXPIRED.value, medium=_ECARD),
    DeclineCode.CODE_REPLAYED: _REPLAYED,
    DeclineCode.CODE_INVALID: CardKey(preset=Reason.CODE_INVALID.value, medium=_ECARD),
}
"""The platform's word on the code itself; any other refusal is not about the code, and so no verdict on it."""


class AskEcard:
    """Made for one event loop; serve() is the loop of its lookups.

    Whoever presents a code while it is being asked waits for the one answer.
    """

    def __init__(self, lookups: Lookups, index: BlindIndex, ask: Ask, deadline_s: float) -> None:
        self._lookups = lookups
        self.serve = lookups.run
        self._index = index
        self._ask = ask
        self._deadline_s = deadline_s
        self._random = RandomBytes(10)
        self._questions: dict[bytes, asyncio.Task[CardKey | Problem]] = {}

    def __len__(self) -> int:
        """Codes that are being asked."""
        return len(self._questions)

    async def complete(self, shown: Shown, presentation: EcardCode, key: KeyOf | None = None) -> Shown:
        """With what the platform said, ready for the statement; as it is if `key` was used before.

        Raises Problem 503: no place, or the database does not answer.
        """
        if key is not None and (await self._lookups.ask(Wanted(caller=key[0], key=key[1]))).used:
            return shown
        found = await self._find(presentation.code)
        return shown._replace(**found._asdict())

    async def _find(self, code: str) -> CardKey:
        digest = self._index.code(code)
        question = self._questions.get(digest)
        if question is None:
            if len(self._questions) >= QUESTIONS_MAX:
                raise overloaded("too many codes are being asked")
            question = self._questions[digest] = asyncio.create_task(self._question(code, digest))
        # one who hangs up does not take the question from the others
        found = await asyncio.shield(question)
        if isinstance(found, Problem):
            raise Problem(found.code, found.detail, headers=found.headers)
        return found

    async def _question(self, code: str, digest: bytes) -> CardKey | Problem:
        """Does not raise a Problem: perhaps nobody waits any more."""
        deadline = time.monotonic() + self._deadline_s
        try:
            if (await self._lookups.ask(Wanted(code_digest=digest))).used:
                ECARD_ANSWERS.labels("seen").inc()
                return _REPLAYED
            outcome = await self._outcome(code, deadline)
            found = await self._card(outcome, digest)
            ECARD_ANSWERS.labels(found.preset or "approved").inc()
            return found
        except Problem as problem:
            return problem
        finally:
            del self._questions[digest]

    async def _outcome(self, code: str, deadline: float) -> Outcome:
        now_ms = time.time_ns() // 1_000_000
        reference = UUID(bytes=uuid7(now_ms, self._random.take()))
        asked_at = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        operation = VerifyEcardCode(reference=reference, at=asked_at, code=Secret(code))
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await self._ask(operation, deadline)
        except TimeoutError:
            return Unknown("no answer in time")

    async def _card(self, outcome: Outcome, digest: bytes) -> CardKey:
        if isinstance(outcome, Declined):
            return _REFUSED.get(outcome.code, _UNAVAILABLE)
        if not isinstance(outcome, Approved):
            return _UNAVAILABLE
        id_number, card_number = _fact(outcome, "id_number"), _fact(outcome, "card_number")
        if not id_number or not card_number:
            log.warning("the platform approved a code and did not say whose it is")
            return _UNAVAILABLE
        indexes = self._index.number(card_number), self._index.id_number(id_number.upper())
        card_id = (await self._lookups.ask(Wanted(None, *indexes))).card_id
        return CardKey(card_id=card_id.hex if card_id else "", medium=_ECARD, code_digest=digest.hex())

    async def close(self) -> None:
        """Nobody waits any more."""
        questions = list(self._questions.values())
        for question in questions:
            question.cancel()
        await asyncio.gather(*questions, return_exceptions=True)


def _fact(outcome: Approved, name: str) -> str:
    value = outcome.facts.get(name)
    text = value.reveal() if isinstance(value, Secret) else value
    return text if isinstance(text, str) else ""
