"""Callers' keys that did not come from a file, and which keys are out. Rows are never deleted."""

import datetime as dt
from collections.abc import Collection
from typing import TYPE_CHECKING

from gateway.domain.caller_keys import CallerKey, Source
from gateway.domain.callers import KeyPurpose

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

_LOCK = 0x6B657973  # "keys"


_COLUMNS = "SELECT caller, use, kid, jwk, source, added_at, retired_at IS NOT NULL FROM caller_key "


async def relevant(connection: "AnyConnection", file_kids: Collection[str]) -> list[CallerKey]:
    """The keys in force, oldest first, and what is known of the kids that are in files."""
    rows = await connection.fetch(
        _COLUMNS + "WHERE retired_at IS NULL OR kid = ANY($1::text[]) ORDER BY added_at, kid", list(file_kids)
    )
    return [_key(*row) for row in rows]


async def lock(connection: "AnyConnection", caller: str) -> None:
    """Until the transaction ends, nobody else changes the keys of this caller."""
    await connection.execute("SELECT pg_advisory_xact_lock($1, hashtext($2))", _LOCK, caller)


async def of_caller(connection: "AnyConnection", caller: str, use: KeyPurpose) -> list[CallerKey]:
    """Every key of one use, also those that are out, oldest first."""
    rows = await connection.fetch(_COLUMNS + "WHERE caller = $1 AND use = $2 ORDER BY added_at, kid", caller, use.value)
    return [_key(*row) for row in rows]


async def add(
    connection: "AnyConnection", caller: str, use: KeyPurpose, kid: str, jwk: str, source: Source, now: dt.datetime
) -> bool:
    """Whether the kid was free."""
    added = await connection.fetchval(
        "INSERT INTO caller_key (caller, use, kid, jwk, source, added_at) VALUES ($1, $2, $3, $4, $5, $6)"
        " ON CONFLICT DO NOTHING RETURNING true",
        caller, use.value, kid, jwk, source, now,
    )  # fmt: skip
    return bool(added)


async def retire(connection: "AnyConnection", caller: str, use: KeyPurpose, kid: str, now: dt.datetime) -> None:
    """The key is out, wherever it came from."""
    await connection.execute(
        "INSERT INTO caller_key AS there (caller, use, kid, source, added_at, retired_at)"
        " VALUES ($1, $2, $3, 'file', $4, $4)"
        " ON CONFLICT (caller, use, kid) DO UPDATE SET retired_at = coalesce(there.retired_at, EXCLUDED.retired_at)",
        caller, use.value, kid, now,
    )  # fmt: skip


async def restore(connection: "AnyConnection", caller: str, use: KeyPurpose, kid: str) -> None:
    """A published key that had disappeared is there again."""
    await connection.execute(
        "UPDATE caller_key SET retired_at = NULL WHERE caller = $1 AND use = $2 AND kid = $3 AND source = 'jwks'",
        caller, use.value, kid,
    )  # fmt: skip


def _key(
    caller: str, use: str, kid: str, jwk: str | None, source: Source, added_at: dt.datetime, retired: bool
) -> CallerKey:
    return CallerKey(caller, KeyPurpose(use), kid, jwk, source, added_at, retired)
