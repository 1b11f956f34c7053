"""Wrong bodies, paths and headers: a problem that names the field and never the value, never a 5xx."""

import asyncio
import json
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.registry import CARDS
from tests.running import Client, Raw, Running, request, send_raw, verify_body

PATH = "/v1/cards/verify"
OK = CARDS[0]
MARK = "110105194912310021"
"""Stands where a caller might put personal data; it may come back in no answer and in no log line."""

GOOD = verify_body(OK.number, OK.identifier)
GOOD_JSON = json.dumps(GOOD)


class Bad(NamedTuple):
    body: bytes
    status: int
    field: str | None = None
    content_type: str | None = "application/json"


def with_values(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def chip(**changes: Any) -> bytes:
    return json.dumps(GOOD | {"presentation": GOOD["presentation"] | changes}).encode()


def replaced(old: str, new: str | bytes) -> bytes:
    raw = new if isinstance(new, bytes) else new.encode()
    assert old in GOOD_JSON
    return GOOD_JSON.encode().replace(old.encode(), raw, 1)


NOT_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "words": b"number " + MARK.encode(),
    "truncated": GOOD_JSON.encode()[:-1],
    "truncated in a text": replaced("parking.exit", MARK)[: GOOD_JSON.index("parking") + 9],
    "two documents": (GOOD_JSON * 2).encode(),
    "a comma too many": replaced('"terminal_id"', ',"terminal_id"'),
    "single quotes": GOOD_JSON.replace('"', "'").encode(),
    "a comment": b"/* " + MARK.encode() + b" */" + GOOD_JSON.encode(),
    "a byte order mark": b"\xef\xbb\xbf" + GOOD_JSON.encode(),
    "UTF-16": GOOD_JSON.encode("utf-16"),
    "not UTF-8": replaced("P-0001", b"\xff\xfe" + MARK.encode()),
    "overlong UTF-8": replaced("P-0001", b"\xc0\xaf"),
    "half a surrogate pair in UTF-8": replaced("P-0001", b"\xed\xa0\x80"),
    "half a surrogate pair escaped": replaced("P-0001", "\\ud800"),
    "a control character in a text": replaced("P-0001", b"P\x00\x01"),
    "a line break in a text": replaced("P-0001", b"P\n"),
    "an unknown escape": replaced("P-0001", "\\x41"),
    "NaN": replaced('"P-0001"', "NaN"),
    "Infinity": replaced('"P-0001"', "-Infinity"),
    "a leading zero": replaced('"P-0001"', "007"),
    "objects 15 000 deep": b'{"presentation":' * 15_000,
}
DEEP = b"[" * 100_000 + b"]" * 100_000

NOT_THE_CONTRACT = {
    "null": (b"null", "$"),
    "an array": (b"[]", "$"),
    "an array in its place": (json.dumps([GOOD]).encode(), "$"),
    "a text": (json.dumps(MARK).encode(), "$"),
    "a number": (b"1e400", "$"),
    "arrays 100 000 deep": (DEEP, "$"),
    "arrays 100 000 deep in a field": (replaced('"P-0001"', DEEP), "$.terminal_id"),
    "arrays 100 000 deep in a field nobody knows": (b'{"x":' + DEEP + b"}", "$"),
    "an empty object": (b"{}", "$.presentation"),
    "no presentation": (json.dumps({k: v for k, v in GOOD.items() if k != "presentation"}).encode(), "$.presentation"),
    "no scene": (json.dumps({k: v for k, v in GOOD.items() if k != "scene"}).encode(), "$.scene"),
    "no terminal": (json.dumps({k: v for k, v in GOOD.items() if k != "terminal_id"}).encode(), "$.terminal_id"),
    "an unknown field": (with_values(note="x"), "$"),
    "an unknown field that is an id number": (with_values(**{MARK: "x"}), "$"),
    "an unknown field deep inside": (chip(pin=MARK), "$.presentation"),
    "an unknown field in the proof": (
        chip(proof={"challenge": "00", "cryptogram": "00", MARK: "1"}), "$.presentation.proof"
    ),
    "an unknown field with a number beyond all": (replaced('"P-0001"', '"P","x":1e400'), "$"),
    "presentation null": (with_values(presentation=None), "$.presentation"),
    "presentation a text": (with_values(presentation=MARK), "$.presentation"),
    "presentation an array": (with_values(presentation=[MARK]), "$.presentation"),
    "presentation without a type": (with_values(presentation={"card_number": MARK}), "$.presentation.type"),
    "type unknown": (chip(type=MARK), "$.presentation.type"),
    "type null": (chip(type=None), "$.presentation.type"),
    "type a number": (chip(type=1), "$.presentation.type"),
    "type of another kind": (chip(type="ecard_code"), "$.presentation"),
    "scene a number": (with_values(scene=1), "$.scene"),
    "scene unknown": (with_values(scene="a" + "." + "b"), "$.scene"),
    "scene of another shape": (with_values(scene=MARK), "$.scene"),
    "scene with a line break": (with_values(scene="parking.exit\n"), "$.scene"),
    "scene that is huge": (with_values(scene="a." + "b" * 100_000), "$.scene"),
    "terminal empty": (with_values(terminal_id=""), "$.terminal_id"),
    "terminal too long": (with_values(terminal_id=MARK * 2), "$.terminal_id"),
    "terminal huge": (with_values(terminal_id=MARK * 10_000), "$.terminal_id"),
    "terminal with a NUL": (with_values(terminal_id="P\x00" + MARK), "$.terminal_id"),
    "terminal with a line break": (with_values(terminal_id="P-0001\n"), "$.terminal_id"),
    "terminal with a separator": (with_values(terminal_id="P\x1f1"), "$.terminal_id"),
    "terminal with DEL": (with_values(terminal_id="P\x7f"), "$.terminal_id"),
    "terminal an object": (with_values(terminal_id={MARK: 1}), "$.terminal_id"),
    "terminal a number": (with_values(terminal_id=int(MARK)), "$.terminal_id"),
    "terminal false": (with_values(terminal_id=False), "$.terminal_id"),
    "number too short": (chip(card_number=MARK[:8]), "$.presentation.card_number"),
    "number an id number": (chip(card_number=MARK), "$.presentation.card_number"),
    "number in small letters": (chip(card_number="ab1234567"), "$.presentation.card_number"),
    "number with a blank": (chip(card_number="AB 123456"), "$.presentation.card_number"),
    "number with a line break": (chip(card_number=OK.number + "\n"), "$.presentation.card_number"),
    "number in full-width digits": (chip(card_number="AB１２３４５６７"), "$.presentation.card_number"),
    "identifier not hex": (chip(card_identifier="Z" * 32), "$.presentation.card_identifier"),
    "identifier too long": (chip(card_identifier=OK.identifier + "0"), "$.presentation.card_identifier"),
    "identifier with a line break": (chip(card_identifier=OK.identifier + "\n"), "$.presentation.card_identifier"),
    "identifier a number": (chip(card_identifier=int("1" * 32)), "$.presentation.card_identifier"),
    "number with a line break and a proof": (
        chip(card_number=OK.number + "\n", proof={"challenge": "00" * 16, "cryptogram": "00" * 16}),
        "$.presentation.card_number",
    ),
    "interface unknown": (chip(interface=MARK), "$.presentation.interface"),
    "proof a text": (chip(proof=MARK), "$.presentation.proof"),
    "proof without a cryptogram": (chip(proof={"challenge": "00"}), "$.presentation.proof.cryptogram"),
    "challenge empty": (chip(proof={"challenge": "", "cryptogram": "00"}), "$.presentation.proof.challenge"),
    "challenge huge": (chip(proof={"challenge": "0" * 9999, "cryptogram": "0"}), "$.presentation.proof.challenge"),
    "code with letters": (with_values(presentation={"type": "ecard_code", "code": "1234567X"}), "$.presentation.code"),
    "code too short": (with_values(presentation={"type": "ecard_code", "code": "1"}), "$.presentation.code"),
    "code a number": (with_values(presentation={"type": "ecard_code", "code": int(MARK)}), "$.presentation.code"),
    "QR not base64": (with_values(presentation={"type": "transit_qr", "qr": "!" + MARK}), "$.presentation.qr"),
    "QR huge": (with_values(presentation={"type": "transit_qr", "qr": "A" * 5000}), "$.presentation.qr"),
    "reference with a blank": (
        with_values(presentation={"type": "card_ref", "card_ref": "k " + MARK}), "$.presentation.card_ref"
    ),
    "reference empty": (with_values(presentation={"type": "card_ref", "card_ref": ""}), "$.presentation.card_ref"),
    "time a number": (with_values(occurred_at=int(MARK)), "$.occurred_at"),
    "time a word": (with_values(occurred_at=MARK), "$.occurred_at"),
    "time without an offset": (with_values(occurred_at="2026-11-23T10:00:00"), "$.occurred_at"),
    "time without a day": (with_values(occurred_at="10:00:00Z"), "$.occurred_at"),
    "time that does not exist": (with_values(occurred_at="2026-02-30T10:00:00Z"), "$.occurred_at"),
    "time at the beginning": (with_values(occurred_at="0001-01-01T00:00:00+23:59"), "$.occurred_at"),
    "time at the end": (with_values(occurred_at="9999-12-31T23:59:59-23:59"), "$.occurred_at"),
}  # fmt: skip

BODIES = {f"not JSON: {name}": Bad(body, 400) for name, body in NOT_JSON.items()}
BODIES |= {name: Bad(body, 422, field) for name, (body, field) in NOT_THE_CONTRACT.items()}
BODIES |= {
    f"content type {kind}": Bad(GOOD_JSON.encode(), 415, None, kind)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", None, MARK)
}


async def send(client: Client, sent: bytes, used: bool = False) -> Raw:
    answer = await send_raw(client.gateway.port, sent, used=used)
    assert MARK.encode() not in answer.head + answer.body
    return answer


async def post(client: Client, body: bytes, used: bool = True, **headers: str | bytes | None) -> Raw:
    authorization = f"Bearer {await client.token()}"
    return await send(client, request("POST", PATH, body, authorization=authorization, **headers), used)


def assert_problem(answer: Raw, status: int, field: str | None = None) -> None:
    assert answer.status == status, answer.body[:500]
    assert answer.header("Content-Type") == "application/problem+json"
    problem = json.loads(answer.body)
    assert problem["status"] == status and problem["type"] == f"urn:yikatong:problem:{problem['code']}"
    assert [error["field"] for error in problem["errors"]] == ([field] if field else [])


@pytest.mark.parametrize("used", [False, True], ids=["new connection", "used connection"])
@pytest.mark.parametrize("name", BODIES)
async def test_a_bad_body_is_a_problem_that_names_the_field_and_not_the_value(
    merchant: Client, name: str, used: bool
) -> None:
    bad = BODIES[name]
    before = served(merchant.gateway)
    assert_problem(await post(merchant, bad.body, used, content_type=bad.content_type), bad.status, bad.field)
    assert MARK not in merchant.gateway.log and served(merchant.gateway) == before, "nothing is worth a log line"


def served(gateway: Running) -> list[str]:
    """What those who serve requests have logged; the background worker has its own turns."""
    return [line for line in gateway.log.splitlines() if '"component": "worker"' not in line]


@pytest.mark.parametrize(("field", "first"), [("terminal_id", "P-0000"), ("scene", "transit.bus")])
async def test_of_a_field_given_twice_the_last_counts_and_both_must_fit(
    merchant: Client, field: str, first: str
) -> None:
    """RFC 8259 leaves it open; a reader that took the first would hear scene_not_allowed."""
    given = f'"{field}": {json.dumps(GOOD[field])}'
    twice = await post(merchant, replaced(given, f'"{field}": "{first}", {given}'))
    assert twice.status == 200 and json.loads(twice.body)["reason"] == "ok"
    assert_problem(await post(merchant, replaced(given, f'"{field}": 1, {given}')), 422, f"$.{field}")


async def test_a_body_may_come_in_many_pieces(merchant: Client) -> None:
    """The control: what is refused above is refused for what it holds."""
    sent = request("POST", PATH, GOOD_JSON.encode(), authorization=f"Bearer {await merchant.token()}")
    reader, writer = await asyncio.open_connection("127.0.0.1", merchant.gateway.port)
    for start in range(0, len(sent), 50):
        writer.write(sent[start : start + 50])
        await writer.drain()
        await asyncio.sleep(0)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200 ")


LARGE = b'{"terminal_id":"' + b"x" * 300 * 1024 + b'"}'
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(LARGE), LARGE)


@pytest.mark.parametrize("way", ["announced", "announced but not sent", "in chunks", "in chunks without an end"])
async def test_a_body_over_256_kib_is_too_large(merchant: Client, way: str) -> None:
    length = None if "chunks" in way else str(len(LARGE))
    coding = "chunked" if "chunks" in way else None
    head = request(
        "POST", PATH, authorization=f"Bearer {await merchant.token()}", content_length=length, transfer_encoding=coding
    )
    body = {"announced": LARGE, "announced but not sent": b"", "in chunks": CHUNKED}.get(way, CHUNKED[:-7])
    answer = await send(merchant, head + body)
    assert_problem(answer, 413)
    assert answer.header("Connection") == "close"


async def test_a_body_of_just_256_kib_is_read(merchant: Client) -> None:
    padded = GOOD_JSON.encode() + b" " * (256 * 1024 - len(GOOD_JSON))
    assert (await post(merchant, padded)).status == 200
    assert_problem(await post(merchant, padded + b" "), 413)


@pytest.mark.parametrize(
    ("charset", "status"),
    [
        ("utf-8", 200), ('"UTF-8"', 200), ("utf8", 200), ("gbk", 415), ('"GB18030"', 415), ("utf-16", 415),
        ("iso-8859-1", 415), ("us-ascii", 415), (MARK, 415),
    ],
)  # fmt: skip
async def test_json_in_another_charset_is_refused_alike_on_every_way(
    merchant: Client, charset: str, status: int
) -> None:
    """RFC 8259 §8.1: it would be read as something else than was written. On a connection that it closes a request
    goes through aiohttp's cycle, on a used one past it."""
    kind = f"application/json; charset={charset}"
    for used, connection in ((True, None), (False, "close")):
        answer = await post(merchant, GOOD_JSON.encode(), used, content_type=kind, connection=connection)
        assert answer.status == status
        if status == 415:
            assert_problem(answer, 415)
            assert json.loads(answer.body)["detail"] == "JSON is UTF-8"


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson"])
async def test_a_bulk_in_another_charset_is_refused(gateway: Running, kind: str) -> None:
    async with Client(gateway, "demo-bank") as bank:
        sent = {"authorization": f"Bearer {await bank.token()}", "content_type": f"{kind}; charset=gbk"}
        assert_problem(await send(bank, request("POST", "/v1/usage-events", b"[]", **sent), used=True), 415)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity", "zstd", MARK])
async def test_a_content_encoding_is_refused(merchant: Client, coding: str) -> None:
    assert_problem(await post(merchant, GOOD_JSON.encode(), content_encoding=coding), 415)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/nothing"), ("GET", "/"), ("POST", "/v1/cards/verify/"), ("GET", f"/{MARK}"), ("GET", "/%00"),
     ("GET", "/v1/cards/../usage-events"), ("GET", "//v1/usage-events"), ("OPTIONS", "*"), ("CONNECT", "gateway:443")],
)  # fmt: skip
async def test_an_unknown_path_is_not_found(merchant: Client, method: str, path: str) -> None:
    answer = await send(merchant, request(method, path))
    assert_problem(answer, 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", PATH, "POST"), ("DELETE", PATH, "POST"), ("PUT", PATH, "POST"), ("OPTIONS", PATH, "POST"),
     ("PUT", "/v1/usage-events", "GET,POST"), ("GET", "/oauth2/token", "POST"), ("POST", "/openapi.json", "GET"),
     ("PATCH", "/docs", "GET"), ("TRACE", PATH, "POST")],
)  # fmt: skip
async def test_another_method_is_not_allowed(merchant: Client, method: str, path: str, allowed: str) -> None:
    answer = await send(merchant, request(method, path))
    assert_problem(answer, 405)
    assert answer.header("Allow") == allowed


@pytest.mark.parametrize("path", [PATH, "/v1/nothing", "/oauth2/token", "/docs"])
@pytest.mark.parametrize("expect", ["200-ok", "100-continue, more", MARK])
async def test_an_expectation_that_is_not_met_is_refused(merchant: Client, path: str, expect: str) -> None:
    sent = request("POST", path, GOOD_JSON.encode(), authorization=f"Bearer {await merchant.token()}", expect=expect)
    assert_problem(await send(merchant, sent), 417)


async def test_the_one_expectation_that_http_knows_is_met(merchant: Client) -> None:
    headers = await merchant.authorization()
    async with merchant.session.post(PATH, json=GOOD, headers=headers, expect100=True) as answer:
        assert answer.status == 200


NULL_CURSOR = "0" * 48


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("limit=0", 422, "limit"), ("limit=1001", 422, "limit"), ("limit=-1", 422, "limit"), ("limit=", 422, "limit"),
        ("limit=1.0", 422, "limit"), ("limit=1e2", 422, "limit"), (f"limit={MARK}", 422, "limit"),
        ("limit=%EF%BC%91", 422, "limit"), ("limit=10%0A", 422, "limit"), ("limit=+5", 422, "limit"),
        ("after=", 400, "after"), ("after=0", 400, "after"), (f"after={MARK}", 400, "after"),
        (f"after={NULL_CURSOR}0", 400, "after"), (f"after={'f' * 48}", 400, "after"),
        (f"after={'8' + '0' * 47}", 400, "after"), (f"after={'A' * 48}", 400, "after"),
        (f"after={NULL_CURSOR}%0A", 400, "after"), (f"after={'0' * 47}%00", 400, "after"),
        (f"after={NULL_CURSOR}&after={NULL_CURSOR}", 400, None), (f"{MARK}=1", 400, None),
        ("limit=1&limit=2", 400, None),
        ("limit=%FF", 422, "limit"), ("after=%ED%A0%80", 400, "after"), ("%00=%00", 400, None),
    ],
)  # fmt: skip
async def test_a_wrong_query_of_the_feed_is_a_problem(
    merchant: Client, bureau: Client, query: str, status: int, field: str | None
) -> None:
    sent = request("GET", f"/v1/usage-events?{query}", authorization=f"Bearer {await bureau.token()}")
    assert_problem(await send(merchant, sent), status, field)


async def test_after_all_of_this_the_gateway_serves_as_before(merchant: Client) -> None:
    """Runs last in this file; no worker was restarted, no error was logged, and both still answer."""
    log = merchant.gateway.log
    assert "child ended" not in log and "request failed" not in log, log[-2000:]
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(base_url=merchant.gateway.url, connector=connector) as session:
        for _ in range(20):
            async with session.post(PATH, json=GOOD, headers=await merchant.authorization()) as answer:
                assert answer.status == 200 and (await answer.json())["reason"] == "ok"
