"""Wrapped data keys: one for each table group and month."""

import datetime as dt
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
