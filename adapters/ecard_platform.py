"""The national e-card platform (全国社保卡服务平台) behind an Alibaba CSB bus (domain.md §2.3 [S]).

A request is `{"security": AES(json)}`, its `_api_*` parameters signed; a reply is `{"msgCode", "msg", "result":
{"encrypt": AES(json)}}`. Replies are enciphered and not signed: only TLS says who answered. A question carries no
reference of ours, so the platform cannot be asked what became of one. What the sources do not agree on is a setting.

Keys: `signing` (hmac-sha1, hmac-sha256 or sm2: by what the bus wants) and `body` (its kind gives mode and padding).
"""

import base64
import binascii
import datetime as dt
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlencode

import msgspec

from gateway.domain.cards import CARD_NUMBER_PATTERN
from gateway.domain.ids import is_id_number
from gateway.domain.masking import Secret
from gateway.domain.operations import (
    EcardSignLevel,
    Operation,
    QueryStatus,
    ScanLogin,
    ScanLoginState,
    VerifyEcardCode,
)
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.partners.contract import (
    CallContext,
    CannotBuild,
    CryptoRefused,
    HttpReply,
    HttpRequest,
    Transport,
    WireReply,
)

_API: dict[type[Operation], str] = {
    VerifyEcardCode: "qrcode_valid_encrypt",
    EcardSignLevel: "sign_info",
    ScanLogin: "qrcode_channel_encrypt",
    ScanLoginState: "qrcode_channel_query_encrypt",
}
_DECLINES = {
    "100001": DeclineCode.CODE_EXPIRED,
    "100002": DeclineCode.CODE_REPLAYED,
    "100003": DeclineCode.CODE_INVALID,
    "100004": DeclineCode.NOT_FOUND,
    "100005": DeclineCode.NAME_MISMATCH,
    "100006": DeclineCode.NOT_ALLOWED,
}
_IV_BYTES = 16
_TEXT_MAX = 256
_CARD_NUMBER = re.compile(CARD_NUMBER_PATTERN)
_SHOWN = re.compile(r"[A-Za-z0-9]{8,256}")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,12}")

_Ten = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{10}$")]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Code = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
_Iv = Annotated[str, msgspec.Meta(pattern="^(none|prefix|[0-9a-f]{32})$")]


class Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the platform calls things in its replies: vendors differ (domain.md §1.3)."""

    id_number: _Name = "aac002"
    name: _Name = "aac003"
    card_number: _Name = "aaz500"
    card_identifier: _Name = "aaz501"
    """Vendors swap these two; the shapes tell which is which [S]."""
    sign_number: _Name = "signNo"
    sign_level: _Name = "signLevel"
    ecard_number: _Name = "esscNo"
    shown: _Name = "qrCode"


class Dialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[partners.<name>.dialect]`."""

    access_key: _Name
    channel_no: _Ten
    access_no: _Ten
    """地方接入编号."""
    system_name: _Name
    path: Annotated[str, msgspec.Meta(pattern=r"^/[A-Za-z0-9/_.-]{0,200}$")] = "/CSB"
    api_version: _Name = "1.0.0"
    busi_type: _Name = "01"
    signature: Literal["hmac", "sm2"] = "hmac"
    api_in: Literal["headers", "query"] = "headers"
    signs_body: bool = False
    """Whether the body's `security` is in the signed string: the SDK's copies say no [K?]."""
    iv: _Iv = "none"
    """`none`: the mode has none (16 zeros are handed over); `prefix`: a fresh one before the ciphertext; or 32 hex."""
    encoding: Literal["base64", "hex"] = "base64"
    ok_codes: frozenset[_Code] = frozenset({"000000"})
    """Older replies used 200."""
    pending_codes: frozenset[_Code] = frozenset({"000001"})
    """A shown code has not been confirmed yet [G]."""
    declines: Mapping[_Code, DeclineCode] = msgspec.field(default_factory=lambda: dict(_DECLINES))
    """The platform's codes were not found in any source [G]: to be filled in from its documents."""
    fields: Fields = Fields()


class Adapter:
    TRANSPORT: ClassVar = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset(_API)
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset({"signing", "body"})
    Settings: ClassVar[type[msgspec.Struct]] = Dialect

    def __init__(self, settings: Dialect) -> None:
        self._settings = settings

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        api = _API.get(type(op))
        if api is None:
            raise CannotBuild(f"{type(op).__name__} is not an operation of this platform")
        settings = self._settings
        try:
            body = {"security": self._seal(ctx, self._payload(op))}
            parameters = {
                "_api_name": api,
                "_api_version": settings.api_version,
                "_api_access_key": settings.access_key,
                "_api_timestamp": str(int(ctx.now.timestamp() * 1000)),
            }
            signed = parameters | (body if settings.signs_body else {})
            message = "&".join(f"{name}={signed[name]}" for name in sorted(signed)).encode()
            sign = ctx.crypto.mac if settings.signature == "hmac" else ctx.crypto.sign
            parameters["_api_signature"] = base64.b64encode(sign("signing", message)).decode()
        except (CryptoRefused, UnicodeEncodeError) as error:
            raise CannotBuild(str(error) if isinstance(error, CryptoRefused) else "not text") from None
        headers = {"Content-Type": "application/json"}
        target = settings.path
        if settings.api_in == "headers":
            headers |= parameters
        else:
            target += "?" + urlencode(parameters)
        return HttpRequest("POST", target, headers, _compact(body))

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if not isinstance(reply, HttpReply):
            return Unknown("not an HTTP reply")
        if reply.status != 200:
            return Unknown(f"HTTP {reply.status}")
        document = _object(reply.body)
        code = _word(document.get("msgCode")) if document is not None else None
        if document is None or code is None:
            # the bus itself failed: {"code": 503, "csbCode": 503, "message", "requestId"}
            return Unknown("no reply of the platform: the bus, or something between, answered")
        settings = self._settings
        if code in settings.ok_codes:
            result = document.get("result")
            facts = self._open(ctx, result.get("encrypt") if isinstance(result, dict) else None)
            return Unknown("the result cannot be read") if facts is None else self._approved(op, facts, ctx.now)
        if code in settings.declines:
            return Declined(settings.declines[code])
        if code in settings.pending_codes and isinstance(op, ScanLoginState):
            return Pending()
        return Unknown("an answer that is not mapped")

    def query_for(self, op: Operation) -> QueryStatus | None:
        return None

    def redact(self, wire: bytes) -> str:
        """The outer form, with nothing that it carries: `{"msgCode": "000000", "result": {"encrypt": <344>}}`."""
        document = _object(wire)
        return f"<{len(wire)} bytes>" if document is None else _outline(document)

    def _payload(self, op: Operation) -> bytes:
        settings = self._settings
        us = {"channelNo": settings.channel_no, "accessNo": settings.access_no, "systemName": settings.system_name}
        match op:
            case VerifyEcardCode():
                asked = {
                    "qrCode": op.code.reveal(), "busiType": settings.busi_type, "systemName": settings.system_name,
                }  # fmt: skip
            case EcardSignLevel():
                asked = {
                    "channelNo": settings.channel_no, "aab301": op.region,
                    "aac002": op.id_number.reveal(), "aac003": op.name.reveal(),
                }  # fmt: skip
            case ScanLoginState():
                asked = {
                    "channelNo": settings.channel_no, "accessNo": settings.access_no, "qrCode": op.shown,
                }  # fmt: skip
            case _:
                asked = us
        if max(map(len, asked.values())) > _TEXT_MAX:
            raise CannotBuild("a value is too long")
        return _compact(asked)

    def _seal(self, ctx: CallContext, plaintext: bytes) -> str:
        iv = ctx.nonce if self._settings.iv == "prefix" else self._fixed_iv()
        ciphertext = ctx.crypto.encrypt("body", plaintext, iv)
        raw = iv + ciphertext if self._settings.iv == "prefix" else ciphertext
        return base64.b64encode(raw).decode() if self._settings.encoding == "base64" else raw.hex()

    def _open(self, ctx: CallContext, text: Any) -> dict[str, Any] | None:
        """The object inside; None for whatever is not one."""
        if not isinstance(text, str):
            return None
        try:
            raw = base64.b64decode(text, validate=True) if self._settings.encoding == "base64" else bytes.fromhex(text)
            iv = self._fixed_iv()
            if self._settings.iv == "prefix":
                iv, raw = raw[:_IV_BYTES], raw[_IV_BYTES:]
            return _object(ctx.crypto.decrypt("body", raw, iv))
        except (binascii.Error, ValueError):  # a CryptoRefused is a ValueError
            return None

    def _fixed_iv(self) -> bytes:
        return bytes(_IV_BYTES) if self._settings.iv in ("none", "prefix") else bytes.fromhex(self._settings.iv)

    def _approved(self, op: Operation, result: dict[str, Any], now: dt.datetime) -> Outcome:
        """What it says, if all of it is there and has the right shape: else Unknown, never half of it."""
        fields = self._settings.fields
        facts: dict[str, Secret[str] | str | int | None]
        match op:
            case VerifyEcardCode():
                facts = {
                    "id_number": _id_number(result.get(fields.id_number), now),
                    "card_number": _card_number(result.get(fields.card_number), result.get(fields.card_identifier)),
                    "name": _secret(result.get(fields.name)),
                }
            case EcardSignLevel():
                level = {"1": 1, "2": 2}.get(_word(result.get(fields.sign_level)) or "")
                facts = {"sign_level": level, "sign_number": _secret(result.get(fields.sign_number))}
            case ScanLogin():
                shown = result.get(fields.shown)
                facts = {"shown": shown if isinstance(shown, str) and _SHOWN.fullmatch(shown) else None}
            case _:
                facts = {
                    "id_number": _id_number(result.get(fields.id_number), now),
                    "ecard_number": _secret(result.get(fields.ecard_number)),
                }
        there = {name: value for name, value in facts.items() if value is not None}
        return Approved(facts=there) if len(there) == len(facts) else Unknown("a fact is missing or malformed")


def _compact(document: Mapping[str, str]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _word(value: Any) -> str | None:
    """A short code; numbers are taken for their text, for older replies have them."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    return text if _WORD.fullmatch(text) else None


def _secret(value: Any) -> Secret[str] | None:
    return Secret(value) if isinstance(value, str) and 1 <= len(value) <= _TEXT_MAX else None


def _id_number(value: Any, now: dt.datetime) -> Secret[str] | None:
    text = value.upper() if isinstance(value, str) else ""
    return Secret(text) if is_id_number(text, now.date()) else None


def _card_number(*values: Any) -> Secret[str] | None:
    """Of card number and identifier, in whichever order, the one that has the shape of a number."""
    found = [value for value in values if isinstance(value, str) and _CARD_NUMBER.fullmatch(value)]
    return Secret(found[0]) if len(found) == 1 else None


_OUTER = ("msgCode", "code", "csbCode", "result", "encrypt", "security", "msg", "message", "requestId")
_CODES = ("msgCode", "code", "csbCode")


def _outline(document: dict[str, Any]) -> str:
    """Known names in a fixed order; of codes the value, of all else the size."""
    parts = []
    for name in _OUTER:
        if name not in document:
            continue
        value = document[name]
        if name in _CODES and (word := _word(value)) is not None and word.isdigit() and len(word) <= 6:
            parts.append(f'"{name}": "{word}"')
        elif name == "result" and isinstance(value, dict):
            parts.append(f'"{name}": {_outline({"encrypt": value["encrypt"]} if "encrypt" in value else {})}')
        else:
            parts.append(f'"{name}": <{len(value) if isinstance(value, str | list | dict) else 1}>')
    if more := len(document.keys() - set(_OUTER)):
        parts.append(f"<{more} more>")
    return "{" + ", ".join(parts) + "}"
