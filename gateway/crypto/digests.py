"""Digests: of what arrives, by the name that its sender gives (RFC 9530, the daily file), and of what we keep."""

import hashlib
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.hashes import SHA256, SM3, Hash


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sm3(data: bytes) -> bytes:
    """GB/T 32905."""
    hasher = Hash(SM3())
    hasher.update(data)
    return hasher.finalize()


DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {"sha-256": sha256, "sm3": sm3}
"""By their names in Content-Digest."""

kept_digest = sm3
"""32 bytes, of what rows keep: of one algorithm for ever, or old ones would match no more."""

_ALGORITHMS = {"sha-256": SHA256, "sm3": SM3}


def running(name: str) -> Hash:
    """One of DIGESTS by parts: update() with each, then finalize(). Raises KeyError."""
    return Hash(_ALGORITHMS[name]())
