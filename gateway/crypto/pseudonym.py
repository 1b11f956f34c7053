"""card_ref: the pairwise pseudonym of a card for one caller.

It is the card's 128-bit id put through a block cipher under a key of that caller: one caller always sees the same
reference, two callers cannot join theirs, and we turn it back without a table or a scan. A reference nobody issued
turns into an id that no card has. The leading letter is the version of the pseudonym key.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gateway.domain.cards import END
from gateway.domain.masking import Secret

_VERSIONS = "kmnpqrstuvwxyz"
CARD_REF_PATTERN = f"^[{_VERSIONS}][0-9a-f]{{32}}{END}"


class Pseudonyms:
    """References of every caller; one block operation each way."""

    def __init__(self, keys: Sequence[Secret[bytes]]) -> None:
        self._keys = dict(zip(_VERSIONS, keys, strict=False))
        self._version = max(self._keys)
        self._ciphers: dict[tuple[str, str], tuple[CipherContext, CipherContext]] = {}

    def card_ref(self, caller_id: str, card_id: bytes) -> str:
        hide, _ = self._cipher(self._version, caller_id)
        return self._version + hide.update(card_id).hex()

    def card_id(self, caller_id: str, card_ref: str) -> bytes:
        """The 16 bytes of the card's id, of a text of CARD_REF_PATTERN; an id no card has if we did not issue it."""
        version = card_ref[0] if card_ref[0] in self._keys else self._version
        _, show = self._cipher(version, caller_id)
        return show.update(bytes.fromhex(card_ref[1:]))

    def _cipher(self, version: str, caller_id: str) -> tuple[CipherContext, CipherContext]:
        pair = self._ciphers.get((version, caller_id))
        if pair is None:
            key = HKDFExpand(SHA256(), 32, b"card_ref " + caller_id.encode()).derive(self._keys[version].reveal())
            # ECB of single blocks of unique ids is a permutation, which is what a pseudonym is
            cipher = Cipher(AES256(key), ECB())  # noqa: S305
            pair = self._ciphers[version, caller_id] = cipher.encryptor(), cipher.decryptor()
        return pair
