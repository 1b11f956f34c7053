"""Parsers of what comes from outside, each alone: any bytes give a value or the documented refusal, and at once.

Bodies: test_payloads.py. Signatures and what they cover: test_signature_parser.py. Returned usage: test_usage_lines.py.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlencode

import pytest
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from yarl import URL

from gateway.api import getting_in, usage_events
from gateway.api.points import _CARD_REF
from gateway.api.quota import create_table
from gateway.api.references import reference_of
from gateway.app import Gateway
from gateway.crypto.pseudonym import Pseudonyms
from gateway.crypto.shared_keys import SharedKey, read_key
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.partners import KeyKind, PartnerKey
from gateway.domain.reconciliation import Line
from gateway.flows.issue_token import TokenRefused
from gateway.flows.reconcile_bank import NotReconciled, read_file
from gateway.settings import ENVIRONMENT, SettingsError, load
from tests.conftest import prepare_data_dir
from tests.contract.case import SM2_OURS
from tests.running import ROOT

WITHIN_S = 0.5
"""For each, of processor time: they take some milliseconds."""
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def at_once() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < WITHIN_S


# --- requests ---------------------------------------------------------------------------------------------------

FORM = {"grant_type": "client_credentials", "client_assertion": "a.b.c", "scope": "cards:verify", "client_id": "x"}
pieces = (
    st.sampled_from([*FORM, *FORM.values(), "=", "&", "%", "%2", "%ff", "%C3%A9", "+", ";", "\0", "网"]) | st.text()
)
forms = (
    st.binary() | st.lists(pieces).map(lambda parts: "".join(parts).encode(errors="replace"))
    | st.dictionaries(st.sampled_from(sorted(FORM)), st.text()).map(lambda form: urlencode(form).encode())
)  # fmt: skip


@given(forms)
@example(b"a=1&" * 5)
@example(b"scope=%ff")
@example(b"&" * 65_536)
def test_a_form_for_a_token_is_read_or_refused(body: bytes) -> None:
    with at_once():
        try:
            form = getting_in._form(body)
        except TokenRefused as refused:
            assert refused.error == "invalid_request"
        else:
            assert form.keys() <= getting_in._PARAMETERS and all(form.values())
            assert getting_in._form(urlencode(form).encode()) == form


class Asked:
    """A request of the feed."""

    def __init__(self, query: str) -> None:
        self.query = URL(f"/v1/usage-events?{query}", encoded=True).query


cursors = st.from_regex(usage_events.CURSOR_PATTERN) | st.text("0123456789abcdefF", min_size=46, max_size=50)
queries = st.lists(
    st.tuples(
        st.sampled_from(["after", "after", "limit", "limit", "%61fter", "befor"]) | st.text(max_size=5),
        cursors | st.integers().map(str) | st.sampled_from(["", "1", "1000", "1001", "٣", "1_0", "+1", " 1", "%00"])
        | st.text(max_size=9),
    ).map("=".join),
    max_size=3,
).map("&".join)  # fmt: skip


@given(queries | st.text(max_size=80))
@example(f"after={'7' + 'f' * 47}&limit=1000")
@example(f"after={'8' + '0' * 47}")
@example(f"after={'0' * 48}%0a")
@example("limit=%D9%A3")
def test_a_question_to_the_feed_is_read_or_refused(query: str) -> None:
    asked: Any = Asked(query)
    try:
        cursor, limit = usage_events._query(asked)
    except Problem as problem:
        assert problem.status in (400, 422)
    else:
        assert 1 <= limit <= 1000 and 0 <= cursor.position < 2**63, "the database has a bigint"
        assert asked.query.get("limit", "").isascii()
        if given_cursor := asked.query.get("after"):
            assert f"{cursor.position:016x}{cursor.event_id.hex}" == given_cursor


REFERENCE = "019ac3a0-0000-7000-8000-000000000000"
near_references = st.uuids().map(str) | st.builds(
    lambda place, char: REFERENCE[:place] + char + REFERENCE[place + 1 :],
    st.integers(0, 36),
    st.sampled_from("7f-_ {}٣０\nA") | st.characters(),
)


@given(near_references | st.text(max_size=50))
@example(REFERENCE)
@example(f"urn:uuid:{REFERENCE}")
def test_a_reference_is_in_its_one_form_or_not_found(text: str) -> None:
    try:
        assert str(reference_of(text)) == text
    except Problem as problem:
        assert problem.status == 404 and text != REFERENCE


@given(st.from_regex(r"\A[a-z][0-9a-f]{32}\Z") | st.text("kmnz0123456789abcdefF\n", max_size=35) | st.text())
def test_a_card_ref_is_turned_into_an_id_and_back(text: str) -> None:
    pseudonyms = Pseudonyms([Secret(bytes(32)), Secret(bytes([1] * 32))])
    if not _CARD_REF.match(text):
        return
    card_id = pseudonyms.card_id("a-caller", text)
    assert len(card_id) == 16
    if text[0] == "m":  # of the newest key; k is of the other, and further ones are nobody's
        assert pseudonyms.card_ref("a-caller", card_id) == text


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """One that is not open: without a database."""
    folder = tmp_path_factory.mktemp("gateway")
    prepare_data_dir(folder, 1)
    made = load({"DATA_DIR": str(folder), "PORT": "1"})
    made.run_dir.mkdir(mode=0o700)
    create_table(made.run_dir)
    return Gateway(made, Secret("postgresql:///nowhere"))


LINES = {
    "Content-Type": ["application/json", "application/json", "application/json;charset=utf-8", "text/plain"],
    "Authorization": ["Bearer TOKEN", "bearer TOKEN", "Bearer TOKENx", "Bearer a.b.c", "Bearer", "Basic TOKEN"],
    "X-Request-Id": ["terminal-1", "a" * 64, "a" * 65, "a b"], "Idempotency-Key": ["k"], "Signature": ["sig1=:AA==:"],
    "Signature-Input": [""], "Content-Encoding": ["gzip", "identity"], "X-Other": ["1"],
}  # fmt: skip
line = st.sampled_from(sorted(LINES)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(LINES[name]).map(str.encode) | st.binary(max_size=20))
)
GOOD_LINES = [("Content-Type", b"application/json"), ("Authorization", b"Bearer TOKEN")]


@given(first=st.sampled_from([GOOD_LINES, []]), more=st.lists(line, max_size=4))
@example(first=GOOD_LINES, more=[])
@example(first=GOOD_LINES, more=[("Idempotency-Key", b"k")])
@example(first=GOOD_LINES, more=[("Content-Encoding", b"gzip")])
def test_the_hot_lane_reads_a_head_or_leaves_it(
    gateway: Gateway, first: list[tuple[str, bytes]], more: list[tuple[str, bytes]]
) -> None:
    """What it reads is what middleware.py would read of the same bytes."""
    token = gateway.tokens.issue("a-caller", ["cards:verify"], int(time.time()), "j", "k").encode()
    lines = [name.encode() + b": " + value.replace(b"TOKEN", token) for name, value in first + more]
    parser = HttpRequestParser(None, None, 2**16)  # that is for a body
    try:
        [(message, _)], _, _ = parser.feed_data(
            b"\r\n".join([b"GET /v1/cards/verify HTTP/1.1", b"Host: x", *lines, b"", b""])
        )
    except (BadHttpMessage, ValueError):  # aiohttp's own refusal; or the line ends within a value
        return
    headers = message.headers
    with at_once():
        try:
            head = gateway.hot_lane._read_head(message)
        except Problem as problem:
            assert problem.status == 401 and headers.get("Authorization") != f"Bearer {token.decode()}"
            return
    others = {"Idempotency-Key", "Signature", "Signature-Input", "Content-Encoding"} & set(headers)
    ordinary = headers.get("Content-Type") == "application/json" and not others
    assert (head is not None) == ordinary
    if head is not None:
        assert (head.access.caller_id, head.raw) == ("a-caller", message.raw_headers)
        assert head.request_id in (None, headers.get("X-Request-Id"))


# --- files ------------------------------------------------------------------------------------------------------

CHECK_LINE = {"reference": "r-1", "amount_fen": 1250, "state": "approved"}
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
documents = st.recursive(
    values | st.just(CHECK_LINE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*CHECK_LINE, "lines"]), inner),
    max_leaves=6,
)
cells = st.sampled_from(["r-1", "1250", "approved", "pending", '"', '""', "-1", " 1", "1.0", "\0", "=1+1", "\r", "\n"])
tables = st.lists(st.lists(cells | st.text(max_size=9), max_size=5).map(",".join), max_size=4).map("\n".join)
check_files = (
    st.binary()
    | st.builds(lambda document, cut: json.dumps(document).encode()[cut:], documents, st.sampled_from([0, 0, 0, 1]))
    | st.builds(lambda head, table: f"{head}\n{table}\n".encode(errors="surrogatepass"),
                st.sampled_from(["reference,amount_fen,state", "\ufeffstate,reference,amount_fen"]) | cells, tables)
)  # fmt: skip


@one_folder
@given(check_files)
@example(b"[" * 100_000)
@example(b'{"lines":' * 100_000)
@example(b"reference,amount_fen,state\n" + b"x" * 200_000 + b",1,approved\n")
@example(b'reference,amount_fen,state\n"' + b"x,\n" * 100_000)
@example(b"reference,amount_fen,state\nr-1," + b"9" * 5000 + b",approved\n")
@example(b'[{"reference": "r-1", "amount_fen": ' + b"9" * 5000 + b', "state": "approved"}]')
def test_a_check_file_is_read_or_not_reconciled(tmp_path: Path, content: bytes) -> None:
    (file := tmp_path / "check").write_bytes(content)
    with at_once():
        try:
            lines = read_file(file)
        except NotReconciled as refused:
            assert "\n" not in str(refused)
            return
    assert all(line.state in ("approved", "declined", "reversed", "pending") for line in lines)
    file.write_bytes(json.dumps([line._asdict() for line in lines]).encode())
    assert read_file(file) == lines == [Line(*line) for line in lines]


kinds: tuple[KeyKind, ...] = get_args(KeyKind)
key_texts = (
    st.text(max_size=40) | st.binary(max_size=70).map(bytes.hex)
    | st.sampled_from([16, 32]).map(lambda size: "ab" * size)
    | st.lists(st.sampled_from([*SM2_OURS.split(), "00" * 32, "ff" * 32, "ff" * 65, "", "\n", "+", "=="]), max_size=3)
    .map(" ".join)
)  # fmt: skip


@given(st.sampled_from(kinds), st.sampled_from(["hex", "base64", "text"]), key_texts)
@example("sm2", "hex", SM2_OURS)
@example("sm2", "hex", f"{'00' * 32} {SM2_OURS.split()[1]}")
@example("hmac-sm3", "text", "x" * 16_384)
def test_the_text_of_a_partners_key_is_a_key_or_refused(kind: KeyKind, encoding: Any, text: str) -> None:
    """A refusal does not repeat it."""
    with at_once():
        try:
            assert isinstance(read_key(PartnerKey(kind=kind, file="k", encoding=encoding), text), SharedKey)
        except UnicodeEncodeError:  # not from a file or an environment: registry.py has refused it
            assert any("\ud800" <= char <= "\udfff" for char in text)
        except ValueError as refused:
            assert (kind, encoding, text) != ("sm2", "hex", SM2_OURS)
            assert len(text) < 8 or text not in str(refused)


FILES = ("gateway", "callers", "scenes", "benefits", "points", "anomalies", "partners")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("settings") / "config"
    shutil.copytree(ROOT / "config", folder)
    return folder


toml_pieces = st.sampled_from(
    ["=", "[", "]", "[[", "{", "}", '"', "'", '"""', "#", "\n", ".", ",", "-", "inf", "nan", "1979-05-27", "07:32:00Z",
     "0x", "1_000", "true", '"\\u0000"', "é", "\ud800", "99999999999999999999", "9" * 5000, "[" * 1000, "a." * 200]
)  # fmt: skip


@settings(max_examples=150)
@given(st.sampled_from(FILES), st.data())
def test_any_configuration_is_taken_or_its_mistakes_are_named(config: Path, name: str, data: st.DataObject) -> None:
    """A shipped file with a piece put in, a line left out, or a value that is something else."""
    file = config / f"{name}.toml"
    good = file.read_text()
    lines = good.splitlines(keepends=True)
    place, piece = data.draw(st.integers(0, len(lines))), data.draw(toml_pieces | st.text(max_size=8))
    how = data.draw(st.sampled_from(["in", "out", "value"]))
    key = lines[place].partition("=")[0] if place < len(lines) else "more "
    changed = {"in": [piece], "out": [], "value": [f"{key}= {piece}\n"]}[how]
    file.write_bytes(
        "".join([*lines[:place], *changed, *lines[place + (how != "in") :]]).encode(errors="surrogatepass")
    )
    try:
        with at_once():
            load({"CONFIG_DIR": str(config)})
    except SettingsError as refused:
        assert refused.mistakes and all(": " in mistake for mistake in refused.mistakes)
    finally:
        file.write_text(good)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(ENVIRONMENT)),
    st.text() | documents.map(json.dumps) | st.sampled_from(["[" * 9999, "\udc80"]),
)
def test_any_environment_is_taken_or_its_mistakes_are_named(name: str, text: str) -> None:
    try:
        load({name: text})
    except SettingsError as refused:
        assert refused.mistakes
