"""Ciphers and macs by one name each: SM4-GCM and AES-256-GCM with a full tag, HMAC-SM3. Partners': shared_keys.py.

GCM here is always a nonce of 12 bytes and a tag of 16 behind the ciphertext. cryptography has no SM4 in its AEAD
classes; its GCM by parts takes short tags and gives plaintext before the tag is checked, so neither leaves this file.
"""

from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import SM4
from cryptography.hazmat.primitives.ciphers.modes import GCM
from cryptography.hazmat.primitives.hashes import SM3
from cryptography.hazmat.primitives.hmac import HMAC

NONCE_BYTES = 12
TAG_BYTES = 16


class DoesNotOpen(Exception):
    """A ciphertext was altered or cut, or is of another key, nonce or context."""


class Aead(Protocol):
    """Authenticated encryption under one key."""

    def encrypt(self, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes: ...
    def decrypt(self, nonce: bytes, sealed: bytes, associated: bytes) -> bytes: ...


class Sm4Gcm:
    """SM4-GCM (RFC 8998) under a key of 16 bytes. Raises ValueError for a key or nonce of another length."""

    def __init__(self, key: bytes) -> None:
        self._key = SM4(key)  # made once: a tenth of the cost of opening

    def encrypt(self, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
        """ciphertext ‖ tag"""
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a nonce has 12 bytes")
        encryptor = Cipher(self._key, GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(associated)
        return encryptor.update(plaintext) + encryptor.finalize() + encryptor.tag

    def decrypt(self, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        """Raises DoesNotOpen."""
        tag = sealed[-TAG_BYTES:]
        if len(nonce) != NONCE_BYTES or len(tag) != TAG_BYTES:
            raise DoesNotOpen
        decryptor = Cipher(self._key, GCM(nonce, tag)).decryptor()
        decryptor.authenticate_additional_data(associated)
        plaintext = decryptor.update(sealed[:-TAG_BYTES])
        try:
            decryptor.finalize()
        except InvalidTag:
            raise DoesNotOpen from None
        return plaintext


class Aes256Gcm:
    """AES-256-GCM under a key of 32 bytes. Raises ValueError for a key or nonce of another length."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError("an AES-256 key has 32 bytes")
        self._cipher = AESGCM(key)

    def encrypt(self, nonce: bytes, plaintext: bytes, associated: bytes) -> bytes:
        """ciphertext ‖ tag"""
        if len(nonce) != NONCE_BYTES:
            raise ValueError("a nonce has 12 bytes")
        return self._cipher.encrypt(nonce, plaintext, associated)

    def decrypt(self, nonce: bytes, sealed: bytes, associated: bytes) -> bytes:
        """Raises DoesNotOpen."""
        if len(nonce) != NONCE_BYTES:
            raise DoesNotOpen
        try:
            return self._cipher.decrypt(nonce, sealed, associated)
        except InvalidTag:
            raise DoesNotOpen from None


def hmac_sm3(key: bytes, message: bytes) -> bytes:
    """32 bytes; compare with hmac.compare_digest."""
    mac = HMAC(key, SM3())
    mac.update(message)
    return mac.finalize()
