"""Bodies of requests, as the handlers read them: two JSON parsers read those of effects, and must never disagree."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api import caller_keys, loss_reports, payloads, payments, points, verify, visits
from gateway.domain.errors import Problem
from tests.jwks import public

CHIP = {
    "type": "chip_card", "card_number": "AB1234567", "card_identifier": "330424D15600000500000000000000A1",
    "proof": {"challenge": "00" * 16, "cryptogram": "00" * 16},
}  # fmt: skip
CODE, REF = {"type": "ecard_code", "code": "1" * 20}, {"type": "card_ref", "card_ref": "k" + "0" * 32}
AT = {"scene": "parking.exit", "terminal_id": "P-1"}
VALID: dict[Any, list[dict[str, Any]]] = {
    payloads.VerifyRequest: [
        {"presentation": CHIP, **AT, "occurred_at": "2026-11-27T10:00:00+08:00", "explain": True},
        {"presentation": {"type": "transit_qr", "qr": "AAAA"}, **AT},
    ],
    payloads.LossReport: [
        {"kind": "temporary", "card_number": "AB1234567", "id_number": "330424190001010016"},
        {"kind": "formal", "presentation": CHIP},
    ],
    payloads.LossRelease: [{}, {"kind": "temporary"}],
    payloads.PaymentRequest: [
        {"presentation": CODE, **AT, "amount_fen": 1250, "merchant_order_id": "o-1", "apply_benefits": True},
    ],
    payloads.ReversalRequest: [{}, {"reason": "退货"}],
    payloads.RefundRequest: [{"amount_fen": 1, "reason": ""}],
    payloads.VisitRequest: [
        {"presentation": REF, **AT},
        {"presentation": CHIP, **AT,
         "details": {"plate": "浙F12345", "ticket": "T-1", "booking": "B-1", "amount_fen": 100}},
    ],
    payloads.VisitOpening: [{"payment": "019ac3a0-0000-7000-8000-000000000000"}],
    payloads.RedemptionRequest: [{"presentation": REF, "points": 300, "item": "rice-5kg", "outlet_id": "wuyuan-01"}],
    payloads.RedemptionEnd: [{}],
    payloads.KeyChange: [{"use": "signing", "jwk": public("k-2"), "retire": "k-1"}, {"use": "token", "retire": "k-1"}],
}  # fmt: skip
DECODERS: dict[Any, Callable[[bytes], Any]] = {
    payloads.VerifyRequest: verify.decode,
    payloads.LossReport: loss_reports._decode_report, payloads.LossRelease: loss_reports._decode_release,
    payloads.PaymentRequest: payments._decode_payment, payloads.ReversalRequest: payments._decode_reversal,
    payloads.RefundRequest: payments._decode_refund,
    payloads.VisitRequest: visits._decode_visit, payloads.VisitOpening: visits._decode_opening,
    payloads.RedemptionRequest: points._decode_redemption, payloads.RedemptionEnd: points._decode_end,
    payloads.KeyChange: caller_keys._decode,
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)
each_effect_with_fields = pytest.mark.parametrize(
    "kind",
    # a verify takes the last
    [kind for kind, bodies in VALID.items() if any(bodies) and kind is not payloads.VerifyRequest],
    ids=lambda kind: kind.__name__,
)


def objects(document: Any) -> list[dict[str, Any]]:
    inside = [one for value in document.values() if isinstance(value, dict) for one in objects(value)]
    return [document, *inside]


NAMES = sorted({name for bodies in VALID.values() for body in bodies for each in objects(body) for name in each})
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20)
    | st.sampled_from(["temporary", "signing", "chip_card", "AB1234567", "9999-12-31T23:59:60-23:59"])
    | st.sampled_from(["\ud800", 10**400])
)  # fmt: skip
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def near_valid(draw: st.DrawFn, kind: Any) -> Any:
    """A valid body with a field changed, taken out or put in, wherever it is; or any document."""
    if draw(st.integers(0, 3)) == 0:
        return draw(documents)
    body = json.loads(json.dumps(draw(st.sampled_from(VALID[kind]))))
    place = draw(st.sampled_from(objects(body)))
    if not draw(st.booleans()):
        return body
    if draw(st.booleans()) and place:
        del place[draw(st.sampled_from(sorted(place)))]
    else:
        place[draw(st.sampled_from(NAMES))] = draw(documents)
    return body


def texts(kind: Any) -> st.SearchStrategy[str]:
    return st.builds(
        lambda document, ascii_only, space: space + json.dumps(document, ensure_ascii=ascii_only) + space,
        near_valid(kind), st.booleans(), st.sampled_from(["", "", "", " \n", "\ufeff", "\0"]),
    )  # fmt: skip


bodies = {
    kind: texts(kind).map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=60) for kind in VALID
}


@each_kind
@given(data=st.data(), cut=st.integers(0, 400))
def test_any_body_is_a_value_or_a_problem_and_both_parsers_read_the_same(
    kind: Any, data: st.DataObject, cut: int
) -> None:
    """What is read and written again is read the same."""
    body = data.draw(bodies[kind])
    for piece in (body, body[:cut]):
        try:
            found = DECODERS[kind](piece)
        except Problem as problem:
            assert problem.code in ("malformed_json", "validation_failed")
        else:
            assert found == msgspec.convert(json.loads(piece), kind)
            assert found == DECODERS[kind](msgspec.json.encode(found))


def written(document: Any, doubled: Any, name: str, spelling: str) -> str:
    """JSON in which one object has one of its fields a second time."""
    if not isinstance(document, dict):
        return json.dumps(document)
    fields = [f"{json.dumps(key)}: {written(value, doubled, name, spelling)}" for key, value in document.items()]
    if document is doubled:
        fields.append(f'"{spelling}": {json.dumps(document[name])}')
    return "{" + ", ".join(fields) + "}"


@each_effect_with_fields
@given(data=st.data())
def test_a_field_given_twice_is_refused_wherever_it_is(kind: Any, data: st.DataObject) -> None:
    document = data.draw(st.sampled_from([one for one in VALID[kind] if one]))
    assert DECODERS[kind](written(document, None, "", "").encode()), "the control"
    doubled = data.draw(st.sampled_from(objects(document)))
    name = data.draw(st.sampled_from(sorted(doubled)))
    spelling = data.draw(st.sampled_from([name, f"\\u{ord(name[0]):04x}{name[1:]}"]))
    with pytest.raises(Problem) as caught:
        DECODERS[kind](written(document, doubled, name, spelling).encode())
    assert caught.value.status == 422


@each_kind
@pytest.mark.parametrize("opening", [b"[", b'{"jwk":', b'{"presentation":', b'{"use":"token","a":['])
def test_a_deep_body_is_a_problem(kind: Any, opening: bytes) -> None:
    with pytest.raises(Problem):
        DECODERS[kind](opening * 100_000)
