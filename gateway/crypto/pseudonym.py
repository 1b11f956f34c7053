"""card_ref: the pairwise pseudonym of a card for one caller.

It is the card's 128-bit id put through a block cipher under a key of that caller: one caller always sees the same
reference, two callers cannot join theirs, and we turn it back without a table or a scan. A reference nobody issued
turns into an id that no card has. The leading letter is the version of the pseudonym key.
"""

import base64
import string

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gateway.crypto.key_store import Key

CARD_REF_PATTERN = "^[a-z][a-z2-7]{26}$"
_FIRST_VERSION = "k"


class Pseudonyms:
    """References of every caller; one block operation each way."""

    def __init__(self, keys: list[Key]) -> None:
        first = string.ascii_lowercase.index(_FIRST_VERSION)
        self._keys = {string.ascii_lowercase[first + n]: key for n, key in enumerate(keys)}
        self._version = max(self._keys)
        self._ciphers: dict[tuple[str, str], tuple[CipherContext, CipherContext]] = {}

    def card_ref(self, caller_id: str, card_id: bytes) -> str:
        hide, _ = self._cipher(self._version, caller_id)
        return self._version + base64.b32encode(hide.update(card_id))[:26].decode().lower()

    def card_id(self, caller_id: str, card_ref: str) -> bytes | None:
        """The 16 bytes of the card's id; None for a reference that cannot be ours."""
        version = card_ref[0]
        if version not in self._keys:
            return None
        _, show = self._cipher(version, caller_id)
        block = base64.b32decode(card_ref[1:].upper() + "======")
        # 26 letters hold 130 bits: only one spelling of a reference is ours
        if base64.b32encode(block)[:26].decode().lower() != card_ref[1:]:
            return None
        return show.update(block)

    def _cipher(self, version: str, caller_id: str) -> tuple[CipherContext, CipherContext]:
        pair = self._ciphers.get((version, caller_id))
        if pair is None:
            key = HKDFExpand(SHA256(), 32, b"card_ref " + caller_id.encode()).derive(self._keys[version].key)
            # ECB of single blocks of unique ids is a permutation, which is what a pseudonym is
            cipher = Cipher(AES256(key), ECB())  # noqa: S305
            pair = self._ciphers[version, caller_id] = cipher.encryptor(), cipher.decryptor()
        return pair
