"""The blind index: a keyed HMAC-SM3 by which sealed values are found (design.md §6).

It leaks equality alone. Identity numbers have few candidates, so the key must never be where the database is.
"""

from cryptography.hazmat.primitives.hashes import SM3
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from gateway.domain.masking import Secret


class BlindIndex:
    """32-byte indexes, each column with a key of its own derived from the index key."""

    def __init__(self, key: Secret[bytes]) -> None:
        self._chip = _keyed(key, b"card.chip_index")
        self._number = _keyed(key, b"card.number_index")
        self._id_number = _keyed(key, b"person.id_number_index")
        self._code = _keyed(key, b"code_use.code_digest")
        self._request = _keyed(key, b"idempotency_key.fingerprint")

    def chip(self, card_number: str, card_identifier: str) -> bytes:
        """Of a chip card's number and identifier together: a wrong pair is simply not found."""
        mac = self._chip.copy()
        mac.update((card_number + card_identifier).encode())
        return mac.finalize()

    def number(self, card_number: str) -> bytes:
        mac = self._number.copy()
        mac.update(card_number.encode())
        return mac.finalize()

    def id_number(self, id_number: str) -> bytes:
        mac = self._id_number.copy()
        mac.update(id_number.encode())
        return mac.finalize()

    def code(self, code: str) -> bytes:
        """Of a code that is good once."""
        mac = self._code.copy()
        mac.update(code.encode())
        return mac.finalize()

    def request(self, request: bytes) -> bytes:
        """Of a whole request: its digest may be guessed from what it holds, unless it is keyed."""
        mac = self._request.copy()
        mac.update(request)
        return mac.finalize()


def _keyed(key: Secret[bytes], column: bytes) -> HMAC:
    return HMAC(HKDFExpand(SM3(), 32, column).derive(key.reveal()), SM3())
