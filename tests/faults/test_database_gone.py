"""A database that does not answer: 503 with Retry-After within a second, no verdict, and service by itself after."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
import asyncpg

from gateway.store.migrate import migrate
from tests.faults.home import Figure, Home, locked
from tests.faults.load import ANSWER_S, SLACK_S, VERIFY, Outcome, check
from tests.faults.waiting import send, tree, until
from tests.registry import CARDS
from tests.running import BUSY, Client, verify_body

AGAIN_S = 5.0 * BUSY
FREED_S = 2.0
ON_ITS_WAY_S = 0.2
"""What the database had answered before it stood still has reached our client by then."""
ACQUIRED_S = 0.25 + SLACK_S
GIVE_UP_S = 1.0
EFFECT_S = 3.0
"""deadline_ms of [effects] (config/gateway.toml)."""
POOL = 4
"""Connections of one worker's pool (config/gateway.toml)."""


class Answer(NamedTuple):
    """How a request of the ordinary kind was answered."""

    status: int
    retry_after: str | None
    seconds: float
    within_s: float = ANSWER_S

    @property
    def in_time(self) -> bool:
        return self.status == 503 and bool(self.retry_after) and self.seconds <= self.within_s + SLACK_S


async def timed(asking: Awaitable[aiohttp.ClientResponse], within_s: float = ANSWER_S) -> Answer:
    began = time.monotonic()
    try:
        async with asyncio.timeout(within_s + GIVE_UP_S):
            answer = await asking
            await answer.read()
    except TimeoutError:
        return Answer(0, None, time.monotonic() - began, within_s)
    return Answer(answer.status, answer.headers.get("Retry-After"), time.monotonic() - began, within_s)


async def ask_token(client: Client) -> Answer:
    form = {
        "grant_type": "client_credentials", "client_assertion": client.assertion(),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }  # fmt: skip
    return await timed(client.session.post("/oauth2/token", data=form))


async def ask_feed(bureau: Client) -> Answer:
    return await timed(bureau.session.get("/v1/usage-events", headers=await bureau.authorization()))


async def ask_once(merchant: Client, key: str) -> Answer:
    """A verify with an Idempotency-Key: an effect, with the deadline of effects."""
    body = verify_body(CARDS[0].number, CARDS[0].identifier, terminal_id="once")
    headers = await merchant.authorization() | {"Idempotency-Key": key}
    return await timed(merchant.session.post(VERIFY, json=body, headers=headers), EFFECT_S)


@asynccontextmanager
async def callers(home: Home) -> AsyncIterator[tuple[Client, Client]]:
    """A merchant and the bureau, each with a token."""
    async with Client(home.running, "demo-merchant") as merchant, Client(home.running, "demo-bureau") as bureau:
        await asyncio.gather(merchant.token(), bureau.token())
        yield merchant, bureau


async def both_answer(merchant: Client, bureau: Client) -> bool:
    answers = await asyncio.gather(ask_token(merchant), ask_feed(bureau))
    return [answer.status for answer in answers] == [200, 200]


async def stand_still(home: Home, prefix: str, each: int) -> tuple[list[str], float, float, float]:
    """SIGSTOP of all of PostgreSQL under load until `each` requests a connection have ended, then SIGCONT.

    Returns the broken promises, the seconds to the first verdict after, and the seconds of the slowest verify
    and of the slowest other request.
    """
    connections = 16
    async with callers(home) as (merchant, bureau), home.load(prefix, connections=connections) as load:
        await until(lambda: load.history.acknowledged >= 100, 15, "100 verdicts")
        processes = tree(home.postmaster)
        send(processes, signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            others = await asyncio.gather(
                *(ask_once(merchant, f"{prefix}-{number}") for number in range(POOL)),
                *(ask_token(merchant) for _ in range(POOL)), ask_feed(bureau), ask_feed(bureau),
            )  # fmt: skip
            await until(
                lambda: sum(one.ended > stopped + ON_ITS_WAY_S for one in load.history.attempts) >= each * connections,
                each * GIVE_UP_S + 5, "answers while the database stands still",
            )  # fmt: skip
        finally:
            send(processes, signal.SIGCONT)
        continued = time.monotonic()
        await until(lambda: bool(load.history.ok_since(continued)), AGAIN_S, "a verdict after SIGCONT")
        again = min(attempt.ended for attempt in load.history.ok_since(continued)) - continued
        await until(lambda: both_answer(merchant, bureau), AGAIN_S, "tokens and the feed after SIGCONT")
    broken = load.history.broken_promises()
    broken += [f"verdict asked at {one.began - stopped:.2f} s" for one in load.history.attempts
               if one.outcome is Outcome.OK and stopped < one.began and one.ended < continued]  # fmt: skip
    broken += [f"other: {one.status or 'nothing'} after {one.seconds:.2f} s" for one in others if not one.in_time]
    broken += [one.outcome.value for one in load.history.attempts if not one.status]
    findings = await check(home.dsn, load.history, prefix)
    assert findings.clean, findings
    return broken, again, load.history.slowest_s, max(one.seconds for one in others)


async def test_a_database_that_stands_still(home: Home, figure: Figure) -> None:
    await home.start()
    broken, again, slowest, slowest_other = await stand_still(home, "ds", each=3)
    figure(serves_again_s=again, slowest_verify_s=slowest, slowest_other_s=slowest_other, broken_promises=len(broken))
    assert broken == []


async def test_control_a_gateway_without_deadline_is_noticed(home: Home, figure: Figure) -> None:
    await home.start("no_deadline")
    broken, _, _, _ = await stand_still(home, "dc", each=1)
    figure(broken_promises=len(broken))
    assert any("200 after" in line or line == "unknown" for line in broken), broken


async def exhaust_pool(tenant: Home) -> tuple[list[Answer], list[Answer], float]:
    """Hold every connection of the pool in a statement.

    Returns the answers to those who found none, the answers to those who came before, and the seconds of recovery.
    """
    async with callers(tenant) as (merchant, bureau):
        async with locked(tenant.dsn, "client_assertion"):
            tokens = [asyncio.create_task(ask_token(merchant)) for _ in range(2 * POOL)]
            await until(lambda: _waiting_for_lock(tenant.dsn, POOL), 5, "the pool is in use")
            feeds = await asyncio.gather(*(ask_feed(bureau) for _ in range(3)))
            for card in CARDS:  # the verdicts have a connection of their own
                assert (await merchant.verify(card.number, card.identifier))["reason"] == card.reason
            answers = await asyncio.gather(*tokens)
        return feeds, answers, await until(lambda: both_answer(merchant, bureau), FREED_S, "tokens and the feed again")


async def _waiting_for_lock(dsn: str, count: int) -> bool:
    connection = await asyncpg.connect(dsn)
    try:
        waiting: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock' AND application_name = 'yikatong serve'"
        )
    finally:
        await connection.close()
    return waiting >= count


async def test_an_exhausted_pool_refuses_in_time(tenant: Home, figure: Figure) -> None:
    """Also who holds a connection of the pool gets an answer: a statement has no more time than its caller."""
    await tenant.start()
    without, with_one, freed = await exhaust_pool(tenant)
    figure(
        without_connection_s=max(answer.seconds for answer in without),
        with_connection_s=max(answer.seconds for answer in with_one), recovery_s=freed,
    )  # fmt: skip
    assert [answer for answer in without + with_one if not answer.in_time] == []
    assert all(answer.seconds <= ACQUIRED_S for answer in without)


async def test_control_waiting_for_the_pool_is_noticed(tenant: Home, figure: Figure) -> None:
    await tenant.start("no_acquire_timeout")
    without, _, _ = await exhaust_pool(tenant)
    figure(without_connection_s=max(answer.seconds for answer in without))
    assert not all(answer.seconds <= ACQUIRED_S for answer in without)


async def without_partition(tenant: Home, prefix: str) -> tuple[int, int, float]:
    """Take the partitions away under load. Returns (verdicts, 503s) without them, seconds to the next verdict."""
    async with tenant.load(prefix, connections=8) as load:
        await until(lambda: load.history.acknowledged >= 50, 15, "50 verdicts")
        owner = await asyncpg.connect(tenant.dsn)
        try:
            for name in await owner.fetch("SELECT inhrelid::regclass::text FROM pg_inherits"
                                          " WHERE inhparent = 'usage_event'::regclass"):  # fmt: skip
                await owner.execute(f"DROP TABLE {name[0]}")
        finally:
            await owner.close()
        gone = time.monotonic()
        await until(lambda: sum(one.began > gone for one in load.history.attempts) >= 100, 15, "100 answers")
        without = [attempt for attempt in load.history.attempts if attempt.began > gone]
        verdicts = len(load.history.ok_since(gone))
        refusals = sum(attempt.status == 503 and bool(attempt.retry_after) for attempt in without)
        assert verdicts + refusals == len(without)
        await migrate(tenant.dsn)
        made = time.monotonic()
        await until(lambda: bool(load.history.ok_since(made)), AGAIN_S, "a verdict with a new partition")
        again = min(attempt.ended for attempt in load.history.ok_since(made)) - made
    return verdicts, refusals, again


async def test_an_event_that_has_no_partition_refuses_the_verdict(tenant: Home, figure: Figure) -> None:
    await tenant.start()
    verdicts, refusals, again = await without_partition(tenant, "dp")
    assert verdicts == 0
    figure(refused=refusals, serves_again_s=again)


async def test_control_a_verdict_without_event_is_noticed(tenant: Home, figure: Figure) -> None:
    await tenant.start("verdict_without_event")
    verdicts, _, _ = await without_partition(tenant, "dv")
    assert verdicts > 0
    figure(verdicts_without_event=verdicts)
