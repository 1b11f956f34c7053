"""POST /oauth2/token and GET /.well-known/jwks.json."""

from urllib.parse import parse_qsl

import msgspec

from gateway.api.middleware import Call
from gateway.api.payloads import TokenAnswer, TokenError
from gateway.api.reply import JSON, Reply
from gateway.flows.issue_token import ASSERTION_TYPE, TokenRefused, issue_token

_encode = msgspec.json.Encoder().encode
_NOT_STORED = {"Content-Type": JSON, "Cache-Control": "no-store"}
_PARAMETERS = frozenset({"grant_type", "client_assertion_type", "client_assertion", "scope", "client_id"})


async def token(call: Call) -> Reply:
    try:
        form = _form(call.body)
        if "grant_type" not in form:
            raise TokenRefused("invalid_request", "grant_type is required")
        if form["grant_type"] != "client_credentials":
            raise TokenRefused("unsupported_grant_type", "grant_type must be client_credentials")
        if form.get("client_assertion_type") != ASSERTION_TYPE or "client_assertion" not in form:
            raise TokenRefused("invalid_request", "client_assertion and its type are required")
        gateway = call.gateway
        access_token, scopes = await issue_token(
            gateway.pool, gateway.tokens, gateway.directory, gateway.settings.issuer,
            form["client_assertion"], form.get("scope"), form.get("client_id"),
        )  # fmt: skip
    except TokenRefused as refused:
        status = 401 if refused.error == "invalid_client" else 400
        body = _encode(TokenError(refused.error, refused.description))
        return Reply(body, status=status, headers=_NOT_STORED)
    answer = TokenAnswer(access_token, "Bearer", gateway.tokens.lifetime_s, " ".join(scopes))
    return Reply(_encode(answer), headers=_NOT_STORED)


def _form(body: bytes) -> dict[str, str]:
    """The form's fields, each at most once (RFC 6749 §3.2). Raises TokenRefused."""
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise TokenRefused("invalid_request", "the body is not a form") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise TokenRefused("invalid_request", "a parameter is given twice")
    return {name: value for name, value in form.items() if value and name in _PARAMETERS}  # empty: omitted (§3.2)


async def jwks(call: Call) -> Reply:
    body = _encode(call.gateway.tokens.jwks())
    return Reply(body, headers={"Content-Type": JSON, "Cache-Control": "max-age=60"})
