"""SIGTERM and Ctrl-C: what has begun is finished, what was answered is kept, and all of it ends in time."""

import asyncio
import signal
import time

import aiohttp
import pytest

from tests.faults.home import Figure, Home, locked
from tests.faults.load import Outcome, check
from tests.faults.waiting import gone, tree, until
from tests.faults.wire import Answer, Wire, get, verify, wires
from tests.registry import CARDS
from tests.running import BUSY, Client

ENDED_S = 5.0 * BUSY
SENT_S = 0.05
"""What our client began so long before the signal was on its way by then."""
FAREWELL_S = 1.0
"""So long open connections are still answered."""
IN_FLIGHT = 24
WAYS: tuple[dict[str, str], ...] = ({}, {"Content_Type": "application/json; charset=utf-8"}, {"Connection": "close"})
"""Headers that send a verify by the hot lane, past aiohttp's request cycle in a task of its own, and by that cycle."""
JWKS = get("/.well-known/jwks.json")

both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


async def stop(home: Home, number: signal.Signals) -> tuple[float, int]:
    """Signal the gateway; returns the seconds until nothing was left of it, and its exit code."""
    processes = tree(home.running.pid)
    assert home.running.process is not None
    began = time.monotonic()
    home.running.process.send_signal(number)
    code = await home.ended(ENDED_S + 5)
    await gone(processes, ENDED_S)
    return time.monotonic() - began, code


@both_signals
async def test_a_stop_under_load_loses_nothing(home: Home, number: signal.Signals, figure: Figure) -> None:
    await home.start()
    async with home.load("sl") as load:
        await until(lambda: load.history.acknowledged >= 300, 15, "300 verdicts")
        signalled = time.monotonic()
        seconds, code = await stop(home, number)
    unanswered = [one for one in load.history.attempts if one.outcome is Outcome.UNKNOWN]
    early = [one for one in unanswered if one.began < signalled - SENT_S]
    await home.start()
    findings = await check(home.dsn, load.history, "sl")
    figure(
        acks=findings.acknowledged, lost=findings.lost, duplicated=findings.duplicated, seconds=seconds,
        cut_after_the_signal=len(unanswered), stored_though_cut=findings.events - findings.acknowledged,
    )  # fmt: skip
    assert findings.clean, findings
    assert findings.events == findings.acknowledged, "an event of a request that was begun and not answered"
    assert (code, early) == (0, [])
    # a connection that was silent for the whole second is closed, and its client may ask in that very moment
    cut = [one for one in unanswered if one.began < signalled + FAREWELL_S - SENT_S]
    assert cut == [], "a connection was closed under a request, although its client heeds Connection: close"
    assert seconds <= ENDED_S


async def ready_status(home: Home) -> int:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{home.running.ops_url}/readyz") as answer:
            return answer.status
    except aiohttp.ClientConnectorError:
        return 0


async def answer_or_none(wire: Wire) -> Answer | None:
    try:
        return await wire.answer()
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return None


async def stop_with_requests_in_flight(tenant: Home, number: signal.Signals) -> tuple[list[int], set[int], int]:
    """Signal a gateway that waits for its database with requests of all WAYS.

    Returns (status of each answer, 0 for none; what readyz said meanwhile; exit code).
    """
    async with Client(tenant.running, "demo-merchant") as client:
        authorization = (await client.authorization())["Authorization"]
    async with wires(tenant.running.port, IN_FLIGHT) as opened:
        await asyncio.gather(*(wire.ask(JWKS) for wire in opened))
        assert await ready_status(tenant) == 200
        said = set()
        async with locked(tenant.dsn, "usage_event"):
            for place, wire in enumerate(opened):
                await wire.send(verify(authorization, f"sf-{place}", place, **WAYS[place % len(WAYS)]))
            stopping = asyncio.create_task(stop(tenant, number))

            async def refuses() -> bool:
                said.add(await ready_status(tenant))
                return 503 in said or 0 in said

            await until(refuses, 0.6, "readyz says that the gateway stops")
        answers = await asyncio.gather(*(answer_or_none(wire) for wire in opened))
    _, code = await stopping
    for place, answer in enumerate(answers):
        if answer is not None and answer.status == 200:
            assert answer.body["reason"] == CARDS[place % len(CARDS)].reason
    return [answer.status if answer else 0 for answer in answers], said, code


@both_signals
async def test_requests_in_flight_are_finished(tenant: Home, number: signal.Signals, figure: Figure) -> None:
    """And readyz says meanwhile that the gateway is about to go."""
    await tenant.start()
    statuses, said, code = await stop_with_requests_in_flight(tenant, number)
    figure(in_flight=IN_FLIGHT, finished=statuses.count(200))
    assert statuses == [200] * IN_FLIGHT
    assert code == 0
    assert 503 in said


async def test_control_an_abrupt_stop_is_noticed(tenant: Home, figure: Figure) -> None:
    await tenant.start("abrupt_stop")
    statuses, _, _ = await stop_with_requests_in_flight(tenant, signal.SIGTERM)
    figure(in_flight=IN_FLIGHT, finished=statuses.count(200))
    assert 0 in statuses


async def ask_after_the_signal(tenant: Home) -> list[Answer | None]:
    """Requests of both lanes, on connections that are idle when a worker is told to stop."""
    async with Client(tenant.running, "demo-merchant") as client:
        authorization = (await client.authorization())["Authorization"]
    async with wires(tenant.running.port, IN_FLIGHT) as opened:
        await asyncio.gather(*(wire.ask(JWKS) for wire in opened))
        stopping = asyncio.create_task(stop(tenant, signal.SIGTERM))
        await until(lambda: "draining" in tenant.running.log, 3, "the worker has begun to stop")
        for place, wire in enumerate(opened):
            await wire.send(JWKS if place % 3 == 0 else verify(authorization, f"si-{place}", place))
        answers = await asyncio.gather(*(answer_or_none(wire) for wire in opened))
        for wire, answer in zip(opened, answers, strict=True):
            assert answer is None or await wire.reader.read() == b"", "and the connection ends"
    await stopping
    return answers


async def test_what_comes_on_an_idle_connection_is_answered_and_told_to_go(tenant: Home, figure: Figure) -> None:
    await tenant.start()
    answers = await ask_after_the_signal(tenant)
    figure(idle=IN_FLIGHT, answered=sum(answer is not None for answer in answers))
    assert [answer and (answer.status, answer.headers.get("connection")) for answer in answers] == [
        (200, "close")
    ] * IN_FLIGHT


async def test_control_idle_connections_closed_at_once_are_noticed(tenant: Home) -> None:
    await tenant.start("no_farewell")
    assert None in await ask_after_the_signal(tenant)


async def test_a_request_that_never_ends_does_not_hold_up_the_stop(home: Home, figure: Figure) -> None:
    """Half a body, and silence."""
    await home.start()
    async with Client(home.running, "demo-merchant") as client:
        whole = verify((await client.authorization())["Authorization"], "sh-0")
    async with wires(home.running.port, 8) as opened:
        for wire in opened:
            await wire.ask(JWKS)
            await wire.send(whole[:-20])
        seconds, code = await stop(home, signal.SIGTERM)
    figure(seconds=seconds)
    assert code == 0
    assert seconds <= ENDED_S
