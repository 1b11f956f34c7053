"""The whole URL table on one screen: what is served, to whom, and what goes in and out."""

from typing import Any, NamedTuple

from gateway.api import docs, getting_in, usage_events, verify
from gateway.api.middleware import JSON, Handler
from gateway.api.payloads import Jwks, TokenAnswer, TokenError, UsagePage, VerifyRequest
from gateway.domain.callers import Scope
from gateway.flows.verify_card import VerifyAnswer

FORM = "application/x-www-form-urlencoded"
EFFECT_ERRORS = (400, 409, 413, 415, 422)


class Route(NamedTuple):
    """One operation. `answer` is the type of the 200; problems are described once for all."""

    method: str
    path: str
    handler: Handler
    summary: str
    scope: Scope | None = None
    takes: str | None = None
    body: Any = None
    answer: Any = None
    answers_as: str = JSON
    refusal: Any = None
    statuses: tuple[int, ...] = ()


ROUTES = (
    Route("POST", "/oauth2/token", getting_in.token, "Exchange a client assertion for an access token",
          takes=FORM, answer=TokenAnswer, refusal=TokenError, statuses=(400, 401)),
    Route("GET", "/.well-known/jwks.json", getting_in.jwks, "The keys that access tokens are signed with", answer=Jwks),
    Route("POST", "/v1/cards/verify", verify.verify_card, "Verify a presented card",
          scope=Scope.CARDS_VERIFY, takes=JSON, body=VerifyRequest, answer=VerifyAnswer, statuses=EFFECT_ERRORS),
    Route("GET", "/v1/usage-events", usage_events.feed, "The feed of usage events, in commit order, without gaps",
          scope=Scope.USAGE_READ, answer=UsagePage, statuses=(400, 422)),
    Route("GET", "/openapi.json", docs.openapi, "This contract", answer=dict[str, Any]),
    Route("GET", "/docs", docs.docs, "This contract, for people", answers_as="text/html"),
)  # fmt: skip
