"""A pool and data keys over a test's own database, as a worker has them; the keys they are wrapped by are fresh."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from gateway.crypto.key_files import create_missing
from gateway.crypto.key_store import KeyStore
from gateway.crypto.key_watch import KeyWatch
from gateway.domain.masking import Secret
from gateway.flows.data_keys import DataKeys
from gateway.settings import load
from gateway.store.pool import Pool


class Keyed(NamedTuple):
    pool: Pool
    data_keys: DataKeys
    store: KeyStore


@asynccontextmanager
async def keyed(dsn: str, folder: Path) -> AsyncIterator[Keyed]:
    """With keys in `folder`."""
    create_missing(folder)
    config, watch = load({}).gateway, KeyWatch(folder, lambda _: None)
    pool = Pool(Secret(dsn), config.database, "test")
    await pool.open()
    try:
        yield Keyed(pool, DataKeys(pool, watch, config.sealing.algorithm), watch.store)
    finally:
        await pool.close()
