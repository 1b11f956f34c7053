"""The quota of a caller, over all workers together (demo-limited: 10 requests a second, bursts of one second)."""

import asyncio
import time

import aiohttp

from tests.running import Client, Running, verify_body

RATE, BURST, SECONDS = 10, 10, 2.0
BODY = verify_body("QX0000000", "0" * 32)


async def hammer(client: Client, connections: int, seconds: float) -> tuple[list[aiohttp.ClientResponse], float]:
    """Ask as fast as it goes, each time on a new connection so that both workers get their share."""
    answers: list[aiohttp.ClientResponse] = []
    headers = await client.authorization()
    began = time.monotonic()

    async def one_after_the_other(session: aiohttp.ClientSession) -> None:
        while time.monotonic() - began < seconds:
            async with session.post("/v1/cards/verify", json=BODY, headers=headers) as answer:
                await answer.read()
                answers.append(answer)

    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(base_url=client.gateway.url, connector=connector) as session:
        await asyncio.gather(*(one_after_the_other(session) for _ in range(connections)))
    return answers, time.monotonic() - began


async def test_a_limited_caller_gets_its_rate_over_both_workers_and_no_more(gateway: Running) -> None:
    assert len(gateway.children("serve-worker")) == 2
    async with Client(gateway, "demo-limited") as limited:
        answers, seconds = await hammer(limited, 6, SECONDS)
    served = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(served) + len(refused) == len(answers) > 100
    # two workers counting for themselves would let 2 * (BURST + RATE * seconds) through
    assert BURST * 0.8 + RATE * SECONDS * 0.8 <= len(served) <= BURST + RATE * seconds + 4
    for answer in refused:
        assert answer.content_type == "application/problem+json"
        assert 1 <= int(answer.headers["Retry-After"]) <= 2
        assert answer.headers["RateLimit-Limit"] == str(RATE)
        assert answer.headers["RateLimit-Remaining"] == "0"
        assert 0 <= int(answer.headers["RateLimit-Reset"]) <= 2


async def test_a_limited_caller_may_come_back_after_the_time_it_was_told(gateway: Running) -> None:
    async with Client(gateway, "demo-limited") as limited:
        answers, _ = await hammer(limited, 2, 0.5)
        told = max((int(answer.headers["Retry-After"]) for answer in answers if answer.status == 429), default=0)
        assert told >= 1, "it was over its quota"
        await asyncio.sleep(told)
        status, _, _ = await limited.post("/v1/cards/verify", BODY)
    assert status == 200


async def test_another_caller_has_no_quota(merchant: Client) -> None:
    answers, _ = await hammer(merchant, 6, 0.5)
    assert len(answers) > 50 and {answer.status for answer in answers} == {200}
