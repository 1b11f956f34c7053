"""What the contract suite asks of every adapter; each check is shown to catch its planted bug in test_checks.py."""

import ast
import base64
import inspect
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.crypto import sm2
from gateway.domain.masking import Secret
from gateway.domain.operations import (
    BatchTransfer,
    DeliverUsage,
    HotelCheckIn,
    LinkMessage,
    NotifyLoss,
    OpenBarrier,
    Operation,
    Purchase,
    QueryStatus,
    Refund,
    Reverse,
    TillDiscount,
    Transfer,
)
from gateway.domain.outcome import DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.partners.contract import CannotBuild, HttpReply, HttpRequest, LinkFrame, Transport, WireReply, WireRequest
from gateway.settings import convert
from tests.contract.case import Case, Example, Shared, context

_VISITS = (OpenBarrier, HotelCheckIn, TillDiscount)
EFFECTS = (Purchase, Reverse, Refund, Transfer, BatchTransfer, NotifyLoss, DeliverUsage, *_VISITS)
_ASKED_AFTER = (Purchase, Transfer, BatchTransfer, *_VISITS)
_HTML = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body><hr>nginx</body></html>"
_HOSTILE = (
    "",
    "x\r\nX-Evil: 1",
    "\x00",
    "\ud800",
    "王" * 5000,
    "'\"<&>{}\\",
    "../../etc",
    "1e9",
    " ",
    "９９",
    "a" * 70_000,
)
_FRAME_MAX_BYTES = 9999


def made(case: Case) -> Any:
    """The adapter, as the registry makes it."""
    mistakes: list[str] = []
    settings = convert(dict(case.dialect), case.adapter.Settings, "case", "dialect", mistakes)
    assert not mistakes, mistakes
    return case.adapter(settings)


def gaps(case: Case) -> list[str]:
    """What the case lacks: it fails the collection."""
    found = [f"no example of {kind.__name__}" for kind in case.adapter.OPERATIONS - {type(e.op) for e in case.examples}]
    found += [f"no key {key!r}" for key in case.adapter.KEYS - case.keys.keys()]
    source = inspect.getsource(inspect.getmodule(case.adapter) or case.adapter)
    names = set(_declines(ast.parse(source)))
    shown = {code.name for example in case.examples for _, code in example.declined.values()}
    found += [f"no reply that is declined as {name}" for name in sorted(names - shown)]
    if "Pending()" in source and not any(example.pending for example in case.examples):
        found.append("no pending reply")
    found += [f"{e.name}: no unknown reply" for e in case.examples if not e.unknown]
    found += [
        f"{e.name}: no reply that finds nothing to reverse, which is declined as NOT_FOUND"
        for e in case.examples
        if isinstance(e.op, Reverse) and all(code is not DeclineCode.NOT_FOUND for _, code in e.declined.values())
    ]
    found += [
        f"{e.name}: no late reply, and no_echo does not say why" for e in case.examples if not (e.late or case.no_echo)
    ]
    if not case.keys and not case.unsigned:
        found.append("no keys, and unsigned does not say why")
    if case.adapter.TRANSPORT is Transport.ISO8583 and set(case.link) != set(LinkMessage):
        found.append("no link messages")
    return found


def _declines(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "DeclineCode":
            yield node.attr


def parse(case: Case, example: Example, reply: WireReply, **more: Any) -> Outcome:
    keys = more.get("keys", case.keys)
    outcome: Outcome = made(case).parse(more.get("op", example.op), context(keys), reply)
    return outcome


def told(value: Any) -> Any:
    """With Secrets by their values, so that outcomes can be compared."""
    if isinstance(value, Secret):
        return ("secret", value.reveal())
    if isinstance(value, msgspec.Struct):
        return (type(value).__name__, {name: told(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, dict):
        return {key: told(inner) for key, inner in value.items()}
    return [told(inner) for inner in value] if isinstance(value, list | tuple) else value


def with_body(reply: WireReply, body: bytes) -> WireReply:
    return msgspec.structs.replace(reply, body=body)


def replies(example: Example) -> Iterator[WireReply]:
    yield example.approved
    yield from (reply for reply, _ in example.declined.values())
    yield from example.unknown
    yield from (reply for reply in (example.pending, example.late) if reply is not None)


# build


def check_golden(case: Case, example: Example) -> None:
    for _ in range(2):
        assert made(case).build(example.op, context(case.keys)) == example.request


def check_reference(case: Case, example: Example) -> None:
    """The same in every try, another for another operation."""
    first, second = (made(case).build(example.op, context(case.keys, attempt=attempt)) for attempt in (1, 2))
    reference = case.reference(first)
    assert reference == case.reference(second)
    if isinstance(example.op, EFFECTS):
        assert reference
        assert case.reference(made(case).build(another(example.op), context(case.keys))) != reference


def another(op: Any) -> Any:
    """The same operation once more, as one of its own."""
    if isinstance(op, Reverse | QueryStatus):
        return msgspec.structs.replace(op, original=another(op.original))
    changes: dict[str, Any] = {"reference": UUID(int=op.reference.int ^ (0xABCDEF << 40) ^ 0xFACE)}
    if hasattr(op, "trace"):
        changes["trace"] = op.trace % 999_999 + 1
    if hasattr(op, "batch_no"):
        changes["batch_no"] = str(op.batch_no)[:-1] + ("1" if str(op.batch_no)[-1:] == "0" else "0")
    return msgspec.structs.replace(op, **changes)


def check_query(case: Case, example: Example) -> None:
    query = made(case).query_for(example.op)
    if query is None:
        assert case.no_query or not isinstance(example.op, _ASKED_AFTER)
        return
    assert isinstance(query, QueryStatus)
    assert QueryStatus in case.adapter.OPERATIONS
    assert query.original.reference in (example.op.reference, getattr(example.op, "original", query.original).reference)
    built = made(case).build(query, context(case.keys))
    assert case.reference(built) == case.reference(example.request)


def check_hostile(case: Case, example: Example) -> None:
    """Whatever stands in an operation: CannotBuild, which repeats nothing of it, or a request that is well-formed."""
    for op, value in hostile(example.op):
        try:
            built = made(case).build(op, context(case.keys))
        except CannotBuild as error:
            assert len(str(value)) < 4 or str(value) not in str(error)
            continue
        assert value != -1 or not isinstance(op, EFFECTS), "a negative amount was built"
        check_form(built)


def hostile(op: Any) -> Iterator[tuple[Any, Any]]:
    for field in msgspec.structs.fields(op):
        value = getattr(op, field.name)
        if isinstance(value, Operation):
            for inner, planted in hostile(value):
                yield msgspec.structs.replace(op, **{field.name: inner}), planted
        elif isinstance(value, Secret):
            yield from ((msgspec.structs.replace(op, **{field.name: Secret(text)}), text) for text in _HOSTILE)
        elif type(value) is str:
            yield from ((msgspec.structs.replace(op, **{field.name: text}), text) for text in _HOSTILE)
        elif field.name in ("amount_fen", "discount_fen", "total_fen"):
            yield from ((msgspec.structs.replace(op, **{field.name: number}), number) for number in (-1, 10**18))


def check_form(built: WireRequest) -> None:
    if isinstance(built, LinkFrame):
        assert 0 < len(built.body) <= _FRAME_MAX_BYTES
        return
    assert isinstance(built, HttpRequest)
    assert built.method in {"GET", "POST", "PUT", "DELETE"}
    assert built.target.startswith("/") and built.target.isascii() and built.target.isprintable()
    assert " " not in built.target and "#" not in built.target
    for name, value in built.headers.items():
        assert name.replace("-", "").replace("_", "").isalnum() and name.isascii()
        assert value.isprintable()


# parse


def check_answers(case: Case, example: Example) -> None:
    """Approve, each mapped decline, pending, unknown code, duplicate, late."""
    for _ in range(2):
        assert told(parse(case, example, example.approved)) == told(example.outcome)
    for code, (reply, meaning) in example.declined.items():
        assert parse(case, example, reply) == Declined(meaning), code
    if example.pending is not None:
        assert parse(case, example, example.pending) == Pending()
    for reply in example.unknown:
        assert isinstance(parse(case, example, reply), Unknown)
    if example.late is not None:
        assert isinstance(parse(case, example, example.late), Unknown)


def check_headers(case: Case, example: Example) -> None:
    """Names of headers come in any case."""
    if isinstance(reply := example.approved, HttpReply):
        headers = CIMultiDictProxy(CIMultiDict({name.lower(): value for name, value in reply.headers.items()}))
        lowered = msgspec.structs.replace(reply, headers=headers)
        assert told(parse(case, example, lowered)) == told(example.outcome)


def check_truncated(case: Case, example: Example) -> None:
    body = example.approved.body
    for length in range(len(body.rstrip())):
        outcome = parse(case, example, with_body(example.approved, body[:length]))
        assert isinstance(outcome, Unknown), (length, outcome)


def check_altered(case: Case, example: Example) -> None:
    """A byte that was changed on the way: signed replies are then what they were, or unknown."""
    if case.unsigned:
        return
    body = example.approved.body
    for place in range(0, len(body), max(1, len(body) // 400)):
        altered = body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]
        outcome = parse(case, example, with_body(example.approved, altered))
        assert isinstance(outcome, Unknown) or told(outcome) == told(example.outcome), (place, outcome)


def check_wrong_keys(case: Case, example: Example) -> None:
    if case.unsigned:
        return
    keys = {name: _other(shared) for name, shared in case.keys.items()}
    answers = [example.approved, *(reply for reply, _ in example.declined.values())]
    for reply in answers + ([example.pending] if example.pending is not None else []):
        assert isinstance(parse(case, example, reply, keys=keys), Unknown)


def _other(shared: Shared) -> Shared:
    """A key of the same kind that nobody else has."""
    if shared.kind == "sm2":
        secret, public = sm2.generate()
        return msgspec.structs.replace(shared, text=f"{secret.hex()} {public.hex()}")
    if shared.encoding == "hex":
        return msgspec.structs.replace(shared, text=bytes(b ^ 0xA5 for b in bytes.fromhex(shared.text)).hex())
    if shared.encoding == "base64":
        raw = base64.b64decode(shared.text)
        return msgspec.structs.replace(shared, text=base64.b64encode(bytes(b ^ 0xA5 for b in raw)).decode())
    return msgspec.structs.replace(shared, text=shared.text.swapcase()[::-1] + "")


def check_pages(case: Case, example: Example) -> None:
    """What stands in front of a partner answers too: error pages, redirects, log-in pages, nothing."""
    for status in (200, 204, 302, 400, 401, 403, 404, 429, 500, 502, 503, 504):
        for body in (_HTML, b"", b"null", b"[]", b"{}", b"\xff\xfe", b'"00"', b"[" * 3000):
            reply: WireReply = HttpReply(status, {"Content-Type": "text/html"}, body)
            check_unreadable(case, example, reply)
            check_unreadable(case, example, LinkFrame(body))
    if isinstance(example.approved, HttpReply):
        for status in (302, 500, 503):
            check_unreadable(case, example, with_status(example.approved, status))


def with_status(reply: HttpReply, status: int) -> HttpReply:
    return msgspec.structs.replace(reply, status=status)


def check_unreadable(case: Case, example: Example, reply: WireReply) -> None:
    outcome = parse(case, example, reply)
    assert isinstance(outcome, Unknown), outcome
    assert len(outcome.why) <= 200


# what may be shown


def secrets_of(value: Any) -> Iterator[str]:
    if isinstance(value, Secret):
        yield str(value.reveal())
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from secrets_of(getattr(value, name))
    elif isinstance(value, dict | tuple | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from secrets_of(inner)


def spellings(text: str) -> Iterator[str]:
    """How a personal text could stand in a log line."""
    for raw in (text.encode(), text.encode("gbk", "replace")):
        yield raw.hex()
        yield base64.b64encode(raw).decode().rstrip("=")
        yield repr(raw)[2:-1]
    yield from (text, quote(text), text.encode("unicode_escape").decode())


def check_redact(case: Case, example: Example) -> None:
    """No personal text of the operation, its answers or the keys, also of what was cut short."""
    texts = {*secrets_of(example.op), *secrets_of(example.outcome), *case.secrets}
    texts |= {word for shared in case.keys.values() for word in shared.text.split()}
    wanted = {spelling.lower() for text in texts if len(text) > 1 for spelling in spellings(text)}
    bodies = [example.request.body, *(reply.body for reply in replies(example))]
    bodies += [body[:length] for body in bodies[:2] for length in range(0, len(body), 7)]
    bodies += [body + b"}" for body in bodies[:2]]
    adapter = made(case)
    shown = [adapter.redact(body) for body in bodies]
    if isinstance(example.request, HttpRequest):
        shown.append(example.request.target.partition("?")[0])
    shown += [str(getattr(parse(case, example, reply), "why", "")) for reply in replies(example)]
    for text in shown:
        assert isinstance(text, str)
        assert not (found := {spelling for spelling in wanted if spelling in text.lower()}), (text, found)


# links


def check_link(case: Case, example: Example) -> None:
    if case.adapter.TRANSPORT is not Transport.ISO8583:
        return
    adapter = made(case)
    key = adapter.correlate(example.request.body)
    assert key is not None
    assert not adapter.is_reply(example.request.body)
    answers = [example.approved, *(reply for reply, _ in example.declined.values())]
    for reply in answers:
        assert adapter.correlate(reply.body) == key
        assert adapter.is_reply(reply.body)
    if example.late is not None:
        assert adapter.correlate(example.late.body) != key
    for kind, (request, reply) in case.link.items():
        assert adapter.link_message(kind, context(case.keys), 1) == request
        assert adapter.correlate(request.body) == adapter.correlate(reply.body) is not None
        assert adapter.link_accepted(reply.body)
        for garbage in (b"", b"\x00" * 40, _HTML, reply.body[:10], request.body):
            assert not adapter.link_accepted(garbage)
            adapter.correlate(garbage)
            adapter.is_reply(garbage)


CHECKS = (
    check_golden, check_reference, check_query, check_hostile, check_answers, check_headers, check_truncated,
    check_altered, check_wrong_keys, check_pages, check_redact, check_link,
)  # fmt: skip
