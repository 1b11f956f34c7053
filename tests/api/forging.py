"""Tokens as an attacker would make them: PyJWT refuses to write most of these."""

import base64
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

from tests.running import Client, b64url

Sign = Callable[[bytes], bytes]


def token(header: dict[str, Any], claims: dict[str, Any] | bytes, sign: Sign) -> str:
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    signed = f"{b64url(json.dumps(header).encode())}.{b64url(payload)}"
    return f"{signed}.{b64url(sign(signed.encode()))}"


def unsigned(_: bytes) -> bytes:
    return b""


def by_hmac(secret: bytes) -> Sign:
    return lambda message: hmac.digest(secret, message, "sha256")


def by_client(client: Client) -> Sign:
    """With the client's own key and algorithm."""
    key = jwt.PyJWK(client.file["private_jwk"], client.file["alg"])
    return lambda message: key.Algorithm.sign(message, key.key)


def by_rsa() -> Sign:
    key = rsa.generate_private_key(65537, 2048)
    return lambda message: key.sign(message, padding.PKCS1v15(), SHA256())


def public_pem(client: Client) -> bytes:
    key: Any = jwt.PyJWK(client.file["private_jwk"], client.file["alg"]).key.public_key()
    pem: bytes = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return pem


def public_jwk(client: Client) -> dict[str, Any]:
    return {name: value for name, value in client.file["private_jwk"].items() if name != "d"}


def changed(token: str, part: int, change: Callable[[dict[str, Any]], None]) -> str:
    """A signed token with its header (0) or claims (1) changed afterwards."""
    parts = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(parts[part] + "=="))
    change(content)
    parts[part] = b64url(json.dumps(content).encode())
    return ".".join(parts)


def with_flipped_signature_bit(token: str) -> str:
    signed, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[0] ^= 1
    return f"{signed}.{b64url(bytes(raw))}"
