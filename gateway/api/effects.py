"""The edge of operations with effects: carried out once, answered with the same bytes ever after."""

from typing import Any

from gateway.api.middleware import Call
from gateway.api.reply import JSON_HEADERS, Reply
from gateway.domain.errors import Problem
from gateway.flows.effects import Kind, Unfit

_UNFIT = Unfit()
_REPLAYED = {**JSON_HEADERS, "Idempotency-Replayed": "true"}


async def do_once(call: Call, kind: Kind, what: Any, keep_body: bool = True) -> Reply:
    """Raises Problem 409, 422, 503, and what the kind raises.

    Without `keep_body` the proof of the operation has the signed body's digest alone.
    """
    assert call.idempotency_key is not None, "the middleware asks for it"
    request = b"\n".join((call.request.method.encode(), call.request.raw_path.encode(), call.body))
    evidence = call.evidence
    if evidence is not None and not keep_body:
        evidence = evidence._replace(body=None)
    answer, replayed = await call.gateway.effects.run(
        kind, call.caller_id, call.idempotency_key, request, what, evidence
    )
    headers = _REPLAYED if replayed else JSON_HEADERS
    return Reply(answer.body, answer.status, headers)


async def refuse(call: Call, problem: Problem) -> Reply:
    """What today's configuration says against a request, unless its key has its answer. Raises as do_once() does."""
    return await do_once(call, _UNFIT, problem)
