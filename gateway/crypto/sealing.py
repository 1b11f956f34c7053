"""Sealing of personal data at rest: KEK -> data key (per table group and month) -> AES-256-GCM.

A sealed value is `algorithm (1) ‖ data key id (4) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. The additional data binds
table, column, row and data key, so that a ciphertext moved to another place does not open (reliability.md §3).
"""

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding, aes_key_wrap_with_padding

from gateway.crypto.key_store import Key, KeyStore, KeyUse
from gateway.domain.errors import CannotStart

AES_256_GCM = "AES-256-GCM"
_AES_256_GCM_BYTE = 1
_HEAD = struct.Struct(">BI")
_NONCE = 12
_TAG = 16


class WrappedDataKey(NamedTuple):
    """A row of data_key."""

    data_key_id: int
    kek_id: str
    algorithm: str
    wrapped: bytes


class SealError(CannotStart):
    """A sealed value does not open: it was moved or altered, or its data key does not belong to our KEK."""


class UnknownDataKey(Exception):
    """A sealed value names a data key that is not loaded (another process made it): load and try again."""


def new_data_key(kek: Key) -> bytes:
    """A fresh data key, wrapped by the KEK (RFC 5649)."""
    return aes_key_wrap_with_padding(kek.key, os.urandom(32))


def rewrap(row: WrappedDataKey, old: Key, new: Key) -> WrappedDataKey:
    """The same data key, wrapped by another KEK. Raises SealError."""
    try:
        plain = aes_key_unwrap_with_padding(old.key, row.wrapped)
    except InvalidUnwrap:
        raise SealError(f"data key {row.data_key_id} was wrapped by another {row.kek_id}") from None
    return row._replace(kek_id=new.kid, wrapped=aes_key_wrap_with_padding(new.key, plain))


class Sealer:
    """Seals and opens values with the data keys it has been given."""

    def __init__(self) -> None:
        self._ciphers: dict[int, AESGCM] = {}

    def add(self, rows: Iterable[WrappedDataKey], store: KeyStore) -> None:
        """Unwrap data keys. Raises KeyStoreError for a KEK that the store lacks, SealError for one that is another."""
        for row in rows:
            if row.data_key_id in self._ciphers:
                continue
            if row.algorithm != AES_256_GCM:
                raise SealError(f"data key {row.data_key_id}: algorithm {row.algorithm!r} is not supported")
            kek = store.get(KeyUse.KEK, row.kek_id)
            try:
                self._ciphers[row.data_key_id] = AESGCM(aes_key_unwrap_with_padding(kek.key, row.wrapped))
            except InvalidUnwrap:
                raise SealError(f"data key {row.data_key_id} was wrapped by another {row.kek_id}") from None

    def seal(self, data_key_id: int, column: bytes, row_id: bytes, plaintext: bytes) -> bytes:
        """`column` is `table.column`, `row_id` the 16 bytes of the row's primary key."""
        head = _HEAD.pack(_AES_256_GCM_BYTE, data_key_id)
        nonce = os.urandom(_NONCE)
        return head + nonce + self._ciphers[data_key_id].encrypt(nonce, plaintext, head + column + row_id)

    def knows(self, sealed: bytes) -> bool:
        """Whether the data key of a sealed value is loaded."""
        return int.from_bytes(sealed[1:5], "big") in self._ciphers

    def open(self, column: bytes, row_id: bytes, sealed: bytes) -> bytes:
        """Raises UnknownDataKey, SealError."""
        if len(sealed) < _HEAD.size + _NONCE + _TAG:
            raise SealError("a sealed value is cut short")
        head = sealed[:5]
        algorithm, data_key_id = _HEAD.unpack(head)
        cipher = self._ciphers.get(data_key_id)
        if cipher is None or algorithm != _AES_256_GCM_BYTE:
            raise UnknownDataKey(data_key_id)
        try:
            return cipher.decrypt(sealed[5:17], sealed[17:], head + column + row_id)
        except InvalidTag:
            raise SealError("a sealed value does not open") from None
