"""Frozen, typed settings from config/*.toml and the environment.

An unknown, missing or wrong key stops the start; every mistake is named by its path (`callers.toml:
callers.demo-bank.kind`).
"""

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from gateway.configuration import Gateway, Outbox, UsageFiles
from gateway.domain.anomaly_rules import AnomalySettings
from gateway.domain.anomaly_rules import mistakes_of as mistakes_of_anomalies
from gateway.domain.benefits import BENEFIT_PATTERN, Benefit
from gateway.domain.benefits import mistakes_of as mistakes_of_benefits
from gateway.domain.callers import CALLER_ID_PATTERN, Caller, Scope, mistakes_of
from gateway.domain.errors import CannotStart
from gateway.domain.masking import Secret
from gateway.domain.partners import PARTNER_PATTERN, Partner, mistakes_of_merchants
from gateway.domain.partners import mistakes_of as mistakes_of_partner
from gateway.domain.redemptions import PointsSettings
from gateway.domain.redemptions import mistakes_of as mistakes_of_points
from gateway.domain.scenes import SCENE_PATTERN, Scene

Stamps = dict[Path, tuple[int, int, int] | None]
"""By file what differs once it was written, replaced, or may be read by others. None: it cannot be looked at."""


class Settings(msgspec.Struct, frozen=True):
    """Everything that is configured, checked."""

    gateway: Gateway
    callers: Mapping[str, Caller]
    scenes: Mapping[str, Scene]
    benefits: Mapping[str, Benefit]
    """In the order of benefits.toml."""
    partners: Mapping[str, Partner]
    """Their keys, files and dialects are checked by partners/registry.read."""
    points: PointsSettings
    anomalies: AnomalySettings
    config_dir: Path
    partners_file: Path
    """partners.toml of the configuration, or what PARTNERS_FILE names (the sandbox's own)."""
    stamps: Stamps
    """Of all files that this was read from, of before they were read."""

    @property
    def data_dir(self) -> Path:
        return Path(self.gateway.data_dir).absolute()

    @property
    def keys_dir(self) -> Path:
        return self.data_dir / self.gateway.keys_dir

    @property
    def jwks_ca_file(self) -> Path | None:
        name = self.gateway.callers_keys.ca_file
        return self.data_dir / name if name else None

    @property
    def run_dir(self) -> Path:
        """Files that live as long as one run: metrics of the workers, quota table, lock."""
        return self.data_dir / "run"

    @property
    def metrics_dir(self) -> Path:
        """Where workers write what they count (prometheus-client's multi-process mode); wiped at start."""
        return self.run_dir / "metrics"

    @property
    def issuer(self) -> str:
        return self.gateway.http.issuer or f"http://127.0.0.1:{self.gateway.http.port}"


class SettingsError(CannotStart):
    """The configuration has mistakes, each `file: path: what is wrong`."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "HOST": ("http", "host"),
    "PORT": ("http", "port"),
    "WORKERS": ("http", "workers"),
    "ISSUER": ("http", "issuer"),
    "OPS_HOST": ("ops", "host"),
    "OPS_PORT": ("ops", "port"),
    "DATABASE_URL": ("database", "url"),
    "DATA_DIR": ("data_dir",),
    "KEYS_DIR": ("keys_dir",),
    "ECARD_PARTNER": ("verify", "ecard_partner"),
    "LOSS_ROUTES": ("losses", "routes"),
    "OUTBOX_ENABLED": ("outbox", "enabled"),
    "LOG_LEVEL": ("log_level",),
}
"""Environment variables that go before the file, a table as JSON; `CONFIG_DIR` names the folder itself."""

_FILES = ("gateway.toml", "callers.toml", "scenes.toml", "benefits.toml", "points.toml", "anomalies.toml")
"""In the configuration's folder; partners.toml may be elsewhere."""


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the whole configuration. Raises SettingsError naming every mistake."""
    environ = os.environ if environ is None else environ
    config_dir = Path(environ.get("CONFIG_DIR", "config")).absolute()
    partners_file = Path(environ.get("PARTNERS_FILE", config_dir / "partners.toml")).absolute()
    stamps = stamps_of([*(config_dir / name for name in _FILES), partners_file])
    mistakes: list[str] = []
    raw = _read(config_dir / "gateway.toml", mistakes)
    for name, path in ENVIRONMENT.items():
        text = environ.get(name)
        if text is not None and any("\ud800" <= char <= "\udfff" for char in text):  # how Python holds such bytes
            mistakes.append(f"the environment: {name}: not UTF-8")
        elif text is not None:
            _put(raw, path, text)
    gateway = convert(raw, Gateway, "gateway.toml", "", mistakes)
    callers = _table(config_dir / "callers.toml", "callers", Caller, CALLER_ID_PATTERN, mistakes)
    for caller_id, caller in callers.items():
        mistakes.extend(f"callers.toml: callers.{caller_id}.{mistake}" for mistake in mistakes_of(caller))
    if gateway is not None:
        _check_hosts(callers, gateway.callers_keys.jwks_hosts, mistakes)
        _check_senders(gateway.usage_return.files, callers, mistakes)
    scenes = _table(config_dir / "scenes.toml", "scenes", Scene, SCENE_PATTERN, mistakes)
    benefits = _table(config_dir / "benefits.toml", "benefits", Benefit, BENEFIT_PATTERN, mistakes)
    if scenes:  # else that is the one mistake
        mistakes.extend(f"benefits.toml: {mistake}" for mistake in mistakes_of_benefits(benefits, scenes))
    partners = _table(partners_file, "partners", Partner, PARTNER_PATTERN, mistakes)
    for name, partner in partners.items():
        mistakes.extend(f"partners.toml: partners.{name}.{mistake}" for mistake in mistakes_of_partner(partner))
    mistakes.extend(f"partners.toml: {mistake}" for mistake in mistakes_of_merchants(partners, callers))
    known = (callers, scenes)
    points = _whole(config_dir / "points.toml", PointsSettings, mistakes, lambda it: mistakes_of_points(it, *known))
    anomalies = _whole(
        config_dir / "anomalies.toml", AnomalySettings, mistakes, lambda it: mistakes_of_anomalies(it, *known)
    )
    if gateway is not None:
        if name := gateway.verify.ecard_partner:
            _check_partner("verify.ecard_partner", name, "verify_ecard_code", partners, mistakes)
        _check_routes(gateway.payments.routes, partners, mistakes)
        for bank, name in gateway.losses.routes.items():
            _check_partner(f"losses.routes.{bank}", name, "notify_loss", partners, mistakes)
        _check_outbox(gateway.outbox, partners, mistakes)
    if mistakes or gateway is None or points is None or anomalies is None:
        raise SettingsError(mistakes)
    return Settings(
        gateway=gateway,
        callers=callers,
        scenes=scenes,
        benefits=benefits,
        partners=partners,
        points=points,
        anomalies=anomalies,
        config_dir=config_dir,
        partners_file=partners_file,
        stamps=stamps,
    )


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Raises nothing."""
    stamps: Stamps = {}
    for file in files:
        try:
            state = os.stat(file)  # noqa: PTH116 - the same, and quicker
        except (OSError, ValueError):  # a name may be none
            stamps[file] = None
        else:
            stamps[file] = (state.st_ino, state.st_ctime_ns, state.st_size)
    return stamps


def host_of(url: str) -> str:
    """`host` or `host:port` as in jwks_hosts; empty for a URL that none may match. Raises nothing."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return ""
    if parts.scheme != "https" or parts.username is not None or parts.password is not None or not parts.hostname:
        return ""
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return host if port in (None, 443) else f"{host}:{port}"


def _check_partner(
    path: str, name: str, operation: str, partners: Mapping[str, Partner | None], mistakes: list[str]
) -> None:
    """That a partner which gateway.toml names is there, and is asked for what it is named for."""
    partner = partners.get(name)
    if name not in partners:
        mistakes.append(f"gateway.toml: {path}: no such partner in partners.toml")
    elif partner is not None and operation not in partner.operations:
        mistakes.append(f"gateway.toml: {path}: partners.{name}.operations lacks {operation}")


def _check_routes(routes: Mapping[str, str], partners: Mapping[str, Partner | None], mistakes: list[str]) -> None:
    """A purchase of unknown outcome must be reversible there. Payments by a partner that is not there are not sent."""
    for bank, name in routes.items():
        partner = partners.get(name)
        if partner is not None:
            mistakes.extend(
                f"gateway.toml: payments.routes.{bank}: partners.{name}.operations lacks {operation}"
                for operation in ("purchase", "reverse")
                if operation not in partner.operations
            )


def _check_senders(files: Mapping[str, UsageFiles], callers: Mapping[str, Caller | None], mistakes: list[str]) -> None:
    folders: dict[str, str] = {}
    for caller_id, its in files.items():
        caller = callers.get(caller_id)
        path = f"gateway.toml: usage_return.files.{caller_id}"
        if its and its.folder and folders.setdefault(str(Path(its.folder)), caller_id) != caller_id:
            mistakes.append(f"{path}.folder: is that of {folders[str(Path(its.folder))]}, whose files it would hold")
        if callers and caller_id not in callers:  # none at all: the file cannot be read, which is said already
            mistakes.append(f"{path}: no such caller in callers.toml")
        elif caller is not None and (Scope.USAGE_WRITE not in caller.scopes or caller.signing_algorithm is None):
            mistakes.append(f"{path}: needs a caller that has usage:write and signs")


def _check_outbox(outbox: Outbox, partners: Mapping[str, Partner | None], mistakes: list[str]) -> None:
    for name, subscriber in outbox.subscribers.items():
        if not re.fullmatch(PARTNER_PATTERN, name):
            mistakes.append(f"gateway.toml: outbox.subscribers.{name}: a key must match {PARTNER_PATTERN}")
        if name == "nats":
            mistakes.append("gateway.toml: outbox.subscribers.nats: is the name of outbox.nats")
        if outbox.enabled:
            path = f"outbox.subscribers.{name}.partner"
            _check_partner(path, subscriber.partner, "deliver_usage", partners, mistakes)


def _check_hosts(callers: Mapping[str, Caller], hosts: tuple[str, ...], mistakes: list[str]) -> None:
    for caller_id, caller in callers.items():
        for name in ("keys_url", "signing_keys_url"):
            url = getattr(caller, name, None)
            if url is not None and host_of(url) not in hosts:
                mistakes.append(f"callers.toml: callers.{caller_id}.{name}: its host is not in callers_keys.jwks_hosts")


def _put(raw: Any, path: tuple[str, ...], text: str) -> None:
    for key in path[:-1]:
        raw = raw.setdefault(key, {})
        if not isinstance(raw, dict):
            return  # the file has another shape there, which convert names
    raw[path[-1]] = text


def _read(file: Path, mistakes: list[str]) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        mistakes.append(f"{file.name}: no such file in {file.parent}")
    except OSError as error:
        mistakes.append(f"{file.name}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # also for a number of thousands of digits
        mistakes.append(f"{file.name}: not TOML: {error}")
    return {}


def _whole(file: Path, kind: type[Any], mistakes: list[str], look: Callable[[Any], list[str]]) -> Any:
    """A file as a struct, in which look() finds what is wrong between its blocks. None if it is wrong in itself."""
    found = convert(_read(file, mistakes), kind, file.name, "", mistakes)
    if found is not None:
        mistakes.extend(f"{file.name}: {mistake}" for mistake in look(found))
    return found


def _table(file: Path, name: str, kind: type[Any], key_pattern: str, mistakes: list[str]) -> dict[str, Any]:
    """The blocks `[name.key]` of a file, each converted by itself so that one mistake does not hide the next."""
    raw = _read(file, mistakes)
    mistakes.extend(f"{file.name}: {key}: unknown key" for key in raw.keys() - {name})
    table: dict[str, Any] = {}
    blocks = raw.get(name, {})
    if not isinstance(blocks, dict):
        mistakes.append(f"{file.name}: {name}: expected tables [{name}.…]")
        return table
    for key, block in blocks.items():
        if not re.fullmatch(key_pattern, key):
            mistakes.append(f"{file.name}: {name}.{key}: a key must match {key_pattern}")
        table[key] = convert(block, kind, file.name, f"{name}.{key}", mistakes)
    return table


def convert(raw: Any, kind: type[Any], file: str, path: str, mistakes: list[str]) -> Any:
    """`raw` as `kind`; every mistake below it is appended with its path. None if there was one."""
    if not isinstance(raw, dict):
        mistakes.append(f"{file}: {path}: expected a table")
        return None
    before = len(mistakes)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    prefix = f"{path}." if path else ""
    mistakes.extend(f"{file}: {prefix}{key}: unknown key" for key in raw.keys() - fields.keys())
    values = {}
    for name, field in fields.items():
        if name in raw:
            values[name] = _convert_field(raw[name], field.type, file, prefix + name, mistakes)
        elif field.required:
            mistakes.append(f"{file}: {prefix}{name}: missing")
    if len(mistakes) > before:
        return None
    try:
        return kind(**values)
    except ValueError as error:  # of its __post_init__
        mistakes.append(f"{file}: {path}: {error}")
        return None


def _convert_field(raw: Any, kind: Any, file: str, path: str, mistakes: list[str]) -> Any:
    """A table as its struct, a table of named blocks as structs by name, anything else by msgspec."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType) and len(arguments) == 2 and arguments[1] is type(None):
        return _convert_field(raw, arguments[0], file, path, mistakes)  # no TOML value is None
    if _is_struct(kind):
        return convert(raw, kind, file, path, mistakes)
    if origin is Mapping and _is_struct(arguments[1]) and isinstance(raw, dict):
        return {key: convert(block, arguments[1], file, f"{path}.{key}", mistakes) for key, block in raw.items()}
    try:
        if origin is Mapping and isinstance(raw, str):  # of the environment
            raw = msgspec.json.decode(raw)
        # strict=False lets the environment give numbers as text
        return msgspec.convert(raw, kind, strict=not isinstance(raw, str), dec_hook=_secret)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        mistakes.append(f"{file}: {path}: {error}")


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _secret(kind: Any, raw: Any) -> Any:
    """A Secret of a text; the refusal of anything else does not repeat it."""
    if kind != Secret[str] or not isinstance(raw, str):
        raise ValueError("Expected `str`")
    return Secret(raw)
