"""Operations whose body has arrived with their head: answered in a task of their own, past aiohttp's request cycle."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.http import RawRequestMessage

from gateway.api import verify
from gateway.api.hot_lane import Head, HotLane, Writable
from gateway.api.middleware import Requested
from gateway.api.reply import Reply
from gateway.api.server import Connection, HardenedRunner
from gateway.crypto.tokens import Access
from tests.faults.waiting import until
from tests.running import Raw, read_answer, request

PATH = "/v1/operation"
HELD = "/held"
"""Goes through aiohttp, and ends when the lane's operation may."""
KEEP_ALIVE_S = 1
DRAIN_S = 2
BODY_MAX = 100
FAILURES: dict[bytes, BaseException] = {b"fails": ValueError(), b"is cancelled": asyncio.CancelledError()}


class Lane(HotLane):
    """Its one operation answers with its body, when it may; what is asked in the ordinary way is counted."""

    def __init__(self) -> None:
        self._operations = {PATH: self.answer, verify.PATH: self.answer}
        self._tasks: set[asyncio.Task[None]] = set()
        self._body_max = BODY_MAX
        self.begun: list[bytes] = []
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    def _take_verify(self, connection: Writable, message: RawRequestMessage, body: bytes) -> bool:
        """Answered at once."""
        connection.head = Head(message.raw_headers, Access("", frozenset(), 0, 0, ""), None)
        connection.loop.call_soon(connection.finish_hot, Reply(b"verdict").to_bytes())
        return True

    def take_body(self, connection: Writable, head: Head, body: bytes) -> bool:
        raise AssertionError("no operation is taken by the header block of another")

    async def answer(self, asked: Requested, whole: bytes | None) -> Reply:
        assert whole is not None and asked.method == "POST" and asked.raw_path == PATH
        self.begun.append(whole)
        self.has_begun.set()
        await self.may_end.wait()
        if whole in FAILURES:
            raise FAILURES[whole]
        return Reply(whole, headers={"Content-Type": asked.content_type}, request_id="r-1")


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, sent: bytes) -> Raw:
        self.writer.write(sent)
        async with asyncio.timeout(5):
            return await read_answer(self.reader)


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Lane, HardenedRunner, int]]:
    async def ordinary(asked: web.Request) -> web.Response:
        return web.Response(body=b"ordinary " + await asked.read())

    async def held(asked: web.Request) -> web.Response:
        await lane.may_end.wait()
        return await ordinary(asked)

    application, lane = web.Application(), Lane()
    application.router.add_post(HELD, held)
    application.router.add_route("*", "/{path:.*}", ordinary)
    runner = HardenedRunner(application, lane, connections_max=10, header_timeout_s=KEEP_ALIVE_S, drain_s=DRAIN_S)
    await runner.setup()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        await runner.listen(listener)
        try:
            yield lane, runner, listener.getsockname()[1]
        finally:
            lane.may_end.set()
            await runner.cleanup()


def of(runner: HardenedRunner) -> Connection:
    """Its one connection."""
    assert runner.server is not None
    [connection] = runner.server.connections
    assert isinstance(connection, Connection)
    return connection


async def used(client: Client) -> None:
    """What comes on a new connection may come before aiohttp's cycle waits for it, and goes that way."""
    assert (await client.ask(request("POST", "/other", b"x"))).body == b"ordinary x"


@asynccontextmanager
async def begun() -> AsyncIterator[tuple[Lane, HardenedRunner, Client]]:
    """A client whose request has begun, and ends when it may."""
    async with serving() as (lane, runner, port), Client(port) as client:
        await used(client)
        lane.may_end.clear()
        client.writer.write(request("POST", PATH, b"begun"))
        await asyncio.wait_for(lane.has_begun.wait(), 5)
        yield lane, runner, client


async def test_each_is_parsed_anew_and_answered_on_the_same_connection() -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        bodies = [b'{"a":1}', b'{"a":1}', b'{"a":2}', b"{}"]
        for body in bodies:
            answer = await client.ask(request("POST", PATH, body, content_type="application/json; charset=utf-8"))
            assert (answer.status, answer.body) == (200, body)
            names = ("Content-Type", "X-Request-Id", "Server", "Content-Length")
            assert [answer.header(name) for name in names] == ["application/json", "r-1", "yikatong", str(len(body))]
            assert answer.header("Date")
        await used(client)
    assert lane.begun == bodies


async def test_one_that_follows_a_verify_is_not_taken_for_another() -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        for _ in range(2):
            assert (await client.ask(request("POST", verify.PATH, b"{}"))).body == b"verdict"
            for _ in range(2):
                assert (await client.ask(request("POST", PATH, b"{}"))).body == b"{}"
    assert lane.begun == [b"{}"] * 4


@pytest.mark.parametrize(
    "sent",
    [
        request("POST", f"{PATH}?a=1", b"{}"),
        request("POST", f"{PATH}/more", b"{}"),
        request("POST", PATH, b""),
        request("POST", PATH, b"x" * (BODY_MAX + 1)),
        request("POST", PATH, b"2\r\n{}\r\n0\r\n\r\n", content_length=None, transfer_encoding="chunked"),
        request("PUT", PATH, b"{}"),
        request("POST", PATH, b"{}", connection="keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
        request("POST", PATH, b"{}", connection="close"),
        request("POST", PATH, b"{}", connection="upgrade", upgrade="websocket"),
    ],
    ids=["query", "another path", "no body", "too large", "chunked", "PUT", "1.0", "the last", "upgrade"],
)
async def test_what_is_not_whole_and_plain_goes_the_ordinary_way(sent: bytes) -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        assert (await client.ask(sent)).body.startswith(b"ordinary")
    assert lane.begun == []


async def test_half_a_body_goes_the_ordinary_way() -> None:
    async with serving() as (lane, runner, port), Client(port) as client:
        await used(client)
        sent = request("POST", PATH, b"in two pieces")
        client.writer.write(sent[:-5])
        await until(lambda: of(runner)._current_request is not None, 5, "it has begun")
        assert (await client.ask(sent[-5:])).body == b"ordinary in two pieces"
    assert lane.begun == []


async def test_an_expectation_goes_the_ordinary_way() -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        assert (await client.ask(request("POST", PATH, b"{}", expect="a-miracle"))).status == 417
    assert lane.begun == []


async def test_a_client_that_does_not_read_is_waited_for() -> None:
    async with serving() as (lane, runner, port), Client(port) as client:
        await used(client)
        of(runner).pause_writing()
        assert (await client.ask(request("POST", PATH, b"{}"))).body == b"ordinary {}"
        of(runner).resume_writing()
    assert lane.begun == []


async def pipeline(runner: HardenedRunner, client: Client) -> None:
    """Two more, which have come and wait."""
    client.writer.write(request("POST", "/other", b"second") + request("POST", PATH, b"third"))
    await until(lambda: len(of(runner)._messages) == 2, 5, "both have come")


async def test_one_that_is_pipelined_behind_another_is_answered_after_it() -> None:
    async with begun() as (lane, runner, client):
        await pipeline(runner, client)
        lane.may_end.set()
        async with asyncio.timeout(KEEP_ALIVE_S / 2):
            got = [(await read_answer(client.reader)).body for _ in range(3)]
    assert got == [b"begun", b"ordinary second", b"ordinary third"]


async def test_one_that_takes_longer_than_the_keep_alive_time_is_answered() -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        lane.may_end.clear()
        asyncio.get_running_loop().call_later(2.5 * KEEP_ALIVE_S, lane.may_end.set)
        assert (await client.ask(request("POST", PATH, b"late"))).body == b"late"
        await used(client)
        async with asyncio.timeout(3 * KEEP_ALIVE_S):
            assert await client.reader.read() == b"", "and then the connection is idle, and closed in time"


async def test_the_keep_alive_time_begins_with_the_answer() -> None:
    async with begun() as (lane, _, client):
        asyncio.get_running_loop().call_later(0.7 * KEEP_ALIVE_S, lane.may_end.set)
        await read_answer(client.reader)
        answered = time.monotonic()
        assert await client.reader.read() == b""
        assert time.monotonic() - answered > 0.9 * KEEP_ALIVE_S


async def test_a_stop_waits_for_what_has_begun() -> None:
    async with begun() as (lane, runner, client), Client(client.port) as other:
        other.writer.write(request("POST", HELD, b"x"))
        stopping = asyncio.create_task(runner.cleanup())
        # longer than the farewell: what has begun has its time
        asyncio.get_running_loop().call_later(DRAIN_S - 0.5, lane.may_end.set)
        async with asyncio.timeout(5):
            answers = [await read_answer(each.reader) for each in (client, other)]
            await stopping
    assert [answer.body for answer in answers] == [b"begun", b"ordinary x"]
    assert all(answer.header("Connection") == "close" for answer in answers)


async def test_a_stop_ends_in_its_time_and_leaves_nothing_behind() -> None:
    async with begun() as (lane, runner, client), Client(client.port) as other:
        other.writer.write(request("POST", HELD, b"x"))
        began = time.monotonic()
        await runner.cleanup()
        assert time.monotonic() - began < DRAIN_S + 0.5
        assert (await client.reader.read(), await other.reader.read()) == (b"", b"")
        assert not lane._tasks


async def test_at_a_stop_the_last_of_pipelined_ones_says_that_the_connection_ends() -> None:
    async with begun() as (lane, runner, client):
        await pipeline(runner, client)
        stopping = asyncio.create_task(runner.cleanup())
        await until(lambda: of(runner).ending, 5, "the stop has begun")
        lane.may_end.set()
        async with asyncio.timeout(5):
            answers = [await read_answer(client.reader) for _ in range(3)]
            await stopping
    assert [answer.header("Connection") for answer in answers] == [None, None, "close"]


async def test_a_stop_waits_for_what_was_begun_for_a_client_that_has_hung_up() -> None:
    async with begun() as (lane, runner, client):
        [task] = lane._tasks
        client.writer.close()
        await until(lambda: not runner.open_connections, 5, "it has hung up")
        stopping = asyncio.create_task(runner.cleanup())
        await asyncio.wait({stopping}, timeout=DRAIN_S / 2)
        assert not task.done() and not stopping.done()
        lane.may_end.set()
        await stopping
        assert task.done() and not task.cancelled()


@pytest.mark.parametrize("sent", FAILURES)
async def test_one_whose_answer_cannot_be_made_leaves_nobody_waiting(sent: bytes) -> None:
    async with serving() as (_, runner, port), Client(port) as client:
        await used(client)
        client.writer.write(request("POST", PATH, sent))
        async with asyncio.timeout(KEEP_ALIVE_S / 2):
            assert await client.reader.read() == b""
    assert runner.open_connections == 0
