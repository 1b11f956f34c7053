"""Monthly partitions: how they are kept."""

import asyncpg

from gateway.store.migrate import files
from tests.conftest import Database

PARTITIONS = """
SELECT c.oid::regclass::text, coalesce(c.reloptions @> '{autovacuum_vacuum_insert_threshold=10000000}', false)
FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid WHERE c.relkind = 'r'
"""


async def seldom_vacuumed(owner: "asyncpg.Connection[asyncpg.Record]") -> dict[str, bool]:
    return {row[0]: row[1] for row in await owner.fetch(PARTITIONS)}


async def test_a_partition_is_seldom_vacuumed_also_one_of_before(database: Database) -> None:
    owner = await asyncpg.connect(database.dsn)
    try:
        found = await seldom_vacuumed(owner)
        assert len(found) > 15 and all(found.values())
        for name in found:
            await owner.execute(f"ALTER TABLE {name} RESET (autovacuum_vacuum_insert_threshold)")
        assert not any((await seldom_vacuumed(owner)).values())
        (migration,) = [sql for _, name, sql in files() if name == "seldom_vacuumed"]
        await owner.execute(migration)
        assert await seldom_vacuumed(owner) == found
    finally:
        await owner.close()
