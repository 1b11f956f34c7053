"""The partners in force: adapters loaded by configured name, blocks checked whole, changed without a restart.

A change that has a mistake is refused (config_watch.py), and the last good state stays in force.
"""

import asyncio
import importlib.util
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from gateway.config_watch import Component, ConfigWatch
from gateway.crypto.key_files import refuse_loose
from gateway.crypto.key_store import KeyStoreError
from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.domain.masking import Secret
from gateway.domain.operations import OPERATIONS, Operation
from gateway.domain.partners import Partner, PartnerHttp, PartnerLink, SecretPlace
from gateway.partners.contract import Adapter, Transport
from gateway.partners.keys import Keys, fingerprint
from gateway.partners.link import LinkExchange
from gateway.partners.tls import tls_context
from gateway.partners.transport_http import HttpTransport
from gateway.partners.working import Exchange, Working
from gateway.settings import Settings, SettingsError, convert, stamps_of

POLL_S = 5
_FAREWELL_S = 1.0
"""A worker that stops has answered its callers by then."""
_PACKAGE = "adapters"
_KEY_FILE_MAX_BYTES = 16_384
_ADAPTER_PARTS = ("TRANSPORT", "OPERATIONS", "KEYS", "Settings", "build", "parse", "query_for", "redact")
_LINK_PARTS = ("correlate", "is_reply", "link_message", "link_accepted")


class Checked(msgspec.Struct, frozen=True):
    """A block without mistakes, with what was read for it."""

    block: Partner
    adapter: Any
    keys: Keys
    operations: frozenset[type[Operation]]
    mark: tuple[Any, ...]
    """What it was read from: while this is the same, the partner goes on as it is."""


class Registry:
    """Replaced partner by partner: a call holds the one that it began with."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsError."""
        self._settings = settings
        self._watch = ConfigWatch(Component.PARTNERS, settings, _own_files)
        self._checked = read(settings)
        self._working: dict[str, Working] = {}
        self._ending: dict[asyncio.Task[None], Working] = {}

    def get(self, name: str) -> Working | None:
        """None for a partner that is not configured or switched off."""
        return self._working.get(name)

    def merchant_at(self, caller: str, terminal_id: str) -> Working | None:
        """The merchant's own system behind a caller's terminal."""
        for working in self._working.values():
            merchant = working.block.merchant
            if merchant is not None and merchant.caller == caller and merchant.has(terminal_id):
                return working
        return None

    def all(self) -> list[Working]:
        return list(self._working.values())

    async def open(self) -> None:
        """Raises OSError."""
        await self._take_up(self._checked, self._settings)

    async def close(self) -> None:
        """Calls that run get a second; what has not ended then is unknown."""
        for working in self._working.values():
            self._end(working)
        self._working = {}
        if not self._ending:
            return
        await asyncio.wait(self._ending, timeout=_FAREWELL_S)
        for working in self._ending.values():
            working.abandon()
        await asyncio.gather(*self._ending)

    async def watch(self) -> None:
        """Look for changes every POLL_S seconds, until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.reload_if_changed()

    async def reload_if_changed(self) -> bool:
        """Whether a change was taken up."""
        settings = self._watch.changed()
        if settings is None:
            return False
        try:
            await self._take_up(read(settings), settings)
        except (SettingsError, OSError) as error:
            self._watch.refused(error.mistakes if isinstance(error, SettingsError) else [type(error).__name__])
            return False
        self._watch.taken()
        return True

    async def _take_up(self, checked: Mapping[str, Checked], settings: Settings) -> None:
        """Start what is new or changed, then end what it replaces. Raises OSError; then nothing has changed."""
        begun: dict[str, Working] = {}
        for name, one in checked.items():
            before = self._checked.get(name)
            if not one.block.enabled or (name in self._working and before is not None and before.mark == one.mark):
                continue
            transport = _transport(name, one, settings)
            begun[name] = Working(name, one.block, one.adapter, one.keys, transport, one.operations)
        for working in begun.values():
            await working.transport.open()
        for name, working in list(self._working.items()):
            if name in begun or name not in checked or not checked[name].block.enabled:
                self._end(working)
                del self._working[name]
        self._working |= begun
        self._checked = dict(checked)

    def _end(self, working: Working) -> None:
        task = asyncio.create_task(working.close(), name=f"end of {working.name}")
        self._ending[task] = working
        task.add_done_callback(self._ending.pop)


def _transport(name: str, one: Checked, settings: Settings) -> Exchange:
    """Raises OSError."""
    block = one.block
    if block.http is not None:
        return HttpTransport(block.http, settings.data_dir, block.concurrency_max, block.body_max_bytes)
    assert block.link is not None  # read() has seen to it
    return LinkExchange(name, block.link, one.adapter, one.keys, settings.data_dir)


def read(settings: Settings, environ: Mapping[str, str] | None = None) -> dict[str, Checked]:
    """Every block with its adapter, keys and files. Raises SettingsError naming every mistake by its path."""
    environ = os.environ if environ is None else environ
    mistakes: list[str] = []
    checked: dict[str, Checked] = {}
    for name, block in settings.partners.items():
        path = f"partners.{name}"
        kind = load_adapter(block.adapter, path, mistakes)
        keys: dict[str, SharedKey] = {}
        marks: list[Any] = []
        if block.enabled:  # one that is switched off may still wait for its keys
            keys, marks = _keys(settings, block, path, environ, mistakes)
            marks += _check_files(settings, block, path, mistakes)
        adapter = None
        if kind is not None:
            dialect, more = _dialect(settings, kind, block, path, environ, mistakes)
            marks += more
            adapter = _adapter(kind, block, dialect, path, mistakes)
        operations = frozenset(OPERATIONS[operation] for operation in block.operations if operation in OPERATIONS)
        checked[name] = Checked(block, adapter, Keys(keys), operations, (block, *marks))
    if mistakes:
        raise SettingsError(mistakes)
    return checked


def load_adapter(name: str, path: str, mistakes: list[str]) -> type[Adapter] | None:
    """The class of adapters/<name>.py, and of no other package."""
    if importlib.util.find_spec(f"{_PACKAGE}.{name}") is None:
        mistakes.append(f"partners.toml: {path}.adapter: no such file adapters/{name}.py")
        return None
    try:
        module = importlib.import_module(f"{_PACKAGE}.{name}")
    except Exception as error:  # noqa: BLE001 - whatever a file raises, it cannot be used
        mistakes.append(f"partners.toml: {path}.adapter: adapters/{name}.py cannot be loaded: {type(error).__name__}")
        return None
    kind: type[Adapter] | None = getattr(module, "Adapter", None)
    parts = _ADAPTER_PARTS + (_LINK_PARTS if getattr(kind, "TRANSPORT", None) is Transport.ISO8583 else ())
    missing = [part for part in parts if not hasattr(kind, part)]
    if missing:
        mistakes.append(f"partners.toml: {path}.adapter: the Adapter of adapters/{name}.py lacks {', '.join(missing)}")
        return None
    return kind


def _dialect(
    settings: Settings, kind: type[Adapter], block: Partner, path: str, environ: Mapping[str, str], mistakes: list[str]
) -> tuple[dict[str, Any], list[bytes]]:
    """The adapter's own settings with their secrets, and by what a change of one is noticed."""
    dialect, marks = dict(block.dialect), []
    for field in msgspec.structs.fields(kind.Settings):
        if field.type != Secret[str] or field.name not in dialect:
            continue
        place, raw = f"{path}.dialect.{field.name}", dialect[field.name]
        dialect[field.name] = ""
        if not isinstance(raw, dict):
            mistakes.append(f"partners.toml: {place}: a secret is not written here: {{ file = … }} or {{ env = … }}")
            continue
        where = convert(raw, SecretPlace, "partners.toml", place, mistakes)
        if where is not None and block.enabled:
            text = _secret_text(settings, where, place, environ, mistakes)
            if text is not None:
                dialect[field.name] = text
                marks.append(fingerprint(text))
    return dialect, marks


def _adapter(
    kind: type[Adapter], block: Partner, dialect: dict[str, Any], path: str, mistakes: list[str]
) -> Adapter | None:
    cannot = [name for name in block.operations if name in OPERATIONS and OPERATIONS[name] not in kind.OPERATIONS]
    mistakes.extend(
        f"partners.toml: {path}.operations: adapters/{block.adapter}.py cannot do {name}" for name in cannot
    )
    mistakes.extend(f"partners.toml: {path}.keys.{key}: missing" for key in sorted(kind.KEYS - block.keys.keys()))
    wanted = {Transport.HTTP: "http", Transport.ISO8583: "link"}.get(kind.TRANSPORT)
    for table, given in (("http", block.http), ("link", block.link)):
        if table == wanted and given is None:
            mistakes.append(f"partners.toml: {path}.{table}: missing")
        elif table != wanted and given is not None:
            mistakes.append(f"partners.toml: {path}.{table}: adapters/{block.adapter}.py does not speak over it")
    settings = convert(dialect, kind.Settings, "partners.toml", f"{path}.dialect", mistakes)
    if settings is None:
        return None
    try:
        adapter = kind(settings)
        left_out = kind.OPERATIONS - adapter.offered
    except ValueError as error:
        mistakes.append(f"partners.toml: {path}.dialect: {error}")
        return None
    except Exception as error:  # noqa: BLE001 - an adapter's mistake refuses its block, and not the gateway
        mistakes.append(f"partners.toml: {path}.adapter: adapters/{block.adapter}.py raised {type(error).__name__}")
        return None
    mistakes.extend(
        f"partners.toml: {path}.operations: the settings in {path}.dialect leave {name} out"
        for name in block.operations
        if OPERATIONS.get(name) in left_out
    )
    return adapter


def _keys(
    settings: Settings, block: Partner, path: str, environ: Mapping[str, str], mistakes: list[str]
) -> tuple[dict[str, SharedKey], list[bytes]]:
    """The keys, and by what a change of one is noticed."""
    keys: dict[str, SharedKey] = {}
    marks = []
    for name, key in block.keys.items():
        place = f"{path}.keys.{name}"
        text = _secret_text(settings, key, place, environ, mistakes)
        if text is None:
            continue
        marks.append(fingerprint(text))
        try:
            keys[name] = read_key(key, text)
        except ValueError as error:
            mistakes.append(f"partners.toml: {place}: {key.file or key.env}: {error}")
    return keys, marks


def _secret_text(
    settings: Settings, where: SecretPlace, place: str, environ: Mapping[str, str], mistakes: list[str]
) -> str | None:
    try:
        return _read_secret(settings, where, environ)
    except (OSError, ValueError, KeyStoreError) as error:
        told = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, UnicodeError):  # whose words quote it
            told = "not a text"
        mistakes.append(f"partners.toml: {place}: {where.file or where.env or 'nowhere'}: {told}")
        return None


def _read_secret(settings: Settings, where: SecretPlace, environ: Mapping[str, str]) -> str:
    """Raises OSError, ValueError, KeyStoreError."""
    if where.env is not None:
        if not environ.get(where.env):
            raise ValueError("not set in the environment")
        environ[where.env].encode()  # what is no UTF-8 is refused, as in a file
        return environ[where.env]
    if where.file is None:
        raise ValueError("one of file and env is needed")
    file = settings.data_dir / where.file
    refuse_loose(file)
    with file.open("rb") as stream:
        raw = stream.read(_KEY_FILE_MAX_BYTES + 1)
    if len(raw) > _KEY_FILE_MAX_BYTES:
        raise ValueError("larger than 16 KiB")
    return raw.decode().strip()


def _check_files(settings: Settings, block: Partner, path: str, mistakes: list[str]) -> list[Any]:
    """Whether certificates can be used; a changed one changes the mark that is returned."""
    connection = block.http or block.link
    if connection is None:
        return []
    table = "http" if block.http is not None else "link"
    try:
        if connection.client_key_file is not None:
            refuse_loose(settings.data_dir / connection.client_key_file)
        tls_context(connection, settings.data_dir)
    except KeyStoreError as error:
        mistakes.append(f"partners.toml: {path}.{table}.client_key_file: {error}")
    except OSError as error:
        files = [connection.ca_file, connection.client_cert_file, connection.client_key_file]
        told = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        mistakes.append(
            f"partners.toml: {path}.{table}: {', '.join(filter(None, files))}: {told or 'not certificates'}"
        )
    return list(stamps_of(settings.data_dir / file for file in _files_of(connection)).values())


def _files_of(connection: PartnerHttp | PartnerLink) -> list[str]:
    files = (connection.ca_file, connection.client_cert_file, connection.client_key_file)
    return [file for file in files if file is not None]


def _own_files(settings: Settings) -> list[Path]:
    files = [settings.partners_file]
    for block in settings.partners.values():
        secrets = [key.file for key in block.keys.values()]
        secrets += [raw.get("file") for raw in block.dialect.values() if isinstance(raw, dict)]
        files += [settings.data_dir / file for file in secrets if isinstance(file, str)]
        for connection in (block.http, block.link):
            if connection is not None:
                files += [settings.data_dir / file for file in _files_of(connection)]
    return files
