"""Problem documents (RFC 9457)."""

import random
from collections.abc import Mapping, Sequence

import msgspec

from gateway.api.payloads import ProblemAnswer, ProblemField
from gateway.api.reply import Reply
from gateway.domain.errors import PROBLEMS, FieldError

_ENDING = ("receive_timeout", "body_too_large")
"""The rest of the body may still come: nobody will read it."""

_RETRY_AFTER_S = (1, 3)
"""From and to, whole seconds. Not the same for all: who was refused in one moment would come back in one moment, a herd
that stops the event loop, and everybody else's requests, until it is refused again (loadtests/README.md)."""

_encode = msgspec.json.Encoder().encode


def problem_reply(
    code: str, detail: str, errors: Sequence[FieldError], request_id: str, headers: Mapping[str, str]
) -> Reply:
    """A 503 says when to come again, if the problem does not."""
    status, title = PROBLEMS[code]
    body = ProblemAnswer(
        type=f"urn:yikatong:problem:{code}",
        title=title,
        status=status,
        detail=detail,
        code=code,
        request_id=request_id,
        errors=[ProblemField(*error) for error in errors],
    )
    if status == 503 and "Retry-After" not in headers:
        headers = {"Retry-After": str(random.randint(*_RETRY_AFTER_S)), **headers}  # noqa: S311 - jitter
    headers = {"Content-Type": "application/problem+json", **headers}
    return Reply(_encode(body), status, headers, request_id, closes=code in _ENDING)
