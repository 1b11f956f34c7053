"""Signs requests as a caller would (RFC 9421, api.md): written from the contract, sharing no code with the gateway."""

import base64
import hashlib
import secrets
import time
from typing import Any, NamedTuple

import gmalg
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

COMPONENTS = ("@method", "@authority", "@path", "@query", "content-digest", "authorization", "idempotency-key")


class Signing(NamedTuple):
    """A caller's signing key: what `signing` of its file says."""

    algorithm: str
    kid: str
    secret: Any

    @classmethod
    def of(cls, file: dict[str, Any]) -> "Signing":
        block = file["signing"]
        if block["alg"] == "sm2-sm3":
            return cls("sm2-sm3", block["kid"], block["private_key_hex"])
        algorithm = {"ed25519": "EdDSA", "ecdsa-p256-sha256": "ES256"}[block["alg"]]
        return cls(block["alg"], block["kid"], jwt.PyJWK(block["private_jwk"], algorithm).key)

    def sign(self, base: bytes) -> bytes:
        if self.algorithm == "ed25519":
            return bytes(self.secret.sign(base))
        if self.algorithm == "ecdsa-p256-sha256":
            r, s = decode_dss_signature(self.secret.sign(base, ec.ECDSA(SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")
        scalar = bytes.fromhex(self.secret)
        point = gmalg.SM2().generate_pk(scalar)
        r_bytes, s_bytes = gmalg.SM2(scalar, b"1234567812345678", point).sign(base)
        return b"\x30" + _sized(_integer(r_bytes) + _integer(s_bytes))


def _integer(number: bytes) -> bytes:
    number = number.lstrip(b"\0") or b"\0"
    return b"\x02" + _sized(b"\0" + number if number[0] & 0x80 else number)


def _sized(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def signed_headers(
    signing: Signing, method: str, host: str, target: str, body: bytes, authorization: str, **changes: Any
) -> dict[str, str]:
    """All headers of a signed request. `changes`: key, created, digest, kid, alg, tag, components, label, values."""
    key = changes.get("key") or secrets.token_urlsafe(16)
    digest = changes.get("digest") or f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"
    path, _, query = target.partition("?")
    values = {
        "@method": method, "@authority": host, "@path": path, "@query": f"?{query}", "content-digest": digest,
        "authorization": authorization, "idempotency-key": key,
    } | changes.get("values", {})  # fmt: skip
    components = changes.get("components", COMPONENTS)
    label, kid = changes.get("label", "sig1"), changes.get("kid", signing.kid)
    params = "(" + " ".join(f'"{name}"' for name in components) + ")"
    params += f';created={changes.get("created", int(time.time()))};keyid="{kid}"'
    params += f';alg="{changes.get("alg", signing.algorithm)}";tag="{changes.get("tag", "yikatong-v1")}"'
    base = "".join(f'"{name}": {values[name]}\n' for name in components) + f'"@signature-params": {params}'
    return {
        "Host": host, "Content-Type": "application/json", "Authorization": authorization, "Idempotency-Key": key,
        "Content-Digest": digest, "Signature-Input": f"{label}={params}",
        "Signature": f"{label}=:{base64.b64encode(signing.sign(base.encode())).decode()}:",
    }  # fmt: skip
