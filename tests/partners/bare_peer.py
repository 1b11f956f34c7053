"""A partner that answers at once and always the same, over HTTP and over a link: the other side of engine_cost.py.

A process of its own, so that its CPU is not counted. `python -m tests.partners.bare_peer` prints its two ports.
"""

import asyncio
import re
import signal
from typing import cast

import uvloop

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200\r\n\r\n" + b'{"code":"00"}'.ljust(
    200
)
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")


class _Peer(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self._held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._held += data
        answers = []
        while (whole := self._whole(self._held)) is not None:
            answers.append(self._answer(self._held[:whole]))
            self._held = self._held[whole:]
        if answers:
            self.transport.write(b"".join(answers))

    def _whole(self, held: bytes) -> int | None:
        """The length of the first message, if it is there."""
        raise NotImplementedError

    def _answer(self, message: bytes) -> bytes:
        raise NotImplementedError


class _Http(_Peer):
    def _whole(self, held: bytes) -> int | None:
        head = held.find(b"\r\n\r\n")
        if head < 0:
            return None
        length = _LENGTH.search(held, 0, head)
        end = head + 4 + (int(length[1]) if length else 0)
        return end if len(held) >= end else None

    def _answer(self, message: bytes) -> bytes:
        return _ANSWER


class _Link(_Peer):
    def _whole(self, held: bytes) -> int | None:
        end = 2 + int.from_bytes(held[:2], "big")
        return end if len(held) >= max(end, 3) else None

    def _answer(self, message: bytes) -> bytes:
        return message.replace(b"?", b"!", 1)  # the length of such a message holds no question mark


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(kind, "127.0.0.1", 0) for kind in (_Http, _Link)]
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", *(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await stop.wait()


if __name__ == "__main__":
    uvloop.run(_serve())
