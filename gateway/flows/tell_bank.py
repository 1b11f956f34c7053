"""Tell a card's bank that the card is lost, or found again: the second half of a report and of its release.

The first half, with the notice's intent, is committed by then, and no verify waits for a bank. Used by the request and,
when the bank did not say yes or no to it, by the worker's resolver. No connection is held while the bank is asked.
"""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import SystemRandom
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.configuration import Losses
from gateway.domain.loss_notices import OPEN, NoticeKind, NoticeState, Question, learned, next_question, public
from gateway.domain.masking import Secret
from gateway.domain.operations import NotifyLoss, Operation, QueryStatus
from gateway.domain.outcome import Declined, NotSent, Outcome
from gateway.domain.payments import backoff_s
from gateway.flows.data_keys import DataKeys
from gateway.flows.kept_answers import Answer, KeptAnswers
from gateway.flows.not_now import NOT_NOW
from gateway.flows.settle_payment import ACCOUNT_COLUMN, Banks
from gateway.metrics import LOSS_NOTICES
from gateway.store import idempotency, loss_notices
from gateway.store.loss_notices import Notice
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

log = structlog.get_logger()

ID_NUMBER_COLUMN = b"person.id_number_sealed"
ACCEPTED, REFUSED, RELEASED = "accepted", "refused", "released"
NOT_CONNECTED = "not_connected"

_encode = msgspec.json.Encoder().encode
_chance = SystemRandom()


class SocialSecuritySide(msgspec.Struct, frozen=True, gc=False):
    """`accepted` (the card is lost now), `released` (the report is taken back: `card_status` says whether the card is
    still lost, by an earlier word) or `refused` with a reason."""

    status: str
    reason: str | msgspec.UnsetType = msgspec.UNSET
    card_status: str | msgspec.UnsetType = msgspec.UNSET


class BankSide(msgspec.Struct, frozen=True, gc=False):
    """What the bank says to the same report: `accepted`, `refused` with its reason, or `pending`: it is told until it
    answers, and `GET /v1/operations/{reference}` says what it came to. `not_connected`: the bank was not told (there is
    none, it cannot be told, or it has nothing of the report); the holder has to report to the bank. Of a release while
    another report stands at the bank, `refused / other_report`: the account stays frozen, no bank is told. Of one that
    is repeated, `accepted` where the bank has freed the account already: it is not told again."""

    status: str
    reason: str | msgspec.UnsetType = msgspec.UNSET


class LossAnswer(msgspec.Struct, frozen=True, gc=False):
    """Two requests, two results."""

    reference: str
    social_security: SocialSecuritySide
    bank: BankSide


def bank_side(notice: Notice) -> BankSide:
    return BankSide(public(notice.state), notice.reason or msgspec.UNSET)


def answer_of(notice: Notice) -> Answer:
    """The same bytes for the same state, whoever makes them."""
    status = RELEASED if notice.kind is NoticeKind.RELEASE else ACCEPTED
    here = SocialSecuritySide(status, card_status=notice.card_status.name.lower())
    return Answer(200, _encode(LossAnswer(str(notice.reference), here, bank_side(notice))))


class TellBank:
    """first() for the request, again() for the resolver."""

    def __init__(self, pool: Pool, data_keys: DataKeys, banks: Banks, settings: Losses) -> None:
        self._pool = pool
        self._data_keys = data_keys
        self._kept = KeptAnswers(data_keys)
        self._banks = banks
        self._settings = settings
        # beside those for payments: banks that answer many at once must not take the pool from everybody
        self._turn = asyncio.Semaphore(1)

    @property
    def lease(self) -> dt.timedelta:
        """For so long a notice is left to whoever is at it: the call, and the writing of its outcome."""
        return dt.timedelta(milliseconds=self._settings.deadline_ms, seconds=5)

    @property
    def has_routes(self) -> bool:
        return bool(self._settings.routes)

    def can_tell(self, bank: str) -> bool:
        """Whether there is a route to a partner that is at work and takes notices."""
        return self._can(bank, NotifyLoss)

    async def first(self, notice: Notice) -> Answer:
        """Tell the bank of a notice that was just recorded. An outcome that cannot be written is `pending`."""
        try:
            if dt.datetime.now(dt.UTC) - notice.created_at > self.lease:  # we stood still: the resolver may have it
                return answer_of(await self._look(notice))
            outcome = await self._ask(notice, Question.TELL)
            return answer_of(await self._write(notice, learned(Question.TELL, outcome), outcome))
        except NOT_NOW as error:
            log.warning("an outcome was not written", reference=str(notice.reference), error=type(error).__name__)
            return answer_of(notice)  # it is recorded: the resolver goes on, and answers the key

    async def again(self, notice: Notice) -> None:
        """One try at a notice that was taken up (store due()). Raises Problem 503."""
        question = next_question(notice.state, notice.tries, self._can(notice.bank, QueryStatus))
        outcome = await self._ask(notice, question)
        await self._write(notice, learned(question, outcome), outcome)

    def _can(self, bank: str, kind: type[Operation]) -> bool:
        name = self._settings.routes.get(bank)
        return name is not None and self._banks.can(name, kind)

    @asynccontextmanager
    async def _database(self) -> "AsyncIterator[AnyConnection]":
        async with self._turn, self._pool.acquire() as connection:
            yield connection

    async def _write(self, notice: Notice, state: NoticeState | None, outcome: Outcome) -> Notice:
        """Move it on, or let it rest until the next try; the key has its answer then, `pending` too."""
        now = notice
        if state is not None:
            reason = outcome.code.value if isinstance(outcome, Declined) and state is NoticeState.REFUSED else None
            now = notice._replace(state=state, reason=reason)
        again_in = self._backoff(notice) if now.state in OPEN else None
        # yes or no of the bank is taken from a request that was overtaken too
        before = {notice.state} if now.state in OPEN else OPEN
        async with self._database() as connection:
            keys = await self._data_keys.current(connection, ("answers",))
            async with connection.transaction():
                moved = await loss_notices.move(connection, notice, before, now.state, now.reason, again_in)
                if moved:
                    key = (notice.caller, notice.idempotency_key)
                    await idempotency.keep(connection, {key: self._kept.seal(keys["answers"], key, answer_of(now))})
        if not moved:  # somebody else was first
            return await self._look(notice)
        if now.state is not notice.state:
            LOSS_NOTICES.labels(now.kind, now.bank, now.state).inc()
        return now

    async def _look(self, notice: Notice) -> Notice:
        async with self._database() as connection:
            found = await loss_notices.find(connection, notice.reference)
        assert found is not None, "notices are never deleted"
        return found

    def _backoff(self, notice: Notice) -> dt.timedelta:
        settings = self._settings
        wait = backoff_s(notice.tries, settings.retry_base_ms / 1000, settings.retry_cap_s, _chance.random())
        return dt.timedelta(seconds=wait)

    async def _ask(self, notice: Notice, question: Question) -> Outcome:
        """Raises Problem 503, KeyStoreError, SealError only where a key is needed."""
        name = self._settings.routes.get(notice.bank)
        if name is None:  # taken out of the configuration since
            return NotSent("the bank is not routed")
        account = await self._data_keys.open(ACCOUNT_COLUMN, notice.card_id.bytes, notice.account_sealed)
        id_number = await self._data_keys.open(ID_NUMBER_COLUMN, notice.person_id.bytes, notice.id_number_sealed)
        operation: Operation = NotifyLoss(
            reference=notice.reference,
            at=notice.created_at,
            account=Secret(account.decode()),
            id_number=Secret(id_number.decode()),
            kind=notice.loss_kind,
            release=notice.kind is NoticeKind.RELEASE,
        )
        if question is Question.QUERY:
            operation = QueryStatus(reference=operation.reference, at=operation.at, original=operation)
        return await self._banks.ask(name, operation, self._settings.deadline_ms / 1000)
