"""Signatures: callers' under their effects, and ours. One key, one algorithm, never the message's choice.

Which algorithm a key has is known here alone (names of RFC 9421's registry; `sm2-sm3` is ours: GB/T 32918 with SM3).
"""

import base64
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from gateway.crypto import ed25519_points, sm2
from gateway.crypto.sm2_forms import STANDARD, Forms, SignatureForm
from gateway.domain.caller_keys import unfit_kid
from gateway.domain.callers import KeyPurpose

ED25519 = "ed25519"
ES256 = "ecdsa-p256-sha256"
SM2_SM3 = "sm2-sm3"
KEYS_MAX = 2
JOSE_NAMES = {ED25519: "EdDSA", ES256: "ES256"}
"""Of the algorithms that sign JWTs."""

_KINDS = {ED25519: ("OKP", "Ed25519"), ES256: ("EC", "P-256"), SM2_SM3: ("EC", "SM2")}
_ALGS = {ED25519: (ED25519, "EdDSA", "Ed25519"), ES256: (ES256, "ES256"), SM2_SM3: (SM2_SM3,)}
"""What a JWK may call its algorithm: as we do, or as JOSE does (RFC 8037, RFC 9864, RFC 7518)."""
_SM2_NAMES = ("SM2", "SM3withSM2", "SM3WithSM2", "SM2-SM3", "SM2withSM3", "SM2WithSM3", "SGD_SM3_SM2")
"""No registry has a name for it; these are in use (GM/T 0006 has the last)."""


class VerifyKey(NamedTuple):
    """A caller's public key for signatures, parsed."""

    kid: str
    algorithm: str
    public: Any
    jwk: str
    """As it was registered, in the canonical form of RFC 7638."""


class Signer(NamedTuple):
    """A private key of ours, ready to sign; where the key is (crypto/key_store.py) only its `sign` knows."""

    kid: str
    algorithm: str
    sign: Callable[[bytes], bytes]
    """Of a message, not of its digest."""


def ed25519_signer(kid: str, secret: bytes) -> Signer:
    """`secret` is 32 bytes. Raises ValueError."""
    return Signer(kid, ED25519, Ed25519PrivateKey.from_private_bytes(secret).sign)


def ed25519_public(kid: str, secret: bytes) -> VerifyKey:
    """The public key of ed25519_signer(). Raises ValueError."""
    x = _base64url(Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())
    return read_signing_jwk({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}, ED25519)


def ecdsa_p256_signer(kid: str, secret: bytes, form: SignatureForm = SignatureForm.RAW) -> Signer:
    """`secret` is 32 bytes; RFC 9421 wants r‖s, other protocols DER. Raises ValueError."""
    if len(secret) != 32:
        raise ValueError("a private key is 32 bytes")
    key = ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())

    def sign(message: bytes) -> bytes:
        der = key.sign(message, ec.ECDSA(SHA256()))
        if form is SignatureForm.DER:
            return der
        r, s = decode_dss_signature(der)
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return Signer(kid, ES256, sign)


def sm2_signer(kid: str, secret: bytes, public: bytes, forms: Forms = STANDARD) -> Signer:
    """`secret` is 32 bytes, `public` its point; forms are what the other side expects. Raises ValueError."""
    return Signer(kid, SM2_SM3, sm2.PrivateKey(secret, public, forms).sign)


def sm2_public_jwk(kid: str, point: bytes) -> dict[str, str]:
    """Of 04‖X‖Y. No registry has a name for this curve: `SM2` is ours (api.md, Getting in)."""
    return {
        "kty": "EC",
        "crv": "SM2",
        "kid": kid,
        "use": "sig",
        "x": _base64url(point[1:33]),
        "y": _base64url(point[33:]),
    }


def new_private_jwk(jose_name: str) -> dict[str, Any]:
    """A new key of an algorithm of JOSE_NAMES, private and public."""
    if jose_name == JOSE_NAMES[ED25519]:
        key = Ed25519PrivateKey.generate()
        x, d = key.public_key().public_bytes_raw(), key.private_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "alg": jose_name, "x": _base64url(x), "d": _base64url(d)}
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    x, y, d = (
        number.to_bytes(32, "big")
        for number in (numbers.public_numbers.x, numbers.public_numbers.y, numbers.private_value)
    )
    return {
        "kty": "EC", "crv": "P-256", "alg": jose_name,
        "x": _base64url(x), "y": _base64url(y), "d": _base64url(d),
    }  # fmt: skip


def read_signing_jwk(jwk: Any, algorithm: str, use: KeyPurpose = KeyPurpose.SIGNING) -> VerifyKey:
    """One public key of the algorithm. Raises ValueError saying what is wrong, without the key's values.

    Refused are a kid that does not fit the use, a private key, members that contradict the algorithm (mismatch()), and
    what is not the one form of a point of the curve (RFC 7518 §6.2.1.2, SEC 1 §3.2.2.1; for Ed25519 see
    ed25519_points.py). The point at infinity has no such form, and P-256 and SM2 have no points of small order.
    """
    kid = _kid_of(jwk, use)
    if "d" in jwk:
        raise ValueError("this is a private key: give the public part only")
    if member := mismatch(jwk, algorithm):
        raise ValueError(f"not a key for {algorithm}: see its {member}")
    names = ("crv", "kty", "x") if algorithm == ED25519 else ("crv", "kty", "x", "y")
    canonical = json.dumps({name: jwk.get(name) for name in names}, separators=(",", ":"))
    try:
        points = [_coordinate(jwk.get(name)) for name in names[2:]]
        public = _parse(algorithm, points)
    except ValueError:
        raise ValueError("the key is malformed") from None
    if algorithm == ED25519:
        ed25519_points.refuse_unfit(points[0])
    return VerifyKey(kid, algorithm, public, canonical)


def mismatch(jwk: dict[str, Any], algorithm: str) -> str | None:
    """The member that says that it is not a key to check signatures of the algorithm with (RFC 7517 §4.1 to §4.4)."""
    operations = jwk.get("key_ops")
    fits = {
        "kty": jwk.get("kty") == _KINDS[algorithm][0],
        "crv": jwk.get("crv") == _KINDS[algorithm][1],
        "use": jwk.get("use") in (None, "sig"),
        "key_ops": operations is None or (isinstance(operations, list) and "verify" in operations),
        "alg": jwk.get("alg") in (None, *_ALGS[algorithm]) or (algorithm == SM2_SM3 and jwk.get("alg") in _SM2_NAMES),
    }
    return next((member for member, fit in fits.items() if not fit), None)


def read_signing_jwks(document: Any, algorithm: str, use: KeyPurpose = KeyPurpose.SIGNING) -> list[VerifyKey]:
    """One or two keys of a JWKS. Raises ValueError naming the key that is wrong."""
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not 1 <= len(keys) <= KEYS_MAX:
        raise ValueError("expected a JWKS with one or two keys")
    found = []
    for jwk in keys:
        try:
            found.append(read_signing_jwk(jwk, algorithm, use))
        except ValueError as error:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            raise ValueError(f"key {str(kid)[:100]!r}: {error}") from None
    if len({key.kid for key in found}) != len(found):
        raise ValueError("two keys have the same kid")
    return found


def is_slow(key: VerifyKey | Signer) -> bool:
    """Whether it is too slow for the event loop: lane.py is for it."""
    return key.algorithm == SM2_SM3


def verify(key: VerifyKey, message: bytes, signature: bytes) -> bool:
    """Whether the signature is good. ed25519: 64 bytes; ecdsa-p256-sha256: r‖s, 64 bytes; sm2-sm3: DER."""
    try:
        if key.algorithm == ED25519:
            key.public.verify(signature, message)
        elif key.algorithm == ES256:
            if len(signature) != 64:
                return False
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
            key.public.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))
        else:
            public: sm2.PublicKey = key.public
            return public.verify(message, signature)
    except InvalidSignature:
        return False
    return True


def _kid_of(jwk: Any, use: KeyPurpose) -> str:
    kid = jwk.get("kid") if isinstance(jwk, dict) else None
    if needed := unfit_kid(kid, use):
        raise ValueError(f"its kid has to be {needed}")
    return str(kid)


def _coordinate(text: Any) -> bytes:
    """32 bytes in base64url, in their one form."""
    if not isinstance(text, str):
        raise ValueError
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if len(raw) != 32 or _base64url(raw) != text:
        raise ValueError
    return raw


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _parse(algorithm: str, points: list[bytes]) -> Any:
    if algorithm == ED25519:
        return Ed25519PublicKey.from_public_bytes(points[0])
    if algorithm == ES256:
        x, y = (int.from_bytes(point, "big") for point in points)
        numbers = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1())
        key = numbers.public_key()
        if key.public_numbers() != numbers:  # x + p was taken for x
            raise ValueError
        return key
    return sm2.PublicKey(b"\x04" + points[0] + points[1])
