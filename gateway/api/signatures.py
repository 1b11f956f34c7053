"""Signatures under effects (RFC 9421, api.md "Effects are signed"): one form, and anything else is refused.

The form is fixed as one regular expression: one label, these components in this order, these parameters in this order.
What is signed is rebuilt from what arrived, byte by byte as it arrived; the algorithm is that of the registered key.
"""

import base64
import binascii
import re
import time
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import hdrs
from multidict import CIMultiDictProxy, istr

from gateway.crypto.digests import DIGESTS
from gateway.crypto.signatures import VerifyKey
from gateway.domain.caller_keys import SIGNING_KID
from gateway.domain.errors import Problem
from gateway.flows.effects import Evidence

COMPONENTS = '("@method" "@authority" "@path" "@query" "content-digest" "authorization" "idempotency-key")'
TAG = "yikatong-v1"
CREATED_WITHIN_S = 300

_SIGNATURE = istr("Signature")
_SIGNATURE_INPUT = istr("Signature-Input")
_CONTENT_DIGEST = istr("Content-Digest")
_ONCE = (hdrs.HOST, hdrs.AUTHORIZATION, istr("Idempotency-Key"), _CONTENT_DIGEST, _SIGNATURE_INPUT, _SIGNATURE)

_INPUT = re.compile(
    rf'sig1=({re.escape(COMPONENTS)};created=(0|[1-9][0-9]{{0,11}});keyid="({SIGNING_KID})"'
    rf';alg="([a-z0-9-]{{1,40}})";tag="{TAG}")'
)
_BYTES = "([A-Za-z0-9+/]{1,400}={0,2})"
_VALUE = re.compile(f"sig1=:{_BYTES}:")
_DIGEST = re.compile(f"({'|'.join(map(re.escape, DIGESTS))})=:{_BYTES}:")
_AUTHORITY = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")

_CHALLENGE = {"WWW-Authenticate": "Bearer"}
"""A 401 has one (RFC 9110 §15.5.2); no scheme is registered for signatures. It names no error: the token is good."""


class Claimed(NamedTuple):
    """A signature that has the right form, not yet checked."""

    key_id: str
    algorithm: str
    created: int
    base: bytes
    signature: bytes

    def evidence(self, key: VerifyKey, body: bytes) -> Evidence:
        return Evidence(key.kid, key.algorithm, self.created, self.base, self.signature, key.jwk, body)


def is_there(headers: Mapping[str, str]) -> bool:
    """Whether a request carries a signature, or a part of one."""
    return _SIGNATURE in headers or _SIGNATURE_INPUT in headers


def read(method: str, raw_path: str, headers: "CIMultiDictProxy[str]", body: bytes, default_port: str) -> Claimed:
    """The signature of a request, its digest compared with the raw body and its time with the clock.

    `default_port` is the one that a Host header may leave out, as `:443`. Raises Problem 401.
    """
    if any(len(headers.getall(name, ())) != 1 for name in _ONCE):
        raise refused()
    found = _INPUT.fullmatch(headers[_SIGNATURE_INPUT])
    signature = _VALUE.fullmatch(headers[_SIGNATURE])
    digest = _DIGEST.fullmatch(headers[_CONTENT_DIGEST])
    if found is None or signature is None or digest is None:
        raise refused()
    created = int(found[2])
    if abs(time.time() - created) > CREATED_WITHIN_S:
        raise refused()
    if _decoded(digest[2]) != DIGESTS[digest[1]](body):
        raise refused()
    authority = _AUTHORITY.fullmatch(headers[hdrs.HOST])
    # "?" alone would be signed as no query is: two requests with one signature
    if authority is None or (raw_path.endswith("?") and raw_path.count("?") == 1):
        raise refused()
    path, _, query = raw_path.partition("?")
    values = {
        "@method": method,
        "@authority": (authority[1] if authority[2] == default_port else authority[0]).lower(),
        "@path": path,
        "@query": f"?{query}",
        "content-digest": headers[_CONTENT_DIGEST],
        "authorization": headers[hdrs.AUTHORIZATION],
        "idempotency-key": headers["Idempotency-Key"],
        "@signature-params": found[1],
    }
    try:
        return Claimed(found[3], found[4], created, base_of(values), _decoded(signature[1]))
    except UnicodeEncodeError:
        raise refused() from None


def base_of(values: Mapping[str, str]) -> bytes:
    """The signature base (RFC 9421 §2.5) of components in their order, `@signature-params` last.

    Raises UnicodeEncodeError for what is not ASCII.
    """
    return "\n".join(f'"{name}": {value}' for name, value in values.items()).encode("ascii")


def refused() -> Problem:
    """One answer for every reason."""
    return Problem("invalid_signature", headers=_CHALLENGE)


def _decoded(text: str) -> bytes:
    """Base64 in its one form. Raises Problem 401."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise refused() from None
    if base64.b64encode(raw).decode() != text:
        raise refused()
    return raw
