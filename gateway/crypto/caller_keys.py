"""Which keys of a caller are in force: those of its file or its URL, those it gave us itself, less what is out."""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from gateway.crypto.signatures import JOSE_NAMES, KEYS_MAX, VerifyKey, mismatch, read_signing_jwk
from gateway.domain.caller_keys import CallerKey
from gateway.domain.callers import Caller, KeyPurpose

_DOCUMENT_KEYS_MAX = 10
_OF_ASSERTIONS = {name: algorithm for algorithm, name in JOSE_NAMES.items()}


def algorithm_of(caller: Caller, purpose: KeyPurpose) -> str | None:
    """The one algorithm that the caller is registered with for this; None if it does not sign."""
    return _OF_ASSERTIONS[caller.algorithm] if purpose is KeyPurpose.TOKEN else caller.signing_algorithm


def in_force(
    caller: Caller, purpose: KeyPurpose, from_file: Sequence[VerifyKey], rows: Iterable[CallerKey]
) -> list[VerifyKey]:
    """At most two: first those of the file, then the latest of `rows` (the caller's, of this use, in any order)."""
    rows = sorted(rows, key=lambda row: (row.added_at, row.kid), reverse=True)
    out = {*caller.revoked_kids, *(row.kid for row in rows if row.retired)}
    counts = "jwks" if caller.keys_url_of(purpose) else "self"
    algorithm = algorithm_of(caller, purpose)
    found = {key.kid: key for key in from_file if key.kid not in out}
    for row in rows:
        if row.kid in out or row.kid in found or row.source != counts or row.jwk is None or algorithm is None:
            continue
        if (key := _stored(row.kid, row.jwk, algorithm, purpose)) is not None:
            found[row.kid] = key
    return list(found.values())[:KEYS_MAX]


def published(
    document: Any, algorithm: str, revoked: Sequence[str], use: KeyPurpose = KeyPurpose.SIGNING
) -> list[VerifyKey]:
    """The one or two keys of the algorithm in a JWKS that a caller publishes; keys for other things may be beside them.

    Raises ValueError saying what is wrong, without the keys' values.
    """
    keys = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(keys, list) or not 1 <= len(keys) <= _DOCUMENT_KEYS_MAX:
        raise ValueError(f"expected a JWKS with 1 to {_DOCUMENT_KEYS_MAX} keys")
    if not all(isinstance(jwk, dict) and isinstance(jwk.get("kid"), str) for jwk in keys):
        raise ValueError("every key needs a kid")
    if any(name in jwk for jwk in keys for name in ("d", "k")):
        raise ValueError("a private or secret key was published")
    if len({jwk["kid"] for jwk in keys}) != len(keys):
        raise ValueError("two keys have the same kid")
    found = [
        read_signing_jwk(jwk, algorithm, use)
        for jwk in keys
        if jwk["kid"] not in revoked and mismatch(jwk, algorithm) is None
    ]
    if not 1 <= len(found) <= KEYS_MAX:
        raise ValueError(f"{len(found)} keys for {algorithm}: one or two are needed")
    return found


@lru_cache(maxsize=4096)
def _stored(kid: str, jwk: str, algorithm: str, use: KeyPurpose) -> VerifyKey | None:
    """None for a key that would not be taken today: the caller has another algorithm now, it is one of no owner, or no
    signature can name it."""
    try:
        return read_signing_jwk(json.loads(jwk) | {"kid": kid}, algorithm, use)
    except ValueError:
        return None
