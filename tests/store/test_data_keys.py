"""Data keys: one of each table group and month, with the algorithm it was made with."""

import datetime as dt
import os

import asyncpg

from gateway.crypto.key_store import KeyStore
from gateway.crypto.sealing import Sealer, SealingAlgorithm, new_data_key
from gateway.store import data_keys
from tests.conftest import Database


async def test_a_data_key_keeps_its_algorithm_when_the_configuration_changes(
    database: Database, keys: KeyStore
) -> None:
    row = os.urandom(16)
    connection = await asyncpg.connect(database.dsn)

    async def key_of(month: dt.date, algorithm: SealingAlgorithm) -> int:
        return await data_keys.for_month(connection, "registry", month, new_data_key(keys, algorithm))

    try:
        aes = await key_of(dt.date(2026, 10, 1), "AES-256-GCM")
        assert await key_of(dt.date(2026, 10, 31), "SM4-GCM") == aes, "the month has one"
        sm4 = await key_of(dt.date(2026, 11, 1), "SM4-GCM")
        rows = await data_keys.load(connection)
    finally:
        await connection.close()
    assert {row.data_key_id: row.algorithm for row in rows} == {aes: "AES-256-GCM", sm4: "SM4-GCM"}
    writer, reader = Sealer(), Sealer()
    for sealer in (writer, reader):
        sealer.add(rows, keys)
    for data_key_id in (aes, sm4):
        assert (
            reader.open(b"card.holder_sealed", row, writer.seal(data_key_id, b"card.holder_sealed", row, b"x")) == b"x"
        )
