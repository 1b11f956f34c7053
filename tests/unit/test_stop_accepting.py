"""Clients that have connected and sent when a server stops, and were not accepted yet; and one too many."""

import asyncio
import gc
import socket
from collections.abc import Awaitable

import pytest
import uvloop
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from gateway.api.hot_lane import HotLane
from gateway.api.server import Connection, HardenedRunner, HardenedServer

CLIENTS = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class OrdinaryWay(HotLane):
    """A lane that takes nothing."""

    def __init__(self) -> None:
        self._tasks = set()

    def take(self, *_: object) -> bool:
        return False


async def serving(connections_max: int = 100) -> tuple[HardenedRunner, socket.socket]:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = HardenedRunner(application, OrdinaryWay(), connections_max=connections_max, header_timeout_s=5, drain_s=3)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    await runner.listen(listener)
    return runner, listener


def answer(client: socket.socket) -> bytes:
    with client:
        try:
            return client.recv(4096)
        except ConnectionError:
            return b""


async def stopped_with_clients_waiting() -> list[bytes]:
    """The beginning of what each of them is answered; empty: its connection was cut."""
    runner, listener = await serving()
    address = listener.getsockname()
    clients = [socket.create_connection(address, 5) for _ in range(CLIENTS)]  # the loop has no turn to accept them
    for client in clients:
        client.sendall(REQUEST)
    stopping = asyncio.create_task(runner.cleanup())
    answers = await asyncio.gather(*(asyncio.to_thread(answer, client) for client in clients))
    await stopping
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, 5)
    return answers


def test_they_are_answered_and_told_to_go() -> None:
    answers = uvloop.run(stopped_with_clients_waiting())
    assert all(answer.startswith(b"HTTP/1.1 200 OK") for answer in answers)
    # the loop's first turn may still have accepted some, and answered them as ever
    assert sum(b"Connection: close" in answer for answer in answers) > CLIENTS // 2


def test_control_a_listener_that_is_just_closed_cuts_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def listen(self: HardenedRunner, listener: socket.socket) -> None:
        await web.SockSite(self, listener).start()

    monkeypatch.setattr(HardenedRunner, "listen", listen)
    assert b"" in uvloop.run(stopped_with_clients_waiting())


async def turns_to_take_them() -> int:
    """So many turns of the loop pass until all who wait are taken: where so many wait, each is long."""
    runner, listener = await serving()
    clients = [socket.create_connection(listener.getsockname(), 5) for _ in range(CLIENTS)]
    for site in list(runner.sites):
        await site.stop()
    loop, turns = asyncio.get_running_loop(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    loop.call_soon(turn)
    assert isinstance(runner.server, HardenedServer)
    await runner._take_who_waits(runner.server)
    taken = turns
    assert runner.open_connections == CLIENTS
    for client in clients:
        client.close()
    await runner.cleanup()
    return taken


@pytest.mark.parametrize("at_once", [True, False], ids=["as it is", "control"])
def test_they_are_taken_at_once(monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    async def one_by_one(*each: Awaitable[object], return_exceptions: bool = False) -> None:
        for one in each:
            await one

    if not at_once:
        monkeypatch.setattr(asyncio, "gather", one_by_one)
    assert (uvloop.run(turns_to_take_them()) < CLIENTS) == at_once


async def one_too_many() -> tuple[list[bytes], list[str]]:
    """What two clients are answered where one may connect, and what the loop has to complain of."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["message"]))
    runner, listener = await serving(connections_max=1)
    answers = []
    with socket.create_connection(listener.getsockname(), 5) as first:
        first.sendall(REQUEST)
        answers.append(await asyncio.to_thread(first.recv, 4096))
        second = socket.create_connection(listener.getsockname(), 5)
        answers.append(await asyncio.to_thread(answer, second))
    await runner.cleanup()
    gc.collect()
    return answers, complaints


@pytest.mark.parametrize("in_time", [True, False], ids=["as it is", "control"])
def test_who_is_one_too_many_is_cut_off_without_a_word(monkeypatch: pytest.MonkeyPatch, in_time: bool) -> None:
    def connection_made(self: HardenedServer, handler: RequestHandler, transport: asyncio.Transport) -> None:
        web.Server.connection_made(self, handler, transport)
        if self.has_too_many:
            transport.abort()

    if not in_time:
        monkeypatch.setattr(Connection, "connection_made", RequestHandler.connection_made)
        monkeypatch.setattr(HardenedServer, "connection_made", connection_made)
    answers, complaints = uvloop.run(one_too_many())
    assert answers[0].startswith(b"HTTP/1.1 200 OK") and answers[1] == b""
    assert (complaints == []) == in_time
