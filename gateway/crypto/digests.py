"""Digests that a caller may name (RFC 9530): of what arrived, before anything is made of it."""

import hashlib
from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.hashes import SM3, Hash


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def sm3(data: bytes) -> bytes:
    """GB/T 32905."""
    hasher = Hash(SM3())
    hasher.update(data)
    return hasher.finalize()


DIGESTS: Mapping[str, Callable[[bytes], bytes]] = {"sha-256": sha256, "sm3": sm3}
"""By their names in Content-Digest."""
