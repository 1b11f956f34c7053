"""The rules of a visit's states, whatever a merchant says, and of the merchants' blocks."""

from typing import Any

import msgspec
import pytest

from adapters.merchant_signed_http import MerchantSettings
from gateway.domain.callers import Caller
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown
from gateway.domain.partners import Partner, mistakes_of_merchants
from gateway.domain.scenes import VisitKind
from gateway.domain.visits import BEGINNINGS, OPEN, TRANSITIONS, VisitState, found_out, public, told

_S = VisitState
OUTCOMES: list[Outcome] = [
    Approved(), Pending(), NotSent("x"), Unknown("x"), *(Declined(code) for code in DeclineCode),
]  # fmt: skip


def test_every_answer_leads_along_the_table() -> None:
    for outcome in OUTCOMES:
        assert told(outcome) in TRANSITIONS[_S.INTENT]
        for over in (False, True):
            after = found_out(outcome, over)
            assert after in (TRANSITIONS[_S.UNSURE] if over else {*TRANSITIONS[_S.UNSURE], None})
            assert over or after is not _S.UNKNOWN, "it is not given up before its time"


def test_only_a_clear_answer_says_that_it_was_done_or_refused() -> None:
    assert [outcome for outcome in OUTCOMES if told(outcome) is _S.DONE] == [Approved()]
    assert [outcome for outcome in OUTCOMES if found_out(outcome, True) is _S.DONE] == [Approved()]
    unclear = [Pending(), NotSent("x"), Unknown("x"), Declined(DeclineCode.DUPLICATE)]
    assert [outcome for outcome in OUTCOMES if found_out(outcome, True) is _S.UNKNOWN] == unclear
    assert found_out(Declined(DeclineCode.NOT_FOUND), False) is None, "it may be on its way"
    assert found_out(Declined(DeclineCode.NOT_FOUND), True) is _S.REFUSED


def test_nothing_leads_out_of_a_final_state_and_what_is_open_goes_on() -> None:
    for state in VisitState:
        goes_on = state in OPEN or state is _S.DUE
        assert bool(TRANSITIONS.get(state)) == goes_on
        assert all((public(kind, state) == "pending") == (state in OPEN) for kind in VisitKind)
    assert {*BEGINNINGS} <= {*VisitState}


CALLER = {"name": "x", "kind": "merchant", "scopes": ["payments:write"], "algorithm": "EdDSA", "keys_file": "x"}
CALLERS = {
    "till": msgspec.convert(CALLER, Caller),
    "reader": msgspec.convert(CALLER | {"scopes": ["cards:verify"]}, Caller),
}


def merchant(caller: str, *terminals: str) -> Partner:
    block = {"name": "x", "adapter": "merchant_signed_http", "operations": []}
    return msgspec.convert(block | {"merchant": {"caller": caller, "terminals": terminals}}, Partner)


@pytest.mark.parametrize(
    ("blocks", "mistakes"),
    [
        ([merchant("till", "P-*"), merchant("till", "Q-1", "Q-2")], []),
        ([merchant("till", "P-1"), merchant("till", "P-10")], []),
        ([merchant("nobody", "P-1")], ["partners.0.merchant.caller: nobody is not in callers.toml"]),
        ([merchant("reader", "P-1")], ["partners.0.merchant.caller: reader lacks the scope payments:write"]),
        ([merchant("till", "P-1"), merchant("till", "P-*")], ["1.merchant.terminals: P-* is, or may be, there twice"]),
        ([merchant("till", "P-*"), merchant("till", "P-1")], ["1.merchant.terminals: P-1 is, or may be, there twice"]),
        ([merchant("till", "P-*", "P-0*")], ["0.merchant.terminals: P-0* is, or may be, there twice"]),
        ([merchant("till", "P-1", "P-1")], ["0.merchant.terminals: P-1 is, or may be, there twice"]),
    ],
)
def test_mistakes_between_blocks_are_named(blocks: list[Partner], mistakes: list[str]) -> None:
    found = mistakes_of_merchants({str(number): block for number, block in enumerate(blocks)}, CALLERS)
    assert len(found) == len(mistakes)
    assert all(text.endswith(end) for text, end in zip(found, mistakes, strict=True))


ASKED_NOT = "0.merchant: query_status is not among the operations"


@pytest.mark.parametrize(
    ("operations", "cannot_be_asked", "mistake"),
    [
        (["open_barrier", "query_status"], False, ""),
        (["parking_fee"], False, ""),
        (["open_barrier"], True, ""),
        (["open_barrier"], False, ASKED_NOT),
        (["hotel_check_in"], False, ASKED_NOT),
        (["till_discount"], False, ASKED_NOT),
        (["open_barrier", "query_status"], True, "0.merchant.cannot_be_asked: query_status is among the operations"),
    ],
)
def test_who_acts_can_be_asked_what_it_did_or_says_that_it_cannot(
    operations: list[str], cannot_be_asked: bool, mistake: str
) -> None:
    block = merchant("till", "P-1")
    assert block.merchant is not None
    whose = msgspec.structs.replace(block.merchant, cannot_be_asked=cannot_be_asked)
    block = msgspec.structs.replace(block, operations=tuple(operations), merchant=whose)
    found = mistakes_of_merchants({"0": block}, CALLERS)
    assert len(found) == bool(mistake) and all(text.startswith(f"partners.{mistake}") for text in found)


def settings(*paths: str, **changes: Any) -> MerchantSettings:
    block = {"party": "x", "done": "0", "paths": dict.fromkeys(paths, "/do")}
    return msgspec.convert(block | changes, MerchantSettings)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("open_barrier", ["open_before"]),
        ("hotel_check_in", ["act_before", "booking", "rate_percent"]),
        ("till_discount", ["act_before", "ticket", "discount_fen"]),
    ],
)
def test_a_merchant_is_told_all_that_it_cannot_act_without(path: str, fields: list[str]) -> None:
    others = {"open_before", "act_before", "booking", "rate_percent", "discount_fen", "holder", "way"} - {*fields}
    settings(path, fields=dict.fromkeys(others, ""))
    for field in fields:
        with pytest.raises(msgspec.ValidationError, match=rf"fields\.{field} is needed with paths\.{path}"):
            settings(path, fields={field: ""})


@pytest.mark.parametrize(
    ("path", "enough", "wrong"),
    [
        ("parking_fee", {"fields": {"plate": ""}}, {"fields": {"plate": "", "ticket": ""}}),
        ("parking_fee", {"fields": {"ticket": ""}}, {"answers": {"fee_fen": ""}}),
        ("query_status", {"declines": {"4": "not_found"}}, {"declines": {"7": "not_allowed"}}),
    ],
)
def test_who_is_asked_knows_of_what_and_can_answer(path: str, enough: dict[str, Any], wrong: dict[str, Any]) -> None:
    settings(path, **enough)
    settings("open_barrier", **wrong)
    with pytest.raises(msgspec.ValidationError, match=rf"needed with paths\.{path}"):
        settings(path, **wrong)
