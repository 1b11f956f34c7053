"""Tokens: client assertions in (RFC 7523), access tokens out (RFC 9068, `at+jwt`), our public keys as a JWKS.

PyJWT accepts more than we want (reliability.md §2.2): every requirement is stated here, and the algorithm is that of
the caller's registered key, never the header's.
"""

import base64
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jwt

from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.crypto.rotation import CLOCK_SKEW_S, State, schedule, signs
from gateway.crypto.signatures import JOSE_NAMES, VerifyKey

TOKEN_MAX_CHARS = 4096
ASSERTION_MAX_LIFETIME_S = 60
_ASSERTION_TYPES = (None, "JWT", "client-authentication+jwt")


class InvalidToken(Exception):
    """A token or assertion that is not accepted; the caller is not told why, the log is."""


class Access(NamedTuple):
    """What a valid access token says."""

    caller_id: str
    scopes: frozenset[str]
    expires_at: float
    issued_at: float
    key_id: str
    """The caller's key whose assertion got the token: it dies with that key."""


class Assertion(NamedTuple):
    jti: str
    expires_at: int
    kid: str


def read_assertion(token: str, client_id: str, keys: Sequence[VerifyKey], issuer: str, now: float) -> Assertion:
    """Check a client assertion (api.md, Getting in). Raises InvalidToken."""
    header = _header(token)
    if header.get("typ") not in _ASSERTION_TYPES:
        raise InvalidToken("typ")
    key = next((key for key in keys if key.kid == header.get("kid")), None)
    if key is None:
        raise InvalidToken("kid")
    claims = _decode(token, key, issuer, ["exp", "iat", "jti", "iss", "sub", "aud"], CLOCK_SKEW_S)
    issued, expires, jti = claims["iat"], claims["exp"], claims["jti"]
    if claims["iss"] != client_id or claims["sub"] != client_id:
        raise InvalidToken("iss or sub")
    if type(issued) is not int or type(expires) is not int or not 0 < expires - issued <= ASSERTION_MAX_LIFETIME_S:
        raise InvalidToken("exp - iat")
    if issued > now + CLOCK_SKEW_S:
        raise InvalidToken("iat is in the future")
    if not isinstance(jti, str) or not 1 <= len(jti) <= 200 or not jti.isprintable():
        raise InvalidToken("jti")
    return Assertion(jti, expires, key.kid)


def subject_of(token: str) -> tuple[str, str] | None:
    """(client, kid) that an assertion says it is from, unchecked: they only choose the key to check it with."""
    if len(token) > TOKEN_MAX_CHARS:
        return None
    try:
        unchecked = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        return None
    subject, kid = unchecked["payload"].get("sub"), unchecked["header"].get("kid")
    return (subject, kid if isinstance(kid, str) else "") if isinstance(subject, str) else None


class AccessTokens:
    """Makes and checks access tokens with the gateway's signing keys, each in its time (crypto/rotation.py)."""

    def __init__(self, store: KeyStore, issuer: str, lifetime_s: int) -> None:
        self._issuer = issuer
        self.lifetime_s = lifetime_s
        self.replace(store)

    def replace(self, store: KeyStore) -> None:
        """Take up another set of signing keys."""
        keys = store.keys(KeyUse.SIGN)
        signers = {key.kid: store.signer(key.kid) for key in keys}
        public = {key.kid: store.public_key(key.kid) for key in keys}
        self._keys, self._signers, self._public = keys, signers, public

    def issue(self, caller_id: str, scopes: Sequence[str], now: int, jti: str, client_kid: str) -> str:
        claims = {
            "iss": self._issuer, "aud": self._issuer, "sub": caller_id, "client_id": caller_id,
            "iat": now, "exp": now + self.lifetime_s, "jti": jti, "scope": " ".join(scopes), "client_kid": client_kid,
        }  # fmt: skip
        signer = self._signers[signs(self._keys, now).kid]
        header = {"typ": "at+jwt", "alg": JOSE_NAMES[signer.algorithm], "kid": signer.kid}
        signed = f"{_part(header)}.{_part(claims)}"
        return f"{signed}.{_base64url(signer.sign(signed.encode()))}"

    def read(self, token: str) -> Access:
        """Raises InvalidToken."""
        header = _header(token)
        key = self._public.get(header.get("kid", ""))
        if header.get("typ") != "at+jwt" or key is None or header["kid"] not in self._published():
            raise InvalidToken("typ or kid")
        claims = _decode(token, key, self._issuer, ["exp", "iat", "sub", "iss", "aud"], 0)
        expires, issued, subject, scope = claims["exp"], claims["iat"], claims["sub"], claims.get("scope")
        if type(expires) is not int or type(issued) is not int or expires - issued > self.lifetime_s:
            raise InvalidToken("times")
        if claims["iss"] != self._issuer or not isinstance(subject, str) or not isinstance(scope, str):
            raise InvalidToken("iss, sub or scope")
        client_kid = claims.get("client_kid")
        if not isinstance(client_kid, str):
            raise InvalidToken("client_kid")
        return Access(subject, frozenset(scope.split()), expires, issued, client_kid)

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        return {"keys": [_published_jwk(self._public[kid]) for kid in self._published()]}

    def _published(self) -> list[str]:
        """The kids of tokens that may still be valid, and of the key that signs next."""
        return [found.kid for found in schedule(self._keys, time.time(), self.lifetime_s) if found.state != State.OUT]


def _published_jwk(key: VerifyKey) -> dict[str, str]:
    jwk: dict[str, str] = json.loads(key.jwk)
    return jwk | {"use": "sig", "alg": JOSE_NAMES[key.algorithm], "kid": key.kid}


def _part(content: dict[str, Any]) -> str:
    return _base64url(json.dumps(content, separators=(",", ":")).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def digest(token: str) -> bytes:
    """What a token is remembered by."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _header(token: str) -> dict[str, Any]:
    if len(token) > TOKEN_MAX_CHARS:
        raise InvalidToken("too long")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidToken("malformed") from error
    return header


def _decode(token: str, key: VerifyKey, audience: str, require: list[str], leeway: int) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token, key.public, algorithms=[JOSE_NAMES[key.algorithm]], audience=audience, leeway=leeway,
            options={"require": require, "strict_aud": True, "verify_sub": False, "verify_jti": False},
        )  # fmt: skip
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        raise InvalidToken(type(error).__name__) from error
    return claims
