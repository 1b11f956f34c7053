"""POST /v1/callers/self/keys."""

import datetime as dt
from typing import TYPE_CHECKING

import msgspec

from gateway.api.payloads import CallerKeys, KeyChange, decoder
from gateway.directory import KnownCaller
from gateway.flows.rotate_caller_key import rotate

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

decode = decoder(KeyChange)


async def change(connection: "AnyConnection", caller_id: str, known: KnownCaller, asked: KeyChange) -> CallerKeys:
    """The effect, inside the transaction that also keeps its answer. Raises Problem 409, 422."""
    jwk = None if asked.jwk is None else msgspec.to_builtins(asked.jwk)
    done = await rotate(connection, caller_id, known, asked.use, jwk, asked.retire, dt.datetime.now(dt.UTC))
    return CallerKeys(done.use, done.keys, done.kid or msgspec.UNSET)
