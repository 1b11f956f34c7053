"""When each of our signing keys signs and is accepted, and how new key files are taken up."""

import datetime as dt
import fcntl
import os
import time
from pathlib import Path

import jwt
import pytest
from prometheus_client import REGISTRY

from gateway.crypto.key_files import FileKeyStore, KeyFile, create_missing, create_next, open_folder
from gateway.crypto.key_store import KeyStore, KeyStoreError, KeyUse, OwnKey
from gateway.crypto.key_watch import KeyWatch
from gateway.crypto.rotation import CLOCK_SKEW_S, schedule, signs
from gateway.crypto.tokens import AccessTokens, InvalidToken
from gateway.flows.rotate_own_keys import status

T0 = dt.datetime(2026, 11, 23, 8, tzinfo=dt.UTC)
LIFETIME_S = 600


def key(number: int, active_from: dt.datetime | None = None) -> KeyFile:
    return KeyFile(f"sign-{number}", KeyUse.SIGN, os.urandom(32), active_from)


def own(number: int, active_from: dt.datetime | None = None) -> OwnKey:
    return OwnKey(f"sign-{number}", active_from)


def after(seconds: float) -> float:
    return T0.timestamp() + seconds


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    create_missing(tmp_path / "keys")
    return tmp_path / "keys"


OLD, NEW = own(1), own(2, T0)
END = LIFETIME_S + CLOCK_SKEW_S


@pytest.mark.parametrize(
    ("seconds", "states"),
    [(-30, "current next"), (-0.01, "current next"), (0, "accepted current"), (END - 0.01, "accepted current"),
     (END, "retired current"), (1e9, "retired current")],
)  # fmt: skip
def test_a_key_is_published_then_signs_then_runs_out(seconds: float, states: str) -> None:
    found = schedule([OLD, NEW], after(seconds), LIFETIME_S)
    assert " ".join(one.state for one in found) == states
    assert signs([OLD, NEW], after(seconds)) is (NEW if seconds >= 0 else OLD)
    assert found[0].until == after(END) and found[1].since == after(0) and found[1].until is None


def test_the_last_token_of_a_key_is_always_accepted() -> None:
    """A token that the old key signs at the last moment expires before the key does."""
    last_signed = after(-0.001)
    assert signs([OLD, NEW], last_signed) is OLD
    assert schedule([OLD, NEW], last_signed + LIFETIME_S, LIFETIME_S)[0].state == "accepted"


def test_keys_without_a_time_are_as_before() -> None:
    assert [one.state for one in schedule([own(1), own(2)], after(0), LIFETIME_S)] == ["accepted", "current"]
    only = [own(1, T0)]
    assert signs(only, after(-5)) is only[0], "a gateway always has a key that signs"


def tokens_with(*starts: float | None) -> AccessTokens:
    """Keys sign-1, sign-2 … that took over so many seconds from now."""
    now = dt.datetime.now(dt.UTC)
    keys = [
        key(number, None if start is None else now + dt.timedelta(seconds=start))
        for number, start in enumerate(starts, 1)
    ]
    return AccessTokens(FileKeyStore(keys), "https://g.example", LIFETIME_S)


def kids(tokens: AccessTokens) -> list[str]:
    return [jwk["kid"] for jwk in tokens.jwks()["keys"]]


def issued(tokens: AccessTokens) -> str:
    return tokens.issue("c", [], int(time.time()), "j", "k")


def test_a_key_that_is_next_is_published_and_does_not_sign() -> None:
    tokens = tokens_with(None, 60)
    assert kids(tokens) == ["sign-1", "sign-2"]
    assert jwt.get_unverified_header(issued(tokens))["kid"] == "sign-1"


def test_a_key_that_ran_out_is_neither_published_nor_accepted() -> None:
    old, new = key(1), key(2, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=END + 1))
    token = issued(AccessTokens(FileKeyStore([old]), "https://g.example", LIFETIME_S))
    rotated = AccessTokens(FileKeyStore([old, new]), "https://g.example", LIFETIME_S)
    assert kids(rotated) == ["sign-2"]
    with pytest.raises(InvalidToken):
        rotated.read(token)
    both = FileKeyStore([old, key(2, dt.datetime.now(dt.UTC))])
    accepted = AccessTokens(both, "https://g.example", LIFETIME_S)
    assert accepted.read(token).key_id == "k", "the control: a moment before it is"


def test_a_rotation_makes_one_key_and_not_the_next_before_its_time(folder: Path) -> None:
    kid, takes_over = create_next(folder, KeyUse.SIGN, T0, 30)
    assert (kid, takes_over) == ("sign-2", T0 + dt.timedelta(seconds=30))
    made = open_folder(folder).keys(KeyUse.SIGN)[-1]
    assert (made.kid, made.active_from) == (kid, takes_over)
    assert (folder / "sign-2.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(KeyStoreError, match="has not taken over yet"):
        create_next(folder, KeyUse.SIGN, T0 + dt.timedelta(seconds=29), 30)
    assert create_next(folder, KeyUse.SIGN, takes_over, 30)[0] == "sign-3"


def test_two_rotations_at_once_make_one_key(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(KeyStoreError, match="another key is being made"):
            create_next(folder, KeyUse.SIGN, T0, 30)
    finally:
        os.close(descriptor)
    assert not (folder / "sign-2.json").exists()


def counted(result: str) -> float:
    return REGISTRY.get_sample_value("yikatong_own_key_reloads_total", {"result": result}) or 0.0


def test_new_and_removed_keys_are_taken_up(folder: Path) -> None:
    seen: list[list[str]] = []
    watch = KeyWatch(folder, lambda store: seen.append([key.kid for key in store.keys(KeyUse.SIGN)]))
    assert watch.reload_if_changed() is False and seen == []
    create_next(folder, KeyUse.SIGN, T0, 0)
    assert watch.reload_if_changed() is True and watch.reload_if_changed() is False
    (folder / "sign-1.json").unlink()
    assert watch.reload_if_changed() is True
    assert seen == [["sign-1", "sign-2"], ["sign-2"]] and watch.store.keys(KeyUse.SIGN)[-1].kid == "sign-2"


@pytest.mark.parametrize("how", ["cut short", "others may read it", "folder open", "the only key removed", "not a key"])
def test_a_mistake_leaves_the_keys_in_use(folder: Path, how: str) -> None:
    seen: list[KeyStore] = []
    watch, refused = KeyWatch(folder, seen.append), counted("refused")
    create_next(folder, KeyUse.SIGN, T0, 0)
    new = folder / "sign-2.json"
    if how == "cut short":
        new.write_text(new.read_text()[:30])
    elif how == "others may read it":
        new.chmod(0o644)
    elif how == "folder open":
        folder.chmod(0o755)
    elif how == "the only key removed":
        (folder / "kek-1.json").unlink()
    else:
        (folder / "notes.json").write_text("{}")
        (folder / "notes.json").chmod(0o600)
    assert watch.reload_if_changed() is False and seen == []
    assert [key.kid for key in watch.store.keys(KeyUse.SIGN)] == ["sign-1"] and counted("refused") == refused + 1


def test_a_mistake_that_is_repaired_is_taken_up(folder: Path) -> None:
    seen: list[KeyStore] = []
    watch = KeyWatch(folder, seen.append)
    folder.chmod(0o755)
    with pytest.raises(KeyStoreError, match="others may read it"):
        create_next(folder, KeyUse.SIGN, T0, 0)
    assert watch.reload_if_changed() is False
    folder.chmod(0o700)
    assert watch.reload_if_changed() is True and len(seen) == 1


def test_the_status_names_a_missing_key(folder: Path) -> None:
    lines = status(open_folder(folder), T0, LIFETIME_S, {"kek-1": 2, "kek-9": 1})
    assert {line.kid: line.note for line in lines if line.use == KeyUse.KEK} == {
        "kek-1": "wraps 2 data keys", "kek-9": "MISSING, and needed",
    }  # fmt: skip
    assert {line.use for line in lines} == set(KeyUse)
