"""The hot lane: a verify that is whole and ordinary, answered without aiohttp's request cycle.

That cycle (two tasks, a request, a stream and a response object for each request) costs more than the verdict
(loadtests/README.md). The lane takes only what it can decide at once; everything else, and every refusal before the
statement, goes through middleware.py, so that there is one place where problems are made. All answers of a batch are
made first and then written back to back: a client's process that is awake is cheaper to write to.

Other operations with a body that is here already go through middleware.py in a task of their own, past that cycle too.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

import structlog
from aiohttp import hdrs
from aiohttp.helpers import parse_content_type, rfc822_formatted_time
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.typedefs import RawHeaders
from multidict import CIMultiDictProxy, MultiDict, MultiMapping, istr

from gateway.api import signatures, verify
from gateway.api.middleware import Answering, given_request_id, new_request_id
from gateway.api.payloads import VerifyRequest
from gateway.api.problems import problem_reply
from gateway.api.reply import JSON, SERVER
from gateway.crypto.sealing import UnknownDataKey
from gateway.crypto.tokens import Access
from gateway.directory import KnownScene
from gateway.domain.callers import Scope
from gateway.domain.errors import Problem, unavailable
from gateway.domain.presentations import EcardCode
from gateway.flows import verify_card
from gateway.flows.verify_card import VerifyAnswer
from gateway.log import describe
from gateway.metrics import REQUESTS, SHED, request_seconds
from gateway.store.benefits import Refusals, Want
from gateway.store.verify import Judged, Presented

if TYPE_CHECKING:
    from gateway.app import Gateway

log = structlog.get_logger()

WAITING_MAX = 1000
"""Judged presentations that wait for a data key at a time; past it: 503."""

_IDEMPOTENCY_KEY = istr("Idempotency-Key")


_OK = (verify.PATH, "200")


class Head(NamedTuple):
    """What a header block says. A terminal repeats its own, so a connection keeps the last one it has read."""

    raw: RawHeaders
    access: Access
    request_id: str | None
    """As the caller gave it."""


class Whole(NamedTuple):
    """A request of a path without parts that vary, all of which has arrived (middleware.Requested)."""

    method: str
    raw_path: str
    headers: CIMultiDictProxy[str]

    @property
    def match_info(self) -> Mapping[str, str]:
        return {}

    @property
    def query(self) -> MultiMapping[str]:
        return MultiDict()

    @property
    def content_type(self) -> str:
        given = self.headers.get(hdrs.CONTENT_TYPE, "")
        return JSON if given == JSON else parse_content_type(given)[0]

    @property
    def charset(self) -> str | None:
        given = self.headers.get(hdrs.CONTENT_TYPE, "")
        return None if given == JSON else parse_content_type(given)[1].get("charset")


class Writable(Protocol):
    """A connection that waits for an answer."""

    head: Head | None

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    def force_close(self) -> None: ...
    def finish_hot(self, answer: bytes) -> None: ...


class _Begun(NamedTuple):
    """A request whose presentation was queued."""

    connection: Writable
    presented: Presented
    judged: Judged | None
    scene: KnownScene
    request_id: str
    began: float


class HotLane:
    """take() begins a request, write_answers() ends those of a batch."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._body_max = gateway.settings.gateway.http.body_max_bytes
        self._seconds = request_seconds(verify.PATH)
        self._answers: list[tuple[Writable, bytes]] = []
        self._waiting: list[_Begun] = []
        self._operations: dict[str, Answering] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, path: str, answering: Answering) -> None:
        """Take a POST to this path, in which nothing varies, past aiohttp's request cycle."""
        self._operations[path] = answering

    def take(self, connection: Writable, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Whether the request is on its way; if not, nothing was done. `connection.head` is what it says if another
        one with the same header block may be taken by its bytes, else None."""
        answering = self._operations.get(message.path)
        if (
            answering is None
            or message.method != "POST"
            or message.version != HttpVersion11
            or message.should_close
            or message.upgrade
            or message.chunked
            or not payload.is_eof()
            or not 0 < payload.total_bytes <= self._body_max  # aiohttp's reader of nothing has no buffer either
            or hdrs.EXPECT in message.headers
        ):
            return False
        body = b"".join(payload._buffer)  # not read: the ordinary way may have to
        if message.path == verify.PATH and self._take_verify(connection, message, body):
            return True
        connection.head = None
        request = Whole(message.method, message.path, message.headers)
        task = connection.loop.create_task(self._answer_whole(connection, answering, request, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _answer_whole(self, connection: Writable, answering: Answering, request: Whole, body: bytes) -> None:
        answer = b""
        try:
            reply = await answering(request, body)
            assert not reply.closes, "of a body that has arrived nothing is left to come"
            answer = reply.to_bytes()
        except Exception as error:  # noqa: BLE001 - the edge: there is nothing to answer with, and never a traceback
            log.error("request failed", exception=describe(type(error), error.__traceback__))
        finally:  # also of a task that is cancelled: nobody is left waiting
            if not answer:
                connection.force_close()
            connection.finish_hot(answer)

    async def drain(self, timeout_s: float) -> None:
        """Wait for the operations that have begun, so long at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """End what has not ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_verify(self, connection: Writable, message: RawRequestMessage, body: bytes) -> bool:
        head = connection.head
        if head is None or head.raw != message.raw_headers:
            try:
                head = connection.head = self._read_head(message)
            except Problem:  # middleware.py meets it again
                return False
        return head is not None and self.take_body(connection, head, body)

    def take_body(self, connection: Writable, head: Head, body: bytes) -> bool:
        """Whether a request of this head and body is on its way; if not, nothing was done."""
        began = time.perf_counter()
        gateway = self._gateway
        try:
            access = head.access
            known = gateway.authenticate.caller_of(access)
            if (
                known.caller.quota_per_second
                or Scope.CARDS_VERIFY not in access.scopes
                or Scope.CARDS_VERIFY not in known.scopes
            ):
                return False
            asked: VerifyRequest = verify.decode(body)
            scene = verify.scene_of(asked, gateway.directory.scenes)
            if type(asked.presentation) is EcardCode or asked.explain:  # it may have to wait for the platform
                return False
            presented = verify.present(gateway, access.caller_id, known.caller, asked, scene)

            request_id = head.request_id or new_request_id()

            def sink(judged: "Judged | None", problem: "Problem | None") -> None:
                try:
                    if judged is None:
                        raise problem or Problem("internal")
                    verdict, want = gateway.verify_card.answer(presented, judged, scene.benefits)
                    if want is not None:
                        self._claim(_Begun(connection, presented, judged, scene, request_id, began), verdict, want)
                        return
                    answer = _ok(verify_card.encode(verdict), request_id)
                    verify_card.count(verdict, scene.field, access.caller_id)
                    self._answers.append((connection, answer))
                    REQUESTS.add(_OK)
                    self._seconds.observe(time.perf_counter() - began)
                except Exception as error:  # noqa: BLE001 - the edge: told apart there, and never a traceback
                    self._end(_Begun(connection, presented, judged, scene, request_id, began), error)

            gateway.batcher.submit(presented, sink)
        except Exception:  # noqa: BLE001 - the ordinary way meets it again, and answers and logs it there
            return False
        return True

    def _claim(self, begun: "_Begun", verdict: VerifyAnswer, want: Want) -> None:
        """The answer leaves when its capped benefits are claimed, with those of others. Raises Problem 503."""

        def sink(refused: "Refusals | None", problem: "Problem | None") -> None:
            try:
                if refused is None or begun.scene.benefits is None:
                    raise problem or unavailable("another use of the benefit is being written")
                self._finish(begun, verify_card.given(verdict, begun.scene.benefits, want, refused))
            except Exception as error:  # noqa: BLE001 - the edge, as above
                self._end(begun, error)

        self._gateway.claims.submit(want, sink)

    def _finish(self, begun: "_Begun", verdict: VerifyAnswer) -> None:
        answer = _ok(verify_card.encode(verdict), begun.request_id)
        verify_card.count(verdict, begun.scene.field, begun.presented.caller)
        self._answer(begun, answer, "200")

    def _end(self, begun: "_Begun", error: Exception, may_wait: bool = True) -> None:
        """What is no verdict, with its batch. A card sealed under a key that another process has made since waits until
        the keys have been loaded, which is bounded as every use of the pool is."""
        if isinstance(error, Problem):
            problem = error
        elif isinstance(error, UnknownDataKey):
            if may_wait and len(self._waiting) < WAITING_MAX:
                self._waiting.append(begun)
                if len(self._waiting) == 1:
                    self._gateway.start_loading_data_keys().add_done_callback(self._end_waiting)
                return
            problem = Problem("unavailable")
        else:
            exception = describe(type(error), error.__traceback__)
            log.error("request failed", request_id=begun.request_id, exception=exception)
            problem = Problem("internal")
        self._answer(begun, _not_ok(problem, begun.request_id), str(problem.status))

    def _answer(self, begun: "_Begun", answer: bytes, status: str) -> None:
        self._answers.append((begun.connection, answer))
        REQUESTS.add((verify.PATH, status))
        self._seconds.observe(time.perf_counter() - begun.began)

    def _end_waiting(self, _: "asyncio.Task[None]") -> None:
        waiting, self._waiting = self._waiting, []
        for begun in waiting:
            assert begun.judged is not None, "only an answer waits for a key"
            try:
                verdict, want = self._gateway.verify_card.answer(begun.presented, begun.judged, begun.scene.benefits)
                if want is not None:
                    self._claim(begun, verdict, want)
                else:
                    self._finish(begun, verdict)
            except Exception as error:  # noqa: BLE001 - told apart there
                self._end(begun, error, may_wait=False)
        self.write_answers()

    def _read_head(self, message: RawRequestMessage) -> Head | None:
        """None if the request has to go the ordinary way. Raises Problem 401."""
        headers = message.headers
        if (
            headers.get(hdrs.CONTENT_TYPE) != JSON
            or _IDEMPOTENCY_KEY in headers
            or signatures.is_there(headers)
            or hdrs.CONTENT_ENCODING in headers
        ):
            return None
        access = self._gateway.authenticate.access_of(headers.get(hdrs.AUTHORIZATION))
        return Head(message.raw_headers, access, given_request_id(headers))

    def write_answers(self) -> None:
        """Write the answers of a batch, one after the other."""
        answers, self._answers = self._answers, []
        for connection, answer in answers:
            connection.finish_hot(answer)


def _ok(body: bytes, request_id: str) -> bytes:
    return (
        f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nX-Request-Id: {request_id}\r\nServer: {SERVER}\r\n"
        f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\n\r\n"
    ).encode() + body


def _not_ok(problem: Problem, request_id: str) -> bytes:
    if problem.status == 503:
        SHED.labels(problem.code).inc()
    return problem_reply(problem.code, problem.detail, problem.errors, request_id, problem.headers).to_bytes()
