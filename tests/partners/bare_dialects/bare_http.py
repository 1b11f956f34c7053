"""Constant bytes over HTTP."""

from typing import Any, ClassVar

import msgspec

from gateway.domain.operations import Operation, Purchase, QueryStatus
from gateway.domain.outcome import Approved, Outcome
from gateway.partners.contract import CallContext, HttpRequest, Transport, WireReply

REQUEST = HttpRequest("POST", "/operations", {"Content-Type": "application/json"}, b'{"kind":"pay"}' + b" " * 300)
_APPROVED = Approved("1")


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """To set."""


class Adapter:
    TRANSPORT: ClassVar = Transport.HTTP
    OPERATIONS: ClassVar[frozenset[type[Operation]]] = frozenset({Purchase})
    offered = OPERATIONS
    KEYS: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[msgspec.Struct]] = Nothing

    def __init__(self, settings: Any) -> None: ...

    def build(self, op: Operation, ctx: CallContext) -> HttpRequest:
        return REQUEST

    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        return _APPROVED

    def query_for(self, op: Operation) -> QueryStatus | None:
        return None

    def redact(self, wire: bytes) -> str:
        return ""
