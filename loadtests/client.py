"""A small caller of the gateway: its sandbox key file, tokens, GET. Blocking, standard library and PyJWT only."""

import http.client
import json
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jwt

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FORM = "application/x-www-form-urlencoded"
TIMEOUT_S = 10.0
RENEW_BEFORE_S = 60.0


class CallError(Exception):
    """The gateway did not answer as it should; the text says how."""


@dataclass(frozen=True)
class Caller:
    """A caller's key file as the sandbox leaves it."""

    client_id: str
    issuer: str
    algorithm: str
    kid: str
    private_jwk: dict[str, Any]

    @classmethod
    def read(cls, data_dir: Path, name: str) -> "Caller":
        found = json.loads((data_dir / "sandbox" / "callers" / f"{name}.json").read_text())
        return cls(found["client_id"], found["issuer"], found["alg"], found["kid"], found["private_jwk"])

    def token_form(self) -> str:
        """The body of a token request, with a fresh assertion."""
        now = int(time.time())
        claims = {
            "iss": self.client_id, "sub": self.client_id, "aud": self.issuer,
            "iat": now, "exp": now + 60, "jti": secrets.token_urlsafe(16),
        }  # fmt: skip
        key = jwt.PyJWK(self.private_jwk, self.algorithm).key
        assertion = jwt.encode(claims, key, algorithm=self.algorithm, headers={"kid": self.kid})
        return urlencode(
            {
                "grant_type": "client_credentials",
                "client_assertion_type": ASSERTION_TYPE,
                "client_assertion": assertion,
            }
        )


def call(url: str, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> Any:
    """The JSON of a 2xx answer. Raises CallError."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
    except OSError as error:
        raise CallError(f"{method} {path}: {type(error).__name__}: {error}") from None
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise CallError(f"{method} {path}: {answer.status}: {data[:500].decode(errors='replace')}")
    return json.loads(data)


class Session:
    """A caller with a token that is renewed in time."""

    def __init__(self, url: str, caller: Caller) -> None:
        self._url = url
        self._caller = caller
        self._token = ""
        self._renew_at = 0.0

    def authorization(self, *, fresh: bool = False) -> str:
        """The value of the Authorization header."""
        if fresh or time.monotonic() >= self._renew_at:
            answer = call(self._url, "POST", "/oauth2/token", self._caller.token_form(), {"Content-Type": FORM})
            self._token = answer["access_token"]
            self._renew_at = time.monotonic() + answer["expires_in"] - RENEW_BEFORE_S
        return f"Bearer {self._token}"

    def get(self, path: str) -> Any:
        return call(self._url, "GET", path, headers={"Authorization": self.authorization()})
