"""The callers, their keys, the scenes with their benefits and what is set of points, as in force: read from the
configuration and the table of callers' keys, checked whole, changed without a restart.

A change that has a mistake is refused (config_watch.py), and the last good state stays in force.
"""

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import structlog

from gateway.config_watch import Component, ConfigWatch
from gateway.crypto.caller_keys import algorithm_of, in_force
from gateway.crypto.certificates import client_context
from gateway.crypto.signatures import VerifyKey, read_signing_jwks
from gateway.domain.benefits import SceneBenefits, compile_scenes
from gateway.domain.caller_keys import CallerKey
from gateway.domain.callers import Caller, CallerKind, KeyPurpose
from gateway.domain.errors import Problem
from gateway.domain.points import EarnRules
from gateway.domain.scenes import VisitKind
from gateway.metrics import CALLER_KEY_READS
from gateway.settings import Settings, SettingsError

log = structlog.get_logger()

POLL_S = 5
_LOOK_EVERY_S = 1.0
_LOOKS_AT_ONCE = 5
_KEYS_FILE_MAX_BYTES = 65_536


class KnownCaller(msgspec.Struct, frozen=True):
    """A caller with its keys parsed."""

    caller: Caller
    keys: tuple[VerifyKey, ...]
    signing_keys: tuple[VerifyKey, ...]
    scopes: frozenset[str]
    quota_slot: int
    """Place in the shared quota table."""
    token_kids: frozenset[str]
    """Of `keys`: an access token lives as long as the key that got it."""
    from_files: Mapping[KeyPurpose, tuple[VerifyKey, ...]]
    """As configured, also those that are out."""

    def holds(self, purpose: KeyPurpose, kid: str) -> bool:
        if purpose is KeyPurpose.TOKEN:
            return kid in self.token_kids
        return any(key.kid == kid for key in self.signing_keys)


class KnownScene(msgspec.Struct, frozen=True):
    """A scene with what is asked of it at every verify."""

    field: str
    money: bool
    media: dict[CallerKind, str]
    """What it takes from each kind of caller, as the verify statement wants it (Scene.media_bits)."""
    benefits: SceneBenefits | None
    visit: VisitKind | None


KeyTable = Callable[[Collection[str]], Awaitable[list[CallerKey]]]
"""store/caller_keys.relevant on a connection of the worker; it may raise Problem 503."""


class Directory:
    """Replaced as a whole: readers hold one consistent state. Without a `table` only the files count."""

    def __init__(self, settings: Settings, table: KeyTable | None = None) -> None:
        self._watch = ConfigWatch(Component.DIRECTORY, settings, _own_files)
        self.callers, self.scenes = read(settings)
        self.points, self.earn_rules = settings.points, earn_rules_of(settings)
        self._table = table
        self._rows: list[CallerKey] = []
        self._turn = asyncio.Lock()
        self._paid_until: dict[str, float] = {}
        self.known_at = 0.0
        """Unix seconds: what was in force then is known here."""

    async def watch(self) -> None:
        """Look for changes every POLL_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self.look()
            except (Problem, asyncpg.PostgresError) as error:
                CALLER_KEY_READS.labels("failed").inc()
                log.warning("callers' keys not read; the last ones stay", error=type(error).__name__)

    async def look(self) -> None:
        """Take up what has changed in the files and the table. Raises Problem 503; then what was known stays."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        began = time.time()
        self.reload_if_changed()
        if self._table is not None:
            rows = await self._table({key.kid for known in self.callers.values() for key in _all_from_files(known)})
            CALLER_KEY_READS.labels("read").inc()
            if rows != self._rows:
                self._rows = rows
                self.callers = _with_rows(self.callers, rows)
        self.known_at = began

    async def knowing(self, caller_id: str, purpose: KeyPurpose, kid: str) -> KnownCaller | None:
        """The caller; if it seems to lack this key, after another look: a key that was just added may be used at once.

        One such look a second for a caller, after five at once: its mistakes cost little and hide nobody's new key.
        Raises Problem 503.
        """
        known = self.callers.get(caller_id)
        if known is None or known.holds(purpose, kid) or not known.caller.enabled:
            return known
        now = time.monotonic()
        paid_until = max(
            now, self._paid_until.get(caller_id, now)
        )  # every look is paid with a second, up to 5 on credit
        if paid_until + _LOOK_EVERY_S <= now + _LOOKS_AT_ONCE * _LOOK_EVERY_S:
            self._paid_until[caller_id] = paid_until + _LOOK_EVERY_S
            await self.look()
        return self.callers.get(caller_id)

    async def find_signing_key(self, caller_id: str, kid: str) -> VerifyKey | None:
        """The key under a signature, if it is in force. Raises Problem 503."""
        known = await self.knowing(caller_id, KeyPurpose.SIGNING, kid)
        return next((key for key in known.signing_keys if key.kid == kid), None) if known else None

    def reload_if_changed(self) -> bool:
        """Whether a change was taken up."""
        settings = self._watch.changed()
        if settings is None:
            return False
        try:
            callers, scenes = read(settings)
        except SettingsError as error:
            self._watch.refused(error.mistakes)
            return False
        self.callers, self.scenes = _with_rows(callers, self._rows), scenes
        self.points, self.earn_rules = settings.points, earn_rules_of(settings)
        self._watch.taken()
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
        signing = _signing_keys(settings, caller_id, caller, keys, mistakes)
        from_files = {KeyPurpose.TOKEN: tuple(keys), KeyPurpose.SIGNING: tuple(signing)}
        callers[caller_id] = _known(caller, slot, from_files, {})
    if settings.jwks_ca_file is not None:
        try:
            client_context(settings.jwks_ca_file)
        except ValueError as error:
            mistakes.append(f"gateway.toml: callers_keys.ca_file: {error}")
    if mistakes:
        raise SettingsError(mistakes)
    benefits = compile_scenes(settings.benefits)
    scenes = {
        scene_id: KnownScene(
            scene.field,
            scene.money,
            {kind: str(scene.media_bits(kind)) for kind in CallerKind},
            benefits.get(scene_id),
            scene.visit,
        )
        for scene_id, scene in settings.scenes.items()
    }
    return callers, scenes


def earn_rules_of(settings: Settings) -> EarnRules:
    """What uses earn: the scenes that have a rule."""
    rules = {scene_id: scene.points for scene_id, scene in settings.scenes.items() if scene.points is not None}
    return EarnRules(rules, settings.points.valid_months)


def _known(
    caller: Caller,
    slot: int,
    from_files: Mapping[KeyPurpose, tuple[VerifyKey, ...]],
    rows: Mapping[KeyPurpose, list[CallerKey]],
) -> KnownCaller:
    token, signing = (in_force(caller, use, from_files[use], rows.get(use, ())) for use in KeyPurpose)
    kids = frozenset(key.kid for key in token)
    return KnownCaller(caller, tuple(token), tuple(signing), frozenset(caller.scopes), slot, kids, from_files)


def _with_rows(callers: Mapping[str, KnownCaller], rows: Collection[CallerKey]) -> dict[str, KnownCaller]:
    sorted_rows: defaultdict[str, defaultdict[KeyPurpose, list[CallerKey]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        sorted_rows[row.caller][row.use].append(row)
    found = {
        caller_id: _known(known.caller, known.quota_slot, known.from_files, sorted_rows[caller_id])
        for caller_id, known in callers.items()
    }
    for caller_id, known in found.items():
        # of before such keys were refused, or a file's beside the table: out, they would lock the caller out
        if {key.jwk for key in known.keys} & {key.jwk for key in known.signing_keys}:
            log.warning("a caller has one key for both uses: each needs keys of its own", caller=caller_id)
    return found


def _all_from_files(known: KnownCaller) -> tuple[VerifyKey, ...]:
    return known.from_files[KeyPurpose.TOKEN] + known.from_files[KeyPurpose.SIGNING]


def _keys(settings: Settings, caller_id: str, caller: Caller, mistakes: list[str]) -> list[VerifyKey]:
    if caller.keys_file is None:
        return []
    try:
        document = _read_json(settings.data_dir / caller.keys_file)
        return read_signing_jwks(document, algorithm_of(caller, KeyPurpose.TOKEN) or "", KeyPurpose.TOKEN)
    except (OSError, ValueError) as error:
        mistakes.append(_mistake(f"callers.{caller_id}.keys_file", settings.data_dir / caller.keys_file, error))
        return []


def _signing_keys(
    settings: Settings, caller_id: str, caller: Caller, token_keys: list[VerifyKey], mistakes: list[str]
) -> list[VerifyKey]:
    if caller.signing_algorithm is None or caller.signing_keys_file is None:
        return []
    try:
        document = _read_json(settings.data_dir / caller.signing_keys_file)
        found = read_signing_jwks(document, caller.signing_algorithm)
        for key in found:
            if key.jwk in {other.jwk for other in token_keys}:
                raise ValueError(f"key {key.kid!r}: it is in keys_file too: each use needs keys of its own")
        return found
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
    except (msgspec.DecodeError, RecursionError):
        raise ValueError("not JSON") from None


def _own_files(settings: Settings) -> list[Path]:
    files = [settings.config_dir / name for name in ("callers.toml", "scenes.toml", "benefits.toml", "points.toml")]
    for caller in settings.callers.values():
        files += key_files(settings, caller)
    return files if settings.jwks_ca_file is None else [*files, settings.jwks_ca_file]
