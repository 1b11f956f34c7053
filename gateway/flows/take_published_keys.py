"""Take up what a caller publishes as its keys: new ones in, missing ones out, or nothing at all."""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from gateway.crypto.signatures import VerifyKey
from gateway.domain.callers import KeyPurpose
from gateway.store import caller_keys

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Taken(NamedTuple):
    """The kids that came and went."""

    added: list[str]
    retired: list[str]


async def take(
    connection: "AnyConnection",
    caller_id: str,
    use: KeyPurpose,
    keys: Sequence[VerifyKey],
    now: dt.datetime,
    others: Sequence[VerifyKey] = (),
) -> Taken:
    """Inside the caller's transaction. A key that had disappeared may come back: the caller is the one who says so.

    `others` are the keys that its file holds for the other use. Raises ValueError if a kid is now another key, or a new
    one is a key for the other use too: then nothing is taken.
    """
    await caller_keys.lock(connection, caller_id)
    known = {row.kid: row for row in await caller_keys.of_caller(connection, caller_id, use)}
    for key in keys:
        if key.kid in known and (known[key.kid].jwk, known[key.kid].source) != (key.jwk, "jwks"):
            raise ValueError("a kid is used again for another key")
    added = [key for key in keys if key.kid not in known or known[key.kid].retired]
    rows = await caller_keys.of_caller(connection, caller_id, use.other)
    if {key.jwk for key in added} & ({row.jwk for row in rows} | {key.jwk for key in others}):
        raise ValueError(f"a key is a {use.other} key of this caller too: each use needs keys of its own")
    for key in added:
        if not await caller_keys.add(connection, caller_id, use, key.kid, key.jwk, "jwks", now):
            await caller_keys.restore(connection, caller_id, use, key.kid)
    published = {key.kid for key in keys}
    gone = [row.kid for row in known.values() if row.source == "jwks" and not row.retired and row.kid not in published]
    for kid in gone:
        await caller_keys.retire(connection, caller_id, use, kid, now)
    return Taken([key.kid for key in added], gone)
