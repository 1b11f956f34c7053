"""The first key store: strict files.

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
from pathlib import Path
from typing import Annotated

import msgspec
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding, aes_key_wrap_with_padding

from gateway.crypto.ciphers import DoesNotOpen
from gateway.crypto.key_store import KeyStoreError, KeyUse, OwnKey, WorkingUse, Wrapped
from gateway.crypto.signatures import Signer, VerifyKey, ed25519_public, ed25519_signer
from gateway.domain.masking import Secret


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a key file says."""

    kid: str
    use: KeyUse
    key: bytes
    """32 bytes; msgspec reads base64."""
    active_from: Annotated[dt.datetime, msgspec.Meta(tz=True)] | None = None

    def __repr__(self) -> str:
        return f"KeyFile({self.kid})"


class FileKeyStore:
    """The keys of one folder, in memory: KEKs wrap by RFC 5649, signing keys are Ed25519. open_folder() builds it."""

    def __init__(self, files: list[KeyFile]) -> None:
        self._by_use: dict[KeyUse, list[KeyFile]] = {use: [] for use in KeyUse}
        for file in sorted(files, key=lambda file: _number(file.kid)):
            self._by_use[file.use].append(file)

    def keys(self, use: KeyUse) -> list[OwnKey]:
        return [OwnKey(file.kid, file.active_from) for file in self._by_use[use]]

    def signer(self, kid: str) -> Signer:
        return ed25519_signer(kid, self._secret(KeyUse.SIGN, kid))

    def public_key(self, kid: str) -> VerifyKey:
        return ed25519_public(kid, self._secret(KeyUse.SIGN, kid))

    def wrap(self, secret: bytes) -> Wrapped:
        kek = self._by_use[KeyUse.KEK][-1]
        return Wrapped(kek.kid, aes_key_wrap_with_padding(kek.key, secret))

    def unwrap(self, kek_id: str, wrapped: bytes) -> bytes:
        try:
            return aes_key_unwrap_with_padding(self._secret(KeyUse.KEK, kek_id), wrapped)
        except InvalidUnwrap:
            raise DoesNotOpen from None

    def working_keys(self, use: WorkingUse) -> list[Secret[bytes]]:
        return [Secret(file.key) for file in self._by_use[use]]

    def _secret(self, use: KeyUse, kid: str) -> bytes:
        for file in self._by_use[use]:
            if file.kid == kid:
                return file.key
        raise KeyStoreError(f"no {use} key {kid!r} in the key folder: was it removed or does it belong elsewhere?")


def _number(kid: str) -> int:
    return int(kid.rsplit("-", 1)[1])


def open_folder(folder: Path) -> FileKeyStore:
    """Read every key file. Raises KeyStoreError for loose permissions, a malformed file, or a use without a key."""
    if not folder.is_dir():
        raise KeyStoreError(f"{folder}: no such folder: run `python -m gateway init-keys`")
    refuse_loose(folder)
    keys = []
    for file in sorted(folder.glob("*.json")):
        refuse_loose(file)
        try:
            key = msgspec.json.decode(file.read_bytes(), type=KeyFile)
            if len(key.key) != 32 or key.kid != file.stem or key.kid != f"{key.use}-{_number(key.kid)}":
                raise ValueError
        except (msgspec.MsgspecError, ValueError, IndexError) as error:
            raise KeyStoreError(f"{file}: not a key file of this gateway") from error
        keys.append(key)
    if missing := set(KeyUse) - {key.use for key in keys}:
        raise KeyStoreError(f"{folder}: no key for {', '.join(sorted(missing))}: run `python -m gateway init-keys`")
    return FileKeyStore(keys)


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
        newest = open_folder(folder).keys(use)[-1]
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
    state = path.stat()
    if stat.S_IMODE(state.st_mode) & 0o077:
        wanted = "700" if path.is_dir() else "600"
        raise KeyStoreError(f"{path}: others may read it: chmod {wanted} it, and consider the key disclosed")
    if state.st_uid != os.geteuid():
        raise KeyStoreError(f"{path}: belongs to another user")
