"""Who is calling: access tokens, checked once and then remembered by their hash until they expire."""

import time

from gateway.crypto.tokens import Access, AccessTokens, InvalidToken, digest
from gateway.directory import Directory, KnownCaller
from gateway.domain.errors import Problem

_BEARER = "bearer "  # a scheme is compared without regard to case (RFC 9110 §11.1)
_AHEAD_S = 2
"""A token that is younger than what this worker knows of the keys (and `iat` has whole seconds) was issued by one that
knows more: to refuse it would fail a caller in the seconds after it got a new key. The next look decides."""


class Unauthorised(Problem):
    """One answer for every reason; `why` is for the metrics."""

    def __init__(self, why: str) -> None:
        super().__init__("unauthorised", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        self.why = why


class Authenticator:
    """Turns an Authorization header into a caller. The caller's configuration is looked up at every request, so a
    disabled caller is out as soon as its configuration is."""

    def __init__(self, tokens: AccessTokens, directory: Directory, cache_max: int) -> None:
        self._tokens = tokens
        self._directory = directory
        self._cache: dict[bytes, Access] = {}
        self._cache_max = cache_max

    def __call__(self, authorization: str | None) -> tuple[KnownCaller, Access]:
        """Raises Problem 401."""
        access = self.access_of(authorization)
        return self.caller_of(access), access

    def access_of(self, authorization: str | None) -> Access:
        """What the header's token says: authentic, but perhaps expired since. Raises Problem 401."""
        if authorization is None or authorization[: len(_BEARER)].lower() != _BEARER:
            raise Unauthorised("no_token")
        key = digest(authorization)
        access = self._cache.get(key)
        if access is None:
            try:
                access = self._tokens.read(authorization[len(_BEARER) :])
            except InvalidToken:
                raise Unauthorised("bad_token") from None
            if len(self._cache) >= self._cache_max:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = access
        return access

    def caller_of(self, access: Access) -> KnownCaller:
        """Whose token it is, as things stand now. Raises Problem 401."""
        if access.expires_at <= time.time():
            raise Unauthorised("expired_token")
        known = self._directory.callers.get(access.caller_id)
        if known is None or not known.caller.enabled:
            raise Unauthorised("unknown_caller")
        if access.key_id not in known.token_kids and access.issued_at + _AHEAD_S <= self._directory.known_at:
            raise Unauthorised("retired_key")
        return known
