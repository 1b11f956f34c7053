"""Between a gateway and its ISO 8583 bank: passes on what the gateway sends, and changes what the bank answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

Change = Callable[[bytes], bytes]
"""Of an answer without its length to what is sent instead, lengths included."""


def framed(message: bytes, length: int | None = None) -> bytes:
    """With a length of two bytes, its own or another."""
    return (len(message) if length is None else length).to_bytes(2, "big") + message


class Relay:
    """Sign-on and echo pass as they are: a link is there, and what comes over it is wrong."""

    def __init__(self, bank_port: int) -> None:
        self._bank_port = bank_port
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.change: Change = framed
        self.port = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with suppress(OSError):
                await self._between(reader, writer)
        finally:
            writer.transport.abort()
            del self._connections[task]

    async def _between(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side hangs up."""
        from_bank, to_bank = await asyncio.open_connection("127.0.0.1", self._bank_port)
        ways = [asyncio.create_task(self._ask(reader, to_bank)), asyncio.create_task(self._answer(from_bank, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            to_bank.transport.abort()

    async def close(self) -> None:
        """Hang up on all; each then ends by itself."""
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections)

    async def _ask(self, reader: asyncio.StreamReader, to_bank: asyncio.StreamWriter) -> None:
        while sent := await reader.read(65_536):
            to_bank.write(sent)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            message = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            of_the_link = message[:2] in (b"\x08\x10", b"\x08\x30")
            writer.write(framed(message) if of_the_link else self.change(message))
            await writer.drain()


@asynccontextmanager
async def relay(bank_port: int) -> AsyncIterator[Relay]:
    made = Relay(bank_port)
    server = await asyncio.start_server(made.accept, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.close()
