"""RFC 9421 by somebody else (http-message-signatures), and SM2 by somebody else (gmalg) put into it."""

import datetime as dt
import hashlib
import re
from base64 import b64encode
from typing import Any, NamedTuple

import gmalg
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver
from http_message_signatures.algorithms import ECDSA_P256_SHA256, ED25519, HTTPSignatureAlgorithm
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from tests.clients.partner import COVERED, TAG


class Message(NamedTuple):
    """A request as the oracle wants it."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes


_USER_ID = b"1234567812345678"


class Sm2(HTTPSignatureAlgorithm):
    """GB/T 32918 with SM3: DER in its one form, the usual user id."""

    algorithm_id = "sm2-sm3"

    def __init__(self, public_key: Any = None, private_key: Any = None) -> None:
        self.public_key, self.private_key = public_key, private_key

    def sign(self, message: bytes) -> bytes:
        public = gmalg.SM2().generate_pk(self.private_key)
        sm2 = gmalg.SM2(sk=self.private_key, uid=_USER_ID, pk=public)
        r, s = (int.from_bytes(half, "big") for half in sm2.sign(message))
        return encode_dss_signature(r, s)

    def verify(self, signature: bytes, message: bytes) -> None:
        r, s = decode_dss_signature(signature)
        assert encode_dss_signature(r, s) == signature
        sm2 = gmalg.SM2(uid=_USER_ID, pk=self.public_key)
        assert sm2.verify(message, r.to_bytes(32, "big"), s.to_bytes(32, "big"))


ALGORITHMS: dict[str, type[HTTPSignatureAlgorithm]] = {
    "ed25519": ED25519, "ecdsa-p256-sha256": ECDSA_P256_SHA256, "sm2-sm3": Sm2,
}  # fmt: skip


class _OneKey(HTTPSignatureKeyResolver):
    def __init__(self, kid: str, key: Any) -> None:
        self.kid, self.key = kid, key

    def resolve_public_key(self, key_id: str) -> Any:
        assert key_id == self.kid
        return self.key

    resolve_private_key = resolve_public_key


def new_signing(algorithm: str) -> dict[str, Any]:
    """A signing block as in a caller's file."""
    block: dict[str, Any] = {"alg": algorithm, "kid": "demo-1"}
    if algorithm == "sm2-sm3":
        private, public = gmalg.SM2().generate_keypair()
        return block | {"private_key_hex": private.hex(), "public_key_hex": public.hex()}
    if algorithm == "ed25519":
        return block | {"private_jwk": OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)}
    return block | {"private_jwk": ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()), as_dict=True)}


def _sm3(raw: bytes) -> bytes:
    hasher = gmalg.SM3()
    hasher.update(raw)
    return bytes(hasher.value())


def _private_key(signing: dict[str, Any]) -> Any:
    if signing["alg"] == "sm2-sm3":
        return bytes.fromhex(signing["private_key_hex"])
    return jwt.PyJWK(signing["private_jwk"], {"ed25519": "EdDSA", "ecdsa-p256-sha256": "ES256"}[signing["alg"]]).key


def verify(message: Message, signing: dict[str, Any]) -> int:
    """Fails unless the message is signed as the contract says; returns `created`."""
    algorithm = signing["alg"]
    is_sm2 = algorithm == "sm2-sm3"
    public_key = bytes.fromhex(signing["public_key_hex"]) if is_sm2 else _private_key(signing).public_key()
    verifier = HTTPMessageVerifier(
        signature_algorithm=ALGORITHMS[algorithm], key_resolver=_OneKey(signing["kid"], public_key)
    )
    found = verifier.verify(
        message, max_age=dt.timedelta(minutes=5), expect_tag=TAG, expect_label="sig1", require_components=COVERED
    )
    assert len(found) == 1
    names = " ".join(f'"{name}"' for name in COVERED)
    rest = re.escape(f';keyid="{signing["kid"]}";alg="{algorithm}";tag="{TAG}"')
    shape = re.fullmatch(rf"sig1={re.escape(f'({names})')};created=(\d+){rest}", message.headers["signature-input"])
    assert shape, message.headers["signature-input"]
    name, digest = ("sm3", _sm3(message.body)) if is_sm2 else ("sha-256", hashlib.sha256(message.body).digest())
    assert message.headers["content-digest"] == f"{name}=:{b64encode(digest).decode()}:"
    return int(shape[1])


def sign(message: Message, signing: dict[str, Any]) -> None:
    """Put in the headers what a third party's library makes of them."""
    signer = HTTPMessageSigner(
        signature_algorithm=ALGORITHMS[signing["alg"]], key_resolver=_OneKey(signing["kid"], _private_key(signing))
    )
    signer.sign(message, key_id=signing["kid"], label="sig1", tag=TAG, covered_component_ids=COVERED, body=message.body)
