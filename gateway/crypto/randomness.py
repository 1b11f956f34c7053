"""Random bytes from the operating system, a page at a time: a system call for each id was a tenth of a verify."""

import os

_PAGE = 4096


class RandomBytes:
    """take() gives bytes that are never given twice. Not for use over a fork (workers are fresh processes)."""

    def __init__(self) -> None:
        self._page = b""
        self._used = _PAGE

    def take(self, count: int) -> bytes:
        start = self._used
        if start + count > len(self._page):
            self._page, start = os.urandom(_PAGE), 0
        self._used = start + count
        return self._page[start : self._used]
