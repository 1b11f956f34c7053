"""The gateway's own keys, by use: strict files at first; a hardware module comes through the same seam.

A key file is JSON `{"kid": "kek-1", "use": "kek", "key": "<base64, 32 bytes>"}`, mode 0600, in a folder of mode 0700.
The newest of a use (highest number) makes new things; all of them open old ones.
"""

import base64
import datetime as dt
import fcntl
import json
import os
import secrets
import stat
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from gateway.domain.errors import CannotStart


class KeyUse(StrEnum):
    KEK = "kek"  # wraps data keys
    INDEX = "index"  # blind index
    PSEUDONYM = "pseudonym"  # card_ref
    SIGN = "sign"  # access tokens
    CARD_PROOF = "card-proof"  # master key of the cards' authentication application


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kid: str
    use: KeyUse
    key: bytes
    """32 bytes; msgspec reads base64."""
    active_from: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None
    """When a key made by a rotation takes over; None: it was there from the start."""

    def __repr__(self) -> str:
        return f"Key({self.kid})"


class KeyStoreError(CannotStart):
    """A key file is missing, malformed or readable by others; the text names the file."""


class KeyStore:
    """The keys of one folder. Build it with open_folder()."""

    def __init__(self, keys: list[Key]) -> None:
        self._by_use: dict[KeyUse, list[Key]] = {use: [] for use in KeyUse}
        for key in sorted(keys, key=lambda key: _number(key.kid)):
            self._by_use[key.use].append(key)

    def all(self, use: KeyUse) -> list[Key]:
        """Every key of a use, oldest first."""
        return self._by_use[use]

    def current(self, use: KeyUse) -> Key:
        return self._by_use[use][-1]

    def get(self, use: KeyUse, kid: str) -> Key:
        """Raises KeyStoreError for a key id that this store does not hold."""
        for key in self._by_use[use]:
            if key.kid == kid:
                return key
        raise KeyStoreError(f"no {use} key {kid!r} in the key folder: was it removed or does it belong elsewhere?")


def _number(kid: str) -> int:
    return int(kid.rsplit("-", 1)[1])


def open_folder(folder: Path) -> KeyStore:
    """Read every key file. Raises KeyStoreError for loose permissions, a malformed file, or a use without a key."""
    if not folder.is_dir():
        raise KeyStoreError(f"{folder}: no such folder: run `python -m gateway init-keys`")
    refuse_loose(folder)
    keys = []
    for file in sorted(folder.glob("*.json")):
        refuse_loose(file)
        try:
            key = msgspec.json.decode(file.read_bytes(), type=Key)
            if len(key.key) != 32 or key.kid != file.stem or key.kid != f"{key.use}-{_number(key.kid)}":
                raise ValueError
        except (msgspec.MsgspecError, ValueError, IndexError) as error:
            raise KeyStoreError(f"{file}: not a key file of this gateway") from error
        keys.append(key)
    if missing := set(KeyUse) - {key.use for key in keys}:
        raise KeyStoreError(f"{folder}: no key for {', '.join(sorted(missing))}: run `python -m gateway init-keys`")
    return KeyStore(keys)


def create_missing(folder: Path) -> list[str]:
    """Make one key for every use that has none; returns the new key ids. Never replaces a key."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = []
    for use in KeyUse:
        if not any(folder.glob(f"{use}-*.json")):
            kid = f"{use}-1"
            _write_key(folder, kid, use)
            made.append(kid)
    return made


def create_next(folder: Path, use: KeyUse, now: dt.datetime, overlap_s: int) -> tuple[str, dt.datetime]:
    """Make the key that follows the newest of a use: (its id, when it takes over). Raises KeyStoreError.

    One at a time: not while another process makes one, and not before the last one has taken over.
    """
    open_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        newest = open_folder(folder).current(use)
        if newest.active_from is not None and newest.active_from > now:
            raise KeyStoreError(f"{newest.kid} has not taken over yet: it does at {newest.active_from.isoformat()}")
        kid = f"{use}-{_number(newest.kid) + 1}"
        takes_over = (now + dt.timedelta(seconds=overlap_s)).replace(microsecond=0)
        _write_key(folder, kid, use, active_from=takes_over.isoformat())
        return kid, takes_over
    except BlockingIOError:
        raise KeyStoreError(f"{folder}: another key is being made: try again") from None
    finally:
        os.close(descriptor)


def _write_key(folder: Path, kid: str, use: KeyUse, **more: str) -> None:
    key = {"kid": kid, "use": use, "key": base64.b64encode(secrets.token_bytes(32)).decode()}
    write_private(folder / f"{kid}.json", json.dumps(key | more))


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner may read, complete or not at all."""
    part = file.with_suffix(".part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    part.rename(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_loose(path: Path) -> None:
    """Raises KeyStoreError, OSError."""
    state = path.stat()
    if stat.S_IMODE(state.st_mode) & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise KeyStoreError(f"{path}: others may read it: chmod {wanted} it, and consider the key disclosed")
    if state.st_uid != os.geteuid():
        raise KeyStoreError(f"{path}: belongs to another user")
