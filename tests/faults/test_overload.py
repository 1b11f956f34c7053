"""More verifies than the database takes: who finds the queue full is refused at once, who is taken is served."""

import asyncio
import time
from collections import Counter
from pathlib import Path

import asyncpg
import pytest

from tests.faults.home import Figure, Home, configured, locked
from tests.faults.load import ANSWER_S, SLACK_S, Load, Outcome, check
from tests.faults.waiting import until
from tests.faults.wire import Answer, get, verify, wires
from tests.running import BUSY, Client

AT_ONCE_S = 0.25
AGAIN_S = 2.0 * BUSY
BATCH_MAX, QUEUE_MAX = 4, 8
ASKED = 48

STATEMENT_S = 0.15
OVERLOAD_S = 3.0
GOODPUT_SHARE = 0.6


@pytest.fixture
def small(tenant: Home, tmp_path: Path) -> Home:
    """A gateway whose queue takes a handful."""
    return configured(tenant, tmp_path / "config", **{"verify.batch_max": BATCH_MAX, "verify.queue_max": QUEUE_MAX})


@pytest.fixture
def slow(tenant: Home, tmp_path: Path) -> Home:
    """A gateway that takes many, on a database that takes few."""
    return configured(tenant, tmp_path / "config", **{"verify.batch_max": BATCH_MAX})


async def flood(home: Home) -> tuple[list[tuple[Answer, float]], float]:
    """Many verifies at once while the database is held up.

    Returns the answers, each with its seconds, and the seconds to the first verdict when the database goes on.
    """
    async with Client(home.running, "demo-merchant") as client:
        authorization = (await client.authorization())["Authorization"]
    async with wires(home.running.port, ASKED) as opened:
        await asyncio.gather(*(wire.ask(get("/.well-known/jwks.json")) for wire in opened))

        async def ask(number: int) -> tuple[Answer, float]:
            began = time.monotonic()
            answer = await opened[number].ask(verify(authorization, f"of-{number}", number))
            return answer, time.monotonic() - began

        async def served() -> bool:
            return (await ask(0))[0].status == 200

        async with locked(home.dsn, "usage_event"):
            answers = await asyncio.gather(*(ask(number) for number in range(ASKED)))
        again = await until(served, AGAIN_S, "a verdict when the database goes on")
    return answers, again


def refused_at_once(answers: list[tuple[Answer, float]]) -> int:
    return sum(answer.status == 503 and answer.body["code"] == "overloaded" and seconds <= AT_ONCE_S
               for answer, seconds in answers)  # fmt: skip


async def test_a_full_queue_refuses_at_once(small: Home, figure: Figure) -> None:
    await small.start()
    answers, again = await flood(small)
    codes = Counter(answer.body["code"] for answer, _ in answers)
    at_once = refused_at_once(answers)
    figure(asked=ASKED, refused_at_once=at_once, slowest_s=max(seconds for _, seconds in answers), serves_again_s=again)
    assert set(codes) == {"overloaded", "unavailable"} and all(answer.status == 503 for answer, _ in answers)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer, _ in answers)
    assert all(seconds <= ANSWER_S + SLACK_S for _, seconds in answers)
    # at most the queue and the batch that is with the database wait
    assert ASKED - QUEUE_MAX - BATCH_MAX <= at_once < ASKED


async def test_control_a_queue_without_bound_is_noticed(small: Home, figure: Figure) -> None:
    await small.start("unbounded_queue")
    answers, _ = await flood(small)
    figure(asked=ASKED, refused_at_once=refused_at_once(answers))
    assert refused_at_once(answers) == 0


async def slow_down(dsn: str) -> None:
    """Every statement that writes events takes so long, one after the other, as on a disk that is busy."""
    owner = await asyncpg.connect(dsn)
    await owner.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM pg_advisory_xact_lock(1); PERFORM pg_sleep({STATEMENT_S}); RETURN NULL; END $$;"
        "CREATE TRIGGER slow AFTER INSERT ON usage_event FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    await owner.close()


async def overload(home: Home, prefix: str) -> tuple[Load, float]:
    """A load of several times what a slow database takes. Returns it, and the share of the capacity that was used."""
    await slow_down(home.dsn)
    async with home.load(prefix, connections=64, seconds_max=OVERLOAD_S) as load:
        await until(lambda: load.ended, OVERLOAD_S + 5, "the end of the load")
    return load, load.history.acknowledged / (BATCH_MAX / STATEMENT_S * OVERLOAD_S)


async def test_an_overloaded_gateway_stays_useful(slow: Home, figure: Figure) -> None:
    """Who waits too long is let go before the statement: no batch fails because one of it is late."""
    await slow.start()
    load, share = await overload(slow, "ou")
    findings = await check(slow.dsn, load.history, "ou")
    figure(
        asked=findings.asked, acks=findings.acknowledged, share_of_capacity=share, slowest_s=load.history.slowest_s,
        events_of_refused=findings.events - findings.acknowledged,
    )  # fmt: skip
    assert findings.clean, findings
    assert load.history.broken_promises() == []
    assert not load.history.of(Outcome.UNKNOWN)
    assert share >= GOODPUT_SHARE


async def test_control_batches_that_fail_for_one_are_noticed(slow: Home, figure: Figure) -> None:
    await slow.start("one_late_fails_all")
    load, share = await overload(slow, "oc")
    figure(asked=len(load.history.attempts), acks=load.history.acknowledged, share_of_capacity=share)
    assert share < GOODPUT_SHARE
