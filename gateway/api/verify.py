"""POST /v1/cards/verify."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from gateway.api.middleware import JSON, Call
from gateway.api.payloads import VerifyRequest, decoder
from gateway.crypto.sealing import UnknownDataKey
from gateway.directory import KnownScene
from gateway.domain.callers import Caller
from gateway.domain.errors import FieldError, Problem
from gateway.flows import idempotently
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from gateway.app import Gateway

PATH = "/v1/cards/verify"

_decode = decoder(VerifyRequest)
encode = msgspec.json.Encoder().encode
_JSON_HEADERS = {"Content-Type": JSON}


def decode(call_body: bytes, scenes: Mapping[str, KnownScene]) -> tuple[VerifyRequest, KnownScene]:
    """The request and its scene. Raises Problem 400, 422."""
    asked: VerifyRequest = _decode(call_body)
    scene = scenes.get(asked.scene)
    if scene is None:
        raise Problem("validation_failed", errors=[FieldError("$.scene", "is not a scene of this gateway")])
    return asked, scene


def present(gateway: "Gateway", caller_id: str, caller: Caller, asked: VerifyRequest, scene: KnownScene) -> Presented:
    return gateway.verify_card.present(
        caller_id, asked.presentation, asked.scene, scene.generations[caller.kind],
        asked.terminal_id, asked.occurred_at,
    )  # fmt: skip


async def verify_card(call: Call) -> web.Response:
    gateway = call.gateway
    asked, scene = decode(call.body, gateway.directory.scenes)

    async def answer(judge: Callable[[Presented], Awaitable[Judged]]) -> bytes:
        presented = present(gateway, call.caller_id, call.caller.caller, asked, scene)
        judged = await judge(presented)
        try:
            return encode(gateway.verify_card.answer(presented, judged, scene.field))
        except UnknownDataKey:
            await gateway.load_data_keys()
            return encode(gateway.verify_card.answer(presented, judged, scene.field))

    key = call.request.headers.get("Idempotency-Key")
    if key is None:
        return web.Response(body=await answer(gateway.batcher.ask), headers=_JSON_HEADERS)
    if not idempotently.is_key(key):
        raise Problem("malformed_idempotency_key")
    request = b"\n".join((call.request.method.encode(), call.request.raw_path.encode(), call.body))
    body, replayed = await gateway.idempotency.run(
        call.caller_id, key, request, lambda connection: answer(gateway.judge_within(connection))
    )
    headers = _JSON_HEADERS | ({"Idempotency-Replayed": "true"} if replayed else {})
    return web.Response(body=body, headers=headers)
