"""Access tokens, callers' keys and the cards' proofs. What is refused over the wire is in tests/api."""

import json
import os
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto.card_proof import expected_cryptogram, is_genuine
from gateway.crypto.key_files import FileKeyStore, KeyFile
from gateway.crypto.key_store import KeyUse
from gateway.crypto.signatures import ED25519, ES256, read_signing_jwks
from gateway.crypto.tokens import (
    TOKEN_MAX_CHARS,
    Access,
    AccessTokens,
    InvalidToken,
    digest,
    read_assertion,
    subject_of,
)
from gateway.domain.masking import Secret
from tests.running import b64url

ISSUER = "https://gateway.example"


def now() -> int:
    return int(time.time())


def signing_key(number: int = 1) -> KeyFile:
    return KeyFile(f"sign-{number}", KeyUse.SIGN, os.urandom(32))


def tokens_by(*keys: KeyFile, issuer: str = ISSUER, lifetime_s: int = 600) -> AccessTokens:
    return AccessTokens(FileKeyStore(list(keys)), issuer, lifetime_s)


OLD, NEW = signing_key(1), signing_key(2)
TOKENS = tokens_by(OLD)


def test_a_token_comes_back_as_what_it_was_made_of() -> None:
    began = now()
    access = TOKENS.read(TOKENS.issue("demo-merchant", ["cards:verify", "points:read"], began, "j", "k-1"))
    assert access == Access("demo-merchant", frozenset({"cards:verify", "points:read"}), began + 600, began, "k-1")


def test_after_a_rotation_the_new_key_signs_and_the_old_one_still_verifies() -> None:
    rotated = tokens_by(OLD, NEW)
    old, new = TOKENS.issue("a", [], now(), "j", "k-1"), rotated.issue("a", [], now(), "j", "k-1")
    assert jwt.get_unverified_header(new)["kid"] == "sign-2"
    assert rotated.read(old) == rotated.read(new)
    with pytest.raises(InvalidToken):
        TOKENS.read(new)
    assert [found["kid"] for found in rotated.jwks()["keys"]] == ["sign-1", "sign-2"]


def test_a_token_of_another_gateway_is_refused() -> None:
    for other in (tokens_by(OLD, issuer="https://other.example"), tokens_by(signing_key(1))):
        with pytest.raises(InvalidToken):
            TOKENS.read(other.issue("demo-merchant", [], now(), "j", "k-1"))


def test_a_token_made_for_longer_than_we_make_them_is_refused() -> None:
    with pytest.raises(InvalidToken):
        TOKENS.read(tokens_by(OLD, lifetime_s=601).issue("demo-merchant", [], now(), "j", "k-1"))


@given(st.text(max_size=200))
def test_a_text_of_chance_is_no_token(text: str) -> None:
    assert subject_of(text) is None
    with pytest.raises(InvalidToken):
        TOKENS.read(text)
    with pytest.raises(InvalidToken):
        read_assertion(text, "demo-merchant", [], ISSUER, now())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
HEADER = {"alg": "EdDSA", "typ": "at+jwt", "kid": "sign-1"}
headers = st.dictionaries(
    st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jku", "jwk"]), json_values, max_size=1
).map(lambda change: HEADER | change)
claims = st.dictionaries(
    st.sampled_from(["iss", "sub", "aud", "iat", "exp", "nbf", "jti", "scope"]), json_values, max_size=3
).map(lambda change: {"sub": "demo-merchant"} | change)
deep = st.sampled_from(["[" * 1500 + "]" * 1500, '{"sub":' * 400 + "1" + "}" * 400, "1" * 3000])
parts = (
    st.binary(max_size=40)
    | (headers | claims | json_values).map(lambda value: json.dumps(value).encode())
    | deep.map(lambda text: text.encode())
).map(b64url)
texts = st.text() | st.lists(parts | st.text("AZaz09-_=+/\ud800é ", max_size=9), min_size=1, max_size=5).map(".".join)
likely = st.tuples(headers, claims).map(lambda pair: [b64url(json.dumps(part).encode()) for part in pair])


@given(texts | st.builds(lambda pair, signature: ".".join([*pair, b64url(signature)]), likely, st.binary(max_size=64)))
def test_whom_any_text_is_from_is_two_texts_or_nobody(text: str) -> None:
    found = subject_of(text)
    assert found is None or [type(one) for one in found] == [str, str]
    with pytest.raises(InvalidToken):
        TOKENS.read(text)
    with pytest.raises(InvalidToken):
        read_assertion(text, "demo-merchant", KEYS, ISSUER, now())


@given(st.data())
def test_a_token_with_any_character_changed_is_refused(data: st.DataObject) -> None:
    token = TOKENS.issue("demo-merchant", ["cards:verify"], now(), "j", "k-1")
    # the last character of a signature holds bits that base64 does not use
    place = data.draw(st.integers(0, len(token) - 2))
    letter = data.draw(st.sampled_from("ABCXYZabcxyz0189-_.").filter(lambda letter: letter != token[place]))
    with pytest.raises(InvalidToken):
        TOKENS.read(token[:place] + letter + token[place + 1 :])


def test_a_token_that_is_too_long_is_not_even_parsed() -> None:
    with pytest.raises(InvalidToken, match="too long"):
        TOKENS.read("x" * (TOKEN_MAX_CHARS + 1))


def test_two_tokens_are_remembered_apart() -> None:
    tokens = [TOKENS.issue("a", [], now(), str(number), "k-1") for number in range(10)]
    assert len({digest(token) for token in tokens}) == 10 and len(digest("")) == 32


def jwk_of(private: Any, **more: Any) -> dict[str, Any]:
    algorithm: Any = (
        jwt.algorithms.OKPAlgorithm if isinstance(private, Ed25519PrivateKey) else jwt.algorithms.ECAlgorithm
    )
    return dict(json.loads(algorithm.to_jwk(private.public_key()))) | {"kid": "k-1"} | more


EDDSA, P256 = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(("private", "algorithm"), [(EDDSA, ED25519), (P256, ES256)])
def test_a_callers_keys_are_read_with_the_registered_algorithm(private: Any, algorithm: str) -> None:
    (found,) = read_signing_jwks({"keys": [jwk_of(private)]}, algorithm)
    assert (found.kid, found.algorithm) == ("k-1", algorithm)
    assert found.public == private.public_key()


BAD_JWKS: dict[str, tuple[Any, str]] = {
    "not an object": ([], ED25519), "no keys": ({}, ED25519), "an empty list": ({"keys": []}, ED25519),
    "three": ({"keys": [jwk_of(EDDSA, kid=str(number)) for number in range(3)]}, ED25519),
    "the same kid twice": ({"keys": [jwk_of(EDDSA)] * 2}, ED25519),
    "no kid": ({"keys": [jwk_of(EDDSA, kid=None)]}, ED25519),
    "a kid that is too long": ({"keys": [jwk_of(EDDSA, kid="k" * 101)]}, ED25519),
    "a private key": ({"keys": [jwk_of(EDDSA, d="AAAA")]}, ED25519),
    "ES256 for EdDSA": ({"keys": [jwk_of(P256)]}, ED25519), "EdDSA for ES256": ({"keys": [jwk_of(EDDSA)]}, ES256),
    "another curve": ({"keys": [jwk_of(ec.generate_private_key(ec.SECP384R1()))]}, ES256),
    "a secret": ({"keys": [{"kty": "oct", "k": "AAAA", "kid": "k-1"}]}, ES256),
    "a list for a key": ({"keys": [[]]}, ED25519),
    "no x": ({"keys": [{name: value for name, value in jwk_of(EDDSA).items() if name != "x"}]}, ED25519),
    "x that is a number": ({"keys": [jwk_of(EDDSA, x=1)]}, ED25519),
    "x that is null": ({"keys": [jwk_of(P256, x=None)]}, ES256),
    "a point off the curve": ({"keys": [jwk_of(P256, y="A" * 43)]}, ES256),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD_JWKS)
def test_bad_keys_of_a_caller_are_refused(how: str) -> None:
    with pytest.raises(ValueError, match=r"key|JWKS"):
        read_signing_jwks(*BAD_JWKS[how])


def assertion(**changes: Any) -> str:
    claims = {"iss": "c", "sub": "c", "aud": ISSUER, "iat": now(), "exp": now() + 60, "jti": "j"} | changes
    return jwt.encode(claims, EDDSA, algorithm="EdDSA", headers={"kid": "k-1"})


KEYS = read_signing_jwks({"keys": [jwk_of(Ed25519PrivateKey.generate(), kid="k-0"), jwk_of(EDDSA)]}, ED25519)


def test_an_assertion_is_read_with_the_key_that_it_names() -> None:
    began = now()
    assert read_assertion(assertion(iat=began, exp=began + 60), "c", KEYS, ISSUER, began) == ("j", began + 60, "k-1")
    assert subject_of(assertion()) == ("c", "k-1")
    with pytest.raises(InvalidToken):
        read_assertion(assertion(), "c", KEYS[:1], ISSUER, now())


@pytest.mark.parametrize(
    ("iat", "exp", "accepted"),
    [
        (0, 60, True), (0, 61, False), (0, 1, True), (0, 0, False), (10, 5, False), (29, 60, True), (-59, 1, True),
        (31, 60, False), (-80, -20, True), (-100, -40, False),
    ],
)  # fmt: skip
def test_the_times_of_an_assertion_with_the_skew_of_clocks(iat: int, exp: int, accepted: bool) -> None:
    token = assertion(iat=now() + iat, exp=now() + exp)
    try:
        read_assertion(token, "c", KEYS, ISSUER, now())
    except InvalidToken:
        assert not accepted
    else:
        assert accepted


MASTER = Secret(os.urandom(32))
IDENTIFIER, CHALLENGE = "330424D15600000500000000000000A1", os.urandom(16)


def test_a_genuine_card_is_told_from_others() -> None:
    right = expected_cryptogram(MASTER, IDENTIFIER, CHALLENGE).hex()
    assert is_genuine(MASTER, IDENTIFIER, CHALLENGE.hex(), right)
    assert is_genuine(MASTER, IDENTIFIER.lower(), CHALLENGE.hex().upper(), right.upper())
    assert not is_genuine(MASTER, IDENTIFIER[:-1] + "2", CHALLENGE.hex(), right)
    assert not is_genuine(MASTER, IDENTIFIER, os.urandom(16).hex(), right)
    assert not is_genuine(Secret(os.urandom(32)), IDENTIFIER, CHALLENGE.hex(), right)


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_proof_of_chance_is_not_genuine_and_no_failure(challenge: str, cryptogram: str) -> None:
    assert not is_genuine(MASTER, IDENTIFIER, challenge, cryptogram)
    assert not is_genuine(MASTER, IDENTIFIER, CHALLENGE.hex(), cryptogram)
