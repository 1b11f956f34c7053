"""Sealing of personal data at rest: KEK -> data key (per table group and month) -> SM4-GCM or AES-256-GCM.

A sealed value is `algorithm (1) ‖ data key id (4) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. The additional data binds
table, column, row and data key, so that a ciphertext moved to another place does not open (reliability.md §3). The
algorithm is the data key's, for life: `[sealing] algorithm` is that of the data keys still to be made.
"""

import os
import struct
from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from gateway.crypto.ciphers import NONCE_BYTES, TAG_BYTES, Aead, Aes256Gcm, DoesNotOpen, Sm4Gcm
from gateway.crypto.key_store import KeyStore
from gateway.crypto.randomness import RandomBytes
from gateway.domain.errors import CannotStart

SealingAlgorithm = Literal["SM4-GCM", "AES-256-GCM"]
_HEAD = struct.Struct(">BI")


class _Kind(NamedTuple):
    byte: int
    key_bytes: int
    cipher: type[Sm4Gcm] | type[Aes256Gcm]


_KINDS: dict[str, _Kind] = {"AES-256-GCM": _Kind(1, 32, Aes256Gcm), "SM4-GCM": _Kind(2, 16, Sm4Gcm)}
assert _KINDS.keys() == set(get_args(SealingAlgorithm))


class NewDataKey(NamedTuple):
    """A data key to be stored, if its table group and month have none."""

    kek_id: str
    algorithm: SealingAlgorithm
    wrapped: bytes


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


def new_data_key(store: KeyStore, algorithm: SealingAlgorithm = "SM4-GCM") -> NewDataKey:
    """A fresh data key, wrapped by the newest KEK."""
    kek_id, wrapped = store.wrap(os.urandom(_KINDS[algorithm].key_bytes))
    return NewDataKey(kek_id, algorithm, wrapped)


def rewrap(row: WrappedDataKey, store: KeyStore) -> WrappedDataKey:
    """The same data key, wrapped by the newest KEK. Raises KeyStoreError, SealError."""
    kek_id, wrapped = store.wrap(_unwrap(row, store))
    return row._replace(kek_id=kek_id, wrapped=wrapped)


def _unwrap(row: WrappedDataKey, store: KeyStore) -> bytes:
    try:
        return store.unwrap(row.kek_id, row.wrapped)
    except DoesNotOpen:
        raise SealError(f"data key {row.data_key_id} was wrapped by another {row.kek_id}") from None


class Sealer:
    """Seals and opens values with the data keys it has been given."""

    def __init__(self) -> None:
        self._nonces = RandomBytes(NONCE_BYTES)
        self._heads: dict[int, bytes] = {}
        self._ciphers: dict[bytes, Aead] = {}
        """By the first five bytes of what they seal: opening is on the path of every verify."""

    def add(self, rows: Iterable[WrappedDataKey], store: KeyStore) -> None:
        """Unwrap data keys. Raises KeyStoreError for a KEK that the store lacks, SealError for one that is another."""
        for row in rows:
            if row.data_key_id in self._heads:
                continue
            kind = _KINDS.get(row.algorithm)
            if kind is None:
                raise SealError(f"data key {row.data_key_id}: algorithm {row.algorithm!r} is not supported")
            secret = _unwrap(row, store)
            if len(secret) != kind.key_bytes:
                raise SealError(f"data key {row.data_key_id} is not one for {row.algorithm}")
            head = self._heads[row.data_key_id] = _HEAD.pack(kind.byte, row.data_key_id)
            self._ciphers[head] = kind.cipher(secret)

    def seal(self, data_key_id: int, column: bytes, row_id: bytes, plaintext: bytes) -> bytes:
        """`column` is `table.column`, `row_id` the 16 bytes of the row's primary key."""
        head = self._heads[data_key_id]
        nonce = self._nonces.take()
        return head + nonce + self._ciphers[head].encrypt(nonce, plaintext, head + column + row_id)

    def knows(self, sealed: bytes) -> bool:
        """Whether the data key of a sealed value is loaded."""
        return sealed[:5] in self._ciphers

    def open(self, column: bytes, row_id: bytes, sealed: bytes) -> bytes:
        """Raises UnknownDataKey, SealError."""
        head = sealed[:5]
        cipher = self._ciphers.get(head)
        if cipher is None:
            if len(sealed) < _HEAD.size + NONCE_BYTES + TAG_BYTES:
                raise SealError("a sealed value is cut short")
            raise UnknownDataKey(int.from_bytes(sealed[1:5], "big"))
        try:
            return cipher.decrypt(sealed[5:17], sealed[17:], head + column + row_id)
        except DoesNotOpen:
            raise SealError("a sealed value does not open") from None
