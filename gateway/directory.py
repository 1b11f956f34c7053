"""The callers and scenes in force: read from the configuration, checked whole, changed without a restart.

A change that has a mistake is refused with a log line and a metric, and the last good state stays in force.
"""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import msgspec
import structlog

from gateway.crypto.signatures import VerifyKey, read_signing_jwks
from gateway.crypto.tokens import PublicKey, read_jwks
from gateway.domain.callers import Caller, CallerKind
from gateway.metrics import RELOADS
from gateway.settings import Settings, SettingsError, load

log = structlog.get_logger()

POLL_S = 5
_KEYS_FILE_MAX_BYTES = 65_536


class KnownCaller(msgspec.Struct, frozen=True):
    """A caller with its keys parsed."""

    caller: Caller
    keys: tuple[PublicKey, ...]
    signing_keys: tuple[VerifyKey, ...]
    scopes: frozenset[str]
    quota_slot: int
    """Place in the shared quota table."""


class KnownScene(msgspec.Struct, frozen=True):
    """A scene with what is asked of it at every verify."""

    field: str
    generations: dict[CallerKind, str]
    """The card generations that it takes from each kind of caller, as the verify statement wants them."""


class Directory:
    """Replaced as a whole by reload(): readers hold one consistent state."""

    def __init__(self, settings: Settings) -> None:
        self.callers, self.scenes = read(settings)
        self._stamps = _stamps(settings)
        self._watched = settings

    async def watch(self) -> None:
        """Look for changes every POLL_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            self.reload_if_changed()

    def reload_if_changed(self) -> bool:
        """Whether a change was taken up."""
        stamps = _stamps(self._watched)
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        try:
            settings = load()
            self._watched = settings  # also if it is refused below: a key file that is missing may come
            callers, scenes = read(settings)
        except SettingsError as error:
            RELOADS.labels("refused").inc()
            log.error("configuration change refused", mistakes=error.mistakes)
            return False
        self.callers, self.scenes = callers, scenes
        RELOADS.labels("taken").inc()
        log.info("configuration change taken up", callers=len(callers), scenes=len(scenes))
        return True


def read(settings: Settings) -> tuple[dict[str, KnownCaller], dict[str, KnownScene]]:
    """The callers with their key files read. Raises SettingsError naming every mistake."""
    mistakes: list[str] = []
    callers: dict[str, KnownCaller] = {}
    slots: dict[int, str] = {}
    for caller_id, caller in settings.callers.items():
        slot = quota_slot(caller_id)
        if caller.quota_per_second and slots.setdefault(slot, caller_id) != caller_id:
            mistakes.append(f"callers.toml: callers.{caller_id}: shares its quota slot with {slots[slot]}: rename one")
        keys = _keys(settings, caller_id, caller, mistakes)
        signing_keys = _signing_keys(settings, caller_id, caller, mistakes)
        callers[caller_id] = KnownCaller(caller, tuple(keys), tuple(signing_keys), frozenset(caller.scopes), slot)
    if mistakes:
        raise SettingsError(mistakes)
    scenes = {
        scene_id: KnownScene(scene.field, {kind: str(scene.generations(kind)) for kind in CallerKind})
        for scene_id, scene in settings.scenes.items()
    }
    return callers, scenes


def _keys(settings: Settings, caller_id: str, caller: Caller, mistakes: list[str]) -> list[PublicKey]:
    if caller.keys_file is None:
        return []
    try:
        return read_jwks(_read_json(settings.data_dir / caller.keys_file), caller.algorithm)
    except (OSError, ValueError) as error:
        mistakes.append(_mistake(f"callers.{caller_id}.keys_file", settings.data_dir / caller.keys_file, error))
        return []


def _signing_keys(settings: Settings, caller_id: str, caller: Caller, mistakes: list[str]) -> list[VerifyKey]:
    if caller.signing_algorithm is None or caller.signing_keys_file is None:
        return []
    try:
        document = _read_json(settings.data_dir / caller.signing_keys_file)
        return read_signing_jwks(document, caller.signing_algorithm)
    except (OSError, ValueError) as error:
        file = settings.data_dir / caller.signing_keys_file
        mistakes.append(_mistake(f"callers.{caller_id}.signing_keys_file", file, error))
        return []


def _mistake(path: str, file: Path, error: OSError | ValueError) -> str:
    return f"callers.toml: {path}: {file}: {error.strerror if isinstance(error, OSError) else error}"


def key_files(settings: Settings, caller: Caller) -> list[Path]:
    return [settings.data_dir / file for file in (caller.keys_file, caller.signing_keys_file) if file is not None]


QUOTA_SLOTS = 1 << 16


def quota_slot(caller_id: str) -> int:
    """The same in every worker, so that they can share one table."""
    return int.from_bytes(hashlib.sha256(caller_id.encode()).digest()[:2], "big")


def _read_json(file: Path) -> Any:
    with file.open("rb") as stream:
        text = stream.read(_KEYS_FILE_MAX_BYTES + 1)
    if len(text) > _KEYS_FILE_MAX_BYTES:
        raise ValueError("larger than 64 KiB")
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise ValueError("not JSON") from None


def _stamps(settings: Settings) -> dict[Path, tuple[int, int] | None]:
    files = [settings.config_dir / name for name in ("callers.toml", "scenes.toml")]
    for caller in settings.callers.values():
        files += key_files(settings, caller)
    stamps: dict[Path, tuple[int, int] | None] = {}
    for file in files:
        try:
            state = file.stat()
            stamps[file] = (state.st_mtime_ns, state.st_size)
        except OSError:
            stamps[file] = None
    return stamps
