"""Client assertions: each jti is good once while the assertion is valid."""

import datetime as dt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


async def use(connection: "AnyConnection", client_id: str, jti: str, expires_at: dt.datetime) -> bool:
    """Whether this is the first use."""
    first = await connection.fetchval(
        "INSERT INTO client_assertion (client_id, jti, expires_at) VALUES ($1, $2, $3)"
        " ON CONFLICT DO NOTHING RETURNING true",
        client_id, jti, expires_at,
    )  # fmt: skip
    return bool(first)


async def sweep(connection: "AnyConnection", limit: int) -> int:
    """Delete up to `limit` that have expired (with the clock skew's margin); returns how many."""
    done = await connection.fetch(
        "DELETE FROM client_assertion WHERE (client_id, jti) IN (SELECT client_id, jti FROM client_assertion"
        " WHERE expires_at < now() - interval '5 minutes' ORDER BY expires_at LIMIT $1) RETURNING true",
        limit,
    )
    return len(done)
