"""What schemathesis cannot know: who is calling, fresh client assertions, and what the contract says in words alone.

Loaded by the schemathesis process that test_contract.py starts (SCHEMATHESIS_HOOKS); its parent tells it in
environment variables where the callers' key files are and where to leave the statuses it has seen.
"""

import atexit
import datetime as dt
import json
import os
import secrets
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jwt
import requests
import schemathesis

Case = schemathesis.Case[Any]
CALLERS = Path(os.environ["CALLERS_DIR"])
STATUSES_FILE = Path(os.environ["STATUSES_FILE"])
CALLER_OF = {"/v1/cards/verify": "demo-merchant", "/v1/usage-events": "demo-bureau"}
SCENES = ("parking.exit", "library.loan", "transit.bus")

_statuses: Counter[tuple[str, int]] = Counter()


def assertion(name: str) -> dict[str, str]:
    caller = json.loads((CALLERS / f"{name}.json").read_text())
    now = int(time.time())
    claims = {
        "iss": name, "sub": name, "aud": caller["issuer"], "iat": now, "exp": now + 60, "jti": secrets.token_hex(8),
    }  # fmt: skip
    key = jwt.PyJWK(caller["private_jwk"], caller["alg"]).key
    signed = jwt.encode(claims, key, algorithm=caller["alg"], headers={"kid": caller["kid"]})
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": signed,
        "url": caller["token_url"],
    }


@schemathesis.auth(cache_by_key=lambda case, ctx: ctx.operation.path)
class Tokens:
    """The token of a caller that has the operation's scope."""

    def get(self, case: Case, ctx: schemathesis.AuthContext) -> str | None:
        name = CALLER_OF.get(ctx.operation.path)
        if name is None:
            return None
        form = assertion(name)
        answer = requests.post(form.pop("url"), form, timeout=5)
        return str(answer.json()["access_token"])

    def set(self, case: Case, data: str, ctx: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


def is_positive(case: Case) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Positive cases are made to hold what the contract asks for in words.

    A key is good for one request, so every case gets one of its own shape that nobody has used.
    """
    if is_positive(case) and case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = secrets.token_hex(8)
    if not isinstance(case.body, dict) or not is_positive(case):
        return
    if case.path == "/oauth2/token":
        case.body["client_assertion"] = assertion("demo-merchant")["client_assertion"]
        case.body.pop("scope", None)
    elif case.path == "/v1/cards/verify":
        make_sense(case.body)


def make_sense(body: dict[str, Any]) -> None:
    """A scene that is configured, a time of today, a card number with an identifier."""
    body["scene"] = SCENES[len(body["terminal_id"]) % len(SCENES)]
    if body.get("occurred_at") is not None:
        body["occurred_at"] = dt.datetime.now(dt.UTC).isoformat()
    presentation = body["presentation"]
    if presentation["type"] == "chip_card" and len(presentation["card_number"]) == len(presentation["card_identifier"]):
        presentation |= {"card_number": "AB1234567", "card_identifier": "330424D15600000500000000000000A1"}


@schemathesis.hook
def after_call(context: schemathesis.HookContext, case: Case, response: schemathesis.Response) -> None:
    _statuses[f"{case.method} {case.operation.path}", response.status_code] += 1


@atexit.register
def leave_statuses() -> None:
    found: dict[str, dict[int, int]] = {}
    for (operation, status), count in _statuses.items():
        found.setdefault(operation, {})[status] = count
    STATUSES_FILE.write_text(json.dumps(found))
