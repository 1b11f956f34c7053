"""Pay with a card, undo a payment, give a part of it back: the first half, in the transaction that claims the key.

The card is judged by the statement of a verify, so its usage event is there; the intent, with our reference, is
committed before a byte leaves for the bank. The second half is settle_payment.py. A payment of which a benefit leaves
nothing has no second half: no bank is asked.
"""

import datetime as dt
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.crypto.sealing import UnknownDataKey
from gateway.domain.benefits import SceneBenefits
from gateway.domain.errors import Problem, overloaded, unavailable
from gateway.domain.payments import OPEN, PaymentKind, PaymentState
from gateway.domain.verdicts import VERDICT_OF, Reason
from gateway.flows.effects import Answer, Asked, Begun, Done
from gateway.flows.grant_benefits import Granted, grant, of_payment
from gateway.flows.settle_payment import SettlePayment
from gateway.flows.verify_card import VerifyCard, undecided
from gateway.flows.write_outcomes import answer_of
from gateway.metrics import BENEFITS, VERDICTS
from gateway.store import benefits, payments
from gateway.store.operations import Operation
from gateway.store.payments import Account, Move, Payment
from gateway.store.verify import Judged, Presented, verify_batch

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

NO_ACCOUNT = "no_account"
"""The card has no bank account, so nothing can be paid with it."""

_K, _S = PaymentKind, PaymentState
Results = list[Done | Begun | Problem]


class PayOrder:
    """What a merchant wants to be paid for; `judged` is there once the card was judged."""

    def __init__(
        self,
        presented: Presented,
        amount_fen: int,
        merchant_order_id: str,
        apply_benefits: bool,
        rules: SceneBenefits | None,
    ) -> None:
        """`rules`: of the scene, if they are to be applied and there are any."""
        self.presented = presented
        self.amount_fen = amount_fen
        self.merchant_order_id = merchant_order_id
        self.apply_benefits = apply_benefits
        self.rules = rules
        self.judged: Judged | None = None
        self.granted = Granted()

    def count(self, field: str, caller_id: str) -> None:
        """The verdict and the benefit, for the metrics."""
        if self.granted.benefit is not None:
            BENEFITS.add((self.granted.benefit, "granted"))
        if self.judged is not None:
            reason, _, medium, *_ = self.judged
            VERDICTS.add((VERDICT_OF[reason], reason, medium or "none", field, caller_id))


class Undo(NamedTuple):
    """Of a payment: all of it, or for a refund a part."""

    payment: UUID
    amount_fen: int = 0


class Pay:
    """Kind of effect; `what` is a PayOrder."""

    name = PaymentKind.PAYMENT.value

    def __init__(
        self,
        settle: SettlePayment,
        verify_card: VerifyCard,
        load_data_keys: Callable[[], Awaitable[None]],
        status_max_age: dt.timedelta,
        verify_timeout_s: float,
    ) -> None:
        self._settle = settle
        self._verify_card = verify_card
        self._load_data_keys = load_data_keys
        self._status_max_age = status_max_age
        self._verify_timeout_s = verify_timeout_s

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        won = await payments.take_orders(
            connection,
            [(asked.caller_id, asked.what.merchant_order_id, asked.reference) for asked in batch],
        )
        taken = [asked for asked in batch if asked.reference in won]
        used = await _used(connection, [asked for asked in batch if asked.reference not in won])
        if not taken:
            return [used[asked.reference] for asked in batch]
        presented = [asked.what.presented for asked in taken]
        judged = await verify_batch(connection, presented, self._status_max_age, self._verify_timeout_s)
        accounts = await payments.accounts(connection, [row[1] for row in judged if row[0] == Reason.OK])
        closed = {account.bank for account in accounts.values() if self._refusal(account.bank)}
        granted = await self._grant(connection, taken, judged, accounts, closed)
        traces = iter(await payments.traces(connection, len(taken)))
        ended: dict[UUID, Done | Begun | Problem] = {}
        rows: list[Payment] = []
        for asked, row in zip(taken, judged, strict=True):
            order: PayOrder = asked.what
            order.judged, order.granted = row, granted.get(asked.reference, Granted())
            account = accounts.get(row[1]) if row[0] == Reason.OK else None
            partner = None if account is None else self._settle.partner_of(account.bank)
            payment = _payment(asked, order, account, next(traces), partner)
            if (refusal := self._not_now(row, payment.bank if payment.bank in closed else None)) is not None:
                ended[asked.reference] = refusal
                await payments.free_order(connection, payment)
                continue
            rows.append(payment)
            ended[asked.reference] = _begun(asked, payment)
        if rows:
            await payments.insert(connection, rows, self._settle.lease)
        return [ended.get(asked.reference) or used[asked.reference] for asked in batch]

    def _not_now(self, judged: Judged, closed_bank: str | None) -> Problem | None:
        """Why this may be asked again as it is: key and order id stay free."""
        if (problem := undecided(judged)) is not None:
            return problem
        return None if closed_bank is None else self._refusal(closed_bank) or _no_place()

    def _refusal(self, bank: str) -> Problem | None:
        """What is not the card's fault: a gap in our configuration, or a bank at which too much waits."""
        if self._settle.partner_of(bank) is None:
            return unavailable("the card's bank is not connected")
        return None if self._settle.has_place(bank) else _no_place()

    async def _grant(
        self,
        connection: "AnyConnection",
        batch: Sequence[Asked],
        judged: Sequence[Judged],
        accounts: Mapping[UUID, Account],
        closed: Collection[str],
    ) -> Mapping[UUID, Granted]:
        """The benefits of those that ask for one, by reference."""
        uses = []
        for asked, row in zip(batch, judged, strict=True):
            order: PayOrder = asked.what
            if order.rules is None or row[0] != Reason.OK:
                continue
            try:
                facts = self._verify_card.facts(order.presented, row)
            except UnknownDataKey:
                await self._load_data_keys()
                facts = self._verify_card.facts(order.presented, row)
            account = accounts.get(row[1])
            only_free = account is None or account.bank in closed
            uses.append(of_payment(asked.reference, row[1], order.rules, facts, order.amount_fen, only_free))
        return await grant(connection, uses) if uses else {}

    async def finish(self, what: Payment) -> Answer:
        return await self._settle.first(what)


class ReversePayment:
    """Kind of effect; `what` is an Undo."""

    name = PaymentKind.REVERSAL.value

    def __init__(self, settle: SettlePayment) -> None:
        self._settle = settle

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        parents, given_back, reversing = await _lock(connection, batch)
        done: Results = []
        rows: list[Payment] = []
        undone: list[UUID] = []
        for asked in batch:
            parent = parents.get(asked.what.payment)
            if parent is None or parent.caller != asked.caller_id:
                done.append(Problem("not_found"))
            elif parent.state is _S.INTENT or parent.reference in reversing:
                done.append(Problem("payment_pending", headers={"Retry-After": "2"}))
            elif parent.state in (_S.DECLINED, _S.NOT_SENT) or given_back.get(parent.reference):
                done.append(Problem("payment_state"))
            elif not self._settle.has_place(parent.bank or ""):
                done.append(_no_place())
            else:
                if parent.state is _S.UNKNOWN:  # its merchant does not want it any more, whatever it came to
                    wish = Move(parent, (_S.UNKNOWN,), _S.REVERSING, None, self._settle.lease)
                    assert await payments.move(connection, wish), "it is locked"
                    parents[parent.reference] = parent._replace(state=_S.REVERSING)
                if parent.state is _S.APPROVED and not parent.amount_fen:
                    # no bank knows it: undone at once
                    assert await payments.move(connection, Move(parent, (_S.APPROVED,), _S.REVERSED)), "it is locked"
                    undone.append(parent.reference)
                    parent = parents[parent.reference] = parent._replace(state=_S.REVERSED)
                state = _S.REVERSED if parent.state is _S.REVERSED else _S.INTENT
                payment = _child(asked, _K.REVERSAL, parent, parent.amount_fen, parent.trace, state)
                rows.append(payment)
                if state is _S.INTENT:
                    reversing.add(parent.reference)
                done.append(_begun(asked, payment))
        if undone:
            await benefits.give_back(connection, undone)
        if rows:
            await payments.insert(connection, rows, self._settle.lease)
        return done

    async def finish(self, what: Payment) -> Answer:
        return await self._settle.first(what)


class RefundPayment:
    """Kind of effect; `what` is an Undo."""

    name = PaymentKind.REFUND.value

    def __init__(self, settle: SettlePayment) -> None:
        self._settle = settle

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> Results:
        parents, given_back, reversing = await _lock(connection, batch)
        traces = iter(await payments.traces(connection, len(batch)))
        done: Results = []
        rows: list[Payment] = []
        for asked in batch:
            undo: Undo = asked.what
            parent = parents.get(undo.payment)
            if parent is None or parent.caller != asked.caller_id:
                done.append(Problem("not_found"))
            elif parent.state in OPEN or parent.reference in reversing:
                done.append(Problem("payment_pending", headers={"Retry-After": "2"}))
            elif parent.state is not _S.APPROVED:
                done.append(Problem("payment_state"))
            elif given_back.get(parent.reference, 0) + undo.amount_fen > parent.amount_fen:
                done.append(Problem("refund_too_large"))
            elif not self._settle.has_place(parent.bank or ""):
                done.append(_no_place())
            else:
                given_back[parent.reference] = given_back.get(parent.reference, 0) + undo.amount_fen
                payment = _child(asked, _K.REFUND, parent, undo.amount_fen, next(traces), _S.INTENT)
                rows.append(payment)
                done.append(_begun(asked, payment))
        if rows:
            await payments.insert(connection, rows, self._settle.lease)
        return done

    async def finish(self, what: Payment) -> Answer:
        return await self._settle.first(what)


async def _lock(
    connection: "AnyConnection", batch: Sequence[Asked]
) -> tuple[dict[UUID, Payment], dict[UUID, int], set[UUID]]:
    """(the payments that are to be undone, what of them was given back in fen, those being reversed)."""
    wanted = [asked.what.payment for asked in batch]
    parents = await payments.lock(connection, wanted, [asked.caller_id for asked in batch])
    return parents, await payments.refunded(connection, wanted), await payments.being_reversed(connection, wanted)


async def _used(connection: "AnyConnection", batch: Sequence[Asked]) -> dict[UUID, Problem]:
    """Who has lost its key finds its payment again by its order."""
    if not batch:
        return {}
    orders = {asked.reference: (asked.caller_id, asked.what.merchant_order_id) for asked in batch}
    found = await payments.orders(connection, list(orders.values()))
    return {
        reference: Problem("order_id_used", f"by {found[order]}" if order in found else "")
        for reference, order in orders.items()
    }


def _no_place() -> Problem:
    return overloaded("too many operations wait for the card's bank")


def _payment(asked: Asked, order: PayOrder, account: Account | None, trace: int, partner: str | None) -> Payment:
    """An intent, or a payment that is approved or declined without the bank."""
    assert order.judged is not None, "judged before"
    reason, card_id = order.judged[0], order.judged[1]
    discount_fen, benefit, _ = order.granted
    payment = Payment(
        asked.reference, payments.created_at(asked.reference), _K.PAYMENT, asked.caller_id, asked.key,
        order.merchant_order_id, order.presented.terminal_id, None, card_id, None, None,
        order.amount_fen - discount_fen, None, _S.APPROVED,
        discount_fen=discount_fen if order.apply_benefits else None, benefit=benefit,
    )  # fmt: skip
    if not payment.amount_fen:
        return payment
    if account is None:
        code = NO_ACCOUNT if reason == Reason.OK else reason
        return payment._replace(trace=trace, state=_S.DECLINED, decline_code=code)
    return payment._replace(
        bank=account.bank, account_sealed=account.account_sealed, trace=trace, state=_S.INTENT, partner=partner
    )


def _child(
    asked: Asked, kind: PaymentKind, parent: Payment, amount_fen: int, trace: int | None, state: PaymentState
) -> Payment:
    return parent._replace(
        reference=asked.reference, created_at=payments.created_at(asked.reference), kind=kind,
        idempotency_key=asked.key, parent=parent.reference, amount_fen=amount_fen, trace=trace, state=state,
        decline_code=None, tries=0, discount_fen=None, benefit=None,
    )  # fmt: skip


def _begun(asked: Asked, payment: Payment) -> Done | Begun:
    """The operation says how it began, and is never changed; the payment says what it came to."""
    result = "begun" if payment.state is _S.INTENT else payment.state.value
    operation = Operation(
        asked.reference, payment.kind, asked.caller_id, payment.card_id, payment.parent, result, payment.decline_code
    )
    if payment.state is _S.INTENT:
        return Begun(operation, payment)
    return Done(answer_of(payment), operation)
