"""Random bytes from the operating system, hundreds of pieces at a time: a call for each was a tenth of a verify."""

import os
import weakref

_PIECES = 400


class RandomBytes:
    """take() gives `count` bytes that are never given twice: not to another thread, nor in a process forked from us."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pieces: list[bytes] = []
        _alive.add(self)

    def take(self) -> bytes:
        while True:
            try:
                return self._pieces.pop()  # one step: no other thread gets the same
            except IndexError:
                page = os.urandom(self._count * _PIECES)
                self._pieces += [page[start : start + self._count] for start in range(0, len(page), self._count)]

    def forget(self) -> None:
        """Give nothing of what was fetched."""
        self._pieces.clear()


_alive: "weakref.WeakSet[RandomBytes]" = weakref.WeakSet()


def _forget_all() -> None:
    for each in _alive:
        each.forget()


os.register_at_fork(after_in_child=_forget_all)
