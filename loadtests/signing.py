"""Signed requests (RFC 9421, as the contract has it), made beforehand and many at a time, for the load driver.

The nonces of SM2 are consecutive numbers, because adding a point is 20 times cheaper than multiplying one: fine for the
keys of a bench's own sandbox, and for nothing else, for whoever sees two such signatures has the key.
"""

import base64
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from gmssl_fast import sm3

from loadtests.wire import packed

COVERED = '("@method" "@authority" "@path" "@query" "content-digest" "authorization" "idempotency-key")'
_AT_ONCE = 1000

# GB/T 32918.5: y² = x³ - 3x + b over the prime field of P; G of order N
_P = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF
_B = 0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93
_N = 0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123
_G = (
    0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
)
_USER_ID = b"1234567812345678"

Point = tuple[int, int]
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Signing:
    """The `signing` block of a caller's file."""

    algorithm: str
    kid: str
    block: dict[str, Any]

    @classmethod
    def read(cls, data_dir: Path, name: str) -> "Signing":
        block = json.loads((data_dir / "sandbox" / "callers" / f"{name}.json").read_text())["signing"]
        return cls(block["alg"], block["kid"], block)

    def signer(self) -> Sign:
        if self.algorithm == "sm2-sm3":
            return _sm2_signer(self.block["private_key_hex"], self.block["public_key_hex"])
        name = {"ed25519": "EdDSA", "ecdsa-p256-sha256": "ES256"}[self.algorithm]
        key: Any = jwt.PyJWK(self.block["private_jwk"], name).key
        if self.algorithm == "ed25519":
            sign: Sign = key.sign
            return sign

        def sign_p256(message: bytes) -> bytes:
            r, s = decode_dss_signature(key.sign(message, ec.ECDSA(SHA256())))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")

        return sign_p256

    def digest(self, body: bytes) -> str:
        """Content-Digest; a caller with SM2 stays with the national algorithms."""
        if self.algorithm == "sm2-sm3":
            return f"sm3=:{base64.b64encode(sm3(body)).decode()}:"
        return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


@dataclass(frozen=True)
class Maker:
    """Makes POSTs of one caller with fresh idempotency keys; without `signing` they are not signed."""

    authority: str
    authorization: str
    signing: Signing | None

    def write(self, file: Path, asked: Sequence[tuple[str, bytes]]) -> None:
        """A file of requests for the driver from (path, body)s; all cores sign."""
        parts = [asked[at : at + _AT_ONCE] for at in range(0, len(asked), _AT_ONCE)]
        file.touch(mode=0o600)  # it holds a token
        with file.open("wb") as stream, Pool(os.cpu_count()) as pool:
            stream.writelines(pool.imap(self._make, parts))

    def _make(self, part: Sequence[tuple[str, bytes]]) -> bytes:
        sign = self.signing.signer() if self.signing else None
        return b"".join(packed(self._request(path, body, sign)) for path, body in part)

    def _request(self, path: str, body: bytes, sign: Sign | None) -> bytes:
        key = secrets.token_urlsafe(16)
        lines = [
            f"POST {path} HTTP/1.1", f"Host: {self.authority}", "Content-Type: application/json",
            f"Authorization: {self.authorization}", f"Idempotency-Key: {key}", f"Content-Length: {len(body)}",
        ]  # fmt: skip
        if self.signing and sign:
            digest = self.signing.digest(body)
            params = (
                f'{COVERED};created={int(time.time())};keyid="{self.signing.kid}";alg="{self.signing.algorithm}"'
                ';tag="yikatong-v1"'
            )
            base = (
                f'"@method": POST\n"@authority": {self.authority}\n"@path": {path}\n"@query": ?\n'
                f'"content-digest": {digest}\n"authorization": {self.authorization}\n"idempotency-key": {key}\n'
                f'"@signature-params": {params}'
            )
            signature = base64.b64encode(sign(base.encode())).decode()
            lines += [f"Content-Digest: {digest}", f"Signature-Input: sig1={params}", f"Signature: sig1=:{signature}:"]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _sm2_signer(private_hex: str, public_hex: str) -> Sign:
    """`public_hex` is 04‖X‖Y. Signatures are DER, under the default user id."""
    secret, nonces = int(private_hex, 16), _nonces()
    inverse = pow(1 + secret, -1, _N)
    curve = b"".join(number.to_bytes(32, "big") for number in (_P - 3, _B, *_G))
    prefix = sm3((8 * len(_USER_ID)).to_bytes(2, "big") + _USER_ID + curve + bytes.fromhex(public_hex)[1:])

    def sign(message: bytes) -> bytes:
        nonce, x = next(nonces)
        r = (int.from_bytes(sm3(prefix + message), "big") + x) % _N
        s = inverse * (nonce - r * secret) % _N
        assert r and s and r + nonce != _N
        return encode_dss_signature(r, s)

    return sign


def _nonces() -> Iterator[tuple[int, int]]:
    """k, and the x of k·G: consecutive, from a random one on."""
    nonce = secrets.randbelow(_N // 2) + 1
    point = _multiple(nonce)
    while True:
        yield nonce, point[0]
        nonce, point = nonce + 1, _sum(point, _G)


def _multiple(factor: int) -> Point:
    found = _G
    for bit in bin(factor)[3:]:
        found = _sum(found, found)
        if bit == "1":
            found = _sum(found, _G)
    return found


def _sum(one: Point, other: Point) -> Point:
    """Of points that are not each other's negative."""
    if one == other:
        slope = 3 * (one[0] * one[0] - 1) * pow(2 * one[1], -1, _P)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _P)
    x = (slope * slope - one[0] - other[0]) % _P
    return x, (slope * (one[0] - x) - one[1]) % _P
