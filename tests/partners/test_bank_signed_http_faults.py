"""The signed open-bank adapter against the simulated bank, over a real socket: replays, forgeries and faults."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.bank_signed_http import Adapter
from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Pending, Unknown
from gateway.partners.contract import HttpReply
from gateway.sandbox.peers.control import BookLine, Faults
from gateway.sandbox.peers.open_bank_host import OPENING_FEN, OpenBank
from gateway.sandbox.peers.open_bank_ledger import Ledger
from tests.faults.waiting import until
from tests.partners.open_bank import (
    ELSEWHERE,
    PAYEE,
    SETTINGS,
    SETTLED_S,
    Caller,
    balance_fen,
    check,
    open_bank,
    payroll,
    purchase,
    refund,
    reversal,
    transfer,
)

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


FAULTS = [
    ({"kind": "drop_before"}, False),
    ({"kind": "drop_after"}, True),
    ({"kind": "half_close"}, True),
    ({"kind": "garbage"}, True),
    ({"kind": "bad_signature"}, True),
    ({"kind": "delay", "ms": 1500}, True),
    ({"kind": "late", "ms": 500}, True),
]


def kind_of(value: Any) -> str:
    return str(value["kind"]) if isinstance(value, dict) else ""


async def unknown_until_asked(bank: Caller, fault: dict[str, Any], done: bool) -> None:
    op = purchase(1234)
    await bank.faults(fault)
    assert isinstance(await bank.call(op, timeout_s=0.2), Unknown)
    await bank.heal()
    if fault["kind"] == "delay":  # it is still to come
        assert await bank.ask(op) == Pending()
    if done:
        await until(partial(recorded, bank, op), 5, "what was on its way")
    outcome = await bank.ask(op, later_s=SETTLED_S)
    assert isinstance(outcome, Approved) if done else outcome == Declined(DeclineCode.NOT_FOUND)
    assert await balance_fen(bank) == OPENING_FEN - (1234 if done else 0)
    assert await recorded(bank, op) == done


@pytest.mark.parametrize(("fault", "done"), FAULTS, ids=kind_of)
async def test_a_fault_leaves_it_unknown_until_asked(bank: Caller, fault: dict[str, Any], done: bool) -> None:
    await unknown_until_asked(bank, fault, done)


class Flawless(OpenBank):
    """Planted bug: the faults that are set never happen."""

    def __init__(self, keys: Any, ledger: Ledger, faults: Faults) -> None:
        super().__init__(keys, ledger, Faults())


@pytest.mark.parametrize(("fault", "done"), FAULTS, ids=kind_of)
async def test_control_a_fault_that_does_not_happen_is_noticed(
    tmp_path: Path, fault: dict[str, Any], done: bool
) -> None:
    async with open_bank(tmp_path, bank=Flawless) as bank:
        with pytest.raises(AssertionError):
            await unknown_until_asked(bank, fault, done)


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


async def test_a_refused_question_says_nothing_of_the_operation(bank: Caller) -> None:
    op = purchase()
    await bank.call(op)
    for code in ("100004", "100007", "900001", "700000"):
        await bank.faults({"kind": "decline", "code": code})
        assert isinstance(await bank.ask(op, later_s=SETTLED_S), Unknown)
    await bank.heal()
    assert isinstance(await bank.ask(op), Approved)


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


async def believes_not_found_late(bank: Caller) -> None:
    """Only when nothing can be on its way any more; of a reversal too."""
    op = purchase()
    for asked in (bank.ask, lambda op, later_s: bank.call(reversal(op), later_s=later_s)):
        assert await asked(op, later_s=119) == Pending(), "no failure of the bank: its breaker stays closed"
        assert await asked(op, later_s=120) == Declined(DeclineCode.NOT_FOUND)


async def test_not_found_is_believed_only_when_nothing_can_be_on_its_way(bank: Caller) -> None:
    await believes_not_found_late(bank)


async def test_control_a_hasty_belief_is_noticed(bank: Caller) -> None:
    bank.adapter = Adapter(msgspec.structs.replace(SETTINGS, absent_after_s=0))
    with pytest.raises(AssertionError):
        await believes_not_found_late(bank)


async def test_one_reference_at_once_from_many_is_one_operation(bank: Caller) -> None:
    op = purchase(1234)
    outcomes = await asyncio.gather(*(bank.call(op) for _ in range(32)))
    assert all(outcome == outcomes[0] for outcome in outcomes) and isinstance(outcomes[0], Approved)
    assert await balance_fen(bank) == OPENING_FEN - 1234
