"""A server that stops has clients that have connected and sent, and were not accepted yet."""

import asyncio
import socket

import pytest
import uvloop
from aiohttp import web

from gateway.api.hot_lane import HotLane
from gateway.api.server import HardenedRunner

CLIENTS = 20
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class OrdinaryWay(HotLane):
    """A lane that takes nothing."""

    def __init__(self) -> None:
        pass

    def take(self, *_: object) -> bool:
        return False


async def stopped_with_clients_waiting() -> list[bytes]:
    """The beginning of what each of them is answered; empty: its connection was cut."""

    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    application = web.Application()
    application.router.add_get("/", hello)
    runner = HardenedRunner(application, OrdinaryWay(), connections_max=100, header_timeout_s=5, drain_s=3)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = listener.getsockname()
    await runner.listen(listener)
    clients = [socket.create_connection(address, 5) for _ in range(CLIENTS)]  # the loop has no turn to accept them
    for client in clients:
        client.sendall(REQUEST)

    def answer(client: socket.socket) -> bytes:
        with client:
            try:
                return client.recv(4096)
            except ConnectionError:
                return b""

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
