"""What happens to every request, in this order:

request id -> token -> quota -> scope -> body (type, size, deadline) -> idempotency key -> signature -> handler
-> errors as problems -> metrics.

It wraps each handler when the routes are registered, so a request passes through one function, not through a chain.
"""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
from aiohttp import hdrs, web
from multidict import istr

from gateway.api import signatures
from gateway.api.auth import Unauthorised
from gateway.api.problems import problem_reply
from gateway.api.reply import JSON, Reply
from gateway.crypto.signatures import is_slow, verify
from gateway.directory import KnownCaller
from gateway.domain.callers import ANY_SCOPE, AnyScope, Scope
from gateway.domain.errors import Problem
from gateway.flows.effects import Evidence, is_key
from gateway.log import describe
from gateway.metrics import RATE_LIMITED, REFUSED_ENTRY, REQUESTS, SHED, request_seconds

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy, MultiMapping

    from gateway.app import Gateway

log = structlog.get_logger()

_IDEMPOTENCY_KEY = istr("Idempotency-Key")
_REQUEST_ID = istr("X-Request-Id")
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
NDJSON = "application/x-ndjson"
_UTF_8 = (None, "utf-8", "utf8")


_process, _numbers = secrets.token_hex(6), itertools.count(1)


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's X-Request-Id if it is a sane one, else ours."""
    return given_request_id(headers) or new_request_id()


def given_request_id(headers: Mapping[str, str]) -> str | None:
    given = headers.get(_REQUEST_ID)
    return given if given is not None and _SANE_REQUEST_ID.fullmatch(given) else None


def new_request_id() -> str:
    """`<process>-<number>`: enough to find a log line."""
    return f"{_process}-{next(_numbers)}"


class Requested(Protocol):
    """What is asked of a request beside its body; aiohttp's has it."""

    @property
    def method(self) -> str: ...
    @property
    def raw_path(self) -> str: ...
    @property
    def headers(self) -> "CIMultiDictProxy[str]": ...
    @property
    def match_info(self) -> Mapping[str, str]: ...
    @property
    def query(self) -> "MultiMapping[str]": ...
    @property
    def content_type(self) -> str: ...
    @property
    def charset(self) -> str | None: ...


class Call(NamedTuple):
    """A request that has passed everything before its handler."""

    gateway: "Gateway"
    request: Requested
    request_id: str
    caller_id: str
    caller: KnownCaller
    body: bytes
    idempotency_key: str | None = None
    evidence: Evidence | None = None
    """The checked signature, if there was one."""
    scopes: frozenset[str] = frozenset()
    """What both the token and the caller have."""


Handler = Callable[[Call], Awaitable[Reply]]
Answering = Callable[[Requested, bytes | None], Awaitable[Reply]]
"""A handler with all that is around it. The body if it has arrived; None: it is read from aiohttp's request."""

_NOBODY: KnownCaller = None  # type: ignore[assignment]  # a handler without a scope does not look
_STRANGER: tuple[str, KnownCaller, frozenset[str]] = ("", _NOBODY, frozenset())


class _Takes(NamedTuple):
    """What a route takes for a body."""

    content_types: tuple[str, ...]
    max_bytes: int
    within_s: float


def endpoint(
    gateway: "Gateway",
    route: str,
    handler: Handler,
    scope: Scope | AnyScope | None,
    content_type: str | None,
    effect: bool = False,
    bulk: bool = False,
) -> Answering:
    """What answers one route.

    `scope` None is open to everyone, ANY_SCOPE to every caller; `content_type` None takes no body; an `effect` needs an
    Idempotency-Key and the caller's signature; a `bulk` has neither, a larger body, and one of few places.
    """
    seconds = request_seconds(route)
    settings = gateway.settings.gateway
    if bulk:
        takes = _Takes((NDJSON, JSON), settings.usage_return.bulk_max_bytes, settings.http.body_timeout_s)
    else:
        takes = _Takes((content_type or "",), settings.http.body_max_bytes, settings.http.body_timeout_s)

    async def answer(request: Requested, whole: bytes | None) -> Reply:
        began = time.perf_counter()
        headers = request.headers
        request_id = request_id_of(headers)
        try:
            caller_id, caller, scopes = _STRANGER if scope is None else _admit(gateway, headers, scope)
            if bulk:
                _refuse_key_and_signature(headers)
                with gateway.bulk_usage.place(caller_id):
                    body = await _body(request, whole, takes)
                    reply = await handler(Call(gateway, request, request_id, caller_id, caller, body, scopes=scopes))
            else:
                body = await _body(request, whole, takes) if content_type is not None else b""
                key, evidence = None, None
                if caller_id and content_type is not None:
                    key = _idempotency_key(headers, needed=effect)
                    evidence = await _evidence(gateway, request, caller_id, caller, body, effect)
                reply = await handler(
                    Call(gateway, request, request_id, caller_id, caller, body, key, evidence, scopes)
                )
        except Problem as problem:
            if problem.status == 401:
                REFUSED_ENTRY.labels(problem.why if isinstance(problem, Unauthorised) else "bad_signature").inc()
            if problem.status == 503:
                SHED.labels(problem.code).inc()
            reply = problem_reply(problem.code, problem.detail, problem.errors, request_id, problem.headers)
        except Exception as error:  # noqa: BLE001 - the edge: nothing may leave as a traceback
            log.error("request failed", request_id=request_id, exception=describe(type(error), error.__traceback__))
            reply = problem_reply("internal", "", (), request_id, {})
        else:
            reply = reply._replace(request_id=request_id)
        REQUESTS.add((route, str(reply.status)))
        seconds.observe(time.perf_counter() - began)
        return reply

    return answer


def _admit(
    gateway: "Gateway", headers: Mapping[str, str], scope: Scope | AnyScope
) -> tuple[str, KnownCaller, frozenset[str]]:
    """Who calls, and what for. Raises Problem 401, 403, 429."""
    known, access = gateway.authenticate(headers.get("Authorization"))
    if known.caller.quota_per_second:
        _take_quota(gateway, known, access.caller_id)
    if scope != ANY_SCOPE and (scope not in access.scopes or scope not in known.scopes):
        REFUSED_ENTRY.labels("scope").inc()
        challenge = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}  # RFC 6750 §3.1
        raise Problem("insufficient_scope", f"it takes {scope}", headers=challenge)
    return access.caller_id, known, known.scopes & access.scopes


def _idempotency_key(headers: Mapping[str, str], needed: bool) -> str | None:
    key = headers.get(_IDEMPOTENCY_KEY)
    if key is None and needed:
        raise Problem("missing_idempotency_key")
    if key is not None and not is_key(key):
        raise Problem("malformed_idempotency_key")
    return key


async def _evidence(
    gateway: "Gateway", request: Requested, caller_id: str, known: KnownCaller, body: bytes, effect: bool
) -> Evidence | None:
    """The caller's signature under the request, checked; None if there is none and none is needed."""
    if not signatures.is_there(request.headers):
        if effect and known.caller.signature == "required":
            raise signatures.refused()
        return None
    port = ":443" if gateway.settings.issuer.startswith("https:") else ":80"
    claimed = signatures.read(request.method, request.raw_path, request.headers, body, port)
    key = await gateway.directory.find_signing_key(caller_id, claimed.key_id)
    if key is None or key.algorithm != claimed.algorithm:
        raise signatures.refused()
    check = partial(verify, key, claimed.base, claimed.signature)
    if not (await gateway.slow_lane.run(caller_id, check) if is_slow(key) else check()):
        raise signatures.refused()
    return claimed.evidence(key, body)


def _take_quota(gateway: "Gateway", known: KnownCaller, caller_id: str) -> None:
    limit = known.caller.quota_per_second
    wait = gateway.quota.take(known.quota_slot, limit)
    if wait:
        RATE_LIMITED.labels(caller_id).inc()
        seconds = str(int(wait) + 1)
        raise Problem(
            "quota_exceeded",
            headers={
                "Retry-After": seconds,
                "RateLimit-Limit": str(limit),
                "RateLimit-Remaining": "0",
                "RateLimit-Reset": seconds,
            },
        )


def _refuse_key_and_signature(headers: Mapping[str, str]) -> None:
    """Of a bulk: its ids do the work of a key, and what is signed holds a key. Raises Problem 400, 401."""
    if _IDEMPOTENCY_KEY in headers:
        raise Problem("idempotency_key_refused")
    if signatures.is_there(headers):
        raise signatures.refused()


async def _body(request: Requested, whole: bytes | None, takes: _Takes) -> bytes:
    if hdrs.CONTENT_ENCODING in request.headers:
        raise Problem("unsupported_media_type", "Content-Encoding is not accepted")
    if request.content_type not in takes.content_types:
        raise Problem("unsupported_media_type", f"the body must be {' or '.join(takes.content_types)}")
    if request.content_type in (JSON, NDJSON) and (request.charset and request.charset.lower()) not in _UTF_8:
        raise Problem("unsupported_media_type", "JSON is UTF-8")  # RFC 8259 §8.1; a form is ASCII, whatever it says
    if whole is None:
        assert isinstance(request, web.Request), "only aiohttp's has a body that may be on its way"
        whole = await _arriving(request, takes)
    if len(whole) > takes.max_bytes:  # a chunked one does not say its length
        raise Problem("body_too_large")
    return whole


async def _arriving(request: web.Request, takes: _Takes) -> bytes:
    length = request.content_length
    if length is not None and length > takes.max_bytes:
        raise Problem("body_too_large")
    if request.content.is_eof():  # all of it has arrived: no timer, and nothing to wait for
        return request.content.read_nowait()
    try:
        async with asyncio.timeout(takes.within_s):
            return await _read(request, takes.max_bytes)
    except (TimeoutError, ConnectionError):  # too slow, or gone
        raise Problem("receive_timeout") from None


async def _read(request: web.Request, max_bytes: int) -> bytes:
    """aiohttp's own read() has one limit for all routes."""
    body = bytearray()
    while part := await request.content.readany():
        body += part
        if len(body) > max_bytes:
            raise Problem("body_too_large")
    return bytes(body)
