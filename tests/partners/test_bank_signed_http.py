"""The signed open-bank adapter against the simulated bank, over a real socket: what it does and what it refuses."""

import datetime as dt
from uuid import uuid4

import msgspec
import pytest

from gateway.domain.cards import LossKind
from gateway.domain.operations import CheckFile
from gateway.domain.outcome import Approved, DeclineCode, Declined, Pending, Unknown
from gateway.partners.contract import CannotBuild
from gateway.sandbox.peers.open_bank_host import OPENING_FEN
from tests.partners.open_bank import (
    AT,
    ELSEWHERE,
    MERCHANT,
    NOWHERE,
    PAYEE,
    SETTLED_S,
    Caller,
    balance_fen,
    check,
    loss,
    payroll,
    purchase,
    refund,
    reversal,
    transfer,
)


async def test_an_account_is_its_owners(bank: Caller) -> None:
    assert await bank.call(check("张三")) == Approved()
    assert await bank.call(check("李四")) == Declined(DeclineCode.NAME_MISMATCH)
    assert await bank.call(check("张三", NOWHERE)) == Declined(DeclineCode.INVALID_CARD)


async def test_a_purchase_moves_money_to_the_merchants_account(bank: Caller) -> None:
    op = purchase(1234)
    outcome = await bank.call(op)
    assert isinstance(outcome, Approved) and outcome.partner_reference
    assert await bank.ask(op) == outcome
    assert await balance_fen(bank) == OPENING_FEN - 1234
    assert await balance_fen(bank, MERCHANT.account) == OPENING_FEN + 1234


async def test_a_purchase_without_money_is_declined(bank: Caller) -> None:
    op = purchase(OPENING_FEN + 1)
    assert await bank.call(op) == Declined(DeclineCode.INSUFFICIENT_FUNDS)
    assert await bank.ask(op) == Declined(DeclineCode.INSUFFICIENT_FUNDS)
    assert await balance_fen(bank) == OPENING_FEN


async def test_a_purchase_at_an_unknown_merchant_is_not_sent(bank: Caller) -> None:
    with pytest.raises(CannotBuild):
        await bank.call(purchase(merchant="M-9999"))


async def test_a_reversal_gives_everything_back_and_may_be_repeated(bank: Caller) -> None:
    op = purchase(1234)
    await bank.call(op)
    undo = reversal(op)
    for _ in range(3):
        assert isinstance(await bank.call(undo), Approved)
    assert isinstance(await bank.call(reversal(op)), Approved)
    assert await balance_fen(bank) == OPENING_FEN
    assert await bank.ask(op) == Declined(DeclineCode.NOT_ALLOWED)


async def test_a_purchase_that_comes_after_its_reversal_is_refused(bank: Caller) -> None:
    op = purchase()
    undo = reversal(op)
    assert await bank.call(undo) == Pending()
    assert await bank.call(op) == Declined(DeclineCode.NOT_ALLOWED)
    assert await bank.call(undo, later_s=SETTLED_S) == Declined(DeclineCode.NOT_FOUND)
    assert await balance_fen(bank) == OPENING_FEN


async def test_refunds_never_exceed_the_purchase(bank: Caller) -> None:
    op = purchase(1000)
    assert await bank.call(refund(op, 100)) == Declined(DeclineCode.NOT_FOUND)
    await bank.call(op)
    first = refund(op, 600)
    assert isinstance(await bank.call(first), Approved)
    assert isinstance(await bank.call(first), Approved)
    assert await bank.call(refund(op, 600)) == Declined(DeclineCode.LIMIT_EXCEEDED)
    assert isinstance(await bank.ask(first), Approved)
    assert await bank.call(reversal(op)) == Declined(DeclineCode.NOT_ALLOWED)
    assert await balance_fen(bank) == OPENING_FEN - 400


async def test_a_transfer_within_the_bank(bank: Caller) -> None:
    op = transfer(1234)
    assert isinstance(await bank.call(op), Approved)
    assert await balance_fen(bank, PAYEE) == OPENING_FEN + 1234


async def test_a_transfer_to_another_bank_is_pending_until_it_arrives(bank: Caller) -> None:
    op = transfer(1234, to=ELSEWHERE)
    assert await bank.call(op) == Pending()
    assert await bank.ask(op) == Pending()
    assert isinstance(await bank.ask(op), Approved)
    assert isinstance(await bank.call(op), Approved)
    assert await balance_fen(bank) == OPENING_FEN - 1234


async def test_a_transfer_that_does_not_arrive_comes_back(bank: Caller) -> None:
    op = transfer(1234, to=NOWHERE)
    assert await bank.call(op) == Pending()
    assert await balance_fen(bank) == OPENING_FEN - 1234
    assert await bank.ask(op) == Pending()
    assert await bank.ask(op) == Declined(DeclineCode.INVALID_CARD)
    assert await balance_fen(bank) == OPENING_FEN


async def test_payroll_pays_whom_it_can(bank: Caller) -> None:
    op = payroll(PAYEE, NOWHERE, ELSEWHERE)
    assert await bank.call(op) == Pending()
    outcome = await bank.ask(op)
    assert isinstance(outcome, Approved)
    assert outcome.facts == {
        "paid_count": 2,
        "paid_fen": 10_000,
        "lines": [
            {"line": 1, "state": "approved", "code": ""},
            {"line": 2, "state": "declined", "code": "invalid_card"},
            {"line": 3, "state": "approved", "code": ""},
        ],
    }
    assert await bank.call(op) == outcome
    assert await balance_fen(bank) == OPENING_FEN - 10_000


async def test_payroll_without_money_or_with_a_used_number(bank: Caller) -> None:
    assert await bank.call(payroll(PAYEE, amount_fen=OPENING_FEN + 1)) == Declined(DeclineCode.INSUFFICIENT_FUNDS)
    assert isinstance(await bank.call(payroll(PAYEE)), Unknown)  # the number is taken: by whom, the bank does not say


async def test_payroll_that_does_not_add_up_is_not_sent(bank: Caller) -> None:
    op = payroll(PAYEE, PAYEE)
    for wrong in (
        msgspec.structs.replace(op, total_fen=op.total_fen + 1),
        msgspec.structs.replace(op, lines=(op.lines[0],) * 2),
        msgspec.structs.replace(op, lines=(), total_fen=0),
    ):
        with pytest.raises(CannotBuild):
            await bank.call(wrong)


async def test_a_lost_account_does_not_pay_until_it_is_released(bank: Caller) -> None:
    report = loss()
    assert await bank.call(report) == Approved()
    assert await bank.ask(report) == Approved()
    assert await bank.call(purchase()) == Declined(DeclineCode.LOST_CARD)
    assert await bank.call(loss(release=True)) == Approved()
    assert isinstance(await bank.call(purchase()), Approved)


async def test_a_loss_reported_by_a_stranger_is_refused(bank: Caller) -> None:
    await bank.call(check("张三"))
    assert await bank.call(loss(LossKind.FORMAL, person="330424194912310026")) == Declined(DeclineCode.NAME_MISMATCH)
    assert isinstance(await bank.call(purchase()), Approved)


async def test_the_check_file_has_the_day(bank: Caller) -> None:
    ops = [purchase(100), transfer(200), purchase(300), transfer(400, to=ELSEWHERE), purchase(OPENING_FEN + 1)]
    for op in ops:
        await bank.call(op)
    await bank.call(reversal(ops[2]))
    outcome = await bank.call(CheckFile(reference=uuid4(), at=AT, day=AT.date()))
    assert isinstance(outcome, Approved)
    assert outcome.facts["count"] == 5
    assert outcome.facts["lines"] == [
        {"reference": str(op.reference), "amount_fen": amount, "state": state}
        for op, amount, state in zip(
            ops, (100, 200, 300, 400, OPENING_FEN + 1), ("approved", "approved", "reversed", "pending", "declined"),
            strict=True,
        )
    ]  # fmt: skip
    other = await bank.call(CheckFile(reference=uuid4(), at=AT, day=AT.date() + dt.timedelta(days=1)))
    assert isinstance(other, Approved) and other.facts["lines"] == []
