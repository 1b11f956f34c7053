"""Daily files of returned usage: held whole, or taken up line by line, each once."""

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from gateway.domain.usage_files import Held, HoldReason
from gateway.flows.ingest_usage_file import AnotherIsAtIt, Ingested, Silent
from gateway.flows.report_usage_file import report_held, report_taken
from tests.desk import Desk, figures
from tests.ledger import broken_rules
from tests.registry import CARDS
from tests.returns import ago, day_file, line, reversal

if TYPE_CHECKING:
    pass

R = HoldReason


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("encoding", ["utf-8", "gbk"])
async def test_a_file_is_taken_up(desk: Desk, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    # the second byte of 俓 in GBK is a backslash
    use, failed = line(terminal_id="终端俓"), line(CARDS[1], result="failed", amount_fen=None)
    lines = [use, failed, reversal(use, terminal_id="终端俓")]
    content = day_file(desk.signing, lines, encoding)
    found = await desk.having(encoding).take(pack(content))
    assert (figures(found), found.before) == ((3, 0, 0), False)
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)
    connection = await asyncpg.connect(desk.dsn)
    terminal = await connection.fetchval("SELECT terminal_id FROM usage_event WHERE caller_event_id = $1", use["id"])
    assert terminal == "终端俓"
    assert await broken_rules(connection) == {}
    await connection.close()
    (report,) = desk.reports()
    assert (report["state"], report["count"], report["created"], report["rejects"]) == ("taken", 3, 3, None)


async def test_bad_lines_are_listed_and_their_neighbours_stand(desk: Desk) -> None:
    bad: list[dict[str, Any] | bytes] = [
        b"{", b'{"id": "\xff"}', line(scene="no.where"), b"x" * 100_000, line(occurred_at=ago(days=91)),
        line(card_number="ZZ0000000"), reversal(line()), line(amount_fen=-5), "终端".encode("gbk"),
    ]  # fmt: skip
    lines: list[dict[str, Any] | bytes] = []
    for each in bad:
        lines += [line(), each]
    codes = [
        "malformed_json", "malformed_json", "unknown_scene", "malformed_json", "time_out_of_bounds", "unrecognised",
        "unknown_original", "validation_failed", "malformed_json",
    ]  # fmt: skip
    found = await desk.having(chunk_lines=4).take(day_file(desk.signing, lines))
    assert figures(found) == (len(bad), 0, len(bad))
    (report,) = desk.reports()
    assert report["rejected_by_code"] == {code: codes.count(code) for code in sorted(set(codes))}
    rejects = [json.loads(each) for each in (desk.folder / report["rejects"]).read_text().splitlines()]
    assert [(each["line"], each["code"]) for each in rejects] == [(4 + 2 * n, code) for n, code in enumerate(codes)]
    assert rejects[2]["errors"][0]["field"] == "$.scene" and rejects[2]["id"] is not None


@pytest.mark.parametrize("chunk", [1, 2, 3, 1000])
async def test_the_order_of_lines_does_not_matter(desk: Desk, chunk: int) -> None:
    use, other = line(), line()
    back = reversal(use)
    lines: list[dict[str, Any] | bytes] = [back, other, b"", use, reversal(use), reversal(line()), back, use]
    content = day_file(desk.signing, lines, count=7)
    found = await desk.having(chunk_lines=chunk).take(content)
    assert figures(found) == (3, 2, 2)
    assert found.rejected_by_code == {"already_reversed": 1, "unknown_original": 1}


async def test_the_same_file_is_recognised(desk: Desk) -> None:
    lines = [line(), line()]
    content = day_file(desk.signing, [*lines, b"{"])
    first = await desk.take(content)
    again = await desk.take(gzip.compress(content))
    assert not first.before and again.before
    assert again._replace(before=False) == first
    assert len(await desk.recorded(lines)) == 2


@pytest.mark.parametrize("swept", [1, 2], ids=["some", "all"])
async def test_a_list_that_was_swept_is_not_written_anew_without_its_lines(desk: Desk, swept: int) -> None:
    content = day_file(desk.signing, [line(), b"{", b"{"])
    first = await desk.take(content)
    owner = await asyncpg.connect(desk.dsn)
    await owner.execute("DELETE FROM usage_file_reject WHERE file_id = $1 AND line < $2", first.file_id, 4 + swept)
    await owner.close()
    again = await desk.take(content)
    assert figures(again) == figures(first) == (1, 0, 2)
    assert (first.rejected_by_code, again.rejected_by_code) == ({"malformed_json": 2}, {})
    assert {report["rejects"] is None: report["rejected_by_code"] for report in desk.reports()} == {
        False: {"malformed_json": 2}, True: {},
    }  # fmt: skip
    (rejects,) = desk.folder.glob("*.rejects.ndjson*")
    assert len(rejects.read_bytes().splitlines()) == 2


async def test_a_list_that_is_swept_while_it_is_written_is_none(desk: Desk) -> None:
    content = day_file(desk.signing, [b"{", b"{"])
    found = await desk.take(content)
    owner = await asyncpg.connect(desk.dsn)
    await owner.execute("DELETE FROM usage_file_reject WHERE file_id = $1 AND line = 3", found.file_id)
    await owner.close()
    connection = await desk.connect()
    try:
        report = json.loads((await report_taken(connection, desk.folder / "again.day", found)).read_bytes())
    finally:
        await connection.close()
    assert (report["rejected"], report["rejects"], report["rejected_by_code"]) == (2, None, {})
    assert not list(desk.folder.glob("again.day.rejects*"))


async def test_a_batch_number_is_one_files(desk: Desk) -> None:
    await desk.take(day_file(desk.signing, [line()], batch_no="B1"))
    before = await desk.counts()
    with pytest.raises(Held) as held:
        await desk.take(day_file(desk.signing, [line()], batch_no="B1"))
    assert held.value.reasons == [R.BATCH]
    assert await desk.counts() == before


def spoilt(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new, 1)


LINES = [line(amount_fen=1250), line(amount_fen=50)]


def parts(signing: dict[str, str], *order: int) -> bytes:
    """Lines of a good file by their places: 0 the header, 1 its signature."""
    lines = day_file(signing, LINES).splitlines(True)
    return b"".join(lines[place] for place in order)


def other_signature(signing: dict[str, str]) -> bytes:
    return parts(signing, 0) + parts(signing, 1, 2, 3)


HELD: dict[str, tuple[Callable[[dict[str, str]], bytes], list[HoldReason]]] = {
    "nothing": (lambda _: b"", [R.HEADER]),
    "noise": (lambda _: b"\x00\xff" * 50_000, [R.HEADER]),
    "noise that says it is gzip": (lambda _: b"\x1f\x8b" + b"\xff" * 5000, [R.TRUNCATED]),
    "one line": (lambda s: parts(s, 0), [R.HEADER]),
    "a header of another format": (lambda s: day_file(s, LINES, format="other"), [R.HEADER]),
    "a header with more": (lambda s: day_file(s, LINES, more=1), [R.HEADER]),
    "a header that is deep": (lambda s: b'{"format":' + b"[" * 4000 + b"\n\n", [R.HEADER]),
    "a count below zero": (lambda s: day_file(s, LINES, count=-1), [R.HEADER]),
    "another caller": (lambda s: day_file(s, LINES, caller="demo-merchant"), [R.CALLER]),
    "no caller": (lambda s: day_file(s, LINES, caller="nobody"), [R.CALLER]),
    "another key": (lambda s: day_file(s, LINES, key_id="demo-kiosk-signing-1"), [R.KEY]),
    "a wrong count": (lambda s: day_file(s, LINES, count=3), [R.COUNT]),
    "a wrong sum": (lambda s: day_file(s, LINES, sum_fen=1301), [R.SUM]),
    "a wrong digest": (lambda s: day_file(s, LINES, digest="sm3:" + "0" * 64), [R.DIGEST]),
    "a digit changed": (lambda s: spoilt(day_file(s, LINES), b"1250,", b"1251,"), [R.DIGEST, R.SUM]),
    "a line twice": (lambda s: parts(s, 0, 1, 2, 3, 3), [R.DIGEST, R.COUNT, R.SUM]),
    "lines in another order": (lambda s: parts(s, 0, 1, 3, 2), [R.DIGEST]),
    "the last line gone": (lambda s: parts(s, 0, 1, 2), [R.DIGEST, R.COUNT, R.SUM]),
    "the last byte gone": (lambda s: day_file(s, LINES)[:-1], [R.DIGEST]),
    "gzip cut short": (lambda s: gzip.compress(day_file(s, LINES))[:-12], [R.TRUNCATED]),
    "gzip with a wrong check": (lambda s: gzip.compress(day_file(s, LINES))[:-8] + b"\0" * 8, [R.TRUNCATED]),
    "a header changed": (lambda s: spoilt(day_file(s, LINES), b'"count":2', b'"count":3'), [R.SIGNATURE]),
    "a header with a field twice": (lambda s: spoilt(day_file(s, LINES), b'"c', b'"count":2,"c'), [R.SIGNATURE]),
    "no signature": (lambda s: parts(s, 0) + b"\n" + parts(s, 2, 3), [R.SIGNATURE]),
    "a signature of another header": (other_signature, [R.SIGNATURE]),
    "larger than allowed": (lambda s: gzip.compress(day_file(s, [b" " * 2_000_000], count=0)), [R.TOO_LARGE]),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
async def test_a_file_that_is_wrong_is_held_whole(desk: Desk, name: str) -> None:
    make, reasons = HELD[name]
    before = await desk.counts()
    with pytest.raises(Held) as held:
        await desk.having(file_max_bytes=1_000_000).take(make(desk.signing))
    assert held.value.reasons == reasons, held.value.detail
    assert await desk.counts() == before
    path = desk.folder / "held.day"
    report_held(path, held.value, "demo-bank")
    report = json.loads((desk.folder / "held.day.report.json").read_text())
    assert (report["state"], report["held"]) == ("held", reasons)


async def test_a_folder_takes_its_own_senders_files_alone(desk: Desk) -> None:
    with pytest.raises(Held) as held:
        await desk.take(day_file(desk.signing, LINES), sender="demo-merchant")
    assert held.value.reasons == [R.CALLER]
    assert await desk.recorded(LINES) == []


class Meddling(Silent):
    """Writes to the file after it was examined."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def found(self, lines: int, done: int) -> None:
        (path,) = self.folder.glob("*.day")
        path.write_bytes(path.read_bytes().replace(b"1250", b"9999"))


async def test_a_file_that_changes_after_it_was_examined_is_held(desk: Desk) -> None:
    with pytest.raises(Held) as held:
        await desk.take(day_file(desk.signing, LINES), Meddling(desk.folder))
    assert held.value.reasons == [R.CHANGED]
    assert await desk.recorded(LINES) == []


async def test_two_at_once_on_one_file_and_one_works(desk: Desk) -> None:
    lines = [line() for _ in range(40)]
    content = day_file(desk.signing, lines)
    ends = await asyncio.gather(*(desk.having(chunk_lines=3).take(content) for _ in range(4)), return_exceptions=True)
    worked = [end for end in ends if isinstance(end, Ingested)]
    assert worked and all(isinstance(end, Ingested | AnotherIsAtIt) for end in ends)
    assert {figures(each) for each in worked} == {(40, 0, 0)}
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)


async def test_lines_that_came_another_way_are_duplicates(desk: Desk) -> None:
    lines = [line() for _ in range(3)]
    await desk.take(day_file(desk.signing, lines[:2]))
    assert figures(await desk.take(day_file(desk.signing, [*lines, lines[0] | {"amount_fen": 1}]))) == (1, 2, 1)
