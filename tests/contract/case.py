"""What an adapter's author writes for the contract suite: `tests/contract/cases/<adapter>.py` with one `CASE`.

    CASE = Case(
        adapter=Adapter, dialect={"merchant_id": "..."}, keys={"ours": Shared("sm2", SM2_OURS), ...},
        reference=lambda request: ...,           # our reference, as it stands in a built request
        examples=(Example("purchase", Purchase(...), request=HttpRequest(...), approved=HttpReply(...),
                          outcome=Approved(...), declined={"51": (reply, DeclineCode.INSUFFICIENT_FUNDS), ...},
                          unknown=(reply with a code nobody knows,), late=reply to ANOTHER purchase), ...))

The adapter's class is called `Adapter` in its file. One example at least for every type in OPERATIONS. Requests and
replies are golden: literal bytes (or made once, by the case file as the partner, with `crypto_for(keys)`), never by
the adapter under test. The suite calls with `context(keys)`: now = 2026-11-23T10:00:00+08:00, nonce = 00 01 … 0f,
attempt = 1. SM2 signatures are deterministic under `crypto_for`, so that requests can be compared byte by byte.

From each example the suite makes by itself: truncated at every length, every byte altered, wrong keys, 5xx HTML,
duplicate, random bytes, hostile texts in every field of the operation, and the search for leaks in redact().
"""

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import gmalg
import msgspec

from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.crypto.sm2_forms import SignatureForm, write_signature
from gateway.domain.operations import LinkMessage, Operation
from gateway.domain.outcome import DeclineCode, Outcome
from gateway.domain.partners import KeyKind, PartnerKey
from gateway.partners.contract import Adapter, CallContext, LinkFrame, WireReply, WireRequest
from gateway.partners.keys import Keys

NOW = dt.datetime(2026, 11, 23, 10, 0, tzinfo=dt.timezone(dt.timedelta(hours=8)))
NONCE = bytes(range(16))

SM2_OURS = (
    "3945208f7b2144b13f36e38ac6d39f95889393692860b51a42fb81ef4df7c5b8"
    " 0409f9df311e5421a150dd7d161e4bc5c672179fad1833fc076bb08ff356f35020"
    "ccea490ce26775a52dc6ea718cc1aa600aed05fbf35e084a6632f6072da9ad13"
)
"""The key of the standard's example (GB/T 32918.5), private and public."""


class Shared(msgspec.Struct, frozen=True):
    """A test key: its kind, its text as in a key file (hex), and the settings of an SM2 key.

    SM2: `<private> <public>` of both sides, so that the case can sign for the partner too; in a real configuration the
    partner's key is its public part alone.
    """

    kind: KeyKind
    text: str
    signature: Literal["der", "raw"] = "der"
    ciphertext: Literal["c1c3c2-der", "c1c3c2-raw", "c1c2c3-raw"] = "c1c3c2-der"
    user_id: str = "1234567812345678"
    encoding: Literal["hex", "base64", "text"] = "hex"


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One operation of the dialect: what is sent, and everything that may come back."""

    name: str
    op: Operation
    request: WireRequest
    """Golden: exactly what build() must give."""
    approved: WireReply
    outcome: Outcome
    """What `approved` parses to, complete (Secrets are compared by their values); Approved, of a QueryStatus perhaps
    Pending."""
    declined: Mapping[str, tuple[WireReply, DeclineCode]]
    """By the partner's own code. Every DeclineCode that the adapter's file names must be in some example."""
    unknown: tuple[WireReply, ...]
    """Replies that are well-formed, signed right, and clear to nobody: a code that is not mapped, a missing field."""
    late: WireReply | None
    """A good approval of another such operation, which arrives here: must be Unknown. None with Case.no_echo."""
    pending: WireReply | None = None


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter."""

    adapter: type[Adapter]
    dialect: Mapping[str, Any]
    """The `[partners.<name>.dialect]` table, which the adapter's Settings reads."""
    keys: Mapping[str, Shared]
    examples: tuple[Example, ...]
    reference: Callable[[WireRequest], str]
    """What in a built request lets the partner find the operation (our reference in the dialect's form); read by the
    case, not by the adapter. For a reversal or a query: that of the original."""
    link: Mapping[LinkMessage, tuple[LinkFrame, LinkFrame]] = {}
    """Of a long-lived link, all three: (golden request with trace 1, an accepting reply)."""
    secrets: tuple[str, ...] = ()
    """More personal texts that occur in the golden replies; those of the operations are found by the suite."""
    unsigned: str = ""
    """Why replies of this dialect carry neither signature nor mac; empty: they do, on every reply."""
    no_echo: str = ""
    """Why a reply cannot be told from a reply to another operation."""
    no_query: str = ""
    """Why the dialect cannot be asked what became of an operation."""


class FixedSm2(SharedKey):
    """SM2 whose signatures are the same for the same message: the k of each is a digest of it. Verifies as ever."""

    def __init__(self, shared: Shared, real: SharedKey) -> None:
        self._real = real
        self._form = SignatureForm(shared.signature)
        secret, _, public = shared.text.partition(" ")
        self._parts = (bytes.fromhex(secret), shared.user_id.encode(), bytes.fromhex(public)) if public else None

    def sign(self, message: bytes) -> bytes:
        if self._parts is None:
            return self._real.sign(message)
        # far below n: gmalg's time grows with its length, and this key is public
        k = int.from_bytes(hashlib.sha256(b"k" + message).digest()[:4], "big")
        r, s = gmalg.SM2(*self._parts, rnd_fn=lambda bits: k).sign(message)
        return write_signature(self._form, r.rjust(32, b"\0") + s.rjust(32, b"\0"))  # gmalg leaves zeros out

    def verify(self, message: bytes, signature: bytes) -> bool:
        return self._real.verify(message, signature)

    def encrypt(self, plaintext: bytes, iv: bytes) -> bytes:
        return self._real.encrypt(plaintext, iv)

    def decrypt(self, ciphertext: bytes, iv: bytes) -> bytes:
        return self._real.decrypt(ciphertext, iv)


def crypto_for(keys: Mapping[str, Shared]) -> Keys:
    """The engine's own Crypto over test keys, deterministic."""
    return _crypto(tuple(keys.items()))


@lru_cache(maxsize=64)  # an SM2 key proves itself when it is read, which is most of what a check would cost
def _crypto(keys: tuple[tuple[str, Shared], ...]) -> Keys:
    def key(shared: Shared) -> SharedKey:
        block = PartnerKey(
            kind=shared.kind, encoding=shared.encoding, signature=shared.signature,
            ciphertext=shared.ciphertext, user_id=shared.user_id,
        )  # fmt: skip
        real = read_key(block, shared.text)
        return FixedSm2(shared, real) if shared.kind == "sm2" else real

    return Keys({name: key(shared) for name, shared in keys})


def context(keys: Mapping[str, Shared], *, attempt: int = 1) -> CallContext:
    """The suite's context; another attempt comes a second later, with another nonce."""
    later = NOW + dt.timedelta(seconds=attempt - 1)
    return CallContext(now=later, nonce=bytes(b + attempt - 1 for b in NONCE), attempt=attempt, crypto=crypto_for(keys))
