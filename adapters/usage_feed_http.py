"""The usage feed over signed HTTP: how usage events are brought to the bureau, the province and whoever else asks.

No published interface was found for this [G], so the dialect is ours, and a subscriber builds its end from this text.

    POST <path>
    Content-Type: application/x-ndjson
    Content-Digest: sha-256=:<base64>:                          (RFC 9530, of the body)
    X-Feed-Timestamp: <seconds since 1970>
    X-Feed-Nonce: <32 hex>
    X-Feed-Signature: <base64>       over POST LF <path> LF <timestamp> LF <nonce> LF <Content-Digest> LF

    {"batch": "<uuid>", "subscriber": "<its name for us>", "sequence": 12, "count": 2}
    {"position": 4711, "event": {…}}                            as GET /v1/usage-events shows it
    {"position": 4712, "redelivery": true, "event": {…}}        may have arrived before

    200, X-Feed-Signature: <base64>  over <nonce> LF <base64 of the answer's SHA-256> LF
    {"batch": "<uuid>", "received": 2, "accepted": 1, "duplicates": ["<event_id>"], "refused": []}

A subscriber knows an event by its `event_id` and keeps it before it answers. The events of a card come in the order of
(position, event_id), but for those with `"replayed": true`. It refuses one with `{"event_id", "code"}`; then it refuses
the later ones of the same card in the batch too, with the code `behind`: all of them come again, in order.

Keys: `sign` is ours; `partner` is the subscriber's (public) one. With hmac both name the one shared key.
"""

import base64
import hashlib
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

import msgspec

from gateway.domain.operations import DeliverUsage, Operation, QueryStatus
from gateway.domain.outbox import FeedItem
from gateway.domain.outcome import Approved, Outcome, Unknown
from gateway.partners.contract import (
    CallContext,
    CannotBuild,
    CryptoRefused,
    HttpReply,
    HttpRequest,
    Transport,
    WireReply,
)

SIGNATURE = "X-Feed-Signature"
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

_Code = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9_]{0,39}\Z")]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Dialect(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[partners.<name>.dialect]`."""

    subscriber: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]
    path: Annotated[str, msgspec.Meta(pattern=r"^/[A-Za-z0-9/_.-]{0,200}\Z")] = "/usage-events"
    signature: Literal["sm2", "hmac"] = "sm2"
    withheld: frozenset[
        Literal["card_ref", "medium", "region", "verdict", "reason", "result", "amount_fen", "discount_fen",
                "reversal_of", "caller_event_id"]
    ] = frozenset()  # fmt: skip
    """Fields of an event that this subscriber does not get."""


class _Head(msgspec.Struct, frozen=True):
    batch: UUID
    subscriber: str
    sequence: int
    count: int


class _Refusal(msgspec.Struct, frozen=True):
    event_id: UUID
    code: _Code


class _Answer(msgspec.Struct, frozen=True):
    batch: UUID
    received: _Count
    accepted: _Count
    duplicates: list[UUID]
    refused: list[_Refusal]


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_head = msgspec.json.Decoder(_Head).decode


class Adapter:
    TRANSPORT: ClassVar = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset({DeliverUsage})
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset({"sign", "partner"})
    Settings: ClassVar[type[msgspec.Struct]] = Dialect

    def __init__(self, settings: Dialect) -> None:
        self._settings = settings
        self._withheld: dict[str, Any] = dict.fromkeys(settings.withheld, msgspec.UNSET)

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        if not isinstance(op, DeliverUsage):
            raise CannotBuild(f"{type(op).__name__} is not an operation of this dialect")
        settings = self._settings
        head = _Head(op.reference, settings.subscriber, op.sequence, len(op.items))
        body = _encode_lines([head, *map(self._seen, op.items)])
        timestamp, nonce, digest = str(int(ctx.now.timestamp())), ctx.nonce.hex(), f"sha-256=:{_digest(body)}:"
        message = f"POST\n{settings.path}\n{timestamp}\n{nonce}\n{digest}\n".encode()
        sign = ctx.crypto.mac if settings.signature == "hmac" else ctx.crypto.sign
        try:
            signature = sign("sign", message)
        except CryptoRefused as error:
            raise CannotBuild(str(error)) from None
        headers = {
            "Content-Type": "application/x-ndjson",
            "Content-Digest": digest,
            "X-Feed-Timestamp": timestamp,
            "X-Feed-Nonce": nonce,
            SIGNATURE: base64.b64encode(signature).decode(),
        }
        return HttpRequest("POST", settings.path, headers, body)

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if not isinstance(reply, HttpReply) or not isinstance(op, DeliverUsage):
            return Unknown("not an HTTP reply")
        if reply.status != 200:
            return Unknown(f"HTTP {reply.status}")
        headers = {name.lower(): value for name, value in reply.headers.items()}
        if not _verified(ctx, reply.body, headers.get(SIGNATURE.lower(), "")):
            return Unknown("the signature is not the subscriber's")
        try:
            answer = _decode_answer(reply.body)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return Unknown("the answer is not an acknowledgement")
        return _approved(op, answer)

    def query_for(self, op: Operation) -> QueryStatus | None:
        return None

    def redact(self, wire: bytes) -> str:
        """The head of a batch, the counts of an answer: no event."""
        first, _, _ = wire.partition(b"\n")
        try:
            head = _decode_head(first)
            return f"batch {head.batch} sequence {head.sequence} count {head.count}"
        except (msgspec.DecodeError, ValueError, RecursionError):
            pass
        try:
            answer = _decode_answer(wire)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return f"({len(wire)} bytes)"
        counts = f"duplicates {len(answer.duplicates)} refused {len(answer.refused)}"
        return f"batch {answer.batch} received {answer.received} {counts}"

    def _seen(self, item: FeedItem) -> FeedItem:
        if not self._withheld:
            return item
        return msgspec.structs.replace(item, event=msgspec.structs.replace(item.event, **self._withheld))


def _approved(op: DeliverUsage, answer: _Answer) -> Outcome:
    """Only if it speaks of each event of this batch, and of no other."""
    sent = {item.event.event_id for item in op.items}
    refused = {str(refusal.event_id): refusal.code for refusal in answer.refused}
    told = [*map(str, answer.duplicates), *refused]
    if answer.batch != op.reference or answer.received != len(sent):
        return Unknown("the answer is to another batch")
    if len(set(told)) != len(answer.duplicates) + len(answer.refused) or not sent.issuperset(told):
        return Unknown("the answer tells of events that are not in the batch")
    if answer.accepted + len(told) != len(sent):
        return Unknown("the answer does not tell of every event")
    return Approved(facts={
        "duplicates": len(answer.duplicates), "refused": [[event_id, code] for event_id, code in refused.items()],
    })  # fmt: skip


def _digest(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _verified(ctx: CallContext, body: bytes, signature: str) -> bool:
    message = f"{ctx.nonce.hex()}\n{_digest(body)}\n".encode()
    try:
        return ctx.crypto.verify("partner", message, base64.b64decode(signature, validate=True))
    except ValueError:  # base64's and CryptoRefused
        return False
