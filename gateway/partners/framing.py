"""Messages on a byte stream, each behind its length: two bytes big-endian, or four ASCII digits."""

from collections.abc import Iterator
from typing import Literal

Framing = Literal["length2", "length4_ascii"]
"""As in domain/partners.py. The length counts the message alone, not itself."""


class BadFrame(Exception):
    """The text says why, without anything that was received."""


def with_length(framing: Framing, body: bytes, max_bytes: int) -> bytes:
    """The length and the message. Raises BadFrame for an empty or over-long one."""
    _check(len(body), max_bytes)
    if framing == "length2":
        return len(body).to_bytes(2, "big") + body
    return b"%04d%b" % (len(body), body)


class FrameReader:
    """Holds at most one message that is not whole yet."""

    def __init__(self, framing: Framing, max_bytes: int) -> None:
        self._framing = framing
        self._prefix_bytes = 2 if framing == "length2" else 4
        self._max_bytes = max_bytes
        self._held = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are now whole, in order; then raises BadFrame if what follows them cannot be one."""
        held = self._held + data if self._held else data
        at = 0
        while (begin := at + self._prefix_bytes) <= len(held):
            end = begin + self._length(held[at:begin])
            if end > len(held):
                break
            at = end
            yield held[begin:end]
        self._held = held[at:]

    def _length(self, prefix: bytes) -> int:
        if self._framing == "length2":
            length = int.from_bytes(prefix, "big")
        elif prefix.isdigit():
            length = int(prefix)
        else:
            raise BadFrame("a length that is no number")
        _check(length, self._max_bytes)
        return length


def _check(length: int, max_bytes: int) -> None:
    if not 0 < length <= max_bytes:
        raise BadFrame("an empty or over-long message")
