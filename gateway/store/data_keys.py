"""Wrapped data keys: one for each table group and month."""

import datetime as dt
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.crypto.sealing import NewDataKey, WrappedDataKey

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


async def load(connection: "AnyConnection") -> list[WrappedDataKey]:
    rows = await connection.fetch("SELECT data_key_id, kek_id, algorithm, wrapped FROM data_key")
    return [WrappedDataKey(*row) for row in rows]


async def for_month(connection: "AnyConnection", table_group: str, month: dt.date, if_new: NewDataKey) -> int:
    """The id of the data key of a table group and month, made if there is none yet."""
    await connection.execute(
        "INSERT INTO data_key (table_group, month, kek_id, algorithm, wrapped) VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (table_group, month) DO NOTHING",
        table_group, month.replace(day=1), *if_new,
    )  # fmt: skip
    found: int = await connection.fetchval(
        "SELECT data_key_id FROM data_key WHERE table_group = $1 AND month = $2", table_group, month.replace(day=1)
    )
    return found


async def rewrap_all(connection: "AnyConnection", rewrap: Callable[[WrappedDataKey], WrappedDataKey]) -> int:
    """Wrap every data key anew in one transaction; returns how many. Needs the owner: requests cannot update them."""
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '5s'")
        await connection.execute("LOCK TABLE data_key IN SHARE ROW EXCLUSIVE MODE")  # no new one meanwhile
        rows = [rewrap(row) for row in await load(connection)]
        await connection.executemany(
            "UPDATE data_key SET kek_id = $2, wrapped = $3 WHERE data_key_id = $1",
            [(row.data_key_id, row.kek_id, row.wrapped) for row in rows],
        )
    return len(rows)
