"""Callers change their own keys: on a real database, as the application's role."""

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from gateway.crypto import ed25519_points
from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.caller_keys import in_force
from gateway.crypto.key_store import KeyUse
from gateway.crypto.signatures import ED25519, ES256, VerifyKey, read_signing_jwk, verify
from gateway.directory import KnownCaller
from gateway.domain.caller_keys import CallerKey
from gateway.domain.callers import Caller, CallerKind, KeyPurpose
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.flows import rotate_caller_key
from gateway.flows.effects import Effects
from gateway.flows.rotate_caller_key import Change, RotateCallerKey, Rotated, rotate
from gateway.settings import load
from gateway.store import caller_keys
from gateway.store.pool import connect
from tests.conftest import Database
from tests.jwks import ANYBODYS, FOR_OTHERS, FORGED, UNFIT, UNFIT_KIDS, private, public
from tests.keyed import keyed

NOW = dt.datetime(2026, 11, 23, 8, tzinfo=dt.UTC)
SIGNING, TOKEN = KeyPurpose.SIGNING, KeyPurpose.TOKEN


def shop(*signing: dict[str, Any], **changes: Any) -> KnownCaller:
    """A caller that signs with Ed25519 and gets its tokens with ES256; its signing file holds these keys."""
    fields: dict[str, Any] = {
        "name": "店(合成)", "kind": CallerKind.MERCHANT, "scopes": (), "algorithm": "ES256", "keys_file": "t.json",
        "signing_algorithm": "ed25519", "signing_keys_file": "s.json",
    } | changes  # fmt: skip
    files: dict[KeyPurpose, tuple[VerifyKey, ...]] = {
        TOKEN: (read_signing_jwk(public("t-1", "ES256"), ES256),),
        SIGNING: tuple(read_signing_jwk(jwk, ED25519) for jwk in signing),
    }
    return KnownCaller(Caller(**fields), (), (), frozenset(), 0, frozenset(), files)


@pytest.fixture
async def connection(database: Database) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    made = await connect(Secret(database.dsn), load({}).gateway.database, "test")
    yield made
    await made.close()


class Shop:
    def __init__(
        self, connection: "asyncpg.Connection[asyncpg.Record]", known: KnownCaller, name: str = "shop"
    ) -> None:
        self.connection, self.known, self.name = connection, known, name

    async def rotate(
        self, jwk: dict[str, Any] | None = None, retire: str | None = None, use: KeyPurpose = SIGNING,
        now: dt.datetime = NOW,
    ) -> Rotated:  # fmt: skip
        async with self.connection.transaction():
            return await rotate(self.connection, self.name, self.known, use, jwk, retire, now)

    async def refused(self, *asked: Any, **more: Any) -> str:
        before = await self.in_force()
        with pytest.raises(Problem) as caught:
            await self.rotate(*asked, **more)
        assert await self.in_force() == before
        return caught.value.code

    async def in_force(self, use: KeyPurpose = SIGNING) -> list[str]:
        """As the directory of a worker sees it."""
        rows = await caller_keys.relevant(self.connection, [key.kid for key in self.known.from_files[use]])
        mine = [row for row in rows if row.caller == self.name and row.use is use]
        return sorted(key.kid for key in in_force(self.known.caller, use, self.known.from_files[use], mine))


async def test_a_rotation_with_overlap_then_at_once(connection: Any) -> None:
    caller = Shop(connection, shop(public("s-1")))
    assert await caller.rotate(public("s-2")) == (SIGNING, "s-2", ["s-1", "s-2"])
    assert await caller.in_force() == ["s-1", "s-2"]
    assert await caller.rotate(retire="s-1") == (SIGNING, None, ["s-2"])
    assert await caller.in_force() == ["s-2"], "a key of a file can be taken out too"
    assert (await caller.rotate(public("s-3"), "s-2")).keys == ["s-3"]
    assert await caller.in_force() == ["s-3"]


async def test_each_use_has_its_own_keys_and_algorithm(connection: Any) -> None:
    caller = Shop(connection, shop(public("s-1")))
    assert (await caller.rotate(public("s-2", "ES256"), use=TOKEN)).keys == ["t-1", "s-2"]
    assert await caller.refused(public("t-2"), use=TOKEN) == "validation_failed", "EdDSA where ES256 is registered"
    assert await caller.refused(public("s-3", "ES256")) == "validation_failed"
    assert await caller.in_force() == ["s-1"] and await caller.in_force(TOKEN) == ["s-2", "t-1"]
    async with connection.transaction():
        row = await connection.fetchrow("SELECT * FROM caller_key")
    assert (row["caller"], row["use"], row["source"]) == ("shop", "token", "self") and '"d"' not in row["jwk"]


async def test_what_is_refused(connection: Any) -> None:
    old, other = public("s-1"), public("s-2")
    caller = Shop(connection, shop(old, revoked_kids=("s-9",)))
    assert await caller.refused(private("s-2")) == "validation_failed"
    assert await caller.refused(public("s-2") | {"x": "AAAA"}) == "validation_failed"
    assert await caller.refused() == "validation_failed"
    assert await caller.refused(retire="s-1") == "last_key"
    assert await caller.refused(retire="s-7") == "unknown_key"
    assert await caller.refused(other, "s-2") == "unknown_key", "the new key itself"
    assert await caller.refused(public("s-1")) == "key_exists", "the kid of a file's key"
    assert await caller.refused(public("s-1"), "s-1") == "key_exists"
    assert await caller.refused(old | {"kid": "s-2"}) == "key_exists", "the same key under another name"
    assert await caller.refused(public("s-9")) == "key_exists", "a revoked kid"
    await caller.rotate(other)
    assert await caller.refused(public("s-3")) == "too_many_keys"
    await caller.rotate(public("s-3"), "s-2")
    assert await caller.refused(public("s-2"), "s-1") == "key_exists", "a kid that is out"
    assert await caller.refused(other | {"kid": "s-4"}, "s-1") == "key_exists", "a key that is out"
    assert await caller.in_force() == ["s-1", "s-3"]


async def test_a_key_is_for_one_use(connection: Any) -> None:
    """Neither that of a file, nor one that was given, nor one that is out becomes a key for the other use."""
    caller = Shop(connection, shop(signing_algorithm="ecdsa-p256-sha256"))
    (in_file,) = caller.known.from_files[TOKEN]
    assert await caller.refused(json.loads(in_file.jwk) | {"kid": "s-1"}) == "key_exists"
    own = public("s-1", "ES256")
    await caller.rotate(own)
    assert await caller.refused(own | {"kid": "t-2"}, use=TOKEN) == "key_exists"
    await caller.rotate(public("s-2", "ES256"), "s-1")
    assert await caller.refused(own | {"kid": "t-2"}, use=TOKEN) == "key_exists"
    assert await caller.in_force() == ["s-2"] and await caller.in_force(TOKEN) == ["t-1"]


async def test_a_signing_key_that_no_signature_can_name_is_refused(connection: Any) -> None:
    caller = Shop(connection, shop(public("s-1")))
    for kid in UNFIT_KIDS:
        assert await caller.refused(public(kid), "s-1") == "validation_failed", kid
    assert (await caller.rotate(public('t "2"', "ES256"), use=TOKEN)).kid == 't "2"', "in a JWT any text is right"


async def test_one_that_was_taken_before_does_not_count(connection: Any) -> None:
    """Its caller could not sign with it: it neither fills a place nor is it a last key."""
    caller = Shop(connection, shop(public("s-1")))
    jwk = read_signing_jwk(public("s-2"), ED25519).jwk
    await caller_keys.add(connection, "shop", SIGNING, 's "2"', jwk, "self", NOW)
    assert await caller.in_force() == ["s-1"] and await caller.refused(retire="s-1") == "last_key"
    assert (await caller.rotate(public("s-3"))).keys == ["s-1", "s-3"]


async def test_a_key_of_no_owner_or_for_something_else_is_refused(connection: Any) -> None:
    caller = Shop(connection, shop(public("s-1")))
    for change in (*(change for change, _ in UNFIT.values()), *FOR_OTHERS.values()):
        assert await caller.refused(public("s-2") | change, "s-1") == "validation_failed"


async def test_without_the_check_anybody_could_sign_for_it(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(ed25519_points, "refuse_unfit", lambda encoded: None)
    caller = Shop(connection, shop(public("s-1")))
    await caller.rotate(public("s-2") | {"x": ANYBODYS}, "s-1")
    rows = await caller_keys.of_caller(connection, "shop", SIGNING)
    (key,) = in_force(caller.known.caller, SIGNING, caller.known.from_files[SIGNING], rows)
    assert key.kid == "s-2" and verify(key, b"pay me", FORGED)


async def test_who_publishes_keys_or_does_not_sign_cannot_add_any(connection: Any) -> None:
    by_url = Shop(connection, shop(signing_keys_file=None, signing_keys_url="https://keys.example/jwks"))
    assert await by_url.refused(public("s-2")) == "keys_by_url"
    unsigned = Shop(connection, shop(signing_algorithm=None, signing_keys_file=None))
    assert await unsigned.refused(public("s-2")) == "validation_failed"


async def test_new_keys_a_day_are_limited(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotate_caller_key, "NEW_KEYS_A_DAY_MAX", 3)
    caller = Shop(connection, shop(public("s-0")))
    for number in range(3):
        await caller.rotate(public(f"s-{number + 1}"), f"s-{number}")
    assert await caller.refused(public("s-4"), "s-3") == "too_many_keys"
    assert (await caller.rotate(public("s-4"), "s-3", now=NOW + dt.timedelta(days=1))).keys == ["s-4"]


async def storm(database: Database, count: int) -> tuple[int, list[str]]:
    """(rotations done, kids in force) after so many at once, each adding a key, on connections of their own."""
    known = shop(public("s-1"))
    connections = [await connect(Secret(database.dsn), load({}).gateway.database, "test") for _ in range(count)]
    try:
        shops = [Shop(connection, known) for connection in connections]
        asks = (caller.rotate(public(f"s-{number + 2}")) for number, caller in enumerate(shops))
        done = await asyncio.gather(*asks, return_exceptions=True)
        assert all(isinstance(one, Rotated) or getattr(one, "code", "") == "too_many_keys" for one in done), done
        rows = await caller_keys.of_caller(connections[0], "shop", SIGNING)
        kids = ["s-1", *(row.kid for row in rows if not row.retired)]
        return sum(isinstance(one, Rotated) for one in done), kids
    finally:
        for connection in connections:
            await connection.close()


async def test_rotations_at_once_leave_two_keys(database: Database) -> None:
    done, kids = await storm(database, 12)
    assert (done, len(kids)) == (1, 2)


async def test_without_the_lock_there_would_be_more(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: all have read the keys before one adds its own."""
    of_caller, have_read = caller_keys.of_caller, asyncio.Barrier(12)
    readers = 0

    async def no_lock(connection: Any, caller: str) -> None:
        return

    async def read_together(connection: Any, caller: str, use: KeyPurpose) -> list[CallerKey]:
        nonlocal readers
        readers += 1
        rows = await of_caller(connection, caller, use)
        if readers <= 12:
            await have_read.wait()
        return rows

    monkeypatch.setattr(caller_keys, "lock", no_lock)
    monkeypatch.setattr(caller_keys, "of_caller", read_together)
    assert len((await storm(database, 12))[1]) == 13


async def test_the_applications_role_cannot_change_or_delete_a_key(connection: Any) -> None:
    caller = Shop(connection, shop(public("s-1")))
    await caller.rotate(public("s-2"))
    for statement in ("UPDATE caller_key SET jwk = '{}'", "UPDATE caller_key SET kid = 'x'", "DELETE FROM caller_key"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)


async def test_as_an_effect_it_is_done_once_and_a_refused_one_gives_its_key_back(
    database: Database, tmp_path: Path, connection: Any
) -> None:
    """POST /v1/callers/self/keys is this kind, run by flows/effects.py."""
    async with keyed(database.dsn, tmp_path / "keys") as (_, data_keys, store):
        effects = Effects(
            partial(connect, Secret(database.dsn), load({}).gateway.database, "test", {"lock_timeout": "200"}),
            data_keys, BlindIndex(store.working_keys(KeyUse.INDEX)[-1]),
            batch_max=16, queue_max=64, deadline_s=5, on_batch=lambda figures: None,
        )  # fmt: skip
        serving = asyncio.create_task(effects.serve())
        kind, known, new = RotateCallerKey(), shop(public("s-1")), public("s-2")
        try:
            for _ in range(2):
                ended = await effects.run(kind, "shop", "key-1", b"add s-2", Change(known, SIGNING, new, None))
                assert json.loads(ended.answer.body) == {"use": "signing", "keys": ["s-1", "s-2"], "kid": "s-2"}
            assert ended.replayed
            for _ in range(2):
                with pytest.raises(Problem) as caught:
                    await effects.run(kind, "shop", "key-2", b"add s-3", Change(known, SIGNING, public("s-3"), None))
                assert caught.value.code == "too_many_keys", "not a replay: it took no effect"
            asks = (
                effects.run(kind, "shop", f"many-{number}", b"x", Change(known, SIGNING, public(f"m-{number}"), "s-1"))
                for number in range(8)
            )
            ends = await asyncio.gather(*asks, return_exceptions=True)
            assert sum(not isinstance(end, Problem) for end in ends) == 1, "at once, in one batch: s-1 goes once"
            assert len(await Shop(connection, known).in_force()) == 2
            kinds = await connection.fetch("SELECT kind, result FROM operation WHERE caller = 'shop'")
            assert [tuple(row) for row in kinds] == [("caller_key", "changed")] * 2
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
