"""The example dialect: JSON over HTTP, an HMAC-SHA256 over each body. `python -m gateway new-adapter` copies it.

Wire: POST /operations `{"kind", "reference", "amount_fen", "account", "at"}` with X-Mac (hex, of the body).
Reply 200 `{"reference", "code", "balance_fen"}` with X-Mac; 00 done, P in progress, anything else is a refusal.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec

from gateway.domain.operations import Operation, Purchase, QueryStatus, Reverse
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.partners.contract import (
    CallContext,
    CannotBuild,
    CryptoRefused,
    HttpReply,
    HttpRequest,
    Transport,
    WireReply,
    WireRequest,
)

_AMOUNT_MAX_FEN = 10**12
_DECLINES: Mapping[str, DeclineCode] = {
    "14": DeclineCode.INVALID_CARD,
    "25": DeclineCode.NOT_FOUND,
    "51": DeclineCode.INSUFFICIENT_FUNDS,
}
_SHOWN = ("kind", "reference", "amount_fen", "at", "code")
"""What of a body may be logged; everything else is personal until somebody says otherwise."""


class _Reply(msgspec.Struct, frozen=True):
    reference: str
    code: str
    balance_fen: int | None = None


class DialectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    merchant_id: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9]{1,15}$")]


class Adapter:
    TRANSPORT: ClassVar[Transport] = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset({Purchase, Reverse, QueryStatus})
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset({"mac"})
    Settings: ClassVar[type[msgspec.Struct]] = DialectSettings

    def __init__(self, settings: DialectSettings) -> None:
        self._merchant_id = settings.merchant_id

    def build(self, op: Operation, ctx: CallContext) -> WireRequest:
        original = op.original if isinstance(op, Reverse | QueryStatus) else op
        if not isinstance(original, Purchase):
            raise CannotBuild("only purchases are known here")
        if not 0 < original.amount_fen < _AMOUNT_MAX_FEN or not original.account.reveal().isdecimal():
            raise CannotBuild("the amount or the account does not fit")
        body = msgspec.json.encode(
            {
                "kind": {Purchase: "pay", Reverse: "undo", QueryStatus: "ask"}[type(op)],
                "reference": original.reference.hex,
                "merchant_id": self._merchant_id,
                "amount_fen": original.amount_fen,
                "account": original.account.reveal(),
                "at": ctx.now.strftime("%Y%m%d%H%M%S"),
            }
        )
        headers = {"Content-Type": "application/json", "X-Mac": ctx.crypto.mac("mac", body).hex()}
        return HttpRequest("POST", "/operations", headers, body)

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if not isinstance(reply, HttpReply) or reply.status != 200:
            return Unknown("not an answer of this dialect")
        try:
            if not ctx.crypto.verify("mac", reply.body, bytes.fromhex(reply.headers.get("X-Mac", ""))):
                return Unknown("the mac is wrong")
            said = msgspec.json.decode(reply.body, type=_Reply)
        except (ValueError, CryptoRefused):  # msgspec's errors are ValueErrors
            return Unknown("cannot be read")
        original = op.original if isinstance(op, Reverse | QueryStatus) else op
        if said.reference != original.reference.hex:
            return Unknown("answers another operation")
        if said.code == "00":
            return Approved(said.reference, {} if said.balance_fen is None else {"balance_fen": said.balance_fen})
        if said.code == "P":
            return Pending()
        declined = _DECLINES.get(said.code)
        return Declined(declined) if declined is not None else Unknown("a code that is not mapped")

    def query_for(self, op: Operation) -> QueryStatus | None:
        return QueryStatus(reference=op.reference, at=op.at, original=op) if isinstance(op, Purchase) else None

    def redact(self, wire: bytes) -> str:
        try:
            told = msgspec.json.decode(wire)
            return " ".join(f"{name}={told[name]}" for name in _SHOWN if name in told)[:500]
        except (ValueError, TypeError, RecursionError):
            return f"({len(wire)} bytes)"
