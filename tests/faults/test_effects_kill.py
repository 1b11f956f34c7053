"""Effects while processes are killed or stopped: what was acknowledged is there once, and a retry ends the rest."""

import asyncio
import base64
import contextlib
import json
import random
import secrets
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, TypeVar
from uuid import UUID

import aiohttp
import asyncpg
import psutil
import pytest

from gateway.crypto.key_files import open_folder
from tests.faults.home import Figure, Home
from tests.faults.waiting import gone, send, tree, until
from tests.registry import TestCard, add_cards, new_card
from tests.running import Client
from tests.signing import Signing, signed_headers

PATH = "/v1/cards/loss-reports"
DEADLINE_S = 3.0  # deadline_ms of [effects]
SLACK_S = 0.5
AGAIN_S = 15.0
CARDS = 40

_random = random.Random(20261123)

HOLD = """
CREATE TABLE IF NOT EXISTS hold (held boolean);
GRANT SELECT ON hold TO yikatong_app;
CREATE OR REPLACE FUNCTION wait_while_held() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    WHILE EXISTS (SELECT FROM hold) LOOP PERFORM pg_sleep(0.02); END LOOP;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER hold BEFORE INSERT ON operation FOR EACH ROW EXECUTE FUNCTION wait_while_held();
"""
"""A place between claim and commit where a transaction stands for as long as the table has a row."""


class Wanted(NamedTuple):
    """One effect, signed once: a retry is the same bytes, and its operation is known by the signature."""

    headers: dict[str, str]
    body: bytes
    path: str = PATH

    @property
    def signature(self) -> bytes:
        return base64.b64decode(self.headers["Signature"].removeprefix("sig1=:").removesuffix(":"))


class Outcome(NamedTuple):
    """`status` 0: no answer came."""

    status: int
    body: bytes
    replayed: bool
    retry_after: bool
    seconds: float


class Desk:
    """A kiosk that reports cards lost; it remembers what it was told about each effect."""

    def __init__(self, home: Home, client: Client, cards: list[TestCard]) -> None:
        self.home = home
        self.client = client
        self.cards = cards
        self.signing = Signing.of(client.file)
        self.token = ""
        self.told: dict[bytes, tuple[Wanted, list[Outcome]]] = {}

    def wanted(self) -> Wanted:
        card = _random.choice(self.cards)
        return self.signed(PATH, {"card_number": card.number, "id_number": card.id_number, "kind": "temporary"})

    def signed(self, path: str, body: object) -> Wanted:
        raw, key = json.dumps(body).encode(), secrets.token_urlsafe(16)
        host, token = f"127.0.0.1:{self.home.running.port}", f"Bearer {self.token}"
        return Wanted(signed_headers(self.signing, "POST", host, path, raw, token, key=key), raw, path)

    async def ask(self, session: aiohttp.ClientSession, wanted: Wanted) -> Outcome:
        began = time.monotonic()
        try:
            async with session.post(wanted.path, data=wanted.body, headers=wanted.headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError):
            outcome = Outcome(0, b"", False, False, time.monotonic() - began)
        else:
            replayed, retry_after = "Idempotency-Replayed" in answer.headers, "Retry-After" in answer.headers
            outcome = Outcome(answer.status, body, replayed, retry_after, time.monotonic() - began)
        self.told.setdefault(wanted.signature, (wanted, []))[1].append(outcome)
        return outcome

    async def until_done(self, session: aiohttp.ClientSession, wanted: Wanted, within_s: float = AGAIN_S) -> Outcome:
        """Retry the same bytes until there is an answer of 200."""
        last = Outcome(0, b"", False, False, 0.0)

        async def done() -> bool:
            nonlocal last
            last = await self.ask(session, wanted)
            return last.status == 200

        await until(done, within_s, "the retry is carried out")
        return last

    @property
    def acknowledged(self) -> int:
        return sum(any(outcome.status == 200 for outcome in outcomes) for _, outcomes in self.told.values())


DeskKind = TypeVar("DeskKind", bound=Desk)


@contextlib.asynccontextmanager
async def desk_at(home: Home) -> AsyncIterator[tuple[Desk, aiohttp.ClientSession]]:
    """With cards of its own and connections that are not kept."""
    cards = [new_card() for _ in range(CARDS)]
    await add_cards(home.dsn, open_folder(home.data_dir / "keys"), tuple(cards))
    async with connected(home, cards, Desk) as both:
        yield both


@contextlib.asynccontextmanager
async def connected(
    home: Home, cards: list[TestCard], kind: Callable[[Home, Client, list[TestCard]], DeskKind]
) -> AsyncIterator[tuple[DeskKind, aiohttp.ClientSession]]:
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    timeout = aiohttp.ClientTimeout(total=20)
    async with (
        Client(home.running, "demo-kiosk") as client,
        aiohttp.ClientSession(home.running.url, connector=connector, timeout=timeout) as session,
    ):
        desk = kind(home, client, cards)
        desk.token = await client.token()
        yield desk, session


async def set_hold(home: Home, held: bool) -> None:
    async def changed() -> bool:
        try:
            connection = await asyncpg.connect(home.dsn, timeout=2)
        except (OSError, asyncpg.PostgresError):  # it is just starting again
            return False
        try:
            if held:  # the trigger is made while no transaction stands at it
                await connection.execute(HOLD)
                await connection.execute("INSERT INTO hold VALUES (true)")
            elif await connection.fetchval("SELECT to_regclass('hold') IS NOT NULL"):
                await connection.execute("DELETE FROM hold")
        finally:
            await connection.close()
        return True

    await until(changed, AGAIN_S, "the database takes the hold")


async def until_it_stands(home: Home) -> None:
    """A transaction of effects has claimed its keys and waits before its commit."""
    connection = await asyncpg.connect(home.dsn)
    try:

        async def stands() -> bool:
            return bool(
                await connection.fetchval(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'yikatong effects'"
                    " AND wait_event = 'PgSleep' AND datname = current_database())"
                )
            )

        await until(stands, 2, "a transaction stands between claim and commit")
    finally:
        await connection.close()


class Findings(NamedTuple):
    acknowledged: int
    rows: int
    lost: int
    """Acknowledged effects without an operation, or with one of another reference."""
    doubled: int
    """Effects with two operations."""
    differing: int
    """Effects whose answers of 200 were not the same bytes."""

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.differing)


async def check(desk: Desk) -> Findings:
    """Compare what the desk was told with the operations in the database, read as the tables' owner."""
    connection = await asyncpg.connect(desk.home.dsn)
    try:
        found = await connection.fetch(
            "SELECT signature, reference FROM operation WHERE signature = ANY($1)", list(desk.told)
        )
    finally:
        await connection.close()
    return compare(desk.told, [(row["signature"], row["reference"]) for row in found])


def compare(told: dict[bytes, tuple[Wanted, list[Outcome]]], rows: list[tuple[bytes, UUID]]) -> Findings:
    counts, references = Counter(signature for signature, _ in rows), {str(reference) for _, reference in rows}
    acknowledged = lost = differing = 0
    for signature, (_, outcomes) in told.items():
        bodies = {outcome.body for outcome in outcomes if outcome.status == 200}
        acknowledged += bool(bodies)
        differing += len(bodies) > 1
        lost += bool(bodies) and not {json.loads(body)["reference"] for body in bodies} <= references
        lost += bool(bodies) and not counts[signature]
    return Findings(acknowledged, len(rows), lost, sum(count - 1 for count in counts.values()), differing)


def postgres_of(home: Home) -> list[psutil.Process]:
    return tree(home.postmaster)


# --- at one place -----------------------------------------------------------------------------------------------


async def kill_between_claim_and_commit(home: Home, desk: Desk, session: aiohttp.ClientSession, what: str) -> Wanted:
    """Returns the effect that stood there; nothing of it may be left."""
    await set_hold(home, True)
    wanted = desk.wanted()
    asking = asyncio.create_task(desk.ask(session, wanted))
    await until_it_stands(home)
    processes = postgres_of(home) if what == "postgres" else home.workers()
    send(processes, signal.SIGKILL)
    await gone(processes, 5)
    first = await asking
    assert (first.status, first.retry_after) == ((503, True) if what == "postgres" else (0, False)), first
    await set_hold(home, False)
    return wanted


@pytest.mark.parametrize("what", ["gateway", "postgres"])
async def test_killed_between_claim_and_commit_the_retry_runs_once(home: Home, what: str) -> None:
    await home.start()
    async with desk_at(home) as (desk, session):
        wanted = await kill_between_claim_and_commit(home, desk, session, what)
        done = await desk.until_done(session, wanted)
        assert not done.replayed, "the first one left nothing"
        again = await desk.ask(session, wanted)
        assert again.replayed and again.body == done.body
        findings = await check(desk)
        assert findings.clean and (findings.acknowledged, findings.rows) == (1, 1), findings


async def test_control_a_claim_that_is_committed_apart_is_noticed(home: Home) -> None:
    """The retry finds its key taken by a use that never ended."""
    await home.start("claim_apart")
    async with desk_at(home) as (desk, session):
        wanted = await kill_between_claim_and_commit(home, desk, session, "gateway")
        with pytest.raises(AssertionError, match="the retry is carried out"):
            await desk.until_done(session, wanted, within_s=2)
        assert (await check(desk)).rows == 0


async def stop_postgres(home: Home, desk: Desk, session: aiohttp.ClientSession) -> tuple[list[Wanted], list[Outcome]]:
    """While one effect stands between claim and commit; more come while it is stopped. What they are told in time."""
    effects = [desk.wanted() for _ in range(24)]
    await set_hold(home, True)
    asking = [asyncio.create_task(desk.ask(session, effects[0]))]
    await until_it_stands(home)
    stopped = postgres_of(home)
    send(stopped, signal.SIGSTOP)
    try:
        asking += [asyncio.create_task(desk.ask(session, wanted)) for wanted in effects[1:]]
        await asyncio.wait(asking, timeout=DEADLINE_S + SLACK_S)
    finally:
        send(stopped, signal.SIGCONT)
    told = [task.result() for task in asking if task.done()]
    await set_hold(home, False)
    await asyncio.gather(*asking)
    return effects, told


async def test_a_stopped_postgres_is_answered_in_time_and_does_nothing_twice_when_it_goes_on(
    home: Home, figure: Figure
) -> None:
    await home.start()
    async with desk_at(home) as (desk, session):
        effects, told = await stop_postgres(home, desk, session)
        assert len(told) == len(effects), "all are answered by the deadline"
        assert {(outcome.status, outcome.retry_after) for outcome in told} == {(503, True)}
        for wanted in effects:
            await desk.until_done(session, wanted)
        findings = await check(desk)
    slowest = max(outcome.seconds for outcome in told)
    figure(slowest_s=slowest, acks=findings.acknowledged, rows=findings.rows, doubled=findings.doubled)
    assert findings.clean and findings.acknowledged == findings.rows == 24, findings


async def test_control_a_rollback_that_is_waited_for_is_noticed(home: Home) -> None:
    await home.start("effect_waits_for_rollback")
    async with desk_at(home) as (desk, session):
        effects, told = await stop_postgres(home, desk, session)
    assert len(told) < len(effects)


# --- at random moments ------------------------------------------------------------------------------------------


async def kill_under_load(home: Home, desk: Desk, session: aiohttp.ClientSession, what: str) -> None:
    """Many effects at once, a kill in the midst of them, then every one of them is retried until it is done."""
    begun: list[Wanted] = []
    stopping = False

    async def keep_asking() -> None:
        while not stopping:
            begun.append(wanted := desk.wanted())
            if (await desk.ask(session, wanted)).status != 200:
                await asyncio.sleep(0.01)  # a caller that is refused does not ask again at once

    askers = [asyncio.create_task(keep_asking()) for _ in range(24)]
    acks = desk.acknowledged + _random.randint(30, 200)
    await until(lambda: desk.acknowledged >= acks, 20, f"{acks} acknowledged effects")
    processes = postgres_of(home) if what == "postgres" else home.workers()
    send(processes, signal.SIGKILL)
    await gone(processes, 5)
    stopping = True
    await asyncio.gather(*askers)
    await check_is_possible(home)


async def check_is_possible(home: Home) -> None:
    async def reachable() -> bool:
        try:
            await (await asyncpg.connect(home.dsn, timeout=2)).close()
        except (OSError, asyncpg.PostgresError):
            return False
        return True

    await until(reachable, AGAIN_S, "the database is back")


@pytest.mark.parametrize("what", ["gateway", "postgres"])
async def test_killed_under_load_every_effect_is_carried_out_once(
    home: Home, cycles: int, what: str, figure: Figure
) -> None:
    totals: Counter[str] = Counter()
    for cycle in range(cycles):
        if cycle % 2 == 0:  # a supervisor gives up when its workers end too often
            await home.end()
            await home.start()
        async with desk_at(home) as (desk, session):
            await kill_under_load(home, desk, session, what)
            findings = await check(desk)
            assert findings.clean, findings
            open_ones = [
                wanted for wanted, outcomes in desk.told.values() if all(outcome.status != 200 for outcome in outcomes)
            ]
            for wanted in open_ones:
                await desk.until_done(session, wanted)
            for wanted, _ in list(desk.told.values())[:200]:
                again = await desk.ask(session, wanted)
                assert again.status == 200 and again.replayed
            findings = await check(desk)
            assert findings.clean and findings.acknowledged == findings.rows == len(desk.told), findings
            wrong = {
                outcome.status for _, outcomes in desk.told.values() for outcome in outcomes
            } - {0, 200, 409, 503}  # fmt: skip
            assert not wrong
            totals.update(effects=len(desk.told), retried=len(open_ones), rows=findings.rows)
    figure(kills=cycles, **totals)


async def test_control_answers_before_the_commit_are_noticed(home: Home, figure: Figure) -> None:
    await home.start("effect_answer_before_commit")
    kills, findings = 0, Findings(0, 0, 0, 0, 0)
    while not findings.lost:
        kills += 1
        assert kills <= 5, "the check did not notice a gateway that answers before the commit"
        async with desk_at(home) as (desk, session):
            await kill_under_load(home, desk, session, "gateway")
            findings = await check(desk)
        await home.end()
        await home.start("effect_answer_before_commit")
    figure(kills=kills, acks=findings.acknowledged, lost=findings.lost)
