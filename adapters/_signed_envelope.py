"""The envelope of the signed open-bank pattern (domain.md §4.1, 温州银行 [S]): content enciphered, the whole signed.

Out: `{"bizContent": UPPERHEX(SM4-CBC-PKCS7(compact JSON))}` under the headers of HEADER_ORDER. The signed text is the
compact JSON of those headers that are present, in that order, and bizContent. How a bank signs its answers and where
it has the IV from are not established: settings.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

import msgspec

from gateway.domain.masking import Secret
from gateway.partners.contract import CallContext, CannotBuild, CryptoRefused, HttpReply, HttpRequest

SIGN, ENCRYPT, PARTNER = "sign", "encrypt", "partner"
"""The keys of a config block: ours for signatures, the shared one of SM4, the bank's public one."""

HEADER_ORDER: Final = (
    "Authorization",
    "x-aob-appID",
    "x-aob-bankID",
    "x-aob-customer-last-logger-time",
    "x-aob-customer-ip-address",
    "x-aob-interaction-id",
    "x-aob-access-token",
    "x-customer-user-agent",
    "x-idempotency-key",
)
SIGNATURE: Final = "x-aob-signature"
_INTERACTION: Final = "x-aob-interaction-id"
_IV_BYTES: Final = 16
TEXT_MAX: Final = 200

Token = Annotated[str, msgspec.Meta(pattern=r"^[\x21-\x7e]{1,128}\Z")]


class ReplySigned(StrEnum):
    """Where the signature of an answer is, and what it is over. There is no setting for an unsigned one."""

    LIKE_A_REQUEST = "like_a_request"
    """In the header, over the headers of HEADER_ORDER that the answer has, and bizContent."""
    CONTENT = "content"
    """In the header, over `{"bizContent":…}`."""
    FIELD = "field"
    """In the body's field `signature`, over the text of bizContent."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every bank of this pattern needs in its block."""

    app_id: Token
    bank_id: Token
    user_agent: Token = "yikatong-gateway"
    authorization: Secret[str] = Secret("")
    """Empty: the header is left out, as it is for access_token."""
    access_token: Secret[str] = Secret("")
    iv: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{32})?\Z")] = ""
    """A bank's constant IV in hex; empty: a fresh one goes before each ciphertext."""
    reply_signed: ReplySigned = ReplySigned.LIKE_A_REQUEST


class Unreadable(Exception):
    """An answer is not one of the bank's to this message. The text holds nothing of it."""


class _Sealed(msgspec.Struct, rename="camel"):
    biz_content: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-fA-F]{32})+\Z")]
    signature: str = ""


def seal(envelope: Envelope, target: str, content: Mapping[str, Any], key: str, ctx: CallContext) -> HttpRequest:
    """A request; `key` makes its repetitions one for the bank, the interaction id tells them apart.

    Raises CannotBuild for a text that is too long or is not Unicode.
    """
    if _longest(content) > TEXT_MAX:
        raise CannotBuild(f"a text has more than {TEXT_MAX} characters")
    try:
        plaintext = compact(content)
    except UnicodeEncodeError:
        raise CannotBuild("a text is not Unicode") from None
    iv = bytes.fromhex(envelope.iv) or ctx.nonce
    sealed = ctx.crypto.encrypt(ENCRYPT, plaintext, iv)
    text = (sealed if envelope.iv else iv + sealed).hex().upper()
    known = {
        "Authorization": envelope.authorization.reveal(),
        "x-aob-appID": envelope.app_id,
        "x-aob-bankID": envelope.bank_id,
        _INTERACTION: ctx.nonce.hex(),
        "x-aob-access-token": envelope.access_token.reveal(),
        "x-customer-user-agent": envelope.user_agent,
        "x-idempotency-key": key,
    }  # a customer's address and last visit are of a person at a screen, and there is none
    headers = {name: known[name] for name in HEADER_ORDER if known.get(name)}
    headers[SIGNATURE] = ctx.crypto.sign(SIGN, signed_text(headers, text)).hex().upper()
    headers["Content-Type"] = "application/json; charset=utf-8"
    return HttpRequest("POST", target, headers, compact({"bizContent": text}))


def open_reply(envelope: Envelope, ctx: CallContext, reply: HttpReply) -> bytes:
    """The content of an answer, its signature checked. Raises Unreadable."""
    if reply.status != 200:
        raise Unreadable(f"HTTP status {reply.status}")
    try:
        sealed = msgspec.json.decode(reply.body, type=_Sealed)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Unreadable("the body is not the bank's envelope") from None
    headers = {name.lower(): value for name, value in reply.headers.items()}
    message, signature = _signed(envelope.reply_signed, headers, sealed)
    if not re.fullmatch("([0-9A-F]{2}){8,80}", signature) or not _verified(ctx, message, bytes.fromhex(signature)):
        raise Unreadable("the signature is not the bank's")
    if headers.get(_INTERACTION, ctx.nonce.hex()) != ctx.nonce.hex():
        raise Unreadable("the answer to another try")
    raw = bytes.fromhex(sealed.biz_content)
    iv, ciphertext = (bytes.fromhex(envelope.iv), raw) if envelope.iv else (raw[:_IV_BYTES], raw[_IV_BYTES:])
    try:
        return ctx.crypto.decrypt(ENCRYPT, ciphertext, iv)
    except CryptoRefused:
        raise Unreadable("the content does not decrypt") from None


def _verified(ctx: CallContext, message: bytes, signature: bytes) -> bool:
    try:
        return ctx.crypto.verify(PARTNER, message, signature)
    except CryptoRefused:
        return False


def signed_text(headers: Mapping[str, str], content: str) -> bytes:
    """What a signature is over; headers by their names in HEADER_ORDER."""
    return compact({name: headers[name] for name in HEADER_ORDER if name in headers} | {"bizContent": content})


def compact(value: Mapping[str, Any]) -> bytes:
    """JSON in UTF-8 without spaces, in the mapping's order."""
    return msgspec.json.encode(value)


def _signed(where: ReplySigned, headers: Mapping[str, str], sealed: _Sealed) -> tuple[bytes, str]:
    """(the signed bytes, the signature in hex) of an answer; `headers` by lower-case names."""
    if where is ReplySigned.FIELD:
        return sealed.biz_content.encode(), sealed.signature
    present = {name: headers[name.lower()] for name in HEADER_ORDER if name.lower() in headers}
    message = signed_text(present if where is ReplySigned.LIKE_A_REQUEST else {}, sealed.biz_content)
    return message, headers.get(SIGNATURE, "")


def _longest(value: Any) -> int:
    """Characters of the longest text in a content."""
    if isinstance(value, dict | list):
        return max((_longest(one) for one in (value.values() if isinstance(value, dict) else value)), default=0)
    return len(value) if isinstance(value, str) else 0
