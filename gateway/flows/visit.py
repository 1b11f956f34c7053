"""A card presented where a merchant's own system acts on it: the first half, in the transaction that claims the key.

The card is judged by the statement of a verify, so its usage event is there, and its benefits are claimed; what the
merchant is to be told is committed before a byte leaves for it. The second half is settle_visit.py. Each kind of visit
is a kind of effect of its own: counts of benefits are locked in one order, once in a transaction.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

import msgspec

from gateway.crypto.sealing import UnknownDataKey
from gateway.domain.benefits import Facts, SceneBenefits
from gateway.domain.errors import Problem, invalid, overloaded, unavailable
from gateway.domain.payments import OPEN as OPEN_PAYMENT
from gateway.domain.payments import PaymentState
from gateway.domain.scenes import VisitKind
from gateway.domain.verdicts import VERDICT_OF, Reason
from gateway.domain.visits import VisitState
from gateway.flows.effects import Answer, Asked, Begun, Done
from gateway.flows.grant_benefits import Granted, grant, named, of_visit
from gateway.flows.settle_visit import Arrival, Details, SettleVisit
from gateway.flows.verify_card import VerifyCard, undecided
from gateway.flows.visit_answers import answer_of
from gateway.metrics import BENEFITS, VERDICTS, VISITS
from gateway.store import payments, visits
from gateway.store.operations import Operation
from gateway.store.payments import Payment, created_at
from gateway.store.verify import Judged, Presented, verify_batch
from gateway.store.visits import Visit

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_K, _S = VisitKind, VisitState
_PENDING_MAX = dt.timedelta(hours=1)
"""A payment that is pending for longer is for people, and keeps no exit due."""
Results = list[Done | Begun | Problem]


class VisitOrder:
    """What a terminal asks for; `judged` and `visit` are there once the card was judged."""

    def __init__(self, presented: Presented, partner: str, details: Details, rules: SceneBenefits | None) -> None:
        """`rules`: those of the scene, if there are any."""
        self.presented = presented
        self.partner = partner
        self.details = details
        self.rules = rules
        self.judged: Judged | None = None
        self.visit: Visit | None = None

    def count(self, field: str, caller_id: str) -> None:
        """The verdict and what was granted with it, for the metrics."""
        if self.judged is not None and self.visit is not None:
            reason, _, medium, *_ = self.judged
            VERDICTS.add((VERDICT_OF[reason], reason, medium or "none", field, caller_id))
            VISITS.labels(self.visit.kind, self.visit.partner, self.visit.state).inc()
            for benefit in self.visit.benefits.split():
                BENEFITS.add((benefit, "granted"))


class BeginVisit:
    """Kind of effect; `what` is a VisitOrder."""

    def __init__(
        self,
        kind: VisitKind,
        settle: SettleVisit,
        verify_card: VerifyCard,
        load_data_keys: Callable[[], Awaitable[None]],
        status_max_age: dt.timedelta,
        verify_timeout_s: float,
    ) -> None:
        self.name = f"visit_{kind}"
        self._kind = kind
        self._settle = settle
        self._verify_card = verify_card
        self._load_data_keys = load_data_keys
        self._status_max_age = status_max_age
        self._verify_timeout_s = verify_timeout_s

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        taken = [asked for asked in batch if self._settle.has_place(asked.what.partner)]
        if not taken:
            return [_no_place() for _ in batch]
        presented = [asked.what.presented for asked in taken]
        judged = await verify_batch(connection, presented, self._status_max_age, self._verify_timeout_s)
        good = [(asked, row) for asked, row in zip(taken, judged, strict=True) if row[0] == Reason.OK]
        try:
            seen = self._see(good)
        except UnknownDataKey:
            await self._load_data_keys()
            seen = self._see(good)
        granted = await self._grant(connection, good, seen)
        ended: dict[UUID, Done | Begun | Problem] = {}
        rows = []
        for asked, row in zip(taken, judged, strict=True):
            order: VisitOrder = asked.what
            order.judged = row
            if (problem := undecided(row)) is not None:
                ended[asked.reference] = problem
                continue
            visit = order.visit = self._visit(asked, row, granted.get(asked.reference, Granted()))
            rows.append(visit)
            operation = Operation(
                asked.reference, self.name, asked.caller_id, visit.card_id, None,
                "refused" if visit.reason else "begun", visit.reason,
            )  # fmt: skip
            if visit.state is _S.REFUSED:
                ended[asked.reference] = Done(answer_of(visit), operation)
            else:
                holder, facts = seen[asked.reference]
                ended[asked.reference] = Begun(operation, Arrival(visit, order.details, holder, order.rules, facts))
        if rows:
            await visits.insert(connection, rows, self._settle.lease)
        return [ended.get(asked.reference) or _no_place() for asked in batch]

    async def finish(self, what: Arrival) -> Answer:
        return await self._settle.first(what)

    def _see(self, good: Sequence[tuple[Asked, Judged]]) -> dict[UUID, tuple[str, Facts]]:
        """(the holder's masked name, by what benefits are decided) of each good card. Raises UnknownDataKey."""
        seen = {}
        for asked, row in good:
            holder = self._verify_card.answer(asked.what.presented, row, None)[0].holder
            assert not isinstance(holder, msgspec.UnsetType), "a good card has a holder"
            seen[asked.reference] = (holder.name, self._verify_card.facts(asked.what.presented, row))
        return seen

    async def _grant(
        self,
        connection: "AnyConnection",
        good: Sequence[tuple[Asked, Judged]],
        seen: Mapping[UUID, tuple[str, Facts]],
    ) -> Mapping[UUID, Granted]:
        """By reference. Of an exit nothing yet: what it costs is not known."""
        if self._kind is _K.EXIT:
            return {}
        uses = []
        for asked, (_, card_id, *_) in good:
            order: VisitOrder = asked.what
            if order.rules is not None:
                facts, amount_fen = seen[asked.reference][1], order.details.amount_fen
                uses.append(of_visit(self._kind, asked.reference, card_id, order.rules, facts, amount_fen))
        return await grant(connection, uses)

    def _visit(self, asked: Asked, row: Judged, granted: Granted) -> Visit:
        order: VisitOrder = asked.what
        made_at = created_at(asked.reference)
        visit = Visit(
            asked.reference, made_at, self._kind, asked.caller_id, asked.key, order.presented.terminal_id,
            order.partner, row[1], _S.REFUSED, row[0],
        )  # fmt: skip
        if row[0] != Reason.OK:
            return visit
        if self._kind is _K.EXIT:
            return visit._replace(state=_S.ASKING, reason=None)
        is_bill = self._kind is _K.BILL
        return visit._replace(
            state=_S.INTENT, reason=None, benefits=named(order.rules, granted),
            rate_percent=100 - granted.off if self._kind is _K.CHECK_IN else None,
            fee_fen=order.details.amount_fen if is_bill else None,
            discount_fen=granted.off if is_bill else None,
            expires_at=made_at + self._settle.lifetime,
        )  # fmt: skip


class Paid(NamedTuple):
    """An exit that is due, and what is said to have paid it."""

    visit: UUID
    payment: UUID


class OpenExit:
    """Kind of effect; `what` is a Paid."""

    name = "visit_open"

    def __init__(self, settle: SettleVisit) -> None:
        self._settle = settle

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        callers = [asked.caller_id for asked in batch]
        found = await visits.lock(connection, [asked.what.visit for asked in batch], callers)
        objections = await self._objections(connection, batch, found)
        # a payment is taken for ever, so of several for one visit only the first may be
        wanted: dict[UUID, UUID] = {}
        for asked in batch:
            if asked.reference not in objections:
                wanted.setdefault(asked.what.visit, asked.what.payment)
        pairs = [(payment, visit) for visit, payment in wanted.items()]
        have = await visits.take_payments(connection, pairs) if pairs else ()
        done: Results = []
        for asked in batch:
            paid: Paid = asked.what
            if (problem := objections.get(asked.reference)) is not None:
                done.append(problem)
            elif found[paid.visit].state is not _S.DUE:  # another of this batch has opened it
                done.append(Problem("visit_state"))
            elif wanted[paid.visit] != paid.payment:  # another of this batch was to open it, and its payment was used
                done.append(unavailable("the visit was being opened with another payment"))
            elif (paid.payment, paid.visit) not in have:
                done.append(Problem("payment_used"))
            else:
                visit = found[paid.visit] = found[paid.visit]._replace(
                    state=_S.INTENT, idempotency_key=asked.key, payment=paid.payment, opening=asked.reference,
                    expires_at=created_at(asked.reference) + self._settle.lifetime,
                )  # fmt: skip
                moved = await visits.move(connection, visit, {_S.DUE}, self._settle.lease)
                assert moved, "it is locked"
                operation = Operation(
                    asked.reference, self.name, asked.caller_id, visit.card_id, visit.reference, "begun"
                )
                done.append(Begun(operation, visit))
        return done

    async def finish(self, what: Visit) -> Answer:
        return await self._settle.open_paid(what)

    async def _objections(
        self, connection: "AnyConnection", batch: Sequence[Asked], found: Mapping[UUID, Visit]
    ) -> dict[UUID, Problem]:
        """What is wrong with each by itself, by reference; its payment is locked meanwhile."""
        wanted = [asked.what.payment for asked in batch]
        paid = await payments.lock(connection, wanted, [asked.caller_id for asked in batch])
        given_back = await payments.refunded(connection, wanted)
        reversing = await payments.being_reversed(connection, wanted)
        objections: dict[UUID, Problem] = {}
        for asked in batch:
            visit, payment = found.get(asked.what.visit), paid.get(asked.what.payment)
            problem: Problem | None = None
            if visit is None or visit.caller != asked.caller_id:
                problem = Problem("not_found")
            elif visit.state is not _S.DUE or not visit.stands_at(created_at(asked.reference)):
                problem = Problem("visit_state")
            elif payment is None or payment.caller != asked.caller_id:
                problem = invalid("$.payment", "is not a payment of this caller")
            elif payment.state in OPEN_PAYMENT or payment.reference in reversing:
                problem = Problem("payment_pending", headers={"Retry-After": "2"})
                if _may_yet_pay(payment, visit, created_at(asked.reference)):
                    await self._keep_due(connection, visit, created_at(asked.reference))
            elif payment.state is not PaymentState.APPROVED:
                problem = Problem("payment_state")
            elif payment.amount_fen - given_back.get(payment.reference, 0) < visit.amount_fen:
                problem = Problem("payment_too_small")
            elif not self._settle.has_place(visit.partner):
                problem = _no_place()
            if problem is not None:
                objections[asked.reference] = problem
        return objections

    async def _keep_due(self, connection: "AnyConnection", visit: Visit, now: dt.datetime) -> None:
        """Its holder has paid, as far as anybody knows: they do not pay again because a bank is slow."""
        kept = visit._replace(expires_at=now + self._settle.pay_within)
        moved = await visits.move(connection, kept, {_S.DUE}, self._settle.pay_within)
        assert moved, "it is locked"


def _may_yet_pay(payment: Payment, visit: Visit, now: dt.datetime) -> bool:
    """Whether a payment whose outcome is not known is for this exit, as far as can be told."""
    is_undecided = payment.state in (PaymentState.INTENT, PaymentState.UNKNOWN)
    return is_undecided and payment.amount_fen >= visit.amount_fen and now - payment.created_at < _PENDING_MAX


def _no_place() -> Problem:
    return overloaded("too many visits wait for the merchant's system")
