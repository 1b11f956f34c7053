"""Which keys of a caller are in force, how a worker learns of them, and that tokens die with their key."""

import asyncio
import datetime as dt
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from gateway import directory as directory_module
from gateway.api.auth import Authenticator, Unauthorised
from gateway.crypto import sm2
from gateway.crypto.caller_keys import in_force, published
from gateway.crypto.key_files import FileKeyStore
from gateway.crypto.signatures import ED25519, ES256, KEYS_MAX, SM2_SM3, VerifyKey, read_signing_jwk, sm2_public_jwk
from gateway.crypto.tokens import Access, AccessTokens
from gateway.directory import Directory
from gateway.domain.caller_keys import CallerKey, Source
from gateway.domain.callers import Caller, CallerKind, KeyPurpose
from gateway.domain.errors import Problem, unavailable
from tests.jwks import ANYBODYS, FOR_OTHERS, UNFIT, private, public
from tests.running import eventually
from tests.unit.test_directory import House
from tests.unit.test_own_keys import key as own_key

T0 = dt.datetime(2026, 11, 23, 8, tzinfo=dt.UTC)
SIGNING, TOKEN = KeyPurpose.SIGNING, KeyPurpose.TOKEN
MERCHANT = "demo-merchant"


def parsed(kid: str) -> VerifyKey:
    return read_signing_jwk(public(kid), ED25519)


def row(
    kid: str, at: float = 0, source: Source = "self", use: KeyPurpose = SIGNING, retired: bool = False
) -> CallerKey:
    jwk = None if source == "file" else parsed(kid).jwk
    return CallerKey(MERCHANT, use, kid, jwk, source, T0 + dt.timedelta(seconds=at), retired)


FILE: dict[str, Any] = {"name": "x", "kind": CallerKind.MERCHANT, "scopes": (), "algorithm": "EdDSA", "keys_file": "a",
        "signing_algorithm": "ed25519", "signing_keys_file": "b"}  # fmt: skip
URL = FILE | {"signing_keys_file": None, "signing_keys_url": "https://k.example/"}
F1, F2 = parsed("f-1"), parsed("f-2")


@pytest.mark.parametrize(
    ("what", "files", "rows", "kids"),
    [
        (FILE, [F1], [], "f-1"),
        (FILE, [F1], [row("s-1")], "f-1 s-1"),
        (FILE, [F1], [row("s-1"), row("s-2", 1), row("s-3", -1)], "f-1 s-2"),
        (FILE, [F1, F2], [row("s-1")], "f-1 f-2"),
        (FILE, [F1], [row("f-1", source="file", retired=True), row("s-1"), row("s-2", 1)], "s-2 s-1"),
        (FILE, [F1], [row("s-1", retired=True)], "f-1"),
        (FILE, [F1], [row("f-1")], "f-1"),
        (FILE, [F1], [row("f-1", retired=True)], ""),
        (FILE, [F1], [row("u-1", source="jwks")], "f-1"),
        (URL, [], [row("u-1", source="jwks"), row("s-1")], "u-1"),
        (URL, [], [row("u-1", source="jwks", retired=True)], ""),
        (FILE | {"revoked_kids": ("f-1", "s-1")}, [F1, F2], [row("s-1")], "f-2"),
        (URL | {"revoked_kids": ("u-1",)}, [], [row("u-1", source="jwks"), row("u-2", source="jwks")], "u-2"),
        (URL | {"signing_algorithm": "ecdsa-p256-sha256"}, [], [row("u-1", source="jwks")], ""),
    ],
)
def test_at_most_two_keys_are_in_force(what: Any, files: list[VerifyKey], rows: list[CallerKey], kids: str) -> None:
    caller = Caller(**what)
    assert " ".join(key.kid for key in in_force(caller, SIGNING, files, rows)) == kids
    assert " ".join(key.kid for key in in_force(caller, SIGNING, files, rows[::-1])) == kids, "in any order"


def test_the_key_of_the_file_is_the_one_that_counts() -> None:
    (found,) = in_force(Caller(**FILE), SIGNING, [F1], [row("f-1")])
    assert found is F1


def test_a_published_document_may_hold_keys_for_other_things() -> None:
    signing, other = public("a"), public("b", "ES256")
    assert [key.kid for key in published({"keys": [other, signing]}, ED25519, ())] == ["a"]
    with pytest.raises(ValueError, match="0 keys for ed25519"):
        published({"keys": [other, signing | {"use": "enc"}]}, ED25519, ())


@pytest.mark.parametrize("member", FOR_OTHERS)
def test_a_published_key_for_something_else_is_passed_over(member: str) -> None:
    good, other = public("a"), public("b") | FOR_OTHERS[member]
    assert [key.kid for key in published({"keys": [other, good]}, ED25519, ())] == ["a"]
    with pytest.raises(ValueError, match="0 keys for ed25519"):
        published({"keys": [other]}, ED25519, ())


@pytest.mark.parametrize("how", UNFIT)
def test_a_published_key_of_no_owner_is_refused_with_its_document(how: str) -> None:
    change, said = UNFIT[how]
    with pytest.raises(ValueError, match=said):
        published({"keys": [public("a"), public("b") | change]}, ED25519, ())


def test_a_key_of_no_owner_that_was_taken_before_is_out() -> None:
    jwk = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": ANYBODYS}, separators=(",", ":"))
    taken = CallerKey(MERCHANT, SIGNING, "weak", jwk, "self", T0, False)
    assert [key.kid for key in in_force(Caller(**FILE), SIGNING, [F1], [taken, row("s-1")])] == ["f-1", "s-1"]


ODD_VALUES = st.none() | st.integers() | st.text(max_size=50) | st.lists(st.text(max_size=3), max_size=2)
NAMES = st.sampled_from(["kty", "crv", "kid", "x", "y", "d", "k", "use", "alg", "key_ops"])
PUBLIC = [public("a"), public("b"), public("c", "ES256"), sm2_public_jwk("d", sm2.generate()[1])]


@st.composite
def from_the_net(draw: st.DrawFn) -> Any:
    """A document of good keys, in which up to one is changed; now and then something else."""
    if draw(st.integers(0, 9)) == 0:
        return draw(ODD_VALUES | st.fixed_dictionaries({"keys": ODD_VALUES | st.lists(ODD_VALUES, max_size=2)}))
    keys: list[Any] = [
        dict(jwk) for jwk in draw(st.lists(st.sampled_from(PUBLIC), max_size=4, unique_by=lambda jwk: jwk["kid"]))
    ]
    if draw(st.booleans()) and keys:
        changed = draw(st.sampled_from(keys))
        changed.pop(draw(st.sampled_from(["none of these"]) | NAMES), None)
        changed.update(draw(st.dictionaries(st.sampled_from(["x", "y"]) | NAMES, ODD_VALUES, min_size=1, max_size=2)))
    return {"keys": keys}


@pytest.mark.parametrize("algorithm", [ED25519, ES256, SM2_SM3])
@given(document=from_the_net(), revoked=st.lists(st.sampled_from("abcd"), max_size=2))
def test_any_published_document_gives_one_or_two_keys_or_a_value_error(
    algorithm: str, document: Any, revoked: list[str]
) -> None:
    try:
        found = published(document, algorithm, revoked)
    except ValueError as error:
        shown = [value for jwk in _dicts(document) for value in jwk.values() if len(str(value)) > 8]
        assert not any(str(value) in str(error) for value in shown)
        return
    assert 1 <= len(found) <= KEYS_MAX and len({key.kid for key in found}) == len(found)
    for key in found:
        assert key.algorithm == algorithm and key.kid not in revoked
        assert read_signing_jwk(json.loads(key.jwk) | {"kid": key.kid}, algorithm)[::3] == (key.kid, key.jwk)


def _dicts(document: Any) -> list[dict[str, Any]]:
    keys = document.get("keys") if isinstance(document, dict) else None
    return [one for one in keys if isinstance(one, dict)] if isinstance(keys, list) else []


class Table:
    """Stands for the table: what it holds, how often it was read, whether it fails."""

    def __init__(self) -> None:
        self.rows: list[CallerKey] = []
        self.reads = 0
        self.asked: set[str] = set()
        self.fails = False

    async def __call__(self, file_kids: Collection[str]) -> list[CallerKey]:
        self.reads += 1
        self.asked = set(file_kids)
        await asyncio.sleep(0)
        if self.fails:
            raise unavailable("test")
        return list(self.rows)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    house = House(tmp_path)
    for name, value in house.environment.items():
        monkeypatch.setenv(name, value)
    return house


async def test_a_worker_takes_up_the_table_and_keeps_it_when_the_files_change(house: House) -> None:
    table = Table()
    directory = Directory(house.settings(), table)
    table.rows = [row("s-1"), row("t-1", use=TOKEN)]
    await directory.look()
    known = directory.callers[MERCHANT]
    assert [key.kid for key in known.signing_keys] == ["demo-merchant-signing-1", "s-1"]
    assert known.token_kids == {"demo-merchant-1", "t-1"} == {key.kid for key in known.keys}
    assert {"demo-merchant-1", "demo-merchant-signing-1", "demo-bank-1"} <= table.asked
    house.edit("callers.toml", 'algorithm = "EdDSA"', 'algorithm = "EdDSA"\nrevoked_kids = ["t-1"]')
    assert directory.reload_if_changed() is True
    assert directory.callers[MERCHANT].token_kids == {"demo-merchant-1"}
    assert directory.callers[MERCHANT].holds(SIGNING, "s-1"), "the table is still known"


async def test_a_key_for_both_uses_that_is_there_already_is_told_of(house: House) -> None:
    """One of before it was refused, or of a new file: to take it out would lock its caller out."""
    table = Table()
    directory = Directory(house.settings(), table)
    shared = directory.callers[MERCHANT].keys[0].jwk
    with capture_logs() as lines:
        table.rows = [row("s-1")]
        await directory.look()
        assert lines == []
        table.rows = [row("s-1")._replace(jwk=shared)]
        await directory.look()
        await directory.look()
    (line,) = lines
    assert (line["log_level"], line["caller"]) == ("warning", MERCHANT) and "each needs keys of its own" in line[
        "event"
    ]
    assert directory.callers[MERCHANT].holds(SIGNING, "s-1")


async def test_a_table_that_cannot_be_read_leaves_the_last_good_keys(house: House) -> None:
    table = Table()
    directory = Directory(house.settings(), table)
    table.rows = [row("s-1")]
    await directory.look()
    before, known_at = directory.callers, directory.known_at
    table.rows, table.fails = [], True
    with pytest.raises(Problem):
        await directory.look()
    assert directory.callers is before and directory.known_at == known_at
    table.fails = False
    await directory.look()
    assert not directory.callers[MERCHANT].holds(SIGNING, "s-1") and directory.known_at > known_at


async def test_an_unknown_kid_is_looked_for_at_once_and_then_once_a_second(house: House) -> None:
    table = Table()
    directory = Directory(house.settings(), table)
    table.rows = [row("s-1")]
    found = await directory.find_signing_key(MERCHANT, "s-1")
    assert found is not None and found.kid == "s-1" and table.reads == 1
    began = time.monotonic()
    for number in range(50):
        assert await directory.find_signing_key(MERCHANT, f"guess-{number}") is None
        assert await directory.find_signing_key("nobody", "s-1") is None
    assert await directory.find_signing_key(MERCHANT, "s-1") is found
    assert 5 <= table.reads <= 5 + (time.monotonic() - began), "a caller's mistakes cost five looks, and one a second"
    reads = table.reads
    assert await directory.find_signing_key("demo-bank", "x") is None and table.reads == reads + 1, "nobody else's"
    table.rows = [row("s-1"), row("s-2", 1)]

    async def newest() -> VerifyKey | None:
        return await directory.find_signing_key(MERCHANT, "s-2")

    await eventually(newest, 5, "the new key is found at the next look")


async def test_without_such_a_look_a_new_key_would_wait(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(directory_module, "_LOOKS_AT_ONCE", 0)
    table = Table()
    directory = Directory(house.settings(), table)
    table.rows = [row("s-1")]
    assert await directory.find_signing_key(MERCHANT, "s-1") is None and table.reads == 0


def test_a_token_dies_with_its_key_and_not_before_the_worker_knows(house: House) -> None:
    directory = Directory(house.settings())
    tokens = AccessTokens(FileKeyStore([own_key(1)]), "https://g.example", 600)
    authenticate = Authenticator(tokens, directory, 10)
    now = time.time()

    def access(kid: str, issued_at: float) -> Access:
        return Access(MERCHANT, frozenset(), now + 60, issued_at, kid)

    directory.known_at = now
    assert authenticate.caller_of(access("demo-merchant-1", now - 60)) is directory.callers[MERCHANT]
    assert authenticate.caller_of(access("new", int(now))), "issued by a worker that knows more: believed until a look"
    for late in (access("new", int(now) - 3), access("demo-bank-1", now - 60), access("demo-merchant-signing-1", 0)):
        with pytest.raises(Unauthorised) as caught:
            authenticate.caller_of(late)
        assert caught.value.why == "retired_key"
    directory.known_at = now + 5
    with pytest.raises(Unauthorised):
        authenticate.caller_of(access("new", int(now)))


async def test_keys_given_to_us_never_hold_a_private_part() -> None:
    assert '"d"' not in json.dumps(row("s-1").jwk)
    with pytest.raises(ValueError, match="private"):
        published({"keys": [private("a")]}, ED25519, ())
