"""Bodies of effects: two JSON parsers read them, so they must never disagree."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.payloads import KeyChange, LossRelease, LossReport, effect_decoder
from gateway.domain.errors import Problem
from tests.jwks import public

VALID: dict[Any, list[dict[str, Any]]] = {
    LossReport: [
        {"kind": "temporary", "card_number": "AB1234567", "id_number": "330424190001010016"},
        {"kind": "formal", "presentation": {
            "type": "chip_card", "card_number": "AB1234567", "card_identifier": "330424D15600000500000000000000A1",
            "proof": {"challenge": "00" * 16, "cryptogram": "00" * 16}}},
    ],
    LossRelease: [{}, {"kind": "temporary"}],
    KeyChange: [{"use": "signing", "jwk": public("k-2"), "retire": "k-1"}, {"use": "token", "retire": "k-1"}],
}  # fmt: skip
DECODERS: dict[Any, Callable[[bytes], Any]] = {kind: effect_decoder(kind) for kind in VALID}
each_kind = pytest.mark.parametrize("kind", VALID, ids=lambda kind: kind.__name__)

NAMES = sorted({name for bodies in VALID.values() for body in bodies for name in [*body, *body.get("jwk", ())]})
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=20)
    | st.sampled_from(["temporary", "signing", "chip_card", "AB1234567", "\ud800", 10**400])
)  # fmt: skip
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def near_valid(draw: st.DrawFn) -> Any:
    """A valid body with a field changed, taken out or put in, at the top or one level below; or any document."""
    if draw(st.integers(0, 3)) == 0:
        return draw(documents)
    body = json.loads(json.dumps(draw(st.sampled_from([one for bodies in VALID.values() for one in bodies]))))
    place = draw(st.sampled_from([body, *(value for value in body.values() if isinstance(value, dict))]))
    if not draw(st.booleans()):
        return body
    if draw(st.booleans()) and place:
        del place[draw(st.sampled_from(sorted(place)))]
    else:
        place[draw(st.sampled_from(NAMES))] = draw(documents)
    return body


texts = st.builds(
    lambda document, ascii_only, space: space + json.dumps(document, ensure_ascii=ascii_only) + space,
    near_valid(), st.booleans(), st.sampled_from(["", "", "", " \n", "\ufeff", "\0"]),
)  # fmt: skip
bodies = texts.map(lambda text: text.encode(errors="surrogatepass")) | st.binary(max_size=60)


@each_kind
@given(body=bodies, cut=st.integers(0, 400))
def test_any_body_is_a_value_or_a_problem_and_both_parsers_read_the_same(kind: Any, body: bytes, cut: int) -> None:
    for piece in (body, body[:cut]):
        try:
            found = DECODERS[kind](piece)
        except Problem as problem:
            assert problem.code in ("malformed_json", "validation_failed")
        else:
            assert found == msgspec.convert(json.loads(piece), kind)


def objects(document: Any) -> list[dict[str, Any]]:
    inside = [one for value in document.values() if isinstance(value, dict) for one in objects(value)]
    return [document, *inside]


def written(document: Any, doubled: Any, name: str, spelling: str) -> str:
    """JSON in which one object has one of its fields a second time."""
    if not isinstance(document, dict):
        return json.dumps(document)
    fields = [f"{json.dumps(key)}: {written(value, doubled, name, spelling)}" for key, value in document.items()]
    if document is doubled:
        fields.append(f'"{spelling}": {json.dumps(document[name])}')
    return "{" + ", ".join(fields) + "}"


@each_kind
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
