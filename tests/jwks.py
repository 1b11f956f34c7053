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
