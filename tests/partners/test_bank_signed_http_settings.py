"""The signed open-bank adapter by literal bytes: its settings, whatever a bank may sign, what is shown."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.bank_signed_http import Adapter, BankSettings
from gateway.domain.outcome import Approved, Declined, NotSent, Unknown
from gateway.partners.contract import CannotBuild, HttpReply
from gateway.settings import convert
from tests.contract.case import context
from tests.contract.cases.bank_signed_http import (
    CASE,
    CRYPTO,
    DONE,
    EXAMPLES,
    ID_NUMBER,
    KEYS,
    OURS,
    PAYER,
    PURCHASE,
    TRANSFER,
    query,
    reply,
)

CTX = context(KEYS)
IV = "00112233445566778899AABBCCDDEEFF"
CONTENT = f'{{"mesgId":"{OURS}","dealCode":"000000"{DONE}}}'
CONTENT_FEN = CONTENT.replace("12.34", "1234")


def adapter(**dialect: Any) -> Adapter:
    mistakes: list[str] = []
    settings = convert({**CASE.dialect, **dialect}, BankSettings, "partners.toml", "dialect", mistakes)
    assert not mistakes, mistakes
    return Adapter(settings)


def mistakes_of(**dialect: Any) -> list[str]:
    mistakes: list[str] = []
    convert({**CASE.dialect, **dialect}, BankSettings, "partners.toml", "dialect", mistakes)
    return mistakes


def content_of(body: bytes, iv: bytes | None = None) -> dict[str, Any]:
    raw = bytes.fromhex(json.loads(body)["bizContent"])
    iv, raw = (iv, raw) if iv else (raw[:16], raw[16:])
    content: dict[str, Any] = json.loads(CRYPTO.decrypt("encrypt", raw, iv))
    return content


def test_a_constant_iv_is_not_sent() -> None:
    bank = adapter(iv=IV)
    assert content_of(bank.build(TRANSFER, CTX).body, bytes.fromhex(IV))["tranAmt"] == "12.34"
    sealed = CRYPTO.encrypt("encrypt", CONTENT.encode(), bytes.fromhex(IV)).hex().upper()
    body = f'{{"bizContent":"{sealed}"}}'.encode()
    answer = HttpReply(200, {"x-aob-signature": CRYPTO.sign("partner", body).hex().upper()}, body)
    assert isinstance(bank.parse(TRANSFER, CTX, answer), Approved)
    assert isinstance(adapter().parse(TRANSFER, CTX, answer), Unknown)


def test_how_answers_are_signed() -> None:
    """Each way is read where it is configured, and nowhere else."""
    sealed = json.loads(reply(CONTENT).body)["bizContent"]
    plain = f'{{"bizContent":"{sealed}"}}'.encode()
    of_content = CRYPTO.sign("partner", plain).hex().upper()
    of_text = CRYPTO.sign("partner", sealed.encode()).hex().upper()
    ways = {
        "like_a_request": reply(CONTENT),
        "content": HttpReply(200, {"x-aob-bankID": "330424", "x-aob-signature": of_content}, plain),
        "field": HttpReply(200, {}, f'{{"bizContent":"{sealed}","signature":"{of_text}"}}'.encode()),
    }
    for configured in ways:
        bank = adapter(reply_signed=configured)
        for way, answer in ways.items():
            outcome = bank.parse(TRANSFER, CTX, answer)
            assert isinstance(outcome, Approved if way == configured else Unknown), (configured, way)
    assert mistakes_of(reply_signed="none")


def test_amounts_in_fen() -> None:
    bank = adapter(amounts="fen")
    assert content_of(bank.build(TRANSFER, CTX).body)["tranAmt"] == "1234"
    assert isinstance(bank.parse(TRANSFER, CTX, reply(CONTENT_FEN)), Approved)
    assert isinstance(bank.parse(TRANSFER, CTX, reply(CONTENT)), Unknown)


@pytest.mark.parametrize(("fen", "yuan"), [(1, "0.01"), (100, "1.00"), (1005, "10.05"), (10**12, "10000000000.00")])
def test_amounts_in_yuan(fen: int, yuan: str) -> None:
    op = msgspec.structs.replace(TRANSFER, amount_fen=fen)
    assert content_of(adapter().build(op, CTX).body)["tranAmt"] == yuan
    assert isinstance(adapter().parse(op, CTX, reply(CONTENT.replace("12.34", yuan))), Approved)


def test_headers_are_signed_in_their_order_when_they_are_present() -> None:
    bank = adapter(authorization="Bearer abc", access_token="def")
    built = bank.build(TRANSFER, CTX)
    names = [name for name in built.headers if name not in ("x-aob-signature", "Content-Type")]
    assert names == [
        "Authorization", "x-aob-appID", "x-aob-bankID", "x-aob-interaction-id", "x-aob-access-token",
        "x-customer-user-agent", "x-idempotency-key",
    ]  # fmt: skip
    text = json.dumps(
        {name: built.headers[name] for name in names} | json.loads(built.body), separators=(",", ":")
    ).encode()
    assert CRYPTO.verify("sign", text, bytes.fromhex(built.headers["x-aob-signature"]))
    assert "abc" not in repr(bank._settings)


def test_what_a_bank_lacks_is_not_built() -> None:
    bank = adapter(paths={"transfer_query": "", "refund": ""})
    assert bank.query_for(PURCHASE) is None
    for example in EXAMPLES:
        lacks = example.name in ("refund", "query of a transfer", "query of a purchase")
        if lacks:
            with pytest.raises(CannotBuild):
                bank.build(example.op, CTX)
        else:
            assert bank.build(example.op, CTX) == example.request
    with pytest.raises(CannotBuild):
        bank.build(query(query(TRANSFER)), CTX)


def test_the_meaning_of_codes_is_configured() -> None:
    bank = adapter(success_code="0", declines={"E51": "limit_exceeded"}, deal_statuses={"0": "done", "1": "pending"})
    outcome = bank.parse(TRANSFER, CTX, reply(CONTENT.replace('"000000"', '"0"').replace('Status":"1"', 'Status":"0"')))
    assert isinstance(outcome, Approved)
    assert isinstance(bank.parse(TRANSFER, CTX, reply(CONTENT)), Unknown)
    assert isinstance(bank.parse(TRANSFER, CTX, reply(CONTENT.replace('"000000"', '"E51"'))), Declined)


@pytest.mark.parametrize(
    "wrong",
    [
        {"unknown": 1},
        {"iv": "00"},
        {"amounts": "jiao"},
        {"app_id": "a\r\nX-Evil: 1"},
        {"bank_id": "330424\n"},
        {"paths": {"transfer": "no slash"}},
        {"declines": {"100001": "no_such_code"}},
        {"merchants": {"M": {"account": "12", "name": "x"}}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_mistake_in_a_block_is_named(wrong: Mapping[str, Any]) -> None:
    mistakes = mistakes_of(**wrong)
    assert len(mistakes) == 1 and next(iter(wrong)) in mistakes[0]


def test_success_is_no_decline() -> None:
    with pytest.raises(ValueError, match="success_code"):
        adapter(declines={"000000": "not_found"})


_texts = st.text(max_size=20) | st.sampled_from(
    ["000000", "100004", "0", "1", "2", "12.34", "20261122", "2|1.00\nA|1.00|1"]
)
_names = st.sampled_from(
    ["mesgId", "dealCode", "dealStatus", "tranAmt", "failCode", "bankSeqNo", "balance", "available", "batchNo",
     "transList", "seqNo", "tranDate", "fileContent"]
)  # fmt: skip
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names, inner, max_size=4),
    max_leaves=6,
)


@given(fields=st.dictionaries(_names, _values, max_size=8), named=st.booleans(), approves=st.booleans())
def test_whatever_a_bank_signs_does_not_raise(fields: dict[str, Any], named: bool, approves: bool) -> None:
    bank = adapter()
    content = {**({"mesgId": OURS} if named else {}), **({"dealCode": "000000"} if approves else {}), **fields}
    answer = reply(json.dumps(content, ensure_ascii=False))
    for example in EXAMPLES:
        outcome = bank.parse(example.op, CTX, answer)
        assert not isinstance(outcome, NotSent)
        if not (named and approves):
            continue
        if isinstance(outcome, Approved) and "dealStatus" not in fields:
            assert type(example.op).__name__ in ("AccountCheck", "Balance", "CheckFile")


@given(plain=st.binary(max_size=300))
def test_whatever_a_bank_seals_does_not_raise(plain: bytes) -> None:
    sealed = (bytes(16) + CRYPTO.encrypt("encrypt", plain, bytes(16))).hex().upper()
    body = f'{{"bizContent":"{sealed}"}}'.encode()
    answer = HttpReply(200, {"x-aob-signature": CRYPTO.sign("partner", body).hex().upper()}, body)
    for example in EXAMPLES:
        assert isinstance(adapter().parse(example.op, CTX, answer), Unknown)


def test_what_is_shown_of_a_message() -> None:
    """Of one that is not enciphered too: an error page of the bank's own front, or a bank's test system."""
    plain = (
        f'{{"mesgId":"{OURS}","dealCode":"100004","dealMsg":"张三余额不足","acctNo":"{PAYER}","idNo":"{ID_NUMBER}",'
        f'"tranAmt":"12.34","batchNo":"{ID_NUMBER}","mesgDate":"{ID_NUMBER}","张三":"x",'
        f'"transList":[{{"rcvAcct":"{PAYER}"}}]}}'
    )
    assert json.loads(adapter().redact(plain.encode())) == {
        "mesgId": OURS, "dealCode": "100004", "dealMsg": "***", "acctNo": "***", "idNo": "***", "tranAmt": "12.34",
        "batchNo": "***", "mesgDate": "***", "transList": [{"rcvAcct": "***"}, "… 1 in all"], "…": "***",
    }  # fmt: skip
    assert adapter().redact(EXAMPLES[0].request.body) == '{"bizContent":"***"}'
    assert adapter().redact(b"<html>") == "(6 bytes that are not JSON)"
