"""Lines and files of returned usage, as anything may be sent: nothing but the words of the contract comes of it."""

import gzip
import json
import secrets
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from gateway.api.usage_return import split_array, split_lines
from gateway.crypto.key_store import KeyStore
from gateway.domain.errors import Problem
from gateway.domain.usage import RejectCode
from gateway.domain.usage_files import Held, read_header
from gateway.flows.read_usage_file import UsageFile
from gateway.flows.usage_lines import LINE_MAX_BYTES, LineReader, line_reader
from tests.returns import line

SCENES = {"market.till"}
GOOD = line()
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(list(GOOD)) | st.text(), inner),
)
_CHANGED = st.builds(
    lambda changes, gone: {name: value for name, value in (GOOD | changes).items() if name not in gone},
    st.dictionaries(st.sampled_from([*GOOD, "card_ref", "reversal_of"]), _JSON), st.sets(st.sampled_from(list(GOOD))),
)  # fmt: skip


@pytest.fixture
def reader(keys: KeyStore) -> LineReader:
    return line_reader(keys, 90)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=40)
@hypothesis.given(raws=st.lists(st.binary() | _JSON.map(lambda value: json.dumps(value).encode())
                                | _CHANGED.map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_every_line_is_given_or_rejected(reader: LineReader, raws: list[bytes]) -> None:
    read = reader.read("demo-bank", enumerate(raws), SCENES)
    places = sorted([each.number for each in read.given] + [each.number for each in read.rejected])
    assert places == list(range(len(raws)))
    for each in read.given:
        assert bool(each.chip_index) != bool(each.card_id)
        assert each.line.scene in SCENES and 0 < len(each.line.id) <= 64
    for reject in read.rejected:
        assert isinstance(reject.code, RejectCode)
        assert reject.id is None or (0 < len(reject.id) <= 64 and reject.id.isascii() and reject.id.isprintable())
        assert all((error.field.startswith("$") and error.field[1:].replace(".", "").replace("_", "").isalpha())
                   or error.field == "$" for error in reject.errors)  # fmt: skip


@hypothesis.given(body=st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_a_body_is_split_or_refused(body: bytes) -> None:
    for split in (split_lines, split_array):
        try:
            places = [place for place, _ in split(body)]
        except Problem as problem:
            assert problem.code in ("malformed_json", "validation_failed")
        else:
            assert places and places == sorted(set(places))


@hypothesis.given(raw=st.binary() | st.text().map(str.encode) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_a_header_is_read_or_the_file_is_held(raw: bytes) -> None:
    with pytest.raises(Held):
        read_header(raw)


HEADER = json.dumps({
    "format": "yikatong-usage-1", "caller": "demo-bank", "batch_no": "B1", "count": 0, "sum_fen": 0,
    "digest": "sm3:" + "0" * 64, "key_id": "k",
}).encode()  # fmt: skip


def test_a_good_header_is_read() -> None:
    assert read_header(HEADER).batch_no == "B1"


_LINES = st.lists(
    st.sampled_from([b"", b" ", b"{}", b'{"amount_fen": 7}', b"\r", b"x" * (LINE_MAX_BYTES + 1), b"y" * 40_000])
    | st.binary(max_size=20)
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], max_examples=40)
@hypothesis.given(lines=_LINES, end=st.sampled_from([b"\n", b"\r\n"]), whole=st.booleans(), chunk=st.integers(1, 5),
                  packed=st.booleans(), again=st.booleans())  # fmt: skip
def test_chunks_of_any_size_are_all_lines_once(
    tmp_path: Path, lines: list[bytes], end: bytes, whole: bool, chunk: int, packed: bool, again: bool
) -> None:
    """`again`: resumed at each chunk, as after a crash; the file is opened anew, and found by its line."""
    data = end.join(lines) + (end if whole else b"")
    content = HEADER + b"\nsignature\n" + data
    path = tmp_path / secrets.token_hex(8)
    path.write_bytes(gzip.compress(content) if packed else content)
    wanted = [(number, raw) for number, raw in enumerate(data.split(b"\n"), 3) if raw.strip()]

    def opened() -> Any:
        return UsageFile(path, 10_000_000)

    file = opened()
    head = file.head()
    totals = file.totals(head, lambda _: None)
    assert totals.lines == len(wanted)
    assert totals.sum_fen == 7 * sum(raw.strip() == b'{"amount_fen": 7}' for _, raw in wanted)
    found: list[tuple[int, bytes]] = []
    number, last = 3, False
    while not last:
        if again:
            file.close()
            file = opened()
        part = file.chunk(head, number, chunk)
        assert len(part.lines) <= chunk
        found += part.lines
        number, last = part.next_line, part.is_last
    assert file.chunk(head, 3, chunk).lines == found[:chunk], "and from the beginning, for the second reading"
    file.close()
    assert [place for place, _ in found] == [place for place, _ in wanted]
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        assert one == other.strip() or (len(one) > LINE_MAX_BYTES and other.startswith(one))
