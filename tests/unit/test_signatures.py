"""Signatures of callers and our own, by key: what a JWKS may hold, and that an algorithm is the key's alone."""

import base64
import json
from pathlib import Path
from typing import Any

import gmalg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from gateway.crypto import ed25519_points, sm2
from gateway.crypto.signatures import (
    ED25519,
    ES256,
    SM2_SM3,
    Signer,
    VerifyKey,
    ecdsa_p256_signer,
    ed25519_signer,
    is_slow,
    read_signing_jwk,
    read_signing_jwks,
    sm2_public_jwk,
    sm2_signer,
    verify,
)
from gateway.crypto.sm2_forms import Forms, SignatureForm
from gateway.directory import read
from gateway.sandbox.callers import write_callers
from gateway.settings import load
from tests.jwks import ANYBODYS, FOR_OTHERS, FORGED, UNFIT

MESSAGE = b'"@method": POST'
Jwk = dict[str, Any]


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def ed25519_pair() -> tuple[Signer, Jwk]:
    key = Ed25519PrivateKey.generate()
    jwk = {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": b64(key.public_key().public_bytes_raw())}
    return ed25519_signer("a", key.private_bytes_raw()), jwk


def p256_pair() -> tuple[Signer, Jwk]:
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    x, y = (b64(number.to_bytes(32, "big")) for number in (numbers.public_numbers.x, numbers.public_numbers.y))
    secret = numbers.private_value.to_bytes(32, "big")
    return ecdsa_p256_signer("a", secret), {"kty": "EC", "crv": "P-256", "kid": "a", "x": x, "y": y}


def sm2_pair() -> tuple[Signer, Jwk]:
    secret, point = sm2.generate()
    return sm2_signer("a", secret, point), sm2_public_jwk("a", point)


PAIRS = {ED25519: ed25519_pair(), ES256: p256_pair(), SM2_SM3: sm2_pair()}
each_algorithm = pytest.mark.parametrize("algorithm", PAIRS)


def key_of(algorithm: str) -> VerifyKey:
    return read_signing_jwk(PAIRS[algorithm][1], algorithm)


@each_algorithm
def test_what_we_sign_is_good_for_its_key_and_message_alone(algorithm: str) -> None:
    signer, _ = PAIRS[algorithm]
    signature = signer.sign(MESSAGE)
    assert (signer.algorithm, signer.kid) == (algorithm, "a")
    assert verify(key_of(algorithm), MESSAGE, signature)
    assert not verify(key_of(algorithm), MESSAGE + b" ", signature)
    assert not verify(key_of(algorithm), MESSAGE, signature + b"\0")
    assert not verify(key_of(algorithm), MESSAGE, signature[:-1])
    for other in PAIRS.keys() - {algorithm}:
        assert not verify(key_of(other), MESSAGE, signature)


@each_algorithm
@given(signature=st.binary(max_size=80) | st.binary(min_size=64, max_size=64))
def test_garbage_is_no_signature(algorithm: str, signature: bytes) -> None:
    assert verify(key_of(algorithm), MESSAGE, signature) is False


def test_sm2_alone_is_slow() -> None:
    assert [algorithm for algorithm in PAIRS if is_slow(key_of(algorithm))] == [SM2_SM3]
    assert [algorithm for algorithm, (signer, _) in PAIRS.items() if is_slow(signer)] == [SM2_SM3]


def test_the_forms_of_a_signature_are_settings_of_the_key() -> None:
    """Partners want r‖s or DER, and user ids of their own."""
    secret, point = sm2.generate()
    forms = Forms(SignatureForm.RAW, user_id=b"bank")
    signature = sm2_signer("a", secret, point, forms).sign(MESSAGE)
    assert gmalg.SM2(sk=secret, uid=b"bank", pk=point).verify(MESSAGE, signature[:32], signature[32:])
    number = (7).to_bytes(32, "big")
    der = ecdsa_p256_signer("a", number, SignatureForm.DER).sign(MESSAGE)
    raw = b"".join(part.to_bytes(32, "big") for part in decode_dss_signature(der))
    public = ec.derive_private_key(7, ec.SECP256R1()).public_key().public_numbers()
    jwk = {"kty": "EC", "crv": "P-256", "kid": "a", "x": b64(public.x.to_bytes(32, "big")),
           "y": b64(public.y.to_bytes(32, "big"))}  # fmt: skip
    key = read_signing_jwk(jwk, ES256)
    assert verify(key, MESSAGE, raw) and not verify(key, MESSAGE, der)


@each_algorithm
@pytest.mark.parametrize("secret", [b"", bytes(31), bytes(33)])
def test_a_private_key_of_another_length_is_refused(algorithm: str, secret: bytes) -> None:
    _, point = sm2.generate()
    with pytest.raises(ValueError):
        {
            ED25519: lambda: ed25519_signer("a", secret),
            ES256: lambda: ecdsa_p256_signer("a", secret),
            SM2_SM3: lambda: sm2_signer("a", secret, point),
        }[algorithm]()


@each_algorithm
@pytest.mark.parametrize(
    "change",
    [
        {"kid": ""}, {"kid": 7}, {"kid": "k" * 101}, {"d": "secret"}, {"x": None}, {"x": "!"}, {"x": b64(bytes(31))},
        {"x": b64(bytes(33))}, {"x": b64(b"\xff" * 32) + "="}, {"kty": "RSA"}, {"crv": "P-521"}, {"crv": ["SM2"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_jwk_with_a_mistake_is_refused(algorithm: str, change: Jwk) -> None:
    with pytest.raises(ValueError):
        read_signing_jwk(PAIRS[algorithm][1] | change, algorithm)


@pytest.mark.parametrize("algorithm", [ES256, SM2_SM3])
@pytest.mark.parametrize(
    "point", [(bytes(32), bytes(32)), (b"\xff" * 32, b"\xff" * 32), (bytes(31) + b"\1", bytes(32))]
)
def test_a_point_off_the_curve_is_refused(algorithm: str, point: tuple[bytes, bytes]) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_signing_jwk(PAIRS[algorithm][1] | {"x": b64(point[0]), "y": b64(point[1])}, algorithm)


P256_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
SM2_P = 2**256 - 2**224 - 2**96 + 2**64 - 1
LOW_POINTS = {  # those of the lowest x: x + p has 32 bytes too
    ES256: (P256_P, 5, 0x459243B9AA581806FE913BCE99817ADE11CA503C64D9A3C533415C083248FBCC),
    SM2_SM3: (SM2_P, 1, 0x9F7A091433A81E3F218F405F792355BF2AA98B5FFA95982F03870800065279A3),
}


@pytest.mark.parametrize("algorithm", LOW_POINTS)
def test_a_coordinate_that_is_not_below_p_is_refused(algorithm: str) -> None:
    """One key would have two forms, and one that is out could come back."""
    prime, x, y = LOW_POINTS[algorithm]
    jwk = PAIRS[algorithm][1] | {"x": b64(x.to_bytes(32, "big")), "y": b64(y.to_bytes(32, "big"))}
    assert read_signing_jwk(jwk, algorithm)
    with pytest.raises(ValueError, match="malformed"):
        read_signing_jwk(jwk | {"x": b64((x + prime).to_bytes(32, "big"))}, algorithm)


@pytest.mark.parametrize("how", UNFIT)
def test_an_ed25519_key_of_no_owner_is_refused(how: str) -> None:
    change, said = UNFIT[how]
    with pytest.raises(ValueError, match=said):
        read_signing_jwk(PAIRS[ED25519][1] | change, ED25519)


def test_without_the_check_a_constant_would_be_a_signature_of_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(ed25519_points, "refuse_unfit", lambda encoded: None)
    assert verify(read_signing_jwk(PAIRS[ED25519][1] | {"x": ANYBODYS}, ED25519), MESSAGE, FORGED)


OTHER_USES = [*FOR_OTHERS.items(), ("use", {"use": ["sig"]}), ("key_ops", {"key_ops": "verify"}), ("alg", {"alg": 7})]


@each_algorithm
@pytest.mark.parametrize(("member", "change"), [*OTHER_USES, ("crv", {"crv": "X25519"}), ("kty", {"kty": "oct"})])
def test_a_jwk_that_says_it_is_for_something_else_is_refused(algorithm: str, member: str, change: Jwk) -> None:
    if change == {"alg": "ES256"}:
        change = {"alg": "EdDSA" if algorithm == ES256 else "ES256"}
    with pytest.raises(ValueError, match=f"^not a key for {algorithm}: see its {member}$"):
        read_signing_jwk(PAIRS[algorithm][1] | change, algorithm)


ALGS = [(ED25519, "EdDSA"), (ED25519, "Ed25519"), (ES256, "ES256"), *((name, name) for name in PAIRS), (ES256, None)]


@pytest.mark.parametrize(("algorithm", "alg"), ALGS)
@pytest.mark.parametrize("key_ops", [None, ["verify"]])
@pytest.mark.parametrize("use", [None, "sig"])
def test_a_jwk_may_say_what_it_is_for(algorithm: str, alg: str | None, key_ops: list[str] | None, use: Any) -> None:
    said = {"alg": alg, "key_ops": key_ops, "use": use}
    assert read_signing_jwk(PAIRS[algorithm][1] | said, algorithm).jwk == key_of(algorithm).jwk


values = st.none() | st.booleans() | st.integers() | st.text(max_size=50) | st.lists(st.text(max_size=3), max_size=2)
jwks = st.dictionaries(st.sampled_from(["kty", "crv", "kid", "x", "y", "d", "use", "alg", "key_ops", "z"]), values)


@each_algorithm
@given(change=jwks, whole=st.booleans())
def test_any_jwk_is_read_or_refused_with_a_value_error(algorithm: str, change: Jwk, whole: bool) -> None:
    jwk = change if whole else PAIRS[algorithm][1] | change
    try:
        key = read_signing_jwk(jwk, algorithm)
    except ValueError as error:
        assert not any(text in str(error) for text in (str(jwk.get("x")), str(jwk.get("y"))) if len(text) > 5)
        return
    assert verify(key, MESSAGE, b"") is False
    with pytest.raises(ValueError):
        read_signing_jwks({"keys": [jwk, jwk]}, algorithm)


def test_the_sandboxs_bank_signs_with_sm2(tmp_path: Path) -> None:
    """api.md, The sandbox."""
    settings = load({"DATA_DIR": str(tmp_path)})
    write_callers(settings)
    file = tmp_path / "sandbox" / "callers" / "demo-bank.json"
    signing = json.loads(file.read_text())["signing"]
    assert set(signing) == {"alg", "kid", "private_key_hex", "public_key_hex"} and signing["alg"] == SM2_SM3
    secret, point = bytes.fromhex(signing["private_key_hex"]), bytes.fromhex(signing["public_key_hex"])
    known = read(settings)[0]["demo-bank"].signing_keys
    assert [key.kid for key in known] == [signing["kid"]]
    assert verify(known[0], MESSAGE, sm2_signer("a", secret, point).sign(MESSAGE))
    public = (tmp_path / "sandbox/callers/public/demo-bank.signing.json").read_text()
    assert signing["private_key_hex"] not in public and '"d"' not in public
    before = file.read_text()
    write_callers(settings)
    assert file.read_text() == before, "keys that exist stay"
