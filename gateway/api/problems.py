"""Problem documents (RFC 9457)."""

from collections.abc import Mapping, Sequence

import msgspec
from aiohttp import web

from gateway.api.payloads import ProblemAnswer, ProblemField
from gateway.domain.errors import PROBLEMS, FieldError

SERVER = "yikatong"
_encode = msgspec.json.Encoder().encode


def problem_response(
    code: str, detail: str, errors: Sequence[FieldError], request_id: str, headers: Mapping[str, str]
) -> web.Response:
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
    return web.Response(
        body=_encode(body),
        status=status,
        headers={
            "Content-Type": "application/problem+json",
            "X-Request-Id": request_id,
            "Server": SERVER,
            **headers,
        },
    )
