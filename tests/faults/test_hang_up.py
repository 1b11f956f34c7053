"""Clients that hang up: what was begun is finished and stored, nothing leaks, everybody else is served."""

import asyncio
import itertools
import time
from collections import Counter
from functools import partial
from pathlib import Path

import asyncpg

from tests.faults.home import Figure, Home, configured, locked
from tests.faults.load import Outcome, check
from tests.faults.waiting import until
from tests.faults.wire import Answer, get, verify, wires
from tests.registry import CARDS
from tests.running import Client

HANG_UPS = 500
AT_ONCE = 50
BEGUN = 60
POOLED = 4
"""So many at once fill the pool of one worker (config/gateway.toml)."""
KEYED = 20
"""With an Idempotency-Key: effects."""
STORED_S = 3.0
PIPELINED = 60
HELD_S = 0.4
"""A request that is begun has to be let go on before its own deadline."""

JWKS = get("/.well-known/jwks.json")


async def query(dsn: str, sql: str, *values: object) -> list[asyncpg.Record]:
    owner = await asyncpg.connect(dsn)
    try:
        return await owner.fetch(sql, *values)
    finally:
        await owner.close()


async def connections(home: Home) -> Counter[tuple[str, str]]:
    """The gateway's connections to its database, by name and state."""
    rows = await query(
        home.dsn,
        "SELECT application_name, state FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'yikatong%'",
    )
    return Counter((row[0], row[1]) for row in rows)


async def events(home: Home, prefix: str) -> Counter[str]:
    """How many events each terminal has."""
    rows = await query(home.dsn, "SELECT terminal_id FROM usage_event WHERE starts_with(terminal_id, $1)", prefix)
    return Counter(row[0] for row in rows)


async def use_the_whole_pool(home: Home, client: Client) -> None:
    """Make the gateway open all connections that it may, so that a count before and after compares: those of the pool,
    beside those that it has from its start."""
    async with locked(home.dsn, "client_assertion"):
        asking = [asyncio.create_task(client.ask_token()) for _ in range(POOLED)]
        await until(lambda: _waiting(home, POOLED), 5, "the whole pool is in use")
    await asyncio.gather(*asking)


async def _waiting(home: Home, count: int) -> bool:
    waits = await query(
        home.dsn,
        "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock' AND application_name LIKE 'yikatong%'",
    )
    return len(waits) >= count


async def hang_up_somewhere(home: Home, authorization: str, number: int) -> None:
    """Send a verify, whole or in part, and close the connection in one of several ways."""
    whole = verify(authorization, f"hu-{number}", number)
    once = verify(authorization, f"hu-{number}", number, Idempotency_Key=f"hu-{number}")
    way = number % 6
    sent = [whole, whole, whole, once, whole[: len(whole) // 3], whole[:-40]][way]
    async with wires(home.running.port, 1) as (wire,):
        if number % 4 >= 2:  # on a connection that is already in use
            await wire.ask(JWKS)
        await wire.send(sent)
        if way == 1:
            await wire.reader.read(1)
        wire.hang_up(reset=way in (2, 3))


async def test_clients_that_hang_up_leave_nothing_behind(tenant: Home, cycles: int, figure: Figure) -> None:
    """So many, and twenty times as many with `make faults`."""
    hang_ups = HANG_UPS * max(1, cycles // 5)
    await tenant.start()
    async with Client(tenant.running, "demo-merchant") as client, tenant.load("hl", connections=4) as load:
        authorization = (await client.authorization())["Authorization"]
        await use_the_whole_pool(tenant, client)
        before = sum((await connections(tenant)).values())
        for first in range(0, hang_ups, AT_ONCE):
            await asyncio.gather(
                *(hang_up_somewhere(tenant, authorization, first + number) for number in range(AT_ONCE))
            )
        ended = time.monotonic()
        await until(lambda: len(load.history.ok_since(ended)) >= 20, 5, "verdicts after the hang-ups")
    others = Counter(attempt.outcome for attempt in load.history.attempts)
    assert set(others) == {Outcome.OK}, others
    assert load.history.broken_promises() == []

    async def as_before() -> bool:
        now = await connections(tenant)
        return sum(now.values()) == before and {state for _, state in now} == {"idle"}

    await until(as_before, 5, f"{before} idle database connections, as before")
    found = await events(tenant, "hu-")
    partly = {f"hu-{number}" for number in range(hang_ups) if number % 6 >= 4}
    assert not partly & set(found), "an event of a request that was sent in part"
    assert set(found.values()) <= {1}, "two events of one request"
    assert (await check(tenant.dsn, load.history, "hl")).clean
    figure(hang_ups=hang_ups, events=len(found), connections_before=before, others_served=len(load.history.attempts))


async def hang_up_when_begun(home: Home, prefix: str) -> tuple[int, int, bool]:
    """Hang up while the gateway holds whole requests that it cannot finish yet.

    Returns (requests begun, events stored, whether the pool can be used after).
    """
    async with (
        Client(home.running, "demo-merchant") as client,
        wires(home.running.port, BEGUN + KEYED + 1) as (bystander, *leaving),
    ):
        authorization = (await client.authorization())["Authorization"]
        await asyncio.gather(*(wire.ask(JWKS) for wire in [*leaving, bystander]))
        async with locked(home.dsn, "usage_event"):
            held = time.monotonic()
            for number, wire in enumerate(leaving):
                key = {"Idempotency_Key": f"{prefix}-{number}"} if number >= BEGUN else {}
                await wire.send(verify(authorization, f"{prefix}-{number}", number, **key))
                if number in (0, BEGUN):  # a batch of its own, so that the others wait in the queue
                    await until(partial(_waiting, home, 1 + (number == BEGUN)), 5, "the first is with the database")
            # the gateway reads in order: when it has answered this, it has begun those
            await bystander.ask(JWKS)
            for wire in leaving:
                wire.hang_up()
            await bystander.ask(JWKS)
            await bystander.ask(JWKS)
            held = time.monotonic() - held
        if held > HELD_S:
            return 0, 0, True
        deadline = time.monotonic() + STORED_S
        while len(stored := await events(home, f"{prefix}-")) < len(leaving) and time.monotonic() < deadline:
            await bystander.ask(JWKS)
        assert set(stored.values()) <= {1}
        status, _ = await client.ask_token()
    return len(leaving), len(stored), status == 200


async def hang_up_in_time(home: Home, prefix: str) -> tuple[int, int, bool]:
    """The same, tried again where this machine was too slow to hang up before the requests' deadline."""
    for number in range(5):
        found = await hang_up_when_begun(home, f"{prefix}{number}")
        if found[0]:
            return found
    raise AssertionError("this machine is too slow for this test")


def patient(home: Home, folder: Path) -> Home:
    """Effects wait for a lock as long as this test may hold it."""
    return configured(home, folder / "config", **{"effects.claim_timeout_ms": 1000})


async def test_what_was_begun_is_finished_and_stored(tenant: Home, tmp_path: Path, figure: Figure) -> None:
    await patient(tenant, tmp_path).start()
    begun, stored, pool_is_free = await hang_up_in_time(tenant, "hb")
    figure(begun=begun, stored=stored)
    assert (stored, pool_is_free) == (begun, True)


async def test_control_dropping_what_was_begun_is_noticed(tenant: Home, tmp_path: Path, figure: Figure) -> None:
    await patient(tenant, tmp_path).start("cancel_on_hang_up")
    begun, stored, _ = await hang_up_in_time(tenant, "hc")
    figure(begun=begun, stored=stored)
    assert stored < KEYED, "verifies and effects are dropped"


async def pipelined(home: Home) -> tuple[list[tuple[str, str]], list[Answer]]:
    """Verifies of both lanes between requests of other kinds, in one go and behind one that is on its way.

    Returns the request id and the kind of each, and the answers as they came.
    """
    async with Client(home.running, "demo-merchant") as client:
        authorization = (await client.authorization())["Authorization"]
    asked, requests = [], []
    for number in range(PIPELINED):
        kind = {3: "keys", 5: "once"}.get(number % 7, "verify")
        named = {"X_Request_Id": f"p{number}"} | ({"Idempotency_Key": f"p{number}"} if kind == "once" else {})
        keys = get("/.well-known/jwks.json", **named)
        requests.append(keys if kind == "keys" else verify(authorization, f"pp-{number}", number, **named))
        asked.append((f"p{number}", kind))
    async with wires(home.running.port, 1) as (wire,):
        await wire.ask(JWKS)
        for first, end in itertools.pairwise((0, 1, 2, 5, 20, PIPELINED)):
            await wire.send(b"".join(requests[first:end]))
        return asked, [await wire.answer() for _ in requests]


async def test_pipelined_requests_are_answered_in_their_order(tenant: Home) -> None:
    await tenant.start()
    asked, answers = await pipelined(tenant)
    assert [answer.headers["x-request-id"] for answer in answers] == [request_id for request_id, _ in asked]
    for number, ((_, kind), answer) in enumerate(zip(asked, answers, strict=True)):
        assert answer.status == 200
        assert kind == "keys" or answer.body["reason"] == CARDS[number % len(CARDS)].reason
    assert await events(tenant, "pp-") == Counter(
        f"pp-{number}" for number, (_, kind) in enumerate(asked) if kind != "keys"
    )


async def test_control_answers_out_of_order_are_noticed(tenant: Home) -> None:
    await tenant.start("out_of_order")
    asked, answers = await pipelined(tenant)
    assert [answer.headers["x-request-id"] for answer in answers] != [request_id for request_id, _ in asked]
