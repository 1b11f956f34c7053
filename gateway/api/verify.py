"""POST /v1/cards/verify."""

import hashlib

import msgspec
from aiohttp import web

from gateway.api.middleware import JSON, Call
from gateway.api.payloads import VerifyRequest, decoder
from gateway.domain.errors import FieldError, Problem
from gateway.flows import idempotently
from gateway.flows.verify_card import Judge

_decode = decoder(VerifyRequest)
_encode = msgspec.json.Encoder().encode
_JSON_HEADERS = {"Content-Type": JSON}


async def verify_card(call: Call) -> web.Response:
    asked: VerifyRequest = _decode(call.body)
    scene = call.gateway.directory.scenes.get(asked.scene)
    if scene is None:
        raise Problem("validation_failed", errors=[FieldError("$.scene", "is not a scene of this gateway")])

    async def answer(judge: Judge) -> bytes:
        return _encode(
            await call.gateway.verify_card(
                judge, call.caller_id, call.caller.caller, asked.presentation, asked.scene, scene,
                asked.terminal_id, asked.occurred_at,
            )
        )  # fmt: skip

    key = call.request.headers.get("Idempotency-Key")
    if key is None:
        return web.Response(body=await answer(call.gateway.judge), headers=_JSON_HEADERS)
    if not idempotently.is_key(key):
        raise Problem("malformed_idempotency_key")
    fingerprint = hashlib.sha256(
        b"\n".join((call.request.method.encode(), call.request.raw_path.encode(), call.body))
    ).digest()
    body, replayed = await idempotently.run(
        call.gateway.pool, call.caller_id, key, fingerprint,
        lambda connection: answer(call.gateway.judge_within(connection)),
    )  # fmt: skip
    headers = _JSON_HEADERS | ({"Idempotency-Replayed": "true"} if replayed else {})
    return web.Response(body=body, headers=headers)
