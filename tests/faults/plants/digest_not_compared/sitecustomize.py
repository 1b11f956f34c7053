"""Planted bug: the digest is signed, but nobody compares it with the body."""

from gateway.api import signatures
from gateway.crypto.digests import DIGESTS


class _Any(bytes):
    def __ne__(self, other: object) -> bool:
        return False


setattr(signatures, "DIGESTS", dict.fromkeys(DIGESTS, lambda _: _Any()))  # noqa: B010
