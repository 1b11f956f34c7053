"""Requests that repeat the header block of the one before, as terminals do: the parser is not asked about them again.

Whatever comes between, each is answered for its own body and by its own headers.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.api.test_raw_http import PATH, both_workers_have_looked
from tests.registry import CARDS
from tests.running import Client, Raw, read_answer, request, verify_body

FIRST, SECOND = (json.dumps(verify_body(card.number, card.identifier)).encode() for card in CARDS[:2])
assert len(FIRST) == len(SECOND)
BLANK = b" " * len(FIRST)


class Talk:
    """One connection; each chunk is read before the next is sent."""

    def __init__(self, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._client, self._reader, self._writer = client, reader, writer

    async def __call__(self, *chunks: bytes) -> Raw:
        for number, chunk in enumerate(chunks):
            if number:
                await both_workers_have_looked(self._client.gateway)
            self._writer.write(chunk)
        return await read_answer(self._reader)

    async def signed(self, body: bytes, number: int = 0, **headers: str | None) -> bytes:
        authorization = f"Bearer {await self._client.token()}"
        return request(
            "POST", PATH, body, **({"authorization": authorization, "x_request_id": f"number-{number}"} | headers)
        )


@pytest.fixture
async def talk(merchant: Client) -> AsyncIterator[Talk]:
    async with _connected(merchant) as one:
        yield one


@asynccontextmanager
async def _connected(client: Client) -> AsyncIterator[Talk]:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.gateway.port)
    try:
        async with asyncio.timeout(20):
            # answered when the request cycle waits: from now on the hot lane may take what comes
            writer.write(request("GET", "/.well-known/jwks.json"))
            assert (await read_answer(reader)).status == 200
            yield Talk(client, reader, writer)
    finally:
        writer.close()


def card_of(answer: Raw) -> str:
    assert answer.status == 200, answer
    reference: str = json.loads(answer.body)["card_ref"]
    return reference


async def test_each_is_answered_for_its_own_body(talk: Talk) -> None:
    first, second = await talk.signed(FIRST), await talk.signed(SECOND)
    cards = [card_of(await talk(sent)) for sent in (first, second, first, first, second)]
    assert len({cards[0], cards[1]}) == 2
    assert cards == [cards[0], cards[1], cards[0], cards[0], cards[1]]
    events = [json.loads((await talk(first)).body)["event_id"] for _ in range(20)]
    assert len(set(events)) == 20


async def test_what_is_refused_among_them_is_refused(talk: Talk) -> None:
    good = await talk.signed(FIRST)
    for body, status in ((BLANK, 400), (b"[]".ljust(len(FIRST)), 422), (FIRST, 200), (b"{}".ljust(len(FIRST)), 422)):
        assert (await talk(good)).status == 200
        assert (await talk(await talk.signed(body))).status == status
    assert (await talk(good)).status == 200


@pytest.mark.parametrize("body", [FIRST, BLANK, FIRST + b" "], ids=["good", "refused", "longer"])
async def test_another_block_among_them_has_its_own_say(talk: Talk, body: bytes) -> None:
    one, other = await talk.signed(FIRST, 1), await talk.signed(body, 2)
    for sent, number in ((one, 1), (one, 1), (other, 2), (one, 1), (other, 2), (other, 2), (one, 1)):
        assert (await talk(sent)).header("X-Request-Id") == f"number-{number}"
    stranger = await talk.signed(FIRST, 3, authorization="Bearer none")
    assert [(await talk(sent)).status for sent in (one, stranger, one, stranger, stranger)] == [200, 401, 200, 401, 401]


CUTS = {"in the request line": 5, "in a header": 60, "in the body": -40, "in the blanks behind it": -20}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
async def test_one_that_comes_in_two_pieces_is_whole(talk: Talk, cut: int) -> None:
    first, second = [await talk.signed(body + b" " * 30) for body in (FIRST, SECOND)]
    card, other = card_of(await talk(first)), card_of(await talk(second))
    assert card_of(await talk(first[:cut], first[cut:])) == card
    assert [card_of(await talk(sent)) for sent in (second, first, second)] == [other, card, other]


async def test_a_chunk_that_only_looked_like_a_request_is_none_the_second_time(talk: Talk) -> None:
    """The first time it was the rest of a header, behind the token: taken by itself it has none."""
    whole = await talk.signed(FIRST, authorization=None)
    before = f"POST {PATH} HTTP/1.1\r\n".encode() + _line(await talk.signed(b""), b"authorization") + b"X-Note: "
    for _ in range(2):
        assert (await talk(before, whole)).status == 200
        assert (await talk(whole)).status == 401


async def test_a_chunk_that_ends_inside_the_next_request_is_not_taken_for_one(talk: Talk) -> None:
    one = await talk.signed(FIRST)
    for _ in range(2):
        assert (await talk(one + one[:40])).status == 200
        assert (await talk(one[40:])).status == 200
    assert (await talk(one[40:])).status == 400, "alone it is none"


def _line(sent: bytes, name: bytes) -> bytes:
    return next(line for line in sent.splitlines(keepends=True) if line.startswith(name))
