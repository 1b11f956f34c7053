"""Partners: the systems that we call, one block of partners.toml each (design.md §1)."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from gateway.domain.callers import CALLER_ID_PATTERN, Caller, Scope
from gateway.domain.operations import (
    OPERATIONS,
    HotelCheckIn,
    OpenBarrier,
    QueryStatus,
    TillDiscount,
    name_of,
)

PARTNER_PATTERN = r"^[a-z][a-z0-9-]{1,39}$"

_File = Annotated[str, msgspec.Meta(min_length=1, max_length=400)]
_Host = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9.:-]{1,255}$")]
_Seconds = Annotated[int, msgspec.Meta(ge=1, le=3600)]
_ACTS = frozenset(map(name_of, (OpenBarrier, HotelCheckIn, TillDiscount)))
"""What is asked after when its answer is lost."""


class PartnerHttp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an HTTP dialect is spoken. Files: a relative path starts at the data folder."""

    base_url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$", max_length=400)]
    """`http://` only on loopback."""
    ca_file: _File | None = None
    """Certificates that vouch for the partner; without it the system's."""
    client_cert_file: _File | None = None
    client_key_file: _File | None = None
    keepalive: bool = True
    """False: a connection for each call, where a reply does not say which request it answers."""


class PartnerLink(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A long-lived link (ISO 8583)."""

    host: _Host
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    framing: Literal["length2", "length4_ascii"] = "length2"
    """What goes before each message: its length in two bytes (big-endian), or in four ASCII digits."""
    echo_s: _Seconds = 60
    """An idle link is echoed after this."""
    reconnect_max_s: _Seconds = 30
    ca_file: _File | None = None
    """With it, the link is TLS."""
    client_cert_file: _File | None = None
    client_key_file: _File | None = None


KeyKind = Literal[
    "sm2", "sm4-cbc", "aes-cbc", "aes-ecb", "hmac-sha1", "hmac-sha256", "hmac-sm3", "mac-sm4", "mac-3des"
]  # fmt: skip


class SecretPlace(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a secret is, never the secret itself. One of `file` and `env` is needed."""

    file: _File | None = None
    env: Annotated[str, msgspec.Meta(pattern=r"^[A-Z][A-Z0-9_]{0,99}$")] | None = None


class PartnerKey(SecretPlace, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key that is shared with a partner."""

    kind: KeyKind
    encoding: Literal["hex", "base64", "text"] = "hex"
    """Of the key's text. SM2: `<private> <public>`, or the public key alone (the partner's)."""
    signature: Literal["der", "raw"] = "der"
    ciphertext: Literal["c1c3c2-der", "c1c3c2-raw", "c1c2c3-raw"] = "c1c3c2-der"
    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] = "1234567812345678"


class CryptoRefused(ValueError):
    """A ciphertext does not open, or a key is missing or of a kind that cannot do this. The text holds no value."""


class PartnerBreaker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """After so many failures in a row the partner is left alone for open_s, then tried with one call."""

    failures: Annotated[int, msgspec.Meta(ge=1, le=5)] = 5
    open_s: Annotated[int, msgspec.Meta(ge=1, le=30)] = 10


class PartnerMerchant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whose terminals a merchant's own system stands behind."""

    caller: Annotated[str, msgspec.Meta(pattern=CALLER_ID_PATTERN)]
    terminals: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=r"^[!-)+-~]{1,31}\*?$")], ...], msgspec.Meta(min_length=1)
    ]
    """As the caller names them; `P-*` is each that begins so."""
    cannot_be_asked: bool = False
    """It has nothing by which it says what it did: each lost answer is `unknown`, and for people."""

    def has(self, terminal_id: str) -> bool:
        return any(_is_of(terminal_id, pattern) for pattern in self.terminals)


def _is_of(terminal_id: str, pattern: str) -> bool:
    return terminal_id.startswith(pattern[:-1]) if pattern.endswith("*") else terminal_id == pattern


class Partner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block `[partners.<name>]`."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=80)]
    adapter: Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{1,59}$")]
    """A file of adapters/, without its ending."""
    operations: tuple[str, ...]
    """What is sent to this partner, by name (`purchase`): each must be among what its dialect can do."""
    enabled: bool = True
    timeout_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 3000
    """A call's own limit; the caller's deadline may be sooner."""
    concurrency_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 16
    """Calls at the partner at once, of one worker."""
    waiting_max: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 16
    """Calls that may wait for a place; a further one is not sent."""
    body_max_bytes: Annotated[int, msgspec.Meta(ge=100, le=16_777_216)] = 262_144
    breaker: PartnerBreaker = PartnerBreaker()
    retry_percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10
    """Retries (only of what was not sent) in a hundred calls."""
    http: PartnerHttp | None = None
    link: PartnerLink | None = None
    merchant: PartnerMerchant | None = None
    keys: Mapping[str, PartnerKey] = {}
    dialect: Mapping[str, Any] = {}
    """The adapter's own settings, checked by its Settings; those that are Secret say where they are (SecretPlace)."""


def mistakes_of(partner: Partner | None) -> list[str]:
    """What is wrong between the fields of a block, each by its path; nothing of a block that is wrong in itself."""
    if partner is None:
        return []
    mistakes = [f"operations: no such operation {name!r}" for name in partner.operations if name not in OPERATIONS]
    for table, connection in (("http", partner.http), ("link", partner.link)):
        if connection is not None and (connection.client_cert_file is None) != (connection.client_key_file is None):
            mistakes.append(f"{table}.client_cert_file: goes with client_key_file")
    if partner.link is not None and partner.link.client_cert_file is not None and partner.link.ca_file is None:
        mistakes.append("link.ca_file: missing, and without it the link is not TLS")
    if partner.http is not None and not _SAFE_URL.match(partner.http.base_url):
        mistakes.append("http.base_url: plain http:// only on loopback")
    for name, key in partner.keys.items():
        if (key.file is None) == (key.env is None):
            mistakes.append(f"keys.{name}: one of file and env is needed")
    return mistakes


def mistakes_of_merchants(partners: Mapping[str, Partner | None], callers: Mapping[str, Caller | None]) -> list[str]:
    """What is wrong between the merchants' blocks and the callers, and with what is asked after; a terminal has one
    system behind it."""
    mistakes = []
    taken: list[tuple[str, str]] = []
    for name, partner in partners.items():
        if partner is None or partner.merchant is None:
            continue
        path, merchant = f"partners.{name}.merchant", partner.merchant
        caller = callers.get(merchant.caller)
        if merchant.caller not in callers:
            mistakes.append(f"{path}.caller: {merchant.caller} is not in callers.toml")
        elif caller is not None and Scope.PAYMENTS_WRITE not in caller.scopes:
            mistakes.append(f"{path}.caller: {merchant.caller} lacks the scope payments:write")
        can_ask = name_of(QueryStatus) in partner.operations
        if merchant.cannot_be_asked and can_ask:
            mistakes.append(f"{path}.cannot_be_asked: query_status is among the operations")
        elif not merchant.cannot_be_asked and not can_ask and _ACTS.intersection(partner.operations):
            mistakes.append(
                f"{path}: query_status is not among the operations, so what a lost answer said cannot be found out; of"
                " one that has nothing to be asked by: cannot_be_asked = true"
            )
        for pattern in merchant.terminals:
            if any(merchant.caller == owner and _overlap(pattern, other) for owner, other in taken):
                mistakes.append(f"{path}.terminals: {pattern} is, or may be, there twice")
            taken.append((merchant.caller, pattern))
    return mistakes


def _overlap(one: str, other: str) -> bool:
    return _is_of(one.rstrip("*"), other) or _is_of(other.rstrip("*"), one)


_SAFE_URL = re.compile(r"https://|http://(127\.\d+\.\d+\.\d+|\[::1\]|localhost)(:\d+)?(/|$)")
