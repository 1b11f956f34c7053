"""Read a daily file of returned usage, in a stream and in any thread: its head, its totals, its lines by chunks."""

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from gateway.crypto.digests import kept_digest, running
from gateway.domain.usage_files import (
    HEADER_MAX_BYTES,
    SIGNATURE_MAX_BYTES,
    Header,
    Held,
    HoldReason,
    Totals,
    amount_of,
    read_header,
)
from gateway.flows.usage_lines import LINE_MAX_BYTES
from gateway.threads import breathing

FIRST_LINE = 3
"""The data begin with it, however long the two before it are."""

_GZIP = b"\x1f\x8b"
_READ_MAX = LINE_MAX_BYTES + 2
_TOLD_EVERY = 5000
_BROKEN = (EOFError, gzip.BadGzipFile, zlib.error)


class Head(NamedTuple):
    """The first two lines."""

    header: Header
    signed: bytes
    """The first line, which the signature is under."""
    signature: str
    data_at: int
    """Where the third line begins, in bytes of the plain text."""

    @property
    def file_id(self) -> bytes:
        return kept_digest(self.signed)


class _Line(NamedTuple):
    content: bytes
    """In UTF-8, without blanks around it; of one that is too long only the beginning, which is too long as well."""
    length: int
    """All of it, with its line end."""


class Chunk(NamedTuple):
    """Lines that are not blank, in UTF-8, by their number in the file (the header is 1); and which is next."""

    lines: list[tuple[int, bytes]]
    next_line: int
    is_last: bool


class UsageFile:
    """One file, opened once: a file that is put in its place meanwhile is another one. close() it."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        """`max_bytes` bounds the plain text. Raises OSError."""
        self._raw = path.open("rb")
        self.encoding = "utf-8"
        """Or gbk: of the data. The head is ASCII."""
        self._max_bytes = max_bytes
        self._stamp = self._stat()
        is_gzip = self._raw.peek(2)[:2] == _GZIP
        self._plain: BinaryIO = io.BufferedReader(gzip.GzipFile(fileobj=self._raw)) if is_gzip else self._raw
        self._reached: tuple[int, int] | None = None
        """Which line follows the last chunk, and where it begins."""

    def close(self) -> None:
        self._raw.close()

    def head(self) -> Head:
        """Raises Held."""
        try:
            first = self._plain.readline(HEADER_MAX_BYTES)
            second = self._plain.readline(SIGNATURE_MAX_BYTES)
        except _BROKEN:
            raise Held([HoldReason.TRUNCATED]) from None
        if not first.endswith(b"\n") or not second.endswith(b"\n"):
            raise Held([HoldReason.HEADER], "the first two lines are not there, or too long")
        signed = first.rstrip(b"\r\n")
        signature = second.strip().decode("ascii", "replace")
        return Head(read_header(signed), signed, signature, len(first) + len(second))

    def totals(self, head: Head, on_lines: Callable[[int], None]) -> Totals:
        """Of the data, read from beginning to end. `on_lines` is told of some thousand lines at a time. Raises Held."""
        name = head.header.digest.partition(":")[0]
        digest, count, total, told = running(name), 0, 0, 0
        for line in breathing(self._from(head.data_at, digest.update)):
            if line.content:
                count += 1
                total += amount_of(line.content) if len(line.content) <= LINE_MAX_BYTES else 0
                if count - told == _TOLD_EVERY:
                    on_lines(count - told)
                    told = count
        on_lines(count - told)
        self.assert_unchanged()
        return Totals(count, total, f"{name}:{digest.finalize().hex()}")

    def chunk(self, head: Head, at_line: int, lines_max: int) -> Chunk:
        """The lines from one of the data on. Found by reading up to it, except behind the last chunk. Raises Held."""
        lines: list[tuple[int, bytes]] = []
        number, place = FIRST_LINE, head.data_at
        if self._reached is not None and self._reached[0] <= at_line:
            number, place = self._reached
        for line in breathing(self._from(place, lambda _: None)):
            place += line.length
            if line.content and number >= at_line:
                lines.append((number, line.content))
            number += 1
            if len(lines) == lines_max:
                break
        self._reached = number, place
        self.assert_unchanged()
        return Chunk(lines, number, len(lines) < lines_max)

    def assert_unchanged(self) -> None:
        """Raises Held: what was signed is no longer what is read."""
        if self._stat() != self._stamp:
            raise Held([HoldReason.CHANGED])

    def _stat(self) -> tuple[int, int]:
        found = os.fstat(self._raw.fileno())
        return found.st_size, found.st_mtime_ns

    def _in_utf8(self, line: bytes) -> bytes:
        """What is not of the encoding stays as it is: then it is no UTF-8 either, and is rejected as a line."""
        if self.encoding == "utf-8":
            return line
        try:
            return line.decode(self.encoding).encode()
        except UnicodeDecodeError:
            return b"\xff" + line

    def _from(self, at_byte: int, update: Callable[[bytes], None]) -> Iterator[_Line]:
        """The lines from a place on; `update` gets every byte."""
        try:
            self._plain.seek(at_byte)
            read = at_byte
            while raw := self._plain.readline(_READ_MAX):
                update(raw)
                length, part = len(raw), raw
                while len(part) == _READ_MAX and not part.endswith(b"\n"):  # too long: the rest of it is not kept
                    part = self._plain.readline(_READ_MAX)
                    update(part)
                    length += len(part)
                    if read + length > self._max_bytes:
                        break
                read += length
                if read > self._max_bytes:
                    raise Held([HoldReason.TOO_LARGE])
                yield _Line(self._in_utf8(raw.strip()) if length == len(raw) else raw, length)
        except _BROKEN:
            raise Held([HoldReason.TRUNCATED]) from None
