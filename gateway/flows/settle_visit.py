"""Have a merchant's own system act on a visit, find out what it did, and write it down with the answer that is owed.

Used by the request that began it and, when that could not find out, by the worker's resolver. The merchant is told
once, before a time that it is told too; after that it is only asked. No connection is held meanwhile.
"""

import asyncio
import datetime as dt
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec
import structlog

from gateway.configuration import Visits
from gateway.domain.benefits import Facts, SceneBenefits
from gateway.domain.errors import Problem, invalid, unavailable
from gateway.domain.masking import Secret
from gateway.domain.operations import (
    HotelCheckIn,
    OpenBarrier,
    Operation,
    ParkingFee,
    QueryStatus,
    TillDiscount,
    Way,
)
from gateway.domain.outcome import Approved, Declined, NotSent, Outcome
from gateway.domain.scenes import VisitKind
from gateway.domain.visits import VisitState, found_out, told
from gateway.flows.data_keys import DataKeys
from gateway.flows.grant_benefits import Granted, grant, named, of_visit
from gateway.flows.kept_answers import Answer, KeptAnswers
from gateway.flows.not_now import NOT_NOW, in_two_tries
from gateway.flows.visit_answers import answer_of
from gateway.metrics import BENEFITS, VISITS
from gateway.partners.call import Partners
from gateway.partners.phases import Why
from gateway.store import benefits, idempotency, visits
from gateway.store.pool import Pool
from gateway.store.visits import Visit

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

log = structlog.get_logger()

_K, _S = VisitKind, VisitState
_DETAILS_COLUMN = b"visit.details_sealed"
_AT_PARTNER_MAX = 256
"""Visits of one worker that wait for one merchant's system: one that does not answer takes no place of another's."""
_WRITING_S = 5
_NOT_ASKED = dt.timedelta(minutes=5)
"""So much longer is asked when nothing is sent (our own breaker is open, there is no place or connection): the merchant
was not asked yet, and may know."""
_encode = msgspec.json.Encoder().encode


class Details(NamedTuple):
    """By what the merchant knows whom or what it is about."""

    plate: Secret[str] = Secret("")
    ticket: str = ""
    booking: str = ""
    amount_fen: int = 0


class _Car(msgspec.Struct, frozen=True, array_like=True):
    """The plaintext of visit.details_sealed."""

    plate: str
    ticket: str


class Arrival(NamedTuple):
    """A visit that has begun, with what is not kept of it."""

    visit: Visit
    details: Details
    holder: str
    """The masked name."""
    rules: SceneBenefits | None
    facts: Facts


class SettleVisit:
    """first() and open_paid() for the request, again() for the resolver."""

    def __init__(self, pool: Pool, data_keys: DataKeys, partners: Partners, settings: Visits) -> None:
        self._pool = pool
        self._data_keys = data_keys
        self._kept = KeptAnswers(data_keys)
        self._partners = partners
        self._settings = settings
        self._at_partner: Counter[str] = Counter()
        # merchants that answer many at once must not take the pool from everybody
        self._turn = asyncio.Semaphore(1)

    @property
    def lease(self) -> dt.timedelta:
        """For so long a visit is left to whoever is at it: a call, and the writing of its outcome."""
        return dt.timedelta(milliseconds=self._settings.deadline_ms, seconds=_WRITING_S)

    @property
    def lifetime(self) -> dt.timedelta:
        return dt.timedelta(seconds=self._settings.lifetime_s)

    @property
    def pay_within(self) -> dt.timedelta:
        """So long a fee stands."""
        return dt.timedelta(seconds=self._settings.pay_within_s)

    def has_place(self, partner: str) -> bool:
        """Whether one more may begin; a batch that begins at once may be more, and is bounded itself."""
        return self._at_partner[partner] < _AT_PARTNER_MAX

    async def first(self, arrival: Arrival) -> Answer:
        """What was just recorded. Raises Problem 503 or 422: the merchant did nothing. What is not known is pending."""
        with_place = arrival.visit.partner
        self._at_partner[with_place] += 1
        try:
            if arrival.visit.state is not _S.ASKING:
                return answer_of(await self._tell(arrival.visit, arrival.details, arrival.holder))
            visit = await self._ask_fee(arrival)
            if visit.state is _S.NOT_SENT:  # it was given up meanwhile, and its key given back
                raise unavailable("the fee came too late")
            if visit.state is _S.INTENT:
                visit = await self._tell(visit, arrival.details, "")
            return answer_of(visit)
        finally:
            self._at_partner[with_place] -= 1

    async def open_paid(self, visit: Visit) -> Answer:
        """An exit that was paid. Raises as first() does; then it is due as before, if that could be written."""
        self._at_partner[visit.partner] += 1
        try:
            return answer_of(await self._tell(visit, await self._details(visit), ""))
        finally:
            self._at_partner[visit.partner] -= 1

    async def _details(self, visit: Visit) -> Details | None:
        """Of an exit that was due. None: they cannot be opened now, so nothing can be sent."""
        assert visit.details_sealed is not None, "what was due has them"
        try:
            sealed = await self._data_keys.open(_DETAILS_COLUMN, visit.reference.bytes, visit.details_sealed)
        except NOT_NOW as error:
            log.warning("an exit was not opened", reference=str(visit.reference), error=type(error).__name__)
            return None
        car = msgspec.json.decode(sealed, type=_Car)
        return Details(Secret(car.plate), car.ticket)

    async def again(self, visit: Visit) -> None:
        """One step of a visit that was taken up (store due()). Raises Problem 503."""
        match visit.state:
            case _S.ASKING:  # whoever was at it is gone, and had told the merchant nothing
                await self._write(visit._replace(state=_S.NOT_SENT), {_S.ASKING})
            case _S.DUE:
                # its key has its answer, and may be in use for something else by now
                await self._write(visit._replace(state=_S.EXPIRED), {_S.DUE}, owes=False)
            case _S.INTENT:  # perhaps it was sent
                unsure = visit._replace(state=_S.UNSURE)
                await self._find_out(await self._write(unsure, {_S.INTENT}, owes=False, opening=visit.opening))
            case _:
                await self._find_out(visit)

    async def _find_out(self, visit: Visit) -> None:
        if visit.state is not _S.UNSURE:
            return
        assert visit.expires_at is not None, "what was told has a time"
        # what was sent at the last moment has arrived, or never will
        last = visit.expires_at + dt.timedelta(milliseconds=self._settings.deadline_ms)
        asked_at = dt.datetime.now(dt.UTC)
        asked = _effect(visit, Details(), "")
        question = QueryStatus(reference=visit.reference, at=visit.created_at, original=asked)
        outcome = await self._call(visit.partner, question, self._settings.deadline_ms / 1000)
        if isinstance(outcome, NotSent) and outcome.why != Why.NO_PARTNER:
            last += _NOT_ASKED
        state = found_out(outcome, asked_at >= last)
        if state is None:
            async with self._database() as connection:
                await visits.try_again(connection, visit, dt.timedelta(milliseconds=self._settings.retry_ms))
            return
        await self._write(_reasoned(visit, state, outcome), {_S.UNSURE})

    async def _ask_fee(self, arrival: Arrival) -> Visit:
        """Raises Problem 503, 422."""
        visit, details = arrival.visit, arrival.details
        question = ParkingFee(
            reference=visit.reference, at=visit.created_at, terminal_id=visit.terminal_id, plate=details.plate,
            ticket=details.ticket,
        )  # fmt: skip
        outcome = await self._call(visit.partner, question, self._settings.deadline_ms / 1000)
        try:
            match outcome:
                case Approved():
                    fee = outcome.facts["fee_fen"]
                    assert isinstance(fee, int)
                    return await self._charge(arrival, fee)
                case Declined():
                    return await self._write(_reasoned(visit, _S.REFUSED, outcome), {_S.ASKING})
            await in_two_tries(partial(self._write, visit._replace(state=_S.NOT_SENT), {_S.ASKING}))
        except NOT_NOW as error:
            log.warning("a fee was not written", reference=str(visit.reference), error=type(error).__name__)
            if isinstance(outcome, Approved | Declined):
                raise unavailable("the fee could not be written") from None
        raise _not_told(outcome)

    async def _charge(self, arrival: Arrival, fee_fen: int) -> Visit:
        """Due, less the best benefit; or, where that leaves nothing, about to be opened."""
        reference = arrival.visit.reference
        async with self._database() as connection:
            keys = await self._data_keys.current(connection, ("answers", "operations"))
            async with connection.transaction():
                visit = (await visits.lock(connection, [reference], [arrival.visit.caller]))[reference]
                if visit.state is not _S.ASKING:  # we stood still, and it was given up
                    return visit
                assert visit.card_id is not None, "it was judged"
                less = Granted()
                if arrival.rules is not None:
                    use = of_visit(visit.kind, reference, visit.card_id, arrival.rules, arrival.facts, fee_fen)
                    less = (await grant(connection, [use]))[reference]
                is_due = fee_fen > less.off
                good_for = self.pay_within if is_due else self.lifetime
                visit = visit._replace(
                    state=_S.DUE if is_due else _S.INTENT, benefits=named(arrival.rules, less), fee_fen=fee_fen,
                    discount_fen=less.off, expires_at=dt.datetime.now(dt.UTC) + good_for,
                )  # fmt: skip
                if is_due:
                    car = _Car(arrival.details.plate.reveal(), arrival.details.ticket)
                    sealed = self._data_keys.sealer.seal(
                        keys["operations"], _DETAILS_COLUMN, reference.bytes, _encode(car)
                    )
                    visit = visit._replace(details_sealed=sealed)
                await self._move(connection, visit, {_S.ASKING}, keys["answers"], owes=is_due)
        VISITS.labels(visit.kind, visit.partner, visit.state).inc()
        for benefit in visit.benefits.split():
            BENEFITS.add((benefit, "granted"))
        return visit

    async def _tell(self, visit: Visit, details: Details | None, holder: str) -> Visit:
        """The one message that has an effect; without `details` there is none. Raises Problem 503, 422: not sent."""
        assert visit.expires_at is not None, "what is told has a time"
        left_s = (visit.expires_at - dt.datetime.now(dt.UTC)).total_seconds()
        outcome: Outcome | None = None
        try:
            if left_s <= 0:  # we stood still: it would come too late
                return await self._look(visit)
            if details is None:
                outcome = NotSent("no data key")
            else:
                within_s = min(left_s, self._settings.deadline_ms / 1000)
                outcome = await self._call(visit.partner, _effect(visit, details, holder), within_s)
            now = _reasoned(visit, told(outcome), outcome)
            if now.state is _S.NOT_SENT and visit.payment is not None:  # it is paid: it may be tried again
                expires_at = dt.datetime.now(dt.UTC) + self.pay_within
                now = now._replace(state=_S.DUE, payment=None, opening=None, expires_at=expires_at)
            # yes or no of the merchant is taken from a request that was overtaken too
            is_answer = now.state in (_S.DONE, _S.REFUSED)
            before = {_S.INTENT, _S.UNSURE} if is_answer else {_S.INTENT}
            write = partial(self._write, now, before, opening=visit.opening)
            now = await (in_two_tries(write) if told(outcome) is _S.NOT_SENT else write())
        except NOT_NOW as error:
            log.warning("an outcome was not written", reference=str(visit.reference), error=type(error).__name__)
            if outcome is not None and told(outcome) is _S.NOT_SENT:
                # perhaps it was, and the key is free: this reference must not be heard of as pending
                raise _not_told(outcome) from None
            return visit  # the intent is there: the resolver finds out, and answers the key
        # at another opening: it was due again meanwhile, which we did not hear of at once
        if now.state in (_S.NOT_SENT, _S.DUE) or now.opening != visit.opening:
            assert outcome is not None, "only one who asked gives up"
            raise _not_told(outcome)
        return now

    @asynccontextmanager
    async def _database(self) -> "AsyncIterator[AnyConnection]":
        """When it is our turn. Raises Problem 503: it does not come."""
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(_WRITING_S):
                    await held.enter_async_context(self._turn)
                    connection = await held.enter_async_context(self._pool.acquire())
            except TimeoutError:
                raise unavailable("too many outcomes are being written") from None
            yield connection

    async def _write(
        self, visit: Visit, before: Collection[VisitState], owes: bool = True, opening: UUID | None = None
    ) -> Visit:
        """Move it on, with all that goes with the move; returns how it stands, if somebody else was first too.

        `opening`: it must still be at this one.
        """
        async with self._database() as connection:
            keys = await self._data_keys.current(connection, ("answers",))
            async with connection.transaction():
                moved = await self._move(connection, visit, before, keys["answers"], owes, opening)
        if not moved:
            return await self._look(visit)
        VISITS.labels(visit.kind, visit.partner, visit.state).inc()
        return visit

    async def _move(
        self, connection: "AnyConnection", visit: Visit, before: Collection[VisitState], data_key_id: int, owes: bool,
        opening: UUID | None = None,
    ) -> bool:  # fmt: skip
        """`owes`: the key of the request gets this as its answer; an answer that it has stays."""
        if not await visits.move(connection, visit, before, self._again_in(visit), opening):
            return False
        if visit.benefits and visit.state in (_S.REFUSED, _S.NOT_SENT, _S.EXPIRED):
            await benefits.give_back(connection, [visit.reference])
        key = (visit.caller, visit.idempotency_key)
        if visit.state is _S.NOT_SENT or (visit.state is _S.DUE and _S.INTENT in before):
            await idempotency.give_back(connection, [key])
        elif owes:
            await idempotency.keep(connection, {key: self._kept.seal(data_key_id, key, answer_of(visit))})
        return True

    def _again_in(self, visit: Visit) -> dt.timedelta | None:
        if visit.state is _S.DUE:
            return self.pay_within
        if visit.state is _S.UNSURE:
            return dt.timedelta(milliseconds=self._settings.retry_ms)
        return self.lease if visit.state is _S.INTENT else None

    async def _look(self, visit: Visit) -> Visit:
        async with self._database() as connection:
            found = await visits.find(connection, visit.reference)
        assert found is not None, "visits are never deleted"
        return found

    async def _call(self, partner: str, operation: Operation, within_s: float) -> Outcome:
        return await self._partners.call(partner, operation, time.monotonic() + within_s)


def _effect(visit: Visit, details: Details, holder: str) -> Operation:
    """What the merchant is told, as it was first said but for what is not kept of it."""
    assert visit.expires_at is not None, "what is told has a time"
    match visit.kind:
        case _K.CHECK_IN:
            return HotelCheckIn(
                reference=visit.reference, at=visit.created_at, terminal_id=visit.terminal_id,
                booking=details.booking, holder=Secret(holder), rate_percent=visit.rate_percent or 0,
                act_before=visit.expires_at,
            )  # fmt: skip
        case _K.BILL:
            return TillDiscount(
                reference=visit.reference, at=visit.created_at, terminal_id=visit.terminal_id, ticket=details.ticket,
                amount_fen=visit.fee_fen or 0, discount_fen=visit.discount_fen or 0,
                act_before=visit.expires_at,
            )  # fmt: skip
    return OpenBarrier(
        reference=visit.reference, at=visit.created_at, terminal_id=visit.terminal_id,
        way=Way.ENTRY if visit.kind is _K.ENTRY else Way.EXIT, plate=details.plate, ticket=details.ticket,
        open_before=visit.expires_at,
    )  # fmt: skip


def _reasoned(visit: Visit, state: VisitState, outcome: Outcome) -> Visit:
    reason = outcome.code.value if isinstance(outcome, Declined) and state is _S.REFUSED else None
    return visit._replace(state=state, reason=reason)


def _not_told(outcome: Outcome) -> Problem:
    if outcome == NotSent(Why.CANNOT_BUILD):  # nor will it be, however often it is tried again
        return invalid("$.details", "do not fit what the merchant's system takes")
    return unavailable("the merchant's system was told nothing")
