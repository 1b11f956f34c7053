"""Planted bug: whoever answers is believed."""

from typing import Any

from gateway.partners.keys import Keys


def verify(self: Keys, key: str, message: bytes, signature: bytes) -> Any:
    return True


setattr(Keys, "verify", verify)  # noqa: B010
