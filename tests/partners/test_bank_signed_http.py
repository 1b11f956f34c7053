"""The signed open-bank adapter against the simulated bank, over a real socket: what it does and what it refuses."""

import datetime as dt
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from gateway.domain.cards import LossKind
from gateway.domain.masking import Secret
from gateway.domain.operations import AccountCheck, Balance, CheckFile, NotifyLoss, Operation, Refund, Reverse
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Pending, Unknown
from gateway.partners.contract import CannotBuild, HttpReply
from gateway.sandbox.peers.control import BookLine
from gateway.sandbox.peers.open_bank_host import OPENING_FEN, OpenBank
from gateway.sandbox.peers.open_bank_ledger import Ledger
from tests.faults.waiting import until
from tests.partners.open_bank import (
    AT,
    ELSEWHERE,
    MERCHANT,
    NOWHERE,
    PAYEE,
    PAYER,
    Caller,
    open_bank,
    payroll,
    purchase,
    transfer,
)

ID_NUMBER = "330424190001010016"
SETTLED_S = 600  # past absent_after_s


@pytest.fixture
async def bank(tmp_path: Path) -> AsyncIterator[Caller]:
    async with open_bank(tmp_path) as caller:
        yield caller


async def balance_fen(bank: Caller, account: str = PAYER) -> int:
    outcome = await bank.call(Balance(reference=uuid4(), at=AT, account=Secret(account), trace=1))
    assert isinstance(outcome, Approved)
    balance = outcome.facts["balance_fen"]
    assert isinstance(balance, int)
    return balance


def loss(kind: LossKind = LossKind.TEMPORARY, *, release: bool = False, person: str = ID_NUMBER) -> NotifyLoss:
    return NotifyLoss(
        reference=uuid4(), at=AT, account=Secret(PAYER), id_number=Secret(person), kind=kind, release=release
    )


def check(name: str, account: str = PAYER) -> AccountCheck:
    return AccountCheck(
        reference=uuid4(), at=AT, account=Secret(account), name=Secret(name), id_number=Secret(ID_NUMBER)
    )


def refund(original: Any, amount_fen: int) -> Refund:
    return Refund(reference=uuid4(), at=AT, original=original, amount_fen=amount_fen, trace=2)


def reversal(original: Any) -> Reverse:
    return Reverse(reference=uuid4(), at=AT, original=original)


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
    assert await bank.call(reversal(op)) == Declined(DeclineCode.NOT_FOUND)
    assert await bank.call(op) == Declined(DeclineCode.NOT_ALLOWED)
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


# the same reference again: one effect


async def replay(bank: Caller) -> None:
    """Everything with an effect, three times each."""
    paid, undone = purchase(1000), purchase(50)
    effects: list[Operation] = [
        paid, undone, transfer(10), transfer(10, to=ELSEWHERE), payroll(PAYEE, amount_fen=7), refund(paid, 300),
        reversal(undone),
    ]  # fmt: skip
    for op in effects:
        await bank.call(op)
        await bank.call(op)
        await bank.call(op)
    assert await balance_fen(bank) == OPENING_FEN - (1000 + 10 + 10 + 7 - 300)
    references = [item["reference"] for item in await bank.book()]
    assert sorted(references) == sorted(str(op.reference) for op in effects)


async def test_a_replay_does_nothing_twice(bank: Caller) -> None:
    await replay(bank)


class Forgetful(Ledger):
    """Planted bug: it does not look whether it has done this before."""

    def _seen(self, reference: str, asked: str) -> None:
        return None

    def _put(self, line: BookLine) -> BookLine:
        self._book.write(line)
        self._take_in(line, 1)
        return line


async def test_control_a_bank_that_pays_twice_is_noticed(tmp_path: Path) -> None:
    async with open_bank(tmp_path, Forgetful) as bank:
        with pytest.raises(AssertionError):
            await replay(bank)


async def test_a_reference_is_not_taken_for_something_else(bank: Caller) -> None:
    op = purchase(1000)
    await bank.call(op)
    assert isinstance(await bank.call(msgspec.structs.replace(op, amount_fen=2000)), Unknown)
    assert isinstance(await bank.call(transfer(1000)), Approved)
    assert await balance_fen(bank) == OPENING_FEN - 2000


# what is not the bank's, or not ours


async def reads_nothing_altered(bank: Caller) -> None:
    """An approval with one character of it changed, each in turn of many, is Unknown."""
    kept: list[HttpReply] = []
    op = purchase()
    bank.tamper = lambda reply: kept.append(reply) or reply  # type: ignore[func-returns-value]
    assert isinstance(await bank.call(op), Approved)
    bodies = [("", place) for place in range(0, len(kept[0].body), 23)]
    for name, place in [*bodies, ("x-aob-signature", 20), ("x-aob-bankID", 0), ("x-aob-interaction-id", 3)]:
        bank.tamper = partial(_tampered, name=name, place=place)
        outcome = await bank.call(op)
        assert isinstance(outcome, Unknown), (name, place, outcome)


def _tampered(reply: HttpReply, name: str, place: int) -> HttpReply:
    """One character of a header, or of the body."""
    if not name:
        return msgspec.structs.replace(reply, body=_altered(reply.body, place))
    altered = _altered(reply.headers[name].encode(), place).decode()
    return msgspec.structs.replace(reply, headers={**reply.headers, name: altered})


def _altered(body: bytes, place: int) -> bytes:
    other = b"0" if body[place : place + 1] != b"0" else b"1"
    return body[:place] + other + body[place + 1 :]


async def test_an_altered_answer_is_unknown(bank: Caller) -> None:
    await reads_nothing_altered(bank)


class Trusting:
    """Planted bug: every signature is good."""

    def __init__(self, keys: Any) -> None:
        self._keys = keys

    def verify(self, key: str, message: bytes, signature: bytes) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)


async def test_control_an_unchecked_signature_is_noticed(bank: Caller) -> None:
    bank.keys = Trusting(bank.keys)
    with pytest.raises(AssertionError):
        await reads_nothing_altered(bank)


async def test_the_answer_to_another_message_is_unknown(bank: Caller) -> None:
    """Though it is the bank's, signed and whole: one that was kept, and one that the network mixed up."""
    kept: list[HttpReply] = []
    bank.tamper = lambda reply: kept.append(reply) or reply  # type: ignore[func-returns-value]
    await bank.call(purchase())
    bank.tamper = lambda reply: kept[0]
    assert isinstance(await bank.call(purchase()), Unknown)


async def refuses_what_is_not_signed(bank: Caller) -> None:
    """A request whose text was changed after it was signed is refused, and nothing is done."""
    op = purchase()
    await bank.call(op)
    good = bank.requests[-1]
    names = ("x-aob-signature", "x-aob-appID", "x-idempotency-key", "x-aob-interaction-id")
    for name in names:
        text = good.headers[name]
        headers = {**good.headers, name: text[:-1] + ("0" if text[-1] != "0" else "1")}
        reply = await bank.send(msgspec.structs.replace(good, headers=headers))
        assert reply.status == 401, name
    without = {name: text for name, text in good.headers.items() if name != "x-aob-signature"}
    assert (await bank.send(msgspec.structs.replace(good, headers=without))).status == 401
    reply = await bank.send(msgspec.structs.replace(good, body=_altered(good.body, 40)))
    assert reply.status == 401
    assert len(await bank.book()) == 1


async def test_a_request_that_is_not_signed_is_refused(bank: Caller) -> None:
    await refuses_what_is_not_signed(bank)


class Gullible(OpenBank):
    """Planted bug: the bank checks no signature."""

    def __init__(self, keys: Any, *args: Any) -> None:
        super().__init__(keys._replace(gateway=_Anybody()), *args)


class _Anybody:
    def verify(self, message: bytes, signature: bytes) -> bool:
        return True


async def test_control_a_gullible_bank_is_noticed(tmp_path: Path) -> None:
    async with open_bank(tmp_path, bank=Gullible) as bank:
        with pytest.raises(AssertionError):
            await refuses_what_is_not_signed(bank)


# faults


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        ({"kind": "drop_before"}, False),
        ({"kind": "drop_after"}, True),
        ({"kind": "half_close"}, True),
        ({"kind": "garbage"}, True),
        ({"kind": "bad_signature"}, True),
        ({"kind": "delay", "ms": 500}, True),
        ({"kind": "late", "ms": 500}, True),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
async def test_a_fault_leaves_it_unknown_until_asked(bank: Caller, fault: dict[str, Any], done: bool) -> None:
    op = purchase(1234)
    await bank.faults(fault)
    assert isinstance(await bank.call(op, timeout_s=0.2), Unknown)
    await bank.heal()
    if fault["kind"] == "delay":  # it is still to come
        assert isinstance(await bank.ask(op), Unknown)
    if done:
        await until(partial(recorded, bank, op), 5, "what was on its way")
    outcome = await bank.ask(op, later_s=SETTLED_S)
    assert isinstance(outcome, Approved) if done else outcome == Declined(DeclineCode.NOT_FOUND)
    assert await balance_fen(bank) == OPENING_FEN - (1234 if done else 0)
    assert await recorded(bank, op) == done


async def recorded(bank: Caller, op: Operation) -> bool:
    return await bank.line(op.reference) is not None


async def test_a_duplicated_message_is_one_operation(bank: Caller) -> None:
    op = purchase(1234)
    await bank.faults({"kind": "duplicate"})
    assert isinstance(await bank.call(op), Approved)
    await bank.heal()
    assert await balance_fen(bank) == OPENING_FEN - 1234


async def test_a_decline_is_final(bank: Caller) -> None:
    op = purchase()
    await bank.faults({"kind": "decline", "code": "100005"})
    assert await bank.call(op) == Declined(DeclineCode.LIMIT_EXCEEDED)
    await bank.heal()
    assert await bank.call(op) == Declined(DeclineCode.LIMIT_EXCEEDED)
    assert await bank.ask(op) == Declined(DeclineCode.LIMIT_EXCEEDED)


@pytest.mark.parametrize("code", ["700000", "000001", "100009"])
async def test_an_unknown_code_is_unknown(bank: Caller, code: str) -> None:
    await bank.faults({"kind": "decline", "code": code})
    op = purchase()
    assert await bank.call(op) == Unknown(f"dealCode {code} is not in the table")
    assert isinstance(await bank.call(check("张三")), Unknown)


async def test_nobody_there(bank: Caller, tmp_path: Path) -> None:
    async with open_bank(tmp_path / "other") as gone:
        pass
    caller = Caller(gone._base, "", bank.keys, bank._session)
    assert isinstance(await caller.call(purchase()), NotSent)


async def test_not_found_is_believed_only_when_nothing_can_be_on_its_way(bank: Caller) -> None:
    op = purchase()
    assert isinstance(await bank.ask(op, later_s=119), Unknown)
    assert await bank.ask(op, later_s=120) == Declined(DeclineCode.NOT_FOUND)
