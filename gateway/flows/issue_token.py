"""Issue an access token for a client assertion (RFC 7523), good once."""

import datetime as dt
import secrets
import time

from gateway.crypto.tokens import AccessTokens, InvalidToken, read_assertion, subject_of
from gateway.directory import Directory
from gateway.domain.callers import KeyPurpose, Scope
from gateway.metrics import REFUSED_ENTRY, TOKENS
from gateway.store import assertions
from gateway.store.pool import Pool

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


class TokenRefused(Exception):
    """An RFC 6749 §5.2 error. `invalid_client` has one description for every reason."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


def invalid_client(why: str) -> TokenRefused:
    REFUSED_ENTRY.labels(why).inc()
    return TokenRefused("invalid_client", "the client assertion is not accepted")


async def issue_token(
    pool: Pool,
    tokens: AccessTokens,
    directory: Directory,
    issuer: str,
    assertion: str,
    scope: str | None,
    named: str | None = None,
) -> tuple[str, list[str]]:
    """(access token, granted scopes). `named`: a client_id beside the assertion must be its subject (RFC 7521 §4.2).

    Raises TokenRefused, Problem 503.
    """
    claimed = subject_of(assertion)
    client_id, kid = claimed or ("", "")
    if named is not None and named != client_id:
        raise invalid_client("bad_assertion")
    known = await directory.knowing(client_id, KeyPurpose.TOKEN, kid)
    if known is None or not known.caller.enabled:
        raise invalid_client("unknown_client")
    now = time.time()
    try:
        checked = read_assertion(assertion, client_id, known.keys, issuer, now)
    except InvalidToken:
        raise invalid_client("bad_assertion") from None
    granted = _granted(scope, known.caller.scopes)
    async with pool.acquire() as connection:
        expires_at = dt.datetime.fromtimestamp(checked.expires_at, dt.UTC)
        if not await assertions.use(connection, client_id, checked.jti, expires_at):
            raise invalid_client("replayed_assertion")
    TOKENS.labels(client_id).inc()
    return tokens.issue(client_id, granted, int(now), secrets.token_urlsafe(12), checked.kid), granted


def _granted(asked: str | None, allowed: tuple[Scope, ...]) -> list[str]:
    if not asked:
        return [scope.value for scope in allowed]
    wanted = asked.split(" ")
    if not set(wanted) <= {scope.value for scope in allowed}:
        raise TokenRefused("invalid_scope", "a scope was asked that this client does not have")
    return list(dict.fromkeys(wanted))
