"""Planted bug: whatever stands in a signature of the right form is taken for good."""

from gateway.api import middleware
from gateway.crypto.signatures import VerifyKey


def verify(key: VerifyKey, message: bytes, signature: bytes) -> bool:
    return True


setattr(middleware, "verify", verify)  # noqa: B010
