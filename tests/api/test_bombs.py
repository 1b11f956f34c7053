"""What is built to use up memory or time, against an effect: refused, nothing recorded, and the workers stay small."""

import asyncio
import json
from typing import Any

import pytest

from tests.api.test_effects import Answered, ask, fresh_key, report_of, rows
from tests.conftest import add_card
from tests.registry import CARDS
from tests.running import Client, Raw, Running, exchange, request, send_raw
from tests.signing import Signing, signed_headers

PATH = "/v1/cards/loss-reports"
RELEASE = PATH + "/01890000-0000-7000-8000-000000000000/release"
LIMIT = 256 * 1024
GROWN_MIB = 64.0
MILLION = 1_000_000


def filled(opening: bytes, piece: bytes, closing: bytes) -> bytes:
    """As many pieces as the limit of a body allows."""
    return opening + piece * ((LIMIT - len(opening) - len(closing)) // len(piece)) + closing


BOMBS = {
    "arrays a million deep": (b"[" * MILLION + b"]" * MILLION, 413),
    "objects a million deep": (b'{"kind":' * MILLION, 413),
    "a million fields": (json.dumps({f"x{number}": 0 for number in range(MILLION)}).encode(), 413),
    "arrays as deep as fits": (filled(b"", b"[]", b"").replace(b"[]", b"[") + b"]", 4),
    "objects as deep as fits": (filled(b"", b'{"kind":', b""), 4),
    "objects in an unknown field": (filled(b'{"x":', b'{"kind":', b""), 4),
    "as many fields as fit": (json.dumps({f"x{number}": 0 for number in range(20_000)}).encode(), 422),
    "one field as often as fits": (filled(b'{"kind":"formal"', b',"kind":"formal"', b"}"), 422),
    "1e400": (b'{"kind":1e400}', 422),
    "1e400 in a field nobody knows": (b'{"kind":"formal","x":1e400}', 422),
    "digits as many as fit": (filled(b'{"kind":', b"9", b"}"), 4),
    "an exponent as long as fits": (filled(b'{"kind":1e', b"9", b"}"), 4),
    "escapes as many as fit": (filled(b'{"kind":"', b"\\u0041", b'"}'), 422),
    "blanks as many as fit": (filled(b'{"x":', b" ", b"0}"), 422),
    "zeros as many as fit": (filled(b"", b"\0", b""), 400),
}


def workers_of(gateway: Running) -> "tuple[float, float]":
    """(MiB resident, seconds of CPU) of the workers together."""
    processes = gateway.children("serve-worker")
    times = [process.cpu_times() for process in processes]
    return sum(process.memory_info().rss for process in processes) / 2**20, sum(t.user + t.system for t in times)


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_in_a_body_is_refused_and_leaves_nothing(gateway: Running, kiosk: Client, name: str) -> None:
    """Signed as it should be, so that it is refused for what it holds."""
    body, status = BOMBS[name]
    assert status == 413 or len(body) <= LIMIT
    before, (memory, cpu) = await rows(gateway), workers_of(gateway)
    for path in (PATH, RELEASE):
        answer = await bomb(kiosk, path, body)
        assert answer.status == status or (status == 4 and answer.status in (400, 422)), answer.body[:200]
    grown, used = (after - then for after, then in zip(workers_of(gateway), (memory, cpu), strict=True))
    assert grown <= GROWN_MIB and used <= 0.4, f"{grown:.1f} MiB, {used:.2f} s of CPU for two"
    assert await rows(gateway) == before


async def bomb(client: Client, path: str, body: bytes) -> Answered | Raw:
    """A body that is too large is only begun: the gateway need not read the rest."""
    if len(body) <= LIMIT:
        return await ask(client, path, body, fresh_key())
    head = request(
        "POST",
        path,
        authorization=f"Bearer {await client.token()}",
        idempotency_key="bomb",
        content_length=str(len(body)),
    )
    return await send_raw(client.gateway.port, head + body[:LIMIT])


@pytest.mark.parametrize("path", [PATH, RELEASE])
async def test_of_a_signed_body_no_field_may_be_there_twice(gateway: Running, kiosk: Client, path: str) -> None:
    """What is proof must say one thing, whoever reads it: a reader of the first field and one of the last differ."""
    card, key = await add_card(gateway), fresh_key()
    good = report_of(card)
    twice_inside = b'{"type": "card_ref", "card_ref": "%b", "card_ref": "%b"}' % (b"k" * 33, b"k" * 33)
    bodies = [
        good.replace(b'"kind"', b'"kind": "formal", "kind"'),
        good.replace(b'"kind"', b'"k\\u0069nd": "formal", "kind"'),
        good[:-1] + b', "presentation": null, "presentation": null}',
        b'{"kind": "formal", "presentation": ' + twice_inside + b"}",
    ]
    if path == RELEASE:
        bodies = [b'{"x": 1, "x": 1}']
    before = await rows(gateway)
    for body in bodies:
        answer = await ask(kiosk, path, body, key)
        assert (answer.status, answer.code) == (422, "validation_failed"), body
    assert await rows(gateway) == before
    assert (await ask(kiosk, PATH, good, key)).status == 200, "the control: once each"


async def test_ten_thousand_headers_or_trailers_are_refused(gateway: Running, kiosk: Client) -> None:
    authorization = f"Bearer {await kiosk.token()}"
    many = b"".join(b"X-%d: x\r\n" % number for number in range(10_000))
    memory, _ = workers_of(gateway)
    before = await rows(gateway)
    head = request("POST", PATH, b"", authorization=authorization, idempotency_key="k")
    chunked = request(
        "POST", PATH, authorization=authorization, idempotency_key="k", content_length=None, transfer_encoding="chunked"
    )
    for sent in (head[:-2] + many + b"\r\n", chunked + b"2\r\n{}\r\n0\r\n" + many + b"\r\n"):
        received = await exchange(gateway.port, sent)
        assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 ", b"HTTP/1.1 401 ")), received[:100]
    assert await rows(gateway) == before and workers_of(gateway)[0] - memory <= GROWN_MIB


@pytest.mark.parametrize(
    "missing", ["Idempotency-Key", "Signature", "Signature-Input", "Content-Digest", "Authorization"]
)
async def test_a_trailer_is_no_header(gateway: Running, kiosk: Client, missing: str) -> None:
    """What stands behind the body was not there when the request was judged."""
    body = report_of(await add_card(gateway))
    signing, host = Signing.of(kiosk.file), f"127.0.0.1:{gateway.port}"
    headers: dict[str, Any] = signed_headers(signing, "POST", host, PATH, body, f"Bearer {await kiosk.token()}")
    last = b"%b: %b\r\n" % (missing.encode(), headers.pop(missing).encode())
    lines = {name.replace("-", "_").lower(): value for name, value in headers.items()}
    head = request("POST", PATH, **lines | {"content_length": None, "transfer_encoding": "chunked"})
    before = await rows(gateway)
    answer = await send_raw(gateway.port, head + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, last))
    assert answer.status in (400, 401), answer.body
    assert await rows(gateway) == before


async def test_a_thousand_at_once_on_one_connection_do_not_pile_up(gateway: Running, kiosk: Client) -> None:
    memory, _ = workers_of(gateway)
    sent = request("POST", PATH, b"{}", authorization=f"Bearer {await kiosk.token()}", idempotency_key="k")
    last = request("POST", PATH, b"{}", connection="close")
    received = await exchange(gateway.port, sent * 1000 + last, within_s=20)
    assert received.count(b"HTTP/1.1 401 ") == 1001
    assert workers_of(gateway)[0] - memory <= GROWN_MIB


async def test_after_all_of_this_an_effect_is_carried_out(gateway: Running, kiosk: Client) -> None:
    """Runs last in this file."""
    assert "child ended" not in gateway.log and "request failed" not in gateway.log
    cards = [await add_card(gateway) for _ in range(8)]
    answers = await asyncio.gather(*(kiosk.report_loss(card) for card in cards))
    assert {answer["social_security"]["status"] for answer in answers} == {"accepted"}
    assert (await kiosk.verify(CARDS[0].number, CARDS[0].identifier, "kiosk.service"))["reason"] == "ok"
