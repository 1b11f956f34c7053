"""The adapter interface (design.md §3). An adapter is pure translation: no I/O, no clock, no randomness of its own."""

import datetime as dt
from collections.abc import Mapping
from enum import Enum
from typing import Any, ClassVar, Protocol

import msgspec

from gateway.domain.operations import LinkMessage, Operation, QueryStatus
from gateway.domain.outcome import Outcome
from gateway.domain.partners import CryptoRefused as CryptoRefused


class CannotBuild(Exception):
    """The operation cannot be put into this dialect. Nothing was sent. The text holds no value of the operation."""


class Transport(Enum):
    HTTP = "http"
    ISO8583 = "iso8583"
    NONE = "none"


class Crypto(Protocol):
    """What an adapter may have signed and enciphered: keys are named in its config block, and stay in the engine.

    Bytes in, bytes out: hex and base64 are the dialect's affair. Each raises CryptoRefused. Kinds: sm2 (sign, verify,
    encrypt, decrypt; the iv is unused), sm4-cbc and aes-cbc (PKCS #7, iv of 16 bytes), aes-ecb (iv unused),
    hmac-sha1, hmac-sha256, hmac-sm3, mac-sm4 (16 bytes), mac-3des (8 bytes; X9.19): mac and verify.
    """

    def sign(self, key: str, message: bytes) -> bytes: ...
    def verify(self, key: str, message: bytes, signature: bytes) -> bool: ...
    def encrypt(self, key: str, plaintext: bytes, iv: bytes) -> bytes: ...
    def decrypt(self, key: str, ciphertext: bytes, iv: bytes) -> bytes: ...
    def mac(self, key: str, message: bytes) -> bytes: ...


class CallContext(msgspec.Struct, frozen=True):
    """What build() and parse() may use besides the operation; the same in both of one call."""

    now: dt.datetime
    """When this try began, aware."""
    nonce: bytes
    """16 random bytes of this try."""
    attempt: int
    """1, 2 …"""
    crypto: Crypto


class HttpRequest(msgspec.Struct, frozen=True):
    """`target` is a path with its query; the engine adds base URL, Host and length."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


class HttpReply(msgspec.Struct, frozen=True):
    status: int
    headers: Mapping[str, str]
    body: bytes
    """At most as long as the partner's block allows."""


class LinkFrame(msgspec.Struct, frozen=True):
    """One message on a long-lived link, without its length prefix."""

    body: bytes


WireRequest = HttpRequest | LinkFrame
WireReply = HttpReply | LinkFrame


class Adapter(Protocol):
    """One dialect. Built by the registry with its checked settings: `Adapter(settings)`."""

    TRANSPORT: ClassVar[Transport]
    OPERATIONS: ClassVar[frozenset[type[Operation]]]
    """What this dialect can do; what is absent is refused at start-up, if the configuration routes it here."""
    offered: frozenset[type[Operation]]
    """Those of them that its settings leave; all of them where settings leave nothing out (`offered = OPERATIONS`)."""
    KEYS: ClassVar[frozenset[str]]
    """Names of the keys without which it cannot work: `[partners.<name>.keys.<key>]` is asked for at start-up."""
    Settings: ClassVar[type[msgspec.Struct]]
    """Validates the `[partners.<name>.dialect]` table of its config block."""

    def __init__(self, settings: Any) -> None: ...

    def build(self, op: Operation, ctx: CallContext) -> WireRequest:
        """The same bytes for the same arguments. Raises CannotBuild."""
        ...

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        """Never raises: what cannot be read is Unknown."""
        ...

    def query_for(self, op: Operation) -> QueryStatus | None:
        """How to ask what became of an operation; None if this dialect cannot."""
        ...

    def redact(self, wire: bytes) -> str:
        """The only form of wire bytes (an HTTP body, a link's message) that may be logged or kept. Never raises.

        The engine logs a target's path itself, without its query: nothing personal belongs in a path.
        """
        ...


class LinkAdapter(Adapter, Protocol):
    """A dialect of a long-lived link (ISO 8583)."""

    def correlate(self, message: bytes) -> str | None:
        """What a request and its reply have in common (F41 + F11); None if it cannot be read."""
        ...

    def is_reply(self, message: bytes) -> bool: ...

    def link_message(self, kind: LinkMessage, ctx: CallContext, trace: int) -> LinkFrame:
        """Sign-on, echo, sign-off."""
        ...

    def link_accepted(self, reply: bytes) -> bool:
        """Whether a sign-on or echo was answered well."""
        ...
