"""Every answer carries X-Request-Id: the caller's if it is a sane one, else ours (api.md, Conventions)."""

import json
import re
from typing import NamedTuple

import pytest

from tests.running import Client, request, send_raw

SANE = ["a", "0199-abc_DEF.7", "x" * 64]
INSANE = {
    "empty": b"",
    "too long": b"x" * 65,
    "a blank inside": b"two words",
    "markup": b"<b>id</b>",
    "quotes": b'"id"',
    "Chinese": "编号".encode(),
    "not UTF-8": b"\xff\xfe",
}
OURS = re.compile(r"[A-Za-z0-9._-]{8,64}")


class Ask(NamedTuple):
    method: str
    path: str
    body: bytes
    status: int
    content_type: str = "application/json"
    expect: str | None = None


VERDICT = b'{"presentation":{"type":"ecard_code","code":"12345678"},"scene":"parking.exit","terminal_id":"P-ids"}'
ASKS = {
    "a verdict": Ask("POST", "/v1/cards/verify", VERDICT, 200),
    "a verdict with an idempotency key": Ask("POST", "/v1/cards/verify?key", VERDICT, 200),
    "a body that is not JSON": Ask("POST", "/v1/cards/verify", b"{", 400),
    "a body that does not fit": Ask("POST", "/v1/cards/verify", b"{}", 422),
    "another content type": Ask("POST", "/v1/cards/verify", VERDICT, 415, "text/plain"),
    "a scope that is missing": Ask("GET", "/v1/usage-events", b"", 403),
    "a refused token request": Ask("POST", "/oauth2/token", b"", 400, "application/x-www-form-urlencoded"),
    "an open resource": Ask("GET", "/.well-known/jwks.json", b"", 200),
    "the contract": Ask("GET", "/openapi.json", b"", 200),
    "no such resource": Ask("GET", "/v1/nothing", b"", 404),
    "a method that is not there": Ask("PUT", "/v1/cards/verify", b"", 405),
    "an expectation": Ask("POST", "/v1/cards/verify", VERDICT, 417, expect="a-miracle"),
}


async def request_id_of(client: Client, ask: Ask, given: bytes | None, authorized: bool = True) -> str:
    """The id in the answer; asserts its status, and that a problem says the same id in its body."""
    path, _, key = ask.path.partition("?")
    sent = request(
        ask.method, path, ask.body, content_type=ask.content_type, expect=ask.expect,
        authorization=f"Bearer {await client.token()}" if authorized else None,
        idempotency_key="request-ids" if key else None, x_request_id=given,
    )  # fmt: skip
    answer = await send_raw(client.gateway.port, sent, used=True)
    assert answer.status == (ask.status if authorized else 401), answer
    found = answer.header("X-Request-Id")
    assert found is not None
    if answer.header("Content-Type") == "application/problem+json":
        assert json.loads(answer.body)["request_id"] == found
    return found


@pytest.mark.parametrize("name", ASKS)
async def test_a_sane_id_is_kept_whatever_the_answer(merchant: Client, name: str) -> None:
    assert await request_id_of(merchant, ASKS[name], b"till-7.order_42") == "till-7.order_42"


@pytest.mark.parametrize("name", ASKS)
async def test_without_an_id_every_answer_has_one_of_its_own(merchant: Client, name: str) -> None:
    ids = [await request_id_of(merchant, ASKS[name], None) for _ in range(3)]
    assert len(set(ids)) == 3 and all(OURS.fullmatch(found) for found in ids), ids


@pytest.mark.parametrize("given", SANE)
async def test_what_is_sane(merchant: Client, given: str) -> None:
    assert await request_id_of(merchant, ASKS["a verdict"], given.encode()) == given


@pytest.mark.parametrize("given", INSANE.values(), ids=INSANE)
async def test_what_is_not_sane_is_replaced(merchant: Client, given: bytes) -> None:
    found = await request_id_of(merchant, ASKS["a verdict"], given)
    assert OURS.fullmatch(found) and found.encode() != given


async def test_a_refusal_at_the_door_has_the_id_too(merchant: Client) -> None:
    ask = ASKS["a verdict"]
    assert await request_id_of(merchant, ask, b"at-the-door", authorized=False) == "at-the-door"
