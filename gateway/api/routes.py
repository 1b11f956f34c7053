"""The whole URL table on one screen: what is served, to whom, and what goes in and out."""

from typing import Any, NamedTuple

from gateway.api import (
    caller_keys,
    docs,
    getting_in,
    loss_reports,
    operations,
    payments,
    points,
    usage_events,
    usage_return,
    verify,
    visits,
)
from gateway.api.middleware import NDJSON, Handler
from gateway.api.payloads import (
    Jwks,
    KeyChange,
    LossRelease,
    LossReport,
    PaymentRequest,
    RedemptionEnd,
    RedemptionRequest,
    RefundRequest,
    ReversalRequest,
    TokenAnswer,
    TokenError,
    UsagePage,
    UsageReceipt,
    VerifyRequest,
    VisitOpening,
    VisitRequest,
)
from gateway.api.points import PointsAnswer
from gateway.api.reply import JSON
from gateway.domain.callers import ANY_SCOPE, AnyScope, Scope
from gateway.domain.usage import UsageLine
from gateway.flows.redeem_points import RedemptionAnswer
from gateway.flows.rotate_caller_key import CallerKeys
from gateway.flows.show_operation import OperationAnswer
from gateway.flows.tell_bank import LossAnswer
from gateway.flows.verify_card import VerifyAnswer
from gateway.flows.visit_answers import VisitAnswer
from gateway.flows.write_outcomes import PaymentAnswer

FORM = "application/x-www-form-urlencoded"
_SIGNED_IN = ("unauthorised", "insufficient_scope", "quota_exceeded", "unavailable")
_WITH_BODY = ("receive_timeout", "body_too_large", "unsupported_media_type")
_JSON_BODY = (*_WITH_BODY, "malformed_json", "validation_failed")
_EFFECT = ("missing_idempotency_key", "invalid_signature", "overloaded")
_IDEMPOTENT = ("malformed_idempotency_key", "idempotency_key_in_use", "idempotency_key_reused")


class Route(NamedTuple):
    """One operation: `answer` is the type of the 200, `problems` are codes of domain/errors.py."""

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | AnyScope | None = None
    takes: str | None = None
    body: Any = None
    answer: Any = None
    answers_as: str = JSON
    refusal: tuple[Any, dict[int, str]] | None = None
    """A type of its own for some statuses, with their meaning (RFC 6749)."""
    problems: tuple[str, ...] = ()
    effect: bool = False
    """Signed by the caller (RFC 9421) and carried out once for an Idempotency-Key."""
    bulk: bool = False
    """Takes NDJSON lines, or a JSON array of them; `body` is one. A larger limit, no Idempotency-Key, no signature."""
    may_pend: bool = False
    """202 with the same type: the outcome is being found out."""


ROUTES = (
    Route("POST", "/oauth2/token", getting_in.token, "Exchange a client assertion for an access token",
          takes=FORM, answer=TokenAnswer, refusal=(TokenError, {400: "The request is wrong", 401: "invalid_client"}),
          problems=(*_WITH_BODY, "unavailable")),
    Route("GET", "/.well-known/jwks.json", getting_in.jwks, "The keys that access tokens are signed with", answer=Jwks),
    Route("POST", "/v1/cards/verify", verify.verify_card, "Verify a presented card",
          scope=Scope.CARDS_VERIFY, takes=JSON, body=VerifyRequest, answer=VerifyAnswer,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, "invalid_signature", "overloaded")),
    Route("POST", "/v1/cards/loss-reports", loss_reports.report_loss, "Report a card lost",
          scope=Scope.CARDS_LOSS, takes=JSON, body=LossReport, answer=LossAnswer, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT)),
    Route("POST", "/v1/cards/loss-reports/{reference}/release", loss_reports.release_loss, "Release a found card",
          scope=Scope.CARDS_LOSS, takes=JSON, body=LossRelease, answer=LossAnswer, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found")),
    Route("POST", "/v1/payments", payments.pay, "Pay with a card",
          scope=Scope.PAYMENTS_WRITE, takes=JSON, body=PaymentRequest, answer=PaymentAnswer, effect=True, may_pend=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "order_id_used", "not_at_this_bank")),
    Route("POST", "/v1/payments/{reference}/reversals", payments.reverse_payment, "Undo a payment",
          scope=Scope.PAYMENTS_WRITE, takes=JSON, body=ReversalRequest, answer=PaymentAnswer, effect=True,
          may_pend=True, problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found", "payment_pending",
                                   "payment_state", "not_at_this_bank")),
    Route("POST", "/v1/payments/{reference}/refunds", payments.refund_payment, "Give back a part of a payment",
          scope=Scope.PAYMENTS_WRITE, takes=JSON, body=RefundRequest, answer=PaymentAnswer, effect=True,
          may_pend=True, problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found", "payment_pending",
                                   "payment_state", "refund_too_large", "not_at_this_bank")),
    Route("POST", "/v1/visits", visits.visit, "Present a card at a barrier, a hotel's desk or a till that acts on it",
          scope=Scope.PAYMENTS_WRITE, takes=JSON, body=VisitRequest, answer=VisitAnswer, effect=True, may_pend=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT)),
    Route("POST", "/v1/visits/{reference}/open", visits.open_exit, "The parking fee is paid: open the barrier",
          scope=Scope.PAYMENTS_WRITE, takes=JSON, body=VisitOpening, answer=VisitAnswer, effect=True, may_pend=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found", "visit_state", "payment_pending",
                    "payment_state", "payment_too_small", "payment_used")),
    Route("POST", "/v1/points/redemptions", points.redeem, "Reserve points for an item",
          scope=Scope.POINTS_WRITE, takes=JSON, body=RedemptionRequest, answer=RedemptionAnswer, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT)),
    Route("POST", "/v1/points/redemptions/{reference}/commit", points.commit_redemption, "The item is handed over",
          scope=Scope.POINTS_WRITE, takes=JSON, body=RedemptionEnd, answer=RedemptionAnswer, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found", "redemption_state")),
    Route("POST", "/v1/points/redemptions/{reference}/cancel", points.cancel_redemption, "Give up a reservation",
          scope=Scope.POINTS_WRITE, takes=JSON, body=RedemptionEnd, answer=RedemptionAnswer, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "not_found", "redemption_state")),
    Route("GET", "/v1/points/{card_ref}", points.show_points, "What the holder of a card has",
          scope=Scope.POINTS_READ, answer=PointsAnswer, problems=(*_SIGNED_IN, "not_found")),
    Route("GET", "/v1/operations/{reference}", operations.show_operation, "What became of an operation",
          scope=ANY_SCOPE, answer=OperationAnswer, problems=(*_SIGNED_IN, "not_found")),
    Route("POST", "/v1/callers/self/keys", caller_keys.change_keys, "Give the gateway a new key, take one out",
          scope=ANY_SCOPE, takes=JSON, body=KeyChange, answer=CallerKeys, effect=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, *_IDEMPOTENT, *_EFFECT, "too_many_keys", "unknown_key", "key_exists",
                    "last_key", "keys_by_url")),
    Route("POST", "/v1/usage-events", usage_return.return_usage, "Return usage data, up to 10 000 lines",
          scope=Scope.USAGE_WRITE, takes=NDJSON, body=UsageLine, answer=UsageReceipt, bulk=True,
          problems=(*_SIGNED_IN, *_JSON_BODY, "idempotency_key_refused", "invalid_signature", "overloaded")),
    Route("GET", "/v1/usage-events", usage_events.feed, "The feed of usage events, in commit order, without gaps",
          scope=Scope.USAGE_READ, answer=UsagePage,
          problems=(*_SIGNED_IN, "malformed_query", "malformed_cursor", "cursor_ahead", "validation_failed")),
    Route("GET", "/openapi.json", docs.openapi, "This contract", answer=dict[str, Any]),
    Route("GET", "/docs", docs.docs, "This contract, for people", answers_as="text/html"),
)  # fmt: skip
