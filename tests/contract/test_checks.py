"""Controls: each check of the suite catches the bug that it is there for."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gateway.domain.operations import Operation, QueryStatus
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome
from gateway.partners.contract import CallContext, CannotBuild, HttpReply, HttpRequest, WireReply, WireRequest
from tests.contract import checks
from tests.contract.case import Case, Example
from tests.contract.cases.example import CASE, KEYS, PARTNER
from tests.contract.dialects import example


class TrustsAnybody(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if not isinstance(reply, HttpReply):
            return super().parse(op, ctx, reply)
        signed = {"X-Mac": ctx.crypto.mac("mac", reply.body).hex()}
        return super().parse(op, ctx, HttpReply(reply.status, signed, reply.body))


class AsksTheNameInOneCase(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if isinstance(reply, HttpReply):
            reply = HttpReply(reply.status, dict(reply.headers), reply.body)
        return super().parse(op, ctx, reply)


class TakesEveryStatus(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if isinstance(reply, HttpReply):
            reply = HttpReply(200, reply.headers, reply.body)
        return super().parse(op, ctx, reply)


class GuessesFromErrorPages(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if getattr(reply, "status", 200) >= 500:
            return Declined(DeclineCode.PARTNER_FAILURE)
        return super().parse(op, ctx, reply)


class CallsAnErrorPageNotSent(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        return NotSent("503") if getattr(reply, "status", 200) == 503 else super().parse(op, ctx, reply)


class TakesAnyonesAnswer(example.Adapter):
    def parse(self, op: Operation, ctx: CallContext, reply: WireReply) -> Outcome:
        if b'"00"' in reply.body:
            return Approved("0199f000000070008000000000000001", {"balance_fen": 8750})
        return super().parse(op, ctx, reply)


class Rounds(example.Adapter):
    """Builds with what differs from try to try in the place of the reference."""

    def build(self, op: Operation, ctx: CallContext) -> WireRequest:
        built = super().build(op, ctx)
        assert isinstance(built, HttpRequest)
        said = msgspec.json.decode(built.body) | {"reference": ctx.nonce.hex()}
        return HttpRequest(built.method, built.target, built.headers, msgspec.json.encode(said))


class LetsAnythingThrough(example.Adapter):
    def build(self, op: Operation, ctx: CallContext) -> WireRequest:
        original: Any = getattr(op, "original", op)
        body = super().build(_harmless(op), ctx).body
        return HttpRequest("POST", "/operations", {"X-Order": original.order_id}, body)


def _harmless(op: Any) -> Any:
    return next(item.op for item in CASE.examples if type(item.op) is type(op))


class Tells(example.Adapter):
    def redact(self, wire: bytes) -> str:
        return wire.decode(errors="replace")


class TellsWhatItCannotRead(example.Adapter):
    def redact(self, wire: bytes) -> str:
        try:
            msgspec.json.decode(wire)
        except ValueError:
            return repr(wire)
        return super().redact(wire)


class QuotesTheAccount(example.Adapter):
    def build(self, op: Operation, ctx: CallContext) -> WireRequest:
        try:
            return super().build(op, ctx)
        except CannotBuild:
            original: Any = getattr(op, "original", op)
            raise CannotBuild(f"no such account {original.account.reveal()}") from None


class AsksAfterAnother(example.Adapter):
    def query_for(self, op: Operation) -> QueryStatus | None:
        query = super().query_for(op)
        return query and msgspec.structs.replace(query, original=checks.another(query.original))


class CannotAsk(example.Adapter):
    def query_for(self, op: Operation) -> QueryStatus | None:
        return None


PLANTED: list[tuple[type[example.Adapter], Callable[[Case, Example], None]]] = [
    (TrustsAnybody, checks.check_altered),
    (TrustsAnybody, checks.check_wrong_keys),
    (AsksTheNameInOneCase, checks.check_headers),
    (TakesEveryStatus, checks.check_pages),
    (GuessesFromErrorPages, checks.check_pages),
    (CallsAnErrorPageNotSent, checks.check_pages),
    (TakesAnyonesAnswer, checks.check_answers),
    (TakesAnyonesAnswer, checks.check_truncated),
    (Rounds, checks.check_golden),
    (Rounds, checks.check_reference),
    (LetsAnythingThrough, checks.check_hostile),
    (QuotesTheAccount, checks.check_hostile),
    (Tells, checks.check_redact),
    (TellsWhatItCannotRead, checks.check_redact),
    (AsksAfterAnother, checks.check_query),
    (CannotAsk, checks.check_query),
]


@pytest.mark.parametrize(("bug", "check"), PLANTED, ids=lambda item: item.__name__)
def test_a_planted_bug_is_caught(bug: type[example.Adapter], check: Callable[[Case, Example], None]) -> None:
    with pytest.raises(AssertionError):
        check(msgspec.structs.replace(CASE, adapter=bug), CASE.examples[0])


PURCHASE, REVERSAL, _ = CASE.examples


@pytest.mark.parametrize(
    ("case", "gap"),
    [
        (msgspec.structs.replace(CASE, examples=CASE.examples[:2]), "no example of QueryStatus"),
        (msgspec.structs.replace(CASE, keys={}), "no key 'mac'"),
        (
            msgspec.structs.replace(
                CASE,
                examples=tuple(
                    msgspec.structs.replace(item, declined={"14": item.declined["14"]}) for item in CASE.examples
                ),
            ),
            "no reply that is declined as INSUFFICIENT_FUNDS",
        ),
        (
            msgspec.structs.replace(
                CASE, examples=tuple(msgspec.structs.replace(item, pending=None) for item in CASE.examples)
            ),
            "no pending reply",
        ),
        (
            msgspec.structs.replace(CASE, examples=(msgspec.structs.replace(PURCHASE, late=None),)),
            "purchase: no late reply, and no_echo does not say why",
        ),
        (
            msgspec.structs.replace(CASE, examples=(msgspec.structs.replace(PURCHASE, unknown=()),)),
            "purchase: no unknown reply",
        ),
        (
            msgspec.structs.replace(CASE, examples=(msgspec.structs.replace(REVERSAL, declined={}),)),
            "reversal: no reply that finds nothing to reverse, which is declined as NOT_FOUND",
        ),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_missing_piece_of_a_case_is_named(case: Case, gap: str) -> None:
    assert gap in checks.gaps(case)


def test_the_partner_of_the_example_signs_with_the_keys_of_the_case() -> None:
    assert PARTNER.verify("mac", b"x", PARTNER.mac("mac", b"x"))
    assert set(KEYS) == example.Adapter.KEYS
