"""POST /v1/cards/verify."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gateway.api.ecards import ask_platform
from gateway.api.effects import do_once, refuse
from gateway.api.middleware import Call
from gateway.api.payloads import VerifyRequest, decoder
from gateway.api.reply import Reply
from gateway.crypto.sealing import UnknownDataKey
from gateway.directory import KnownScene
from gateway.domain.callers import Caller
from gateway.domain.errors import Problem, invalid, unavailable
from gateway.flows.verify_card import Once, count, encode, given
from gateway.store.benefits import Refusals
from gateway.store.verify import Presented

if TYPE_CHECKING:
    from gateway.app import Gateway

PATH = "/v1/cards/verify"

decode = decoder(VerifyRequest)
"""Raises Problem 400, 422."""


def scene_of(asked: VerifyRequest, scenes: Mapping[str, KnownScene]) -> KnownScene:
    """Raises Problem 422."""
    scene = scenes.get(asked.scene)
    if scene is None:
        raise invalid("$.scene", "is not a scene of this gateway")
    return scene


def present(gateway: "Gateway", caller_id: str, caller: Caller, asked: VerifyRequest, scene: KnownScene) -> Presented:
    return gateway.verify_card.present(
        caller_id, asked.presentation, asked.scene, scene.media[caller.kind],
        asked.terminal_id, asked.occurred_at,
    )  # fmt: skip


async def verify_card(call: Call) -> Reply:
    gateway = call.gateway
    asked: VerifyRequest = decode(call.body)
    try:
        scene = scene_of(asked, gateway.directory.scenes)
        presented = present(gateway, call.caller_id, call.caller.caller, asked, scene)
    except Problem as problem:
        if call.idempotency_key is None or problem.code != "validation_failed":
            raise
        return await refuse(call, problem)  # a scene that is gone, a time that has become too old
    presented = await ask_platform(call, asked.presentation, presented)
    if call.idempotency_key is not None:
        once = Once(presented, scene.benefits, asked.explain)
        response = await do_once(call, gateway.verify_once, once)
        if once.answer is not None:
            count(once.answer, scene.field, call.caller_id)
        return response
    judged = await gateway.batcher.ask(presented)
    try:
        answer, want = gateway.verify_card.answer(presented, judged, scene.benefits)
    except UnknownDataKey:
        await gateway.data_keys.load()
        answer, want = gateway.verify_card.answer(presented, judged, scene.benefits)
    refused: Refusals = {}
    if want is not None and scene.benefits is not None:
        claimed = await gateway.claims.ask(want)
        if claimed is None:
            raise unavailable("another use of the benefit is being written")
        refused = claimed
        answer = given(answer, scene.benefits, want, refused)
    if asked.explain:
        answer = gateway.verify_card.explain(answer, presented, judged, scene.benefits, refused)
    count(answer, scene.field, call.caller_id)
    return Reply(encode(answer))
