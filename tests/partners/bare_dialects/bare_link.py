"""The key and a filling over a link: `? key …` asks, `! key …` answers."""

from typing import Any, ClassVar

import msgspec

from gateway.domain.operations import LinkMessage, Operation, Purchase, QueryStatus
from gateway.domain.outcome import Approved, Outcome
from gateway.partners.contract import CallContext, LinkFrame, Transport, WireReply

FILLING = b" " * 180
_APPROVED = Approved("1")


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """To set."""


class Adapter:
    TRANSPORT: ClassVar = Transport.ISO8583
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset({Purchase})
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[msgspec.Struct]] = Nothing

    def __init__(self, settings: Any = None) -> None: ...

    def build(self, op: Operation, ctx: CallContext) -> LinkFrame:
        return frame(op.reference.hex)

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        return _APPROVED

    def query_for(self, op: Operation) -> QueryStatus | None:
        return None

    def redact(self, wire: bytes) -> str:
        return ""

    def correlate(self, message: bytes) -> str | None:
        return message.split(b" ", 2)[1].decode("latin-1")

    def is_reply(self, message: bytes) -> bool:
        return message.startswith(b"!")

    def link_message(self, kind: LinkMessage, ctx: CallContext, trace: int) -> LinkFrame:
        return frame(f"{kind}-{trace}")

    def link_accepted(self, reply: bytes) -> bool:
        return True


def frame(key: str) -> LinkFrame:
    return LinkFrame(b"? %b %b" % (key.encode(), FILLING))
