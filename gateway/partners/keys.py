"""The keys of one partner by their names, and what an adapter may do with them (contract.Crypto).

Keys never leave the engine; `Keys.slow` says that build and parse belong in a thread.
"""

import hashlib
from collections.abc import Mapping

from gateway.crypto.shared_keys import SharedKey
from gateway.domain.partners import CryptoRefused


class Keys:
    """The keys of one partner by name; any thread may use them."""

    def __init__(self, keys: Mapping[str, SharedKey]) -> None:
        self._keys = dict(keys)
        self.slow = any(key.slow for key in self._keys.values())

    def _named(self, key: str) -> SharedKey:
        found = self._keys.get(key)
        if found is None:
            raise CryptoRefused(f"no key {key!r} is configured")
        return found

    def sign(self, key: str, message: bytes) -> bytes:
        return self._named(key).sign(message)

    def verify(self, key: str, message: bytes, signature: bytes) -> bool:
        return self._named(key).verify(message, signature)

    def encrypt(self, key: str, plaintext: bytes, iv: bytes) -> bytes:
        return self._named(key).encrypt(plaintext, iv)

    def decrypt(self, key: str, ciphertext: bytes, iv: bytes) -> bytes:
        return self._named(key).decrypt(ciphertext, iv)

    def mac(self, key: str, message: bytes) -> bytes:
        return self._named(key).mac(message)


def fingerprint(text: str) -> bytes:
    """By which a changed key is noticed without keeping its text."""
    return hashlib.sha256(text.encode()).digest()
