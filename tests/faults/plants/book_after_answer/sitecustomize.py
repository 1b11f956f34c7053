"""Planted bug: a simulated partner answers first and writes its book 50 ms later."""

import asyncio

from gateway.sandbox.peers.control import Book, BookLine

_write = Book.write


def write(self: Book, line: BookLine) -> None:
    self._keep(line)
    asyncio.get_running_loop().call_later(0.05, _write, self, line)


Book.write = write  # type: ignore[method-assign]
