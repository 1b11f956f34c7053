"""Message authentication codes of bank links: ANSI X9.19 and the same idea with SM4, 8 bytes each.

A MAC by cipher blocks is sound for messages whose length is fixed or told at their beginning; ISO 8583 tells it by its
bitmap and field lengths. For anything else use HMAC-SM3 (ciphers.py).
"""

from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import SM4
from cryptography.hazmat.primitives.ciphers.modes import CBC, ECB

MAC_BYTES = 8


def x9_19_mac(key: bytes, message: bytes) -> bytes:
    """ANSI X9.19 (ISO/IEC 9797-1 algorithm 3, padding 1): DES-CBC under the left half of a key of 16 bytes, its last
    block under both halves. Raises ValueError for a key of another length."""
    if len(key) != 16:
        raise ValueError("an X9.19 key has 16 bytes")
    padded = _filled(message, 8)
    # TripleDES with one key three times is DES, which cryptography has not by itself
    chain = Cipher(TripleDES(key[:8] * 3), CBC(bytes(8))).encryptor()
    before_last = chain.update(padded[:-8])[-8:] or bytes(8)
    last = bytes(a ^ b for a, b in zip(before_last, padded[-8:], strict=True))
    return Cipher(TripleDES(key + key[:8]), ECB()).encryptor().update(last)  # noqa: S305 - one block


def sm4_cbc_mac(key: bytes, message: bytes) -> bytes:
    """SM4-CBC from a zero vector over the message filled with zeros; the left half of the last block. Raises
    ValueError for a key that has not 16 bytes."""
    chain = Cipher(SM4(key), CBC(bytes(16))).encryptor()
    return chain.update(_filled(message, 16))[-16:][:MAC_BYTES]


MACS: Final[Mapping[str, Callable[[bytes, bytes], bytes]]] = {"x9.19": x9_19_mac, "sm4-cbc-mac": sm4_cbc_mac}
"""By the name that a configuration gives; each takes key and message."""


def _filled(message: bytes, block: int) -> bytes:
    """Zeros up to a whole number of blocks, at least one."""
    return message + bytes(-len(message) % block if message else block)
