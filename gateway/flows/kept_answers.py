"""Answers as they are kept with their Idempotency-Keys: sealed, and opened byte for byte."""

import hashlib
from typing import NamedTuple

from gateway.flows.data_keys import DataKeys
from gateway.store.idempotency import KeyOf

_COLUMN = b"idempotency_key.answer_sealed"


class Answer(NamedTuple):
    status: int
    body: bytes


class KeptAnswers:
    """seal() and open() for one key's answer."""

    def __init__(self, data_keys: DataKeys) -> None:
        self._data_keys = data_keys

    def seal(self, data_key_id: int, key: KeyOf, answer: Answer) -> bytes:
        plain = answer.status.to_bytes(2, "big") + answer.body
        return self._data_keys.sealer.seal(data_key_id, _COLUMN, _row_id(key), plain)

    async def open(self, key: KeyOf, sealed: bytes) -> Answer:
        """Raises Problem 503, KeyStoreError, SealError."""
        plain = await self._data_keys.open(_COLUMN, _row_id(key), sealed)
        return Answer(int.from_bytes(plain[:2], "big"), plain[2:])


def _row_id(key: KeyOf) -> bytes:
    return hashlib.sha256(" ".join(key).encode()).digest()[:16]
