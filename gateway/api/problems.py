"""Problem documents (RFC 9457)."""

from collections.abc import Mapping, Sequence

import msgspec

from gateway.api.payloads import ProblemAnswer, ProblemField
from gateway.api.reply import Reply
from gateway.domain.errors import PROBLEMS, FieldError

_ENDING = ("receive_timeout", "body_too_large")
"""The rest of the body may still come: nobody will read it."""
_encode = msgspec.json.Encoder().encode


def problem_reply(
    code: str, detail: str, errors: Sequence[FieldError], request_id: str, headers: Mapping[str, str]
) -> Reply:
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
    headers = {"Content-Type": "application/problem+json", **headers}
    return Reply(_encode(body), status, headers, request_id, closes=code in _ENDING)
