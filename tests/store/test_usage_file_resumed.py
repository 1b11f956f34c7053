"""A daily file taken up in parts, each by another run: the same data, whatever the head before it looks like."""

import gzip
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from gateway.domain.usage_files import Held, HoldReason
from gateway.flows.ingest_usage_file import Ingested, Silent
from gateway.flows.read_usage_file import Chunk, Head, UsageFile
from gateway.store import migrate
from tests.desk import Desk, Sender, figures
from tests.returns import day_file, line, reversal


class Stopped(Exception):
    """The worker was told to end."""


class Stopping(Silent):
    """After some chunks are committed."""

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks

    def recorded(self, lines: int) -> None:
        self._chunks -= 1
        if not self._chunks:
            raise Stopped


HEADS = {"lf": (b"\n", b"\n"), "cr lf": (b"\r\n", b"\r\n"), "blanks": (b"\n", b"  \t\n"), "mixed": (b"\r\n", b"\n")}
"""How the two lines before the data may end."""
OTHERS = [("lf", other) for other in HEADS if other != "lf"] + [(other, "lf") for other in HEADS if other != "lf"]


def beginning(content: bytes, head: str) -> bytes:
    """The file with the same header, signature and data, and a head that ends so."""
    header, signature, data = content.split(b"\n", 2)
    return header + HEADS[head][0] + signature + HEADS[head][1] + data


async def in_parts(desk: Desk, content: bytes, first: str, then: str, chunks: int) -> Ingested:
    """Stopped after some chunks of one line, then taken to its end."""
    desk = desk.having(chunk_lines=1)
    with pytest.raises(Stopped):
        await desk.take(beginning(content, first), Stopping(chunks))
    return await desk.take(beginning(content, then))


def day() -> list[dict[str, Any]]:
    uses = [line() for _ in range(3)]
    return [uses[0], reversal(uses[2]), uses[1], uses[2], reversal(uses[0])]


def with_bad(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any] | bytes]:
    return [lines[0], b"{", *lines[1:4], b"", lines[4]]


@pytest.mark.parametrize(("first", "then"), OTHERS, ids=map(" then ".join, OTHERS))
@pytest.mark.parametrize("chunks", [1, 3, 8], ids=["early", "later", "second reading"])
async def test_it_goes_on_behind_a_head_of_another_length(desk: Desk, first: str, then: str, chunks: int) -> None:
    lines = day()
    content = day_file(desk.signing, with_bad(lines), count=6)
    found = await in_parts(desk, content, first, then, chunks)
    assert figures(found) == (5, 0, 1) and found.rejected_by_code == {"malformed_json": 1}
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)


async def test_it_goes_on_in_a_packed_copy(desk: Desk) -> None:
    lines = day()
    content = day_file(desk.signing, lines)
    desk = desk.having(chunk_lines=2)
    with pytest.raises(Stopped):
        await desk.take(content, Stopping(1))
    assert figures(await desk.take(gzip.compress(beginning(content, "cr lf")))) == (5, 0, 0)


@pytest.fixture
def by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the place is that of a byte in the file that was taken up first."""
    places: dict[int, int] = {}
    chunk = UsageFile.chunk

    def planted(self: UsageFile, head: Head, at_line: int, lines_max: int) -> Chunk:
        self._reached = at_line, places.get(at_line, head.data_at)
        found = chunk(self, head, at_line, lines_max)
        assert self._reached is not None
        places[found.next_line] = self._reached[1]
        return found

    monkeypatch.setattr(UsageFile, "chunk", planted)


@pytest.mark.usefixtures("by_bytes")
async def test_control_from_a_byte_on_a_longer_head_makes_a_line_more(desk: Desk) -> None:
    content = day_file(desk.signing, [line() for _ in range(3)])
    with pytest.raises(Held) as held:
        await in_parts(desk, content, "lf", "cr lf", 1)
    assert (held.value.reasons, held.value.detail) == ([HoldReason.MISCOUNTED], "recorded 4 of 3 lines")


@pytest.mark.usefixtures("by_bytes")
async def test_control_from_a_byte_on_a_shorter_head_loses_a_line(desk: Desk) -> None:
    lines = [line() for _ in range(3)]
    found = await in_parts(desk, day_file(desk.signing, lines), "cr lf", "lf", 1)
    assert figures(found) == (2, 0, 1), "and nobody would notice: the count fits"
    assert len(await desk.recorded(lines)) == 2


@pytest.mark.parametrize("then", ["lf", "cr lf"])
async def test_a_file_half_taken_by_the_version_before_goes_on(desk: Desk, then: str) -> None:
    lines = day()
    content = day_file(desk.signing, with_bad(lines), count=6)
    desk = desk.having(chunk_lines=2)
    with pytest.raises(Stopped):
        await desk.take(content, Stopping(2))
    owner = await asyncpg.connect(desk.dsn)
    try:
        await owner.execute("ALTER TABLE usage_file ADD at_byte bigint NOT NULL DEFAULT 1234")
        (upgrade,) = [text for _, name, text in migrate.files() if name == "usage_file_line"]
        await owner.execute(upgrade)
    finally:
        await owner.close()
    assert figures(await desk.take(beginning(content, then))) == (5, 0, 1)
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)


async def test_a_count_that_does_not_fit_is_for_people(desk: Desk) -> None:
    """As a version before might have left it, or a mistake of ours."""
    sender = Sender(desk)
    use = sender.drop("1.day")
    content = (desk.folder / "1.day").read_bytes()
    found = await desk.take(content)
    owner = await asyncpg.connect(desk.dsn)
    await owner.execute("UPDATE usage_file SET rejected = 1 WHERE file_id = $1", found.file_id)
    await owner.close()
    other = sender.drop("2.day")
    await sender.turn()
    report = sender.ended("held", "1.day")
    assert (report["held"], report["detail"]) == (["miscounted"], "recorded 2 of 1 lines")
    assert sender.ended("done", "2.day")["created"] == 1
    assert await desk.recorded([use, other]) == sorted([use["id"], other["id"]])
