"""What schemathesis cannot know: who is calling, fresh client assertions, and what the contract says in words alone.

Loaded by the schemathesis process that test_contract.py starts (SCHEMATHESIS_HOOKS); its parent tells it in
environment variables where the callers' key files are and where to leave the statuses it has seen.
"""

import atexit
import base64
import datetime as dt
import functools
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import requests
import requests.auth
import schemathesis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.registry import LOSABLE
from tests.signing import Signing, signed_headers

Case = schemathesis.Case[Any]
CALLERS = Path(os.environ["CALLERS_DIR"])
STATUSES_FILE = Path(os.environ["STATUSES_FILE"])
REPORT = "/v1/cards/loss-reports"
RELEASE = "/v1/cards/loss-reports/{reference}/release"
KEYS = "/v1/callers/self/keys"
PAY = "/v1/payments"
REVERSE = "/v1/payments/{reference}/reversals"
REFUND = "/v1/payments/{reference}/refunds"
OPERATION = "/v1/operations/{reference}"
REDEEM = "/v1/points/redemptions"
COMMIT = "/v1/points/redemptions/{reference}/commit"
CANCEL = "/v1/points/redemptions/{reference}/cancel"
POINTS = "/v1/points/{card_ref}"
VISIT = "/v1/visits"
OPEN = "/v1/visits/{reference}/open"
CALLER_OF = {
    "/v1/cards/verify": "demo-merchant", "/v1/usage-events": "demo-bureau", REPORT: "demo-kiosk", RELEASE: "demo-kiosk",
    KEYS: "demo-merchant", PAY: "demo-merchant", REVERSE: "demo-merchant", REFUND: "demo-merchant",
    OPERATION: "demo-kiosk", REDEEM: "demo-kiosk", COMMIT: "demo-kiosk", CANCEL: "demo-kiosk", POINTS: "demo-kiosk",
    VISIT: "demo-merchant", OPEN: "demo-merchant",
}  # fmt: skip
EFFECTS = {REPORT, RELEASE, KEYS, PAY, REVERSE, REFUND, REDEEM, COMMIT, CANCEL, VISIT, OPEN}
RETURN = "POST /v1/usage-events"
"""Its path has another operation for another caller."""
SCENES = ("parking.exit", "library.loan", "transit.bus")
MONEY_SCENES = ("parking.exit", "market.till", "transit.bus")

CARD: dict[str, Any] = {
    "type": "chip_card", "card_number": LOSABLE.number, "card_identifier": LOSABLE.identifier,
}  # fmt: skip
LOST: dict[str, Any] = CARD | {"card_number": "ZZ0000000", "card_identifier": "0" * 32}
"""A card that nobody has."""
HOLDER: dict[str, Any] = {"type": "chip_card"} | json.loads(os.environ["HOLDER"])
"""The card of somebody with many points."""
WISH: dict[str, Any] = {
    "presentation": HOLDER, "points": 20, "item": "blood-pressure-check", "outlet_id": "wuyuan-01",
}  # fmt: skip
SIGNATURE_HEADERS = ("Content-Digest", "Signature-Input", "Signature")

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


class Signed(requests.auth.AuthBase):
    """Signs an effect when its bytes are known; what schemathesis made of the signature's headers is replaced."""

    def __init__(self, name: str) -> None:
        self.file = json.loads((CALLERS / f"{name}.json").read_text())

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        body = prepared.body or b""
        raw = body.encode() if isinstance(body, str) else body
        assert isinstance(raw, bytes)
        authorization, key = prepared.headers.get("Authorization"), prepared.headers.get("Idempotency-Key")
        if authorization is not None and key is not None:
            host = urlsplit(prepared.url or "").netloc
            signed = signed_headers(
                Signing.of(self.file), prepared.method or "", str(host), prepared.path_url, raw, str(authorization),
                key=str(key),
            )  # fmt: skip
            prepared.headers.update({name: signed[name] for name in SIGNATURE_HEADERS})
        return prepared


@functools.cache
def _kiosk() -> tuple[str, str]:
    """(URL of the gateway, token of the kiosk)."""
    form = assertion("demo-kiosk")
    url = form.pop("url")
    token = requests.post(url, form, timeout=5).json()["access_token"]
    return url.removesuffix("/oauth2/token"), str(token)


def _ask_kiosk(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a signed POST of the kiosk."""
    url, token = _kiosk()
    headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}
    return dict(requests.post(url + path, json=body, headers=headers, auth=Signed("demo-kiosk"), timeout=5).json())


@functools.cache
def _report() -> dict[str, str]:
    """To release, and to be shown."""
    return {"reference": _ask_kiosk(REPORT, {"kind": "temporary", "presentation": CARD})["reference"]}


def _reservation() -> dict[str, str]:
    """A new one each time, to commit or cancel."""
    return {"reference": _ask_kiosk(REDEEM, WISH)["reference"]}


@functools.cache
def _card_ref() -> dict[str, str]:
    body = {"presentation": HOLDER, "scene": "kiosk.service", "terminal_id": "K-1"}
    return {"card_ref": _ask_kiosk("/v1/cards/verify", body)["card_ref"]}


PATHS: dict[str, Callable[[], dict[str, str]]] = {
    RELEASE: _report, OPERATION: _report, COMMIT: _reservation, CANCEL: _reservation, POINTS: _card_ref,
}  # fmt: skip
"""What the paths of proper cases hold."""


@schemathesis.auth(cache_by_key=lambda case, ctx: ctx.operation.label)
class Tokens:
    """The token of a caller that has the operation's scope."""

    def get(self, case: Case, ctx: schemathesis.AuthContext) -> str | None:
        name = "demo-bank" if ctx.operation.label == RETURN else CALLER_OF.get(ctx.operation.path)
        if name is None:
            return None
        form = assertion(name)
        answer = requests.post(form.pop("url"), form, timeout=5)
        return str(answer.json()["access_token"])

    def set(self, case: Case, data: str, ctx: schemathesis.AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {data}"


@schemathesis.serializer("application/x-ndjson")
def ndjson(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """A line that does not fit is an answer of 200, so what is to be refused whole is a body without a line."""
    return value.encode() if isinstance(value, str) else b""


def is_positive(case: Case) -> bool:
    return case.meta is None or case.meta.generation.mode.is_positive


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Case, kwargs: dict[str, Any]) -> None:
    """Positive cases are made to hold what the contract asks for in words.

    A key is good for one request, so every case gets one of its own shape that nobody has used.
    """
    if not is_positive(case):
        return
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = secrets.token_hex(8)
    if case.operation.path in EFFECTS:
        kwargs["auth"] = Signed(CALLER_OF[case.operation.path])
    if (parameters := PATHS.get(case.operation.path)) is not None:
        case.path_parameters.update(parameters())
    if case.operation.label == RETURN:
        case.body = returned(case.body)
    elif isinstance(case.body, dict):
        fill_in(case.operation.path, case.body)


def fill_in(path: str, body: dict[str, Any]) -> None:
    """What a body has to hold."""
    if path == "/oauth2/token":
        body["client_assertion"] = assertion("demo-merchant")["client_assertion"]
        body.pop("scope", None)
    elif path == "/v1/cards/verify":
        make_sense(body)
    elif path == KEYS:  # the first is taken; of the others there are too many
        x = base64.urlsafe_b64encode(Ed25519PrivateKey.generate().public_key().public_bytes_raw()).rstrip(b"=")
        jwk: dict[str, Any] = {"kty": "OKP", "crv": "Ed25519", "kid": secrets.token_hex(8), "x": x.decode()}
        body.update({"use": "signing", "jwk": jwk, "retire": None})
    elif path == PAY:
        make_sense(body, MONEY_SCENES)
        if body["presentation"]["type"] in ("ecard_code", "transit_qr"):  # no platform here: of these nothing is known
            body["presentation"] = CARD
        whole(body)["merchant_order_id"] = secrets.token_hex(8)
    elif path == REDEEM:
        body.update(WISH)
    elif path == VISIT:  # the lot of the tests is away: a card that is not good is answered without it
        body.update({"presentation": LOST, "scene": "parking.entry", "terminal_id": "P-1", "details": None})
    elif path == REFUND:
        whole(body)
    elif path in (RELEASE, REPORT):
        body.update({"presentation": CARD, "card_number": None, "id_number": None})


def returned(body: Any) -> Any:
    """With a line that fits behind those that do not."""
    use = {
        "id": secrets.token_hex(8), "card_number": LOSABLE.number, "card_identifier": LOSABLE.identifier,
        "scene": "market.till", "terminal_id": "T-1", "occurred_at": dt.datetime.now(dt.UTC).isoformat(),
        "amount_fen": 1250, "result": "success",
    }  # fmt: skip
    return [*body[:100], use] if isinstance(body, list) else f"{str(body)[:1000]}\n{json.dumps(use)}"


def whole(body: dict[str, Any]) -> dict[str, Any]:
    """Its amount written as an integer: `1`, not `1.0`."""
    body["amount_fen"] = int(body["amount_fen"])
    return body


def make_sense(body: dict[str, Any], scenes: tuple[str, ...] = SCENES) -> None:
    """A scene that is configured, a time of today, a card number with an identifier."""
    body["scene"] = scenes[len(body["terminal_id"]) % len(scenes)]
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
