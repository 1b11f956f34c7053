"""Key pairs as JWKs, and the documents that callers publish."""

from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.running import b64url


def private(kid: str, algorithm: str = "EdDSA") -> dict[str, Any]:
    """A new key for EdDSA or ES256."""
    if algorithm == "EdDSA":
        key = Ed25519PrivateKey.generate()
        x, d = key.public_key().public_bytes_raw(), key.private_bytes_raw()
        return {"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": b64url(x), "d": b64url(d)}
    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()
    x, y = numbers.public_numbers.x.to_bytes(32, "big"), numbers.public_numbers.y.to_bytes(32, "big")
    secret = numbers.private_value.to_bytes(32, "big")
    return {"kty": "EC", "crv": "P-256", "kid": kid, "x": b64url(x), "y": b64url(y), "d": b64url(secret)}


def public_of(jwk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name != "d"}


def public(kid: str, algorithm: str = "EdDSA") -> dict[str, Any]:
    return public_of(private(kid, algorithm))


FORGED = b"\1" + bytes(63)
"""R = 0 (the neutral point) and s = 0: an Ed25519 signature that needs no private key, if the public one is weak."""
ANYBODYS = b64url(b"\1" + bytes(31))
"""x of a key for which FORGED is a signature of anything: the neutral point."""
UNFIT: dict[str, tuple[dict[str, Any], str]] = {
    "the neutral point": ({"x": ANYBODYS}, "small order"),
    "a point of order 2": ({"x": b64url(b"\xec" + b"\xff" * 30 + b"\x7f")}, "small order"),
    "a point of order 4": ({"x": b64url(bytes(32))}, "small order"),
    "a point of order 8": (
        {"x": b64url(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"))},
        "small order",
    ),
    "the neutral point with a sign": ({"x": b64url(b"\1" + bytes(30) + b"\x80")}, "small order"),
    "the neutral point in another form": ({"x": b64url(b"\xee" + b"\xff" * 30 + b"\x7f")}, "canonical"),
    "no point": ({"x": b64url(b"\2" + bytes(31))}, "curve"),
}
"""Public keys of Ed25519 that are none: what to change in a good one, and what is said of it."""
UNFIT_KIDS = ('bureau_"2026"', "a\\b", "bureau key 1", "a\nb", "a\n", "\x7f", "人社局-1", "", "k" * 101)
"""Names that no signature can say as its `keyid`."""
FOR_OTHERS: dict[str, dict[str, Any]] = {
    "use": {"use": "enc"},
    "alg": {"alg": "ES256"},
    "key_ops": {"key_ops": ["sign"]},
}
"""By the member that says that a JWK is not one to check Ed25519 signatures with."""
