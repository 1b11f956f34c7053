"""The published contract (OpenAPI 3.1): the route table and the types that decode requests, put into words."""

import json
from typing import Any

import msgspec

from gateway import __version__
from gateway.api.middleware import NDJSON
from gateway.api.payloads import ProblemAnswer
from gateway.api.reply import JSON
from gateway.api.routes import FORM, ROUTES, Route
from gateway.api.signatures import COMPONENTS, TAG
from gateway.api.usage_events import CURSOR_PATTERN, LIMIT_DEFAULT, LIMIT_MAX
from gateway.crypto.pseudonym import CARD_REF_PATTERN
from gateway.domain.callers import ANY_SCOPE, Scope
from gateway.domain.cards import END
from gateway.domain.errors import PROBLEMS
from gateway.domain.usage import BULK_LINES_MAX
from gateway.flows.issue_token import ASSERTION_TYPE

_REF = "#/components/schemas/{name}"

EXAMPLE_VERIFY = {
    "presentation": {
        "type": "chip_card",
        "card_number": "AB1234567",
        "card_identifier": "330424D15600000500000000000000A1",
    },
    "scene": "parking.exit",
    "terminal_id": "P-0001",
}


def _header(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "header", "required": False, "description": description, "schema": {"type": "string"}}


def _idempotency_key(required: bool) -> dict[str, Any]:
    return {
        "name": "Idempotency-Key", "in": "header", "required": required,
        "description": "Kept 7 days; the same request is answered with the same bytes",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]*$"},
    }  # fmt: skip


_PARAMETERS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("GET", "/v1/usage-events"): [
        {
            "name": "after", "in": "query", "required": False,
            "description": "The `next` of an earlier page; without it the feed starts at its beginning",
            "schema": {"type": "string", "pattern": CURSOR_PATTERN},
        },
        {
            "name": "limit", "in": "query", "required": False,
            "schema": {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT},
        },
    ],
    ("POST", "/v1/cards/verify"): [_idempotency_key(required=False)],
}  # fmt: skip

_EFFECT_PARAMETERS = [
    _idempotency_key(required=True),
    _header("Content-Digest", "RFC 9530, `sha-256` or `sm3`, of the body as it is sent"),
    _header("Signature-Input", f'RFC 9421: `sig1={COMPONENTS};created=…;keyid="…";alg="…";tag="{TAG}"`'),
    _header("Signature", "`sig1=:…:`; may be left out by a caller whose configuration says so"),
]
_REFERENCE = {
    "name": "reference", "in": "path", "required": True, "description": "Of the answer to the operation",
    "schema": {"type": "string", "format": "uuid"},
}  # fmt: skip

_CARD_REF = {
    "name": "card_ref", "in": "path", "required": True, "description": "Of an earlier answer to this caller",
    "schema": {"type": "string", "pattern": CARD_REF_PATTERN.replace(END, "$")},
}  # fmt: skip

EXAMPLES: dict[str, Any] = {
    "VerifyRequest": EXAMPLE_VERIFY,
    "LossReport": {"card_number": "AB1234567", "id_number": "330499196001010014", "kind": "temporary"},
    "LossRelease": {},
    "PaymentRequest": EXAMPLE_VERIFY | {"scene": "market.till", "amount_fen": 1250, "merchant_order_id": "2026-000017"},
    "ReversalRequest": {"reason": "the customer left"},
    "RefundRequest": {"amount_fen": 250, "reason": "one item was returned"},
    "RedemptionRequest": {
        "presentation": EXAMPLE_VERIFY["presentation"],
        "points": 80,
        "item": "towel-set",
        "outlet_id": "wuyuan-01",
    },
    "RedemptionEnd": {},
    "VisitRequest": EXAMPLE_VERIFY | {"details": {"plate": "浙F12345"}},
    "VisitOpening": {"payment": "01a2094a-958b-79ef-9703-c03bc30f62b6"},
    "UsageLine": {
        "id": "2026-11-23-000017",
        "card_number": "AB1234567",
        "card_identifier": "330424D15600000500000000000000A1",
        "scene": "market.till",
        "terminal_id": "P-0001",
        "occurred_at": "2026-11-23T10:00:00+08:00",
        "amount_fen": 1250,
        "discount_fen": 50,
        "result": "success",
    },
    "KeyChange": {
        "use": "signing",
        "retire": "hotel-2026",
        "jwk": {
            "kty": "OKP",
            "crv": "Ed25519",
            "kid": "hotel-2027",
            "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        },
    },
}

_TOKEN_FORM = {
    "type": "object",
    "required": ["grant_type", "client_assertion_type", "client_assertion"],
    "properties": {
        "grant_type": {"type": "string", "const": "client_credentials"},
        "client_assertion_type": {"type": "string", "const": ASSERTION_TYPE},
        "client_assertion": {
            "type": "string",
            "description": "JWT: iss = sub = client_id, aud = issuer, exp, iat, jti",
        },
        "scope": {"type": "string", "description": "Scopes with a blank between; none: all that the client has"},
    },
}


def build() -> dict[str, Any]:
    """The whole document."""
    types = [
        kind
        for route in ROUTES
        for kind in (route.body, route.answer, route.refusal and route.refusal[0])
        if _named(kind)
    ]
    _, schemas = msgspec.json.schema_components([*types, ProblemAnswer], ref_template=_REF)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "一卡通 gateway",
            "version": __version__,
            "summary": "Social security cards of 海盐县, linked to banks, transit, merchants and the 人才码",
            "description": (
                "Errors are RFC 9457 problems and never hold a submitted value. Every answer carries X-Request-Id. "
                "Unknown request fields are refused; answers may grow. An integer is written without a fraction "
                "(`1`, not `1.0`). An operation with effects is signed (RFC 9421) and carried out once for its "
                "Idempotency-Key."
            ),
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "callers": {
                    "type": "oauth2",
                    "description": "client_credentials with private_key_jwt (RFC 7523)",
                    "flows": {
                        "clientCredentials": {
                            "tokenUrl": "/oauth2/token",
                            "scopes": {scope.value: "" for scope in Scope},
                        }
                    },
                }
            },
            "headers": {
                "RequestId": {
                    "schema": {"type": "string"},
                    "description": "The caller's, if it is a sane one, else ours",
                },
            },
        },
    }


def _named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_REF)
    return schema


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "responses": _answers(route),
    }
    parameters = list(_PARAMETERS.get((route.method, route.path), ()))
    if "{reference}" in route.path:
        parameters.append(_REFERENCE)
    if "{card_ref}" in route.path:
        parameters.append(_CARD_REF)
    if route.effect:
        parameters += _EFFECT_PARAMETERS
    if parameters:
        operation["parameters"] = parameters
    if route.scope is not None:
        operation["security"] = [{"callers": [] if route.scope == ANY_SCOPE else [route.scope]}]
    if route.takes == FORM:
        operation["requestBody"] = {"required": True, "content": {FORM: {"schema": _TOKEN_FORM}}}
    elif route.bulk:
        operation["description"] = (
            "Every id is good once for ever, so that a bulk may be sent again until it is answered: what was written "
            "is counted as duplicate. An Idempotency-Key is not needed, and refused."
        )
        operation["requestBody"] = {"required": True, "content": _bulk(route)}
    elif route.takes is not None:
        content = {route.takes: {"schema": _schema(route.body), "example": EXAMPLES[route.body.__name__]}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _bulk(route: Route) -> dict[str, Any]:
    """A line that does not fit is rejected by itself, so neither schema asks for lines that do."""
    line = f"each a `{route.body.__name__}`; one that does not fit is told in `rejected`, and its neighbours stand"
    array = {"type": "array", "items": {}, "minItems": 1, "maxItems": BULK_LINES_MAX, "description": f"Lines, {line}"}
    text = {"type": "string", "minLength": 1, "description": f"Up to {BULK_LINES_MAX} lines with LF between, {line}"}
    example = EXAMPLES[route.body.__name__]
    return {
        NDJSON: {"schema": text, "example": json.dumps(example), "x-line": _schema(route.body)},
        JSON: {"schema": array, "example": [example], "x-line": _schema(route.body)},
    }


def _answers(route: Route) -> dict[str, Any]:
    headers = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    schema = _schema(route.answer) if route.answer is not None else {"type": "string"}
    answers: dict[str, Any] = {
        "200": {"description": "OK", "headers": headers, "content": {route.answers_as: {"schema": schema}}}
    }
    if route.may_pend:
        pending = "`pending`: the outcome is being found out; ask `GET /v1/operations/{reference}`"
        answers["202"] = answers["200"] | {"description": pending}
    meanings: dict[int, list[str]] = {}
    for code in (*route.problems, "internal"):
        status, title = PROBLEMS[code]
        meanings.setdefault(status, []).append(f"`{code}`: {title}")
    for status, titles in meanings.items():
        content = {"application/problem+json": {"schema": _schema(ProblemAnswer)}}
        answers[str(status)] = {"description": "; ".join(titles), "headers": headers, "content": content}
    if route.refusal is not None:
        kind, statuses = route.refusal
        for status, meaning in statuses.items():
            content = {"application/json": {"schema": _schema(kind)}}
            answers[str(status)] = {"description": meaning, "headers": headers, "content": content}
    return dict(sorted(answers.items()))
