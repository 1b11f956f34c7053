"""The data keys in use: loaded from the database; a month's is made by the first process that needs it."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.key_watch import KeyWatch
from gateway.crypto.sealing import Sealer, SealingAlgorithm, WrappedDataKey, new_data_key
from gateway.store import data_keys
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class DataKeys:
    """`sealer` knows every key that has been loaded; new keys are for `algorithm`."""

    def __init__(self, pool: Pool, keys: KeyWatch, algorithm: SealingAlgorithm) -> None:
        self._pool = pool
        self._keys = keys
        self._algorithm = algorithm
        self._months: dict[tuple[str, dt.date], int] = {}
        self.sealer = Sealer()

    async def load(self) -> None:
        """Raises Problem 503, KeyStoreError, SealError."""
        async with self._pool.acquire() as connection:
            self._add(await data_keys.load(connection))

    async def current(self, connection: "AnyConnection", groups: Sequence[str]) -> dict[str, int]:
        """The data key ids of this month, by table group. Not inside a transaction: a new key must last."""
        month = dt.datetime.now(dt.UTC).date().replace(day=1)
        for group in groups:
            if (group, month) not in self._months:
                new = new_data_key(self._keys.store, self._algorithm)
                key_id = await data_keys.for_month(connection, group, month, new)
                self._add(await data_keys.load(connection))
                self._months = {known: id_ for known, id_ in self._months.items() if known[1] == month}
                self._months[group, month] = key_id
        return {group: self._months[group, month] for group in groups}

    def _add(self, rows: Sequence[WrappedDataKey]) -> None:
        try:
            self.sealer.add(rows, self._keys.store)
        except KeyStoreError:  # wrapped by a KEK that was made since the last look
            if not self._keys.reload_if_changed():
                raise
            self.sealer.add(rows, self._keys.store)

    async def open(self, column: bytes, row_id: bytes, sealed: bytes) -> bytes:
        """Open a value, also under a key that another process has made since. Raises as load() and Sealer.open do."""
        if not self.sealer.knows(sealed):
            await self.load()
        return self.sealer.open(column, row_id, sealed)
