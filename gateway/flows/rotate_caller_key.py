"""A caller changes its own keys: it gives us a new one, takes an old one out, or both at once.

The request is an effect, signed with a key in force (reliability.md §2.1.6). Other workers know of a new key at its
first use and of one that is out within 5 s (directory.py).
"""

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.crypto.caller_keys import algorithm_of, in_force
from gateway.crypto.signatures import KEYS_MAX, VerifyKey, read_signing_jwk
from gateway.directory import KnownCaller
from gateway.domain.caller_keys import CallerKey, unfit_kid
from gateway.domain.callers import KeyPurpose
from gateway.domain.errors import Problem, invalid
from gateway.flows.effects import Answer, Asked, Done
from gateway.store import caller_keys
from gateway.store.operations import Operation

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection

NEW_KEYS_A_DAY_MAX = 200

_encode = msgspec.json.Encoder().encode


class CallerKeys(msgspec.Struct, frozen=True, omit_defaults=True):
    """The caller's keys for this use after the change: `kid` is the new one, `keys` are those in force."""

    use: KeyPurpose
    keys: list[str]
    kid: str | msgspec.UnsetType = msgspec.UNSET


class Rotated(NamedTuple):
    """What has become of the caller's keys for one use."""

    use: KeyPurpose
    kid: str | None
    """Of the new key."""
    keys: list[str]
    """The kids in force."""


async def rotate(
    connection: "AnyConnection",
    caller_id: str,
    known: KnownCaller,
    use: KeyPurpose,
    jwk: dict[str, Any] | None,
    retire: str | None,
    now: dt.datetime,
) -> Rotated:
    """Inside the caller's transaction: add `jwk`, take the key `retire` out. Raises Problem 409, 422 before any write.

    Rotations of one caller go one after the other: with two at once there are never more than two keys.
    """
    if known.caller.keys_url_of(use):
        raise Problem("keys_by_url")
    new = None if jwk is None else _read(known, use, jwk)
    if new is None and retire is None:
        raise invalid("$", "jwk, retire or both are needed")
    await caller_keys.lock(connection, caller_id)
    rows = await caller_keys.of_caller(connection, caller_id, use)
    kids = [key.kid for key in in_force(known.caller, use, known.from_files[use], rows)]
    if retire is not None:
        if retire not in kids:
            raise Problem("unknown_key")
        kids.remove(retire)
    if new is not None:
        _refuse_used(known, use, rows, new)
        _refuse_shared(known, use.other, await caller_keys.of_caller(connection, caller_id, use.other), new)
        if sum(row.added_at > now - dt.timedelta(days=1) for row in rows if row.jwk) >= NEW_KEYS_A_DAY_MAX:
            raise Problem("too_many_keys", f"at most {NEW_KEYS_A_DAY_MAX} new keys a day")
        if len(kids) >= KEYS_MAX:
            raise Problem("too_many_keys", "name one to retire")
        kids.append(new.kid)
    if not kids:
        raise Problem("last_key")
    if retire is not None:
        await caller_keys.retire(connection, caller_id, use, retire, now)
    if new is not None:
        added = await caller_keys.add(connection, caller_id, use, new.kid, new.jwk, "self", now)
        assert added, "the lock is held, and the kid was free"
    return Rotated(use, new.kid if new else None, kids)


class Change(NamedTuple):
    """What one request asks."""

    known: KnownCaller
    use: KeyPurpose
    jwk: dict[str, Any] | None
    retire: str | None


class RotateCallerKey:
    """Kind of effect; `what` is a Change."""

    name = "caller_key"

    async def perform(self, connection: "AnyConnection", batch: Sequence[Asked]) -> list[Done | Problem]:
        for caller_id in sorted({asked.caller_id for asked in batch}):  # the same order everywhere: no deadlock
            await caller_keys.lock(connection, caller_id)
        now = await connection.fetchval("SELECT clock_timestamp()")
        done: list[Done | Problem] = []
        for asked in batch:
            change: Change = asked.what
            try:
                rotated = await rotate(
                    connection, asked.caller_id, change.known, change.use, change.jwk, change.retire, now
                )
            except Problem as problem:  # before anything was written
                done.append(problem)
                continue
            answer = CallerKeys(rotated.use, rotated.keys, rotated.kid or msgspec.UNSET)
            operation = Operation(
                asked.reference,
                self.name,
                asked.caller_id,
                result="changed",
                reason=f"{change.use}: +{rotated.kid or ''} -{change.retire or ''}",
            )
            done.append(Done(Answer(200, _encode(answer)), operation))
        return done


def _read(known: KnownCaller, use: KeyPurpose, jwk: dict[str, Any]) -> VerifyKey:
    algorithm = algorithm_of(known.caller, use)
    if algorithm is None:
        raise invalid("$.use", "this caller is not registered with a signing algorithm")
    if needed := unfit_kid(jwk.get("kid"), use):
        raise invalid("$.jwk.kid", f"has to be {needed}")
    try:
        return read_signing_jwk(jwk, algorithm, use)
    except ValueError as error:  # its texts hold nothing that was submitted
        raise invalid("$.jwk", str(error)) from None


def _refuse_used(known: KnownCaller, use: KeyPurpose, rows: list[CallerKey], new: VerifyKey) -> None:
    """A kid is never another key's, and a key that is out does not come back under another kid."""
    there = {row.kid for row in rows} | {key.kid for key in known.from_files[use]} | set(known.caller.revoked_kids)
    if new.kid in there or new.jwk in {row.jwk for row in rows} | {key.jwk for key in known.from_files[use]}:
        raise Problem("key_exists")


def _refuse_shared(known: KnownCaller, other: KeyPurpose, rows: list[CallerKey], new: VerifyKey) -> None:
    """A key is for one use, also when it is out."""
    if new.jwk in {row.jwk for row in rows} | {key.jwk for key in known.from_files[other]}:
        raise Problem("key_exists", f"it is a {other} key of this caller: each use needs keys of its own")
