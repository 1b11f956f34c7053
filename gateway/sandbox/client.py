"""A token for a sandbox caller, got as any caller gets it."""

import json
import secrets
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import jwt

from gateway.flows.issue_token import ASSERTION_TYPE


class TokenNotIssued(Exception):
    """Why there is no token."""


def fetch_token(callers_folder: Path, name: str) -> str:
    """Ask the running gateway for an access token of a sandbox caller. Raises TokenNotIssued."""
    file = callers_folder / f"{name}.json"
    try:
        caller = json.loads(file.read_text())
    except FileNotFoundError:
        known = sorted(path.stem for path in callers_folder.glob("*.json"))
        raise TokenNotIssued(
            f"{file}: no such caller; there are: {', '.join(known) or 'none yet: run `make run` first'}"
        ) from None
    form = urllib.parse.urlencode(token_form(caller)).encode()
    request = urllib.request.Request(caller["token_url"], form)  # noqa: S310 - our own
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            token: str = json.load(answer)["access_token"]
            return token
    except urllib.error.HTTPError as error:
        raise TokenNotIssued(f"{caller['token_url']} answered {error.code}: {error.read(500).decode()}") from None
    except OSError as error:
        raise TokenNotIssued(f"{caller['token_url']}: {error}; is the gateway running (`make run`)?") from None


def token_form(caller: dict[str, Any]) -> dict[str, str]:
    """What a token request says, with a fresh assertion; `caller` is the content of a caller's file."""
    now = int(time.time())
    claims = {
        "iss": caller["client_id"], "sub": caller["client_id"], "aud": caller["issuer"],
        "iat": now, "exp": now + 60, "jti": secrets.token_urlsafe(16),
    }  # fmt: skip
    key = jwt.PyJWK(caller["private_jwk"], caller["alg"]).key
    assertion = jwt.encode(claims, key, algorithm=caller["alg"], headers={"kid": caller["kid"]})
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
    }
