"""Idempotency-Key on a verify: honoured if sent (api.md, Operations with effects)."""

import asyncio
import secrets

import pytest
from aiohttp import ClientResponse

from tests.registry import CARDS
from tests.running import Client, eventually, request, send_raw, verify_body

OK = CARDS[0]
PATH = "/v1/cards/verify"


def fresh_key() -> str:
    return secrets.token_urlsafe(16)


async def send(client: Client, key: str, terminal: str, path: str = PATH) -> tuple[ClientResponse, bytes]:
    body = verify_body(OK.number, OK.identifier, "library.loan", terminal_id=terminal)
    headers = await client.authorization() | {"Idempotency-Key": key}
    async with client.session.post(path, json=body, headers=headers) as answer:
        return answer, await answer.read()


async def test_a_repeated_request_is_answered_with_the_same_bytes_and_recorded_once(
    merchant: Client, bureau: Client
) -> None:
    key = fresh_key()
    first, body = await send(merchant, key, "P-replay")
    assert first.status == 200 and "Idempotency-Replayed" not in first.headers
    for _ in range(3):
        again, replayed = await send(merchant, key, "P-replay")
        assert again.status == 200 and replayed == body
        assert again.headers["Idempotency-Replayed"] == "true"
        assert again.headers["Content-Type"] == first.headers["Content-Type"]
        assert again.headers["X-Request-Id"] != first.headers["X-Request-Id"]
    events = await bureau.events_at("P-replay", merchant)
    assert [event["event_id"].encode() in body for event in events] == [True]


async def test_a_key_with_another_request_is_refused(merchant: Client, bureau: Client) -> None:
    key = fresh_key()
    _, body = await send(merchant, key, "P-reused")
    other_body, problem = await send(merchant, key, "P-reused-2")
    assert other_body.status == 422 and b'"idempotency_key_reused"' in problem
    other_query, problem = await send(merchant, key, "P-reused", PATH + "?again=1")
    assert other_query.status == 422 and b'"idempotency_key_reused"' in problem
    assert (await send(merchant, key, "P-reused"))[1] == body
    assert len(await bureau.events_at("P-reused", merchant)) == 1
    assert await bureau.events_at("P-reused-2", merchant) == []


async def test_a_key_belongs_to_its_caller(merchant: Client, kiosk: Client, bureau: Client) -> None:
    key = fresh_key()
    _, mine = await send(merchant, key, "P-shared-key")
    answer, theirs = await send(kiosk, key, "P-shared-key")
    assert answer.status == 200 and "Idempotency-Replayed" not in answer.headers and theirs != mine
    events = await bureau.events_at("P-shared-key", merchant)
    assert sorted(event["caller"] for event in events) == ["demo-kiosk", "demo-merchant"]


async def test_a_refused_verdict_is_replayed_too(merchant: Client) -> None:
    body = verify_body("QX7654321", OK.identifier)
    headers = await merchant.authorization() | {"Idempotency-Key": fresh_key()}
    answers = []
    for _ in range(2):
        async with merchant.session.post(PATH, json=body, headers=headers) as answer:
            answers.append((answer.status, await answer.read()))
    assert answers[0] == answers[1]
    assert answers[0][0] == 200 and b'"unrecognised"' in answers[0][1]


async def test_what_never_began_does_not_use_up_the_key(merchant: Client) -> None:
    key = fresh_key()
    status, _, _ = await merchant.post(PATH, verify_body(OK.number, OK.number), **{"Idempotency-Key": key})
    assert status == 422
    answer, _ = await send(merchant, key, "P-after-422", PATH)
    assert answer.status == 200 and "Idempotency-Replayed" not in answer.headers


async def test_what_is_malformed_is_refused_before_anything_is_claimed(merchant: Client) -> None:
    """So also with a key that has its answer; what only the configuration refuses is told by the claim."""
    key = fresh_key()
    _, first = await send(merchant, key, "P-malformed")
    for body, code in (
        ({"terminal_id": 5}, "validation_failed"),
        (verify_body(OK.number, OK.identifier, "no.such-scene"), "idempotency_key_reused"),
    ):
        status, problem, _ = await merchant.post(PATH, body, **{"Idempotency-Key": key})
        assert (status, problem["code"]) == (422, code)
    assert (await send(merchant, key, "P-malformed"))[1] == first


@pytest.mark.parametrize("key", ["!", "~" * 255, "a-b_c.d:e/f", '"quoted"', "a,b;c=d"])
async def test_visible_ascii_keys_are_accepted(merchant: Client, key: str) -> None:
    assert (await send(merchant, key, "P-keys"))[0].status == 200


@pytest.mark.parametrize(
    "key",
    [b"", b"a" * 256, b"two words", b"tab\tbed", "钥匙".encode(), b"\xff\xfe", b"\x80"],
    ids=["empty", "too long", "blank", "tab", "Chinese", "not UTF-8", "C1 control"],
)
async def test_other_keys_are_malformed(merchant: Client, key: bytes) -> None:
    body = b'{"presentation":{"type":"ecard_code","code":"12345678"},"scene":"parking.exit","terminal_id":"P"}'
    authorization = f"Bearer {await merchant.token()}"
    sent = request("POST", PATH, body, authorization=authorization, idempotency_key=key)
    answer = await send_raw(merchant.gateway.port, sent)
    assert answer.status == 400 and b'"malformed_idempotency_key"' in answer.body
    assert b"tab" not in answer.body and b"aaaa" not in answer.body


async def test_many_at_once_with_one_key_are_one_event(merchant: Client, bureau: Client) -> None:
    """One of them runs; the others get its answer, or are told to come back while it still runs."""
    key, terminal = fresh_key(), "P-at-once"

    async def answered() -> bytes | None:
        answer, body = await send(merchant, key, terminal)
        if answer.status == 200:
            return body
        assert answer.status in (409, 503) and answer.headers["Retry-After"], body
        return None

    async def until_answered() -> bytes:
        body = await eventually(answered, 10, "an answer to a request with a key in use")
        assert body is not None
        return body

    bodies = await asyncio.gather(*(until_answered() for _ in range(32)))
    assert len(set(bodies)) == 1
    assert len(await bureau.events_at(terminal, merchant)) == 1
