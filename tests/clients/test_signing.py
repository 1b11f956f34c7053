"""What the clients send, looked at by an independent implementation, without a gateway."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest
from aiohttp import web

from tests.clients import oracle
from tests.clients.partner import LANGUAGES, call, command
from tests.running import free_port

REPORT = "/v1/cards/loss-reports"
CARD = ("AB1234567", "330424D15600000500000000000000A1")

pytestmark = pytest.mark.parametrize("language", LANGUAGES)


class Listener:
    """Stands in for the gateway: gives a token, writes everything down, and answers as it is told."""

    def __init__(self) -> None:
        self.url = ""
        self.assertions: list[str] = []
        self.seen: list[oracle.Message] = []
        self.next: list[web.Response | None] = []
        """None: hangs up without an answer."""
        self.refuses_first = False
        self.refuses_tokens: list[str] = []
        """With these words for when to come again."""
        self.token_lasts_s = 600
        self.asked_for_token: list[float] = []
        """When."""
        self.came: dict[str, list[float]] = {}
        """When, by idempotency key."""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        if request.path == "/oauth2/token":
            self.assertions += parse_qs(body.decode())["client_assertion"]
            self.asked_for_token.append(time.monotonic())
            if self.refuses_tokens:
                return web.json_response({}, status=503, headers={"Retry-After": self.refuses_tokens.pop(0)})
            return web.json_response(
                {"access_token": "a.b.c", "token_type": "Bearer", "expires_in": self.token_lasts_s}
            )
        url = f"http://{request.headers['Host']}{request.raw_path}"
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(oracle.Message(request.method, url, headers, body))
        came = self.came.setdefault(headers["idempotency-key"], [])
        came.append(time.monotonic())
        if self.refuses_first and len(came) == 1:
            return web.json_response({}, status=503, headers={"Retry-After": "1"})
        answer = self.next.pop(0) if self.next else web.json_response({"reference": "r-1"})
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
        return answer or web.Response()


@pytest.fixture
async def listener() -> AsyncIterator[Listener]:
    made = Listener()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield made
    await runner.cleanup()


def caller_of(listener: Listener, algorithm: str, alg: str = "EdDSA") -> dict[str, Any]:
    key = oracle.new_signing({"EdDSA": "ed25519", "ES256": "ecdsa-p256-sha256"}[alg])["private_jwk"]
    return {
        "client_id": "demo", "issuer": "https://yikatong.example", "token_url": f"{listener.url}/oauth2/token",
        "scope": "cards:verify cards:loss", "alg": alg, "kid": "demo-token-1", "private_jwk": key,
        "signature": "required", "signing": oracle.new_signing(algorithm),
    }  # fmt: skip


@pytest.mark.parametrize("algorithm", oracle.ALGORITHMS)
async def test_effects_are_signed_as_the_contract_says(
    listener: Listener, tmp_path: Path, language: str, algorithm: str
) -> None:
    caller = caller_of(listener, algorithm)
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(caller))
    ended = await command(language, file, "lose", *CARD, "key-1")
    assert (ended.code, json.loads(ended.out)) == (0, {"reference": "r-1"}), ended.err
    assert (await command(language, file, "release", "r-1")).code == 0
    assert await call(language, caller, "effect", "/v1/any?b=%2F&a=1", {"name": "张三"}, "key-2") == 200
    assert await call(language, caller, "rotate", {"kty": "OKP", "kid": "demo-2"}, "key-3") == 200

    reported, released, other, rotated = listener.seen
    for message in listener.seen:
        oracle.verify(message, caller["signing"])
        assert message.headers["authorization"] == "Bearer a.b.c"
    card = {"type": "chip_card", "card_number": CARD[0], "card_identifier": CARD[1]}
    assert reported.url == listener.url + REPORT
    assert json.loads(reported.body) == {"presentation": card, "kind": "temporary"}
    assert reported.headers["idempotency-key"] == "key-1"
    assert (released.url, released.body) == (f"{listener.url}{REPORT}/r-1/release", b"{}")
    assert released.headers["idempotency-key"] != "key-1"
    assert other.url == listener.url + "/v1/any?b=%2F&a=1"
    assert json.loads(rotated.body) == {"use": "signing", "jwk": {"kty": "OKP", "kid": "demo-2"}, "retire": "demo-1"}


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256"])
async def test_a_token_is_asked_for_with_a_key(listener: Listener, language: str, algorithm: str) -> None:
    caller = caller_of(listener, "ed25519", algorithm)
    assert await call(language, caller, "effect", "/v1/any", {}, "key-1") == 200
    assert jwt.get_unverified_header(listener.assertions[0])["kid"] == "demo-token-1"
    claims = jwt.decode(
        listener.assertions[0], jwt.PyJWK(caller["private_jwk"], algorithm).key.public_key(), algorithms=[algorithm],
        audience=caller["issuer"], issuer="demo", options={"strict_aud": True, "require": ["jti", "iat", "exp"]},
    )  # fmt: skip
    assert claims["sub"] == "demo"
    assert claims["exp"] - claims["iat"] <= 60


async def test_a_retry_keeps_the_key_and_is_signed_anew(listener: Listener, language: str) -> None:
    caller = caller_of(listener, "ed25519")
    listener.next = [web.json_response({}, status=503, headers={"Retry-After": "1"}), None]
    assert await call(language, caller, "effect", REPORT, {"n": 1}, "key-1") == 200
    assert [message.headers["idempotency-key"] for message in listener.seen] == ["key-1"] * 3
    assert len({message.body for message in listener.seen}) == len(listener.assertions) == 1
    first, second, third = (oracle.verify(message, caller["signing"]) for message in listener.seen)
    assert first < second < third


async def test_a_token_is_asked_for_again_with_another_assertion(listener: Listener, language: str) -> None:
    """A proxy may name a date."""
    caller, listener.refuses_tokens = caller_of(listener, "ed25519"), ["Wed, 21 Oct 2065 07:28:00 GMT", "0"]
    assert await call(language, caller, "effect", REPORT, {"n": 1}, "key-1") == 200
    assert (len(set(listener.assertions)), len(listener.seen)) == (3, 1)
    first, second, third = listener.asked_for_token
    assert second - first >= 1 and third - second < second - first


async def test_a_token_that_is_not_given_is_not_asked_for_by_every_try_of_an_effect(
    listener: Listener, tmp_path: Path, language: str
) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(caller_of(listener, "ed25519")))
    listener.refuses_tokens = ["0"] * 100
    ended = await command(language, file, "lose", *CARD)
    assert ended.code == 1 and ended.err.splitlines()[-1].endswith("no token: 503 {}")
    assert (len(listener.assertions), listener.seen) == (4, [])


async def test_a_retry_has_a_token_that_lasts(listener: Listener, language: str) -> None:
    """Else its last try may be answered 401 where an earlier one has had its effect."""
    caller, listener.token_lasts_s, listener.refuses_first = caller_of(listener, "ed25519"), 30, True
    assert await call(language, caller, "effect", REPORT, {"n": 1}, "key-1") == 200
    assert (len(set(listener.assertions)), len(listener.seen)) == (2, 2)


async def test_a_redirect_is_no_success(listener: Listener, tmp_path: Path, language: str) -> None:
    """As of a proxy that wants somebody to log in. Nobody is followed with a token and a signature."""
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(caller_of(listener, "ed25519")))
    listener.next = [web.Response(status=302, headers={"Location": "/elsewhere"}) for _ in range(4)]
    assert (await command(language, file, "release", "r-1", "key-1")).code == 1
    assert {message.url for message in listener.seen} == {f"{listener.url}{REPORT}/r-1/release"}


async def test_a_key_that_is_none_is_told_at_once(listener: Listener, tmp_path: Path, language: str) -> None:
    file = tmp_path / "demo.json"
    caller = caller_of(listener, "ed25519")
    file.write_text(json.dumps(caller | {"signing": caller["signing"] | {"private_jwk": {"kty": "OKP", "d": "AA"}}}))
    began = time.monotonic()
    ended = await command(language, file, "lose", *CARD)
    assert (ended.code, ended.out, listener.seen) == (1, "", [])
    assert time.monotonic() - began < 6, "as long as four tries take at least"


async def test_who_was_refused_together_does_not_come_back_together(listener: Listener, language: str) -> None:
    caller, listener.refuses_first = caller_of(listener, "ed25519"), True
    keys = [f"key-{number}" for number in range(12)]
    assert await asyncio.gather(*(call(language, caller, "effect", REPORT, {}, key) for key in keys)) == [200] * 12
    waits = [second - first for first, second in listener.came.values()]
    assert min(waits) >= 0.99, "not before Retry-After"
    assert max(waits) - min(waits) > 0.1, "in step"  # by chance once in millions of runs


async def test_a_caller_without_a_signing_key_sends_unsigned(listener: Listener, language: str) -> None:
    caller = {name: value for name, value in caller_of(listener, "ed25519").items() if name != "signing"}
    assert await call(language, caller, "effect", REPORT, {"n": 1}, "key-1") == 200
    headers = listener.seen[0].headers
    assert (headers["authorization"], headers["idempotency-key"]) == ("Bearer a.b.c", "key-1")
    assert not {"signature", "signature-input", "content-digest"} & set(headers)


async def test_a_refusal_is_final(listener: Listener, tmp_path: Path, language: str) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(caller_of(listener, "ed25519")))
    listener.next = [web.json_response({"code": "validation_failed"}, status=422)]
    ended = await command(language, file, "lose", *CARD)
    assert (ended.code, json.loads(ended.out)) == (1, {"code": "validation_failed"})
    assert len(listener.seen) == 1
    key = listener.seen[0].headers["idempotency-key"]
    assert ended.err.split() == ["Idempotency-Key:", key, "422"]


async def test_the_command_line_says_how_it_is_used(listener: Listener, tmp_path: Path, language: str) -> None:
    file = tmp_path / "demo.json"
    file.write_text(json.dumps(caller_of(listener, "ed25519")))
    for arguments in [("lose",), ("rotate", "x"), ("constructor",)]:
        ended = await command(language, file, *arguments)
        assert (ended.code, ended.out) == (1, "")
        assert "CALLER_FILE lose CARD_NUMBER CARD_IDENTIFIER [IDEMPOTENCY_KEY]" in ended.err
    ended = await command(language, file, "visit", *CARD, "library.door", "T-1", "{no JSON")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 2), ended.err
    assert listener.seen == []


async def test_a_gateway_that_is_not_there_is_told_in_one_line(
    listener: Listener, tmp_path: Path, language: str
) -> None:
    file = tmp_path / "demo.json"
    nobody = caller_of(listener, "ed25519") | {"token_url": f"http://127.0.0.1:{free_port()}/oauth2/token"}
    file.write_text(json.dumps(nobody))
    ended = await command(language, file, "token")
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (1, "", 1)
    assert "refused" in ended.err.lower()
