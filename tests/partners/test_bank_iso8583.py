"""The ISO 8583 dialect against the simulated bank: real bytes on a real socket, each fault a typed outcome in time."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from msgspec.structs import replace

from adapters.bank_iso8583 import Adapter, Shop
from gateway.domain.masking import Secret
from gateway.domain.operations import Balance, Refund, SettleTotals
from gateway.domain.outcome import Approved, DeclineCode, Declined, Unknown
from gateway.domain.times import CHINA
from gateway.partners.contract import CallContext, CannotBuild, LinkFrame
from gateway.partners.transport_iso8583 import Link
from tests.faults.waiting import until
from tests.partners.iso_bank import (
    ACCOUNT,
    POOR,
    Bank,
    Late,
    adapter,
    call,
    context,
    make_link,
    purchase,
    reverse,
    traces,
)  # fmt: skip

WITHIN_S = 0.5


@pytest.fixture(scope="module")
async def bank(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bank]:
    bank = await Bank(tmp_path_factory.mktemp("bank")).start()
    yield bank
    assert await bank.stop() == 0


@pytest.fixture
def late() -> Late:
    return Late()


@pytest.fixture
async def link(bank: Bank, late: Late) -> AsyncIterator[Link]:
    link = make_link(bank.port, late)
    await link.open()
    yield link
    await bank.faults()
    await link.close()


async def balance_fen(link: Link, account: str = ACCOUNT) -> int:
    asked = Balance(reference=uuid4(), at=dt.datetime.now(CHINA), account=Secret(account), trace=next(traces))
    outcome = await call(link, adapter(), asked)
    assert isinstance(outcome, Approved)
    fen = outcome.facts["balance_fen"]
    assert isinstance(fen, int)
    return fen


async def test_a_purchase_is_booked_once_and_can_be_reversed_again_and_again(bank: Bank, link: Link) -> None:
    before = await balance_fen(link)
    bought = purchase(1234)
    first = await call(link, adapter(), bought)
    assert isinstance(first, Approved)
    assert len(first.partner_reference) == 12
    assert await call(link, adapter(), bought) == first
    assert await balance_fen(link) == before - 1234
    undo = reverse(bought)
    for _ in range(2):
        assert isinstance(await call(link, adapter(), undo), Approved)
    assert await balance_fen(link) == before
    assert (await bank.book())[bought.reference.hex, "purchase"] == "reversed"


async def test_a_reversal_that_overtakes_its_purchase_keeps_it_from_happening(bank: Bank, link: Link) -> None:
    before = await balance_fen(link)
    bought = purchase(50)
    assert await call(link, adapter(), reverse(bought)) == Declined(DeclineCode.NOT_FOUND)
    assert await call(link, adapter(), bought) == Declined(DeclineCode.DUPLICATE)
    assert await balance_fen(link) == before


@pytest.mark.parametrize("reversal", ["0400", "0420"])
@pytest.mark.parametrize("numbers", ["bcd", "ascii"])
@pytest.mark.parametrize("framing", ["length2", "length4_ascii"])
async def test_all_forms_of_the_wire(tmp_path: Path, framing: str, numbers: str, reversal: Any) -> None:
    speaks = adapter(numbers=numbers, reversal=reversal)
    bank = await Bank(tmp_path, "--numbers", numbers, "--framing", framing).start()
    link = make_link(bank.port, speaks=speaks, framing=framing)
    await link.open()
    bought = purchase(77)
    assert isinstance(await call(link, speaks, bought), Approved)
    assert isinstance(await call(link, speaks, reverse(bought)), Approved)
    await link.close()
    await bank.stop()


async def test_a_merchant_has_the_banks_own_numbers_in_all_its_messages(bank: Bank) -> None:
    """As long as the caller's words may be: F42 has 15 places, F41 8."""
    shop = Shop(merchant_id="898330448160042", terminal_id="00000001", terminals={"parking-exit-north": "00000002"})
    speaks = adapter(shops={"county-parking-company": shop})
    link = make_link(bank.port, speaks=speaks)
    await link.open()
    for terminal, number in (("parking-exit-north", b"00000002"), ("parking-exit-south", b"00000001")):
        bought = replace(purchase(5), merchant_id="county-parking-company", terminal_id=terminal)
        assert number + b"898330448160042" in speaks.build(bought, context()).body
        with pytest.raises(CannotBuild):
            adapter().build(bought, context())
        assert isinstance(await call(link, speaks, bought), Approved)
        refund = Refund(reference=uuid4(), at=bought.at, original=bought, amount_fen=2, trace=next(traces))
        assert number + b"898330448160042" in speaks.build(refund, context()).body
        assert isinstance(await call(link, speaks, reverse(bought)), Approved)
        assert (await bank.book())[bought.reference.hex, "purchase"] == "reversed"
    await link.close()


async def test_refunds_do_not_exceed_the_purchase(link: Link) -> None:
    before = await balance_fen(link)
    bought = purchase(1000)
    assert isinstance(await call(link, adapter(), bought), Approved)
    refunds = [
        Refund(reference=uuid4(), at=bought.at, original=bought, amount_fen=600, trace=next(traces)) for _ in range(2)
    ]
    assert isinstance(await call(link, adapter(), refunds[0]), Approved)
    assert isinstance(await call(link, adapter(), refunds[0]), Approved)
    assert await call(link, adapter(), refunds[1]) == Declined(DeclineCode.LIMIT_EXCEEDED)
    assert await balance_fen(link) == before - 400


async def test_no_money_no_card(link: Link) -> None:
    assert await call(link, adapter(), purchase(51, POOR)) == Declined(DeclineCode.INSUFFICIENT_FUNDS)
    assert await call(link, adapter(), purchase(51, POOR[:-1] + "7")) == Declined(DeclineCode.INVALID_CARD)


async def test_settlement_totals_agree_or_do_not(tmp_path: Path) -> None:
    bank = await Bank(tmp_path).start()
    link = make_link(bank.port)
    await link.open()
    bought = [purchase(500), purchase(300), purchase(200)]
    for one in bought:
        assert isinstance(await call(link, adapter(), one), Approved)
    await call(link, adapter(), reverse(bought[2]))
    now = bought[0].at
    for debit_fen, balanced in ((800, 1), (1000, 0)):
        totals = SettleTotals(
            reference=uuid4(), at=now, day=now.date(), trace=next(traces),
            debit_fen=debit_fen, debits=2, credit_fen=0, credits=0,
        )  # fmt: skip
        outcome = await call(link, adapter(), totals)
        assert isinstance(outcome, Approved)
        assert outcome.facts == {"balanced": balanced}
    await link.close()
    await bank.stop()


async def test_the_banks_book_outlives_its_end(tmp_path: Path) -> None:
    bank = await Bank(tmp_path).start()
    link = make_link(bank.port)
    await link.open()
    bought, before = purchase(321), await balance_fen(link)
    assert isinstance(await call(link, adapter(), bought), Approved)
    await bank.kill()
    await until(lambda: link.state != "ready", 2, "the link notices")
    await bank.start()
    await until(lambda: link.state == "ready", 5, "the link comes back")
    assert await balance_fen(link) == before - 321
    assert isinstance(await call(link, adapter(), reverse(bought)), Approved)
    assert await balance_fen(link) == before
    await link.close()
    await bank.stop()


UNKNOWN_AFTER = {
    "drop_before": None, "drop_after": "approved", "half_close": "approved", "garbage": "approved",
    "bad_signature": "approved", "late": "approved", "delay": None,
}  # fmt: skip
"""What the bank has done of it when the call ends, by fault."""


@pytest.mark.parametrize("kind", UNKNOWN_AFTER)
async def test_a_fault_leaves_the_outcome_unknown_in_time_and_a_reversal_settles_it(
    bank: Bank, link: Link, kind: str
) -> None:
    before = await balance_fen(link)
    await bank.faults({"kind": kind, "ms": 700})
    began = asyncio.get_running_loop().time()
    bought = purchase(10)
    outcome = await call(link, adapter(), bought, WITHIN_S)
    assert isinstance(outcome, Unknown), outcome
    assert asyncio.get_running_loop().time() - began < WITHIN_S + 0.15
    assert (await bank.book()).get((bought.reference.hex, "purchase")) == UNKNOWN_AFTER[kind]
    await bank.faults()
    await until(lambda: link.state == "ready", 5, "the link comes back")
    undone = await call(link, adapter(), reverse(bought))
    if UNKNOWN_AFTER[kind] is None:
        assert undone == Declined(DeclineCode.NOT_FOUND)
    else:
        assert isinstance(undone, Approved)
    assert (await bank.book())[bought.reference.hex, "purchase"] in ("reversed", "void")
    assert await balance_fen(link) == before


async def test_a_late_reply_is_handed_on_and_a_reversal_does_not_get_it(bank: Bank, link: Link, late: Late) -> None:
    await balance_fen(link)
    await bank.faults({"kind": "late", "ms": 300})
    bought = purchase(10)
    assert isinstance(await call(link, adapter(), bought, 0.1), Unknown)
    await bank.faults({"kind": "delay", "ms": 500})
    undone = await call(link, adapter(), reverse(bought), 2)  # the purchase's reply arrives while it waits
    assert isinstance(undone, Approved)
    assert link.counts.late == len(late.messages) == 1
    assert isinstance(adapter().parse(bought, context(), LinkFrame(late.messages[0])), Approved)


class _KeyedByTrace(Adapter):
    """Planted: a key of F41 and F11 alone."""

    def correlate(self, message: bytes) -> str | None:
        key = super().correlate(message)
        return None if key is None else key.partition(" ")[2]


async def test_control_a_key_without_the_kind_of_message_would_mix_them_up(bank: Bank, late: Late) -> None:
    planted = _KeyedByTrace(adapter()._settings)
    link = make_link(bank.port, late, planted)
    await link.open()
    await bank.faults({"kind": "late", "ms": 300})
    bought = purchase(10)
    assert isinstance(await call(link, planted, bought, 0.1), Unknown)
    await bank.faults({"kind": "delay", "ms": 500})
    assert isinstance(await call(link, planted, reverse(bought), 2), Unknown)  # it was given the purchase's reply
    await bank.faults()
    await link.close()


async def test_a_second_answer_does_no_harm(bank: Bank, link: Link, late: Late) -> None:
    await balance_fen(link)
    await bank.faults({"kind": "duplicate"})
    assert isinstance(await call(link, adapter(), purchase(10)), Approved)
    await until(lambda: len(late.messages) == 1, 2, "the second answer is handed on")
    assert isinstance(await call(link, adapter(), purchase(10)), Approved)


@pytest.mark.parametrize(("code", "declined"), [("41", DeclineCode.LOST_CARD), ("A0", DeclineCode.PARTNER_FAILURE)])
async def test_a_decline_is_in_our_words(bank: Bank, link: Link, code: str, declined: DeclineCode) -> None:
    await balance_fen(link)
    await bank.faults({"kind": "decline", "code": code})
    assert await call(link, adapter(), purchase(10)) == Declined(declined)


async def test_a_code_that_nobody_knows_is_unknown(bank: Bank, link: Link) -> None:
    await balance_fen(link)
    await bank.faults({"kind": "decline", "code": "68"})
    assert await call(link, adapter(), purchase(10)) == Unknown("answered '68'")


class _Credulous(Adapter):
    """Planted: looks at no mac."""

    def _read_sealed(self, ctx: CallContext, wire: bytes) -> Any:
        return self._read(wire)


async def test_control_without_the_mac_a_forged_answer_would_count(bank: Bank, link: Link) -> None:
    await balance_fen(link)
    await bank.faults({"kind": "bad_signature"})
    planted = _Credulous(adapter()._settings)
    assert isinstance(await call(link, planted, purchase(10)), Approved)
