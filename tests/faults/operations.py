"""One proper request for each operation, and every way to spoil a request that we know: for the canaries.

A new operation needs a line in OPERATIONS: test_canary.py compares it with gateway.api.routes.ROUTES.
"""

import json
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from tests.faults.canaries import Canary
from tests.returns import line
from tests.running import ASSERTION_TYPE, Client, request, verify_body
from tests.signing import Signing, signed_headers

VERIFY = ("POST", "/v1/cards/verify")
REPORT = ("POST", "/v1/cards/loss-reports")
RELEASE = ("POST", "/v1/cards/loss-reports/{reference}/release")
TOKEN = ("POST", "/oauth2/token")
VISIT = ("POST", "/v1/visits")


class Operation(NamedTuple):
    caller: str
    body: Callable[[Client, Canary, str], Any] | None = None
    """Of a card that is ours and a note that is a person's in the wrong place; a dict becomes JSON, bytes stay."""
    signed_in: bool = True
    signed: bool = False
    """Under the body, anew for each spoilt one."""
    content_type: str = "application/json"
    """Of a dict."""


def _token(client: Client, _: Canary, note: str) -> bytes:
    claims = client.claims(jti=f"{note}-{secrets.token_hex(4)}")
    form = {"grant_type": "client_credentials", "client_assertion_type": ASSERTION_TYPE}
    return urlencode(form | {"client_assertion": client.assertion(claims)}).encode()


def _verify(_: Client, card: Canary, note: str) -> dict[str, Any]:
    return verify_body(card.card_number, card.card_identifier, terminal_id=note)


def _report(_: Client, card: Canary, __: str) -> dict[str, Any]:
    return {"kind": "temporary", "card_number": card.card_number, "id_number": card.id_number}


def _release(_: Client, card: Canary, __: str) -> dict[str, Any]:
    return {"reason": " ".join(card.values)}


def _keys(_: Client, card: Canary, __: str) -> dict[str, Any]:
    return {"use": "signing", "retire": card.card_number}


def _pay(_: Client, card: Canary, note: str) -> dict[str, Any]:
    body = verify_body(card.card_number, card.card_identifier, "market.till", terminal_id=note)
    return body | {"amount_fen": 100, "merchant_order_id": secrets.token_hex(8)}


def _refund(_: Client, card: Canary, __: str) -> dict[str, Any]:
    return {"reason": " ".join(card.values), "amount_fen": 1}


def _nothing(_: Client, __: Canary, ___: str) -> dict[str, Any]:
    return {}


def _redeem(_: Client, card: Canary, __: str) -> dict[str, Any]:
    presentation = verify_body(card.card_number, card.card_identifier)["presentation"]
    return {"presentation": presentation, "points": 80, "item": "towel-set", "outlet_id": "wuyuan-01"}


def _visit(_: Client, card: Canary, __: str) -> dict[str, Any]:
    """On the way out of the lot, with a person's number where its ticket's belongs: it is kept until it is paid."""
    presentation = verify_body(card.card_number, card.card_identifier)["presentation"]
    body = {"presentation": presentation, "scene": "parking.exit", "terminal_id": "L-1"}
    return body | {"details": {"plate": card.card_number, "ticket": card.id_number}}


def _open(_: Client, __: Canary, ___: str) -> dict[str, Any]:
    return {"payment": "01a2094a-958b-79ef-9703-c03bc30f62b6"}


def _return(_: Client, card: Canary, note: str) -> dict[str, Any]:
    """One line."""
    return line(card.card, terminal_id=note)


OPERATIONS = {
    TOKEN: Operation("demo-merchant", _token, signed_in=False),
    ("GET", "/.well-known/jwks.json"): Operation("demo-merchant", signed_in=False),
    VERIFY: Operation("demo-merchant", _verify),
    REPORT: Operation("demo-kiosk", _report, signed=True),
    RELEASE: Operation("demo-kiosk", _release, signed=True),
    ("POST", "/v1/payments"): Operation("demo-merchant", _pay, signed=True),
    ("POST", "/v1/payments/{reference}/reversals"): Operation("demo-merchant", _release, signed=True),
    ("POST", "/v1/payments/{reference}/refunds"): Operation("demo-merchant", _refund, signed=True),
    VISIT: Operation("demo-merchant", _visit, signed=True),
    ("POST", "/v1/visits/{reference}/open"): Operation("demo-merchant", _open, signed=True),
    ("POST", "/v1/points/redemptions"): Operation("demo-kiosk", _redeem, signed=True),
    ("POST", "/v1/points/redemptions/{reference}/commit"): Operation("demo-kiosk", _nothing, signed=True),
    ("POST", "/v1/points/redemptions/{reference}/cancel"): Operation("demo-kiosk", _nothing, signed=True),
    ("GET", "/v1/points/{card_ref}"): Operation("demo-kiosk"),
    ("GET", "/v1/operations/{reference}"): Operation("demo-kiosk"),
    ("POST", "/v1/callers/self/keys"): Operation("demo-kiosk", _keys, signed=True),
    ("GET", "/v1/usage-events"): Operation("demo-bureau"),
    ("POST", "/v1/usage-events"): Operation("demo-bank", _return, content_type="application/x-ndjson"),
    ("GET", "/openapi.json"): Operation("demo-merchant", signed_in=False),
    ("GET", "/docs"): Operation("demo-merchant", signed_in=False),
}


class Sent(NamedTuple):
    """A request before it becomes bytes."""

    method: str
    path: str
    body: bytes
    headers: dict[str, str | bytes | None]
    signing: Signing | None = None

    def raw(self) -> bytes:
        headers, authorization = self.headers, self.headers.get("authorization")
        if self.signing is not None and isinstance(authorization, str):
            key = headers.get("idempotency_key")
            given = {"key": key.decode("latin-1")} if isinstance(key, bytes) else {}
            made = signed_headers(self.signing, self.method, "gateway", self.path, self.body, authorization, **given)
            signed: dict[str, str | bytes | None] = {}
            signed |= {name.lower().replace("-", "_"): value for name, value in made.items()}
            headers = signed | headers
        return request(self.method, self.path, self.body, **headers)

    def with_headers(self, **headers: str | bytes | None) -> "Sent":
        return self._replace(headers=self.headers | headers)


def proper(which: tuple[str, str], client: Client, authorization: str, card: Canary, note: str, reference: str) -> Sent:
    """The request of an operation as it should be; `reference` is that of an earlier effect."""
    operation = OPERATIONS[which]
    body = operation.body(client, card, note) if operation.body else b""
    form = isinstance(body, bytes) and body
    headers: dict[str, str | bytes | None] = {
        "content_type": "application/x-www-form-urlencoded" if form else operation.content_type
    }
    if operation.signed_in:
        headers["authorization"] = authorization
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    path = which[1].replace("{reference}", reference)
    return Sent(which[0], path, raw, headers, Signing.of(client.file) if operation.signed else None)


def _json(sent: Sent) -> Any:
    try:
        return json.loads(sent.body)
    except ValueError:
        return {"form": sent.body.decode()}


def _each_text(tree: Any, change: Callable[[str], Any]) -> Any:
    if isinstance(tree, dict):
        return {name: _each_text(value, change) for name, value in tree.items()}
    return change(tree) if isinstance(tree, str) else tree


def _body(sent: Sent, tree: Any) -> Sent:
    return sent._replace(body=json.dumps(tree, ensure_ascii=False).encode())


def _chunked(sent: Sent, body: bytes) -> Sent:
    return sent._replace(body=body).with_headers(content_length=None, transfer_encoding="chunked")


SPOILT: dict[str, Callable[[Sent, str], bytes]] = {
    "not JSON": lambda sent, text: sent._replace(body=text.encode()).raw(),
    "JSON cut short": lambda sent, text: sent._replace(body=f'{{"{text}": "{text}'.encode()).raw(),
    "not UTF-8": lambda sent, text: sent._replace(body=b'{"a": "\xff' + text.encode() + b'"}').raw(),
    "wrong types": lambda sent, text: _body(sent, _each_text(_json(sent), lambda _: [text])).raw(),
    "wrong texts": lambda sent, text: _body(sent, _each_text(_json(sent), lambda _: text)).raw(),
    "an unknown field": lambda sent, text: _body(sent, _json(sent) | {text: text}).raw(),
    "an unknown field inside": lambda sent, text: _body(
        sent, {name: {text: text} | (value if isinstance(value, dict) else {}) for name, value in _json(sent).items()}
    ).raw(),
    "too long": lambda sent, text: _body(sent, _each_text(_json(sent), lambda _: text * 20)).raw(),
    "too large": lambda sent, text: sent._replace(body=text.encode() * (300_000 // len(text.encode()))).raw(),
    "a bad form": lambda sent, text: sent._replace(body=urlencode({"grant_type": text, "scope": text}).encode())
    .with_headers(content_type="application/x-www-form-urlencoded").raw(),
    "a bad content type": lambda sent, text: sent.with_headers(content_type=text.encode()).raw(),
    "a bad encoding": lambda sent, text: sent.with_headers(content_encoding=text.encode()).raw(),
    "a bad expectation": lambda sent, text: sent.with_headers(expect=text.encode()).raw(),
    "a bad token": lambda sent, text: sent.with_headers(authorization=b"Bearer " + text.encode()).raw(),
    "another scheme": lambda sent, text: sent.with_headers(authorization=text.encode()).raw(),
    "a bad Idempotency-Key": lambda sent, text: sent.with_headers(idempotency_key=text.encode()).raw(),
    "a header that is none": lambda sent, text: sent.with_headers(x_note=b"\x00" + text.encode()).raw(),
    "a bad request line": lambda sent, text: text.encode() + b" " + sent.raw(),
    "an unknown path": lambda sent, text: sent._replace(path=f"{sent.path}/{quote(text)}").raw(),
    "a bad query": lambda sent, text: sent._replace(path=f"{sent.path}?{quote(text)}={quote(text)}").raw(),
    "a bad cursor": lambda sent, text: sent._replace(path=f"{sent.path}?limit={quote(text)}").raw(),
    "another method": lambda sent, text: sent._replace(method="DELETE").with_headers(x_note=text.encode()).raw(),
    "a bad chunk": lambda sent, text: _chunked(sent, b"1\r\n" + text.encode() + b"\r\n0\r\n\r\n").raw(),
    "a bad chunk size": lambda sent, text: _chunked(sent, text.encode() + b"\r\n").raw(),
}  # fmt: skip
"""How a request is spoilt with a text of planted values."""
