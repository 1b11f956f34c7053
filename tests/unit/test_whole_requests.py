"""Operations whose body has arrived with their head: answered in a task of their own, past aiohttp's request cycle."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from gateway.api.hot_lane import Head, HotLane, Writable
from gateway.api.middleware import Requested
from gateway.api.reply import Reply
from gateway.api.server import HardenedRunner
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
        self._operations = {PATH: self.answer}
        self._tasks: set[asyncio.Task[None]] = set()
        self._body_max = BODY_MAX
        self.begun: list[bytes] = []
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

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
    application.router.add_post("/{path:.*}", ordinary)
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
        for body in (b'{"a":1}', b'{"a":1}', b'{"a":2}', b"{}"):
            answer = await client.ask(request("POST", PATH, body))
            assert (answer.status, answer.body) == (200, body)
            names = ("Content-Type", "X-Request-Id", "Server", "Content-Length")
            assert [answer.header(name) for name in names] == ["application/json", "r-1", "yikatong", str(len(body))]
            assert answer.header("Date")
        await used(client)
    assert lane.begun == [b'{"a":1}', b'{"a":1}', b'{"a":2}', b"{}"]


@pytest.mark.parametrize(
    "sent",
    [
        request("POST", f"{PATH}?a=1", b"{}"),
        request("POST", f"{PATH}/more", b"{}"),
        request("POST", PATH, b""),
        request("POST", PATH, b"x" * (BODY_MAX + 1)),
        request("POST", PATH, b"2\r\n{}\r\n0\r\n\r\n", content_length=None, transfer_encoding="chunked"),
    ],
    ids=["query", "another path", "no body", "too large", "chunked"],
)
async def test_what_is_not_whole_and_plain_goes_the_ordinary_way(sent: bytes) -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        assert (await client.ask(sent)).body.startswith(b"ordinary")
    assert lane.begun == []


async def test_one_that_is_pipelined_behind_another_is_answered_after_it() -> None:
    async with begun() as (lane, _, client):
        client.writer.write(request("POST", "/other", b"second") + request("POST", PATH, b"third"))
        lane.may_end.set()
        async with asyncio.timeout(5):
            got = [(await read_answer(client.reader)).body for _ in range(3)]
    assert got[:2] == [b"begun", b"ordinary second"] and got[2].endswith(b"third")


async def test_one_that_takes_longer_than_the_keep_alive_time_is_answered() -> None:
    async with serving() as (lane, _, port), Client(port) as client:
        await used(client)
        lane.may_end.clear()
        asyncio.get_running_loop().call_later(2.5 * KEEP_ALIVE_S, lane.may_end.set)
        assert (await client.ask(request("POST", PATH, b"late"))).body == b"late"
        await used(client)
        async with asyncio.timeout(3 * KEEP_ALIVE_S):
            assert await client.reader.read() == b"", "and then the connection is idle, and closed in time"


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


@pytest.mark.parametrize("sent", FAILURES)
async def test_one_whose_answer_cannot_be_made_leaves_nobody_waiting(sent: bytes) -> None:
    async with serving() as (_, runner, port), Client(port) as client:
        await used(client)
        client.writer.write(request("POST", PATH, sent))
        async with asyncio.timeout(5):
            assert await client.reader.read() == b""
    assert runner.open_connections == 0
