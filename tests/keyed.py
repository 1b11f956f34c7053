"""A pool and data keys over a test's own database, as a worker has them; the keys they are wrapped by are fresh."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gateway.crypto.key_files import create_missing
from gateway.crypto.key_store import KeyStore
from gateway.crypto.key_watch import KeyWatch
from gateway.domain.masking import Secret
from gateway.flows.data_keys import DataKeys
from gateway.settings import load
from gateway.store.pool import Pool

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


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


async def add_data_key(connection: "AnyConnection", kek_id: str) -> None:
    """One that does not open: its KEK is not here, or it is not of the KEK that it names. All are loaded together."""
    await connection.execute(
        "INSERT INTO data_key (table_group, month, kek_id, algorithm, wrapped)"
        " VALUES ('registry', '2000-01-01', $1, 'SM4-GCM', $2)",
        kek_id, bytes(60),
    )  # fmt: skip
