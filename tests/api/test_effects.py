"""Idempotent effects: whatever is repeated, crossed or broken, each is carried out once and disturbs no other."""

import asyncio
import itertools
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from gateway.crypto.key_store import open_folder
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import add_card, drop_database, make_database, start_gateway
from tests.faults.planted import plant
from tests.registry import CARDS, TestCard, add_cards, new_card
from tests.running import Client, Running, eventually, request, send_raw, verify_body
from tests.signing import Signing, signed_headers

PATH = "/v1/cards/loss-reports"
MANY = int(os.environ.get("FAULT_CYCLES", "3")) >= 50
REPLAYS = 100_000 if MANY else 1_000
CROSSED = 20_000 if MANY else 2_000


class Answered(NamedTuple):
    status: int
    body: bytes
    headers: Any

    @property
    def replayed(self) -> bool:
        return "Idempotency-Replayed" in self.headers

    @property
    def code(self) -> str:
        return str(json.loads(self.body).get("code", ""))


def fresh_key() -> str:
    return secrets.token_urlsafe(16)


def report_of(card: TestCard, kind: str = "temporary") -> bytes:
    return json.dumps({"card_number": card.number, "id_number": card.id_number, "kind": kind}).encode()


async def ask(
    client: Client, path: str, body: bytes, key: str, session: aiohttp.ClientSession | None = None
) -> Answered:
    headers = signed_headers(
        Signing.of(client.file), "POST", f"127.0.0.1:{client.gateway.port}", path, body,
        f"Bearer {await client.token()}", key=key,
    )  # fmt: skip
    async with (session or client.session).post(path, data=body, headers=headers) as answer:
        return Answered(answer.status, await answer.read(), answer.headers)


@asynccontextmanager
async def new_connections(gateway: Running) -> AsyncIterator[aiohttp.ClientSession]:
    """One for each request, so that both workers get some."""
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with aiohttp.ClientSession(base_url=gateway.url, connector=connector) as session:
        yield session


@asynccontextmanager
async def owner(gateway: Running) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """The database as the tables' owner."""
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        yield connection
    finally:
        await connection.close()


async def rows(gateway: Running) -> tuple[int, int]:
    """(operations, keys)."""
    async with owner(gateway) as connection:
        return (
            await connection.fetchval("SELECT count(*) FROM operation"),
            await connection.fetchval("SELECT count(*) FROM idempotency_key"),
        )


async def operations_of(gateway: Running, cards: list[UUID]) -> list[Any]:
    async with owner(gateway) as connection:
        return await connection.fetch("SELECT * FROM operation WHERE card_id = ANY($1)", cards)


async def card_id_of(gateway: Running, answer: bytes) -> UUID:
    async with owner(gateway) as connection:
        found: UUID = await connection.fetchval(
            "SELECT card_id FROM operation WHERE reference = $1", UUID(json.loads(answer)["reference"])
        )
    return found


@pytest.fixture
async def alone(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Client]:
    """A kiosk at a gateway of one worker with a database of its own, so that what is sent at once is one batch."""
    async with (
        own_gateway(postgres, template, tmp_path_factory.mktemp("alone"), "1") as running,
        Client(running, "demo-kiosk") as client,
    ):
        await client.token()
        yield client


@asynccontextmanager
async def own_gateway(
    postgres: EmbeddedPostgres, template: str, folder: Path, workers: str, **environment: str
) -> AsyncIterator[Running]:
    database = await make_database(postgres, template)
    running = await start_gateway(folder, database, WORKERS=workers, **environment)
    try:
        yield running
    finally:
        await running.stop()
        await drop_database(postgres, database)


# --- the same again -----------------------------------------------------------------------------------------------


async def test_64_at_once_over_two_workers_are_one_effect(gateway: Running, kiosk: Client) -> None:
    card, key = await add_card(gateway), fresh_key()
    body, before = report_of(card), await rows(gateway)
    await kiosk.token()
    async with new_connections(gateway) as session:
        answers = await asyncio.gather(*(ask(kiosk, PATH, body, key, session) for _ in range(64)))
        replays = [await ask(kiosk, PATH, body, key, session) for _ in range(8)]
    done = [answer for answer in answers if answer.status == 200]
    assert sum(not answer.replayed for answer in done) == 1
    assert len({answer.body for answer in done + replays}) == 1
    assert all(answer.replayed and answer.status == 200 for answer in replays)
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.code) == (409, "idempotency_key_in_use") and answer.headers["Retry-After"]
    assert await rows(gateway) == (before[0] + 1, before[1] + 1)
    assert len(await operations_of(gateway, [await card_id_of(gateway, done[0].body)])) == 1


@pytest.mark.timeout(1800)
async def test_replays_leave_nothing_behind(gateway: Running, kiosk: Client) -> None:
    """16 effects, repeated for ever by 16 callers: the same bytes, no row and no memory more."""
    wanted = [(report_of(await add_card(gateway)), fresh_key()) for _ in range(16)]
    first = [await ask(kiosk, PATH, body, key) for body, key in wanted]
    assert [answer.status for answer in first] == [200] * 16

    async def repeat(number: int, times: int) -> int:
        body, key = wanted[number]
        for _ in range(times):
            again = await ask(kiosk, PATH, body, key)
            assert again.status == 200 and again.replayed and again.body == first[number].body
        return times

    def resident() -> float:
        return sum(process.memory_info().rss for process in gateway.children("serve-worker")) / 2**20

    await asyncio.gather(*(repeat(number, 10) for number in range(16)))
    before, memory = await rows(gateway), resident()
    counts = await asyncio.gather(*(repeat(number, REPLAYS // 16 + 1) for number in range(16)))
    grown = resident() - memory
    print(f"\n{sum(counts)} replays, rss {memory:.0f} MiB, grown {grown:.1f} MiB")
    assert sum(counts) >= REPLAYS and await rows(gateway) == before and grown <= 16


async def test_a_key_with_another_request_is_refused_and_keeps_its_answer(gateway: Running, kiosk: Client) -> None:
    card, other, key = await add_card(gateway), await add_card(gateway), fresh_key()
    first = await ask(kiosk, PATH, report_of(card), key)
    reference = json.loads(first.body)["reference"]
    before = await rows(gateway)
    verdict = json.dumps(verify_body(CARDS[0].number, CARDS[0].identifier, "kiosk.service")).encode()
    for path, body in [
        (PATH, report_of(card, "formal")), (PATH, report_of(other)), (PATH, report_of(card) + b" "),
        (PATH + "?x", report_of(card)), (f"{PATH}/{reference}/release", b"{}"), ("/v1/cards/verify", verdict),
    ]:  # fmt: skip
        refused = await ask(kiosk, path, body, key)
        assert (refused.status, refused.code) == (422, "idempotency_key_reused"), (path, body)
    assert await rows(gateway) == before
    again = await ask(kiosk, PATH, report_of(card), key)
    assert again.replayed and again.body == first.body


async def test_a_key_belongs_to_its_caller(gateway: Running, kiosk: Client, bureau: Client) -> None:
    card, key = await add_card(gateway), fresh_key()
    mine, theirs = [await ask(client, PATH, report_of(card), key) for client in (kiosk, bureau)]
    assert mine.status == theirs.status == 200 and not theirs.replayed and mine.body != theirs.body
    done = await operations_of(gateway, [await card_id_of(gateway, mine.body)])
    assert sorted(row["caller"] for row in done) == ["demo-bureau", "demo-kiosk"]


@pytest.mark.parametrize("path", [PATH, f"{PATH}/01890000-0000-7000-8000-000000000000/release"])
@pytest.mark.parametrize(
    ("key", "code"),
    [(None, "missing"), (b"", "malformed"), (b"a" * 256, "malformed"), (b"two words", "malformed"),
     ("钥匙".encode(), "malformed"), (b"\xff", "malformed"), (b"a\tb", "malformed"), (b"a\x7f", "malformed")],
)  # fmt: skip
async def test_an_effect_needs_a_key(kiosk: Client, path: str, key: bytes | None, code: str) -> None:
    authorization = f"Bearer {await kiosk.token()}"
    sent = request("POST", path, b"{}", authorization=authorization, idempotency_key=key)
    answer = await send_raw(kiosk.gateway.port, sent)
    wanted = 400, "malformed_request" if key == b"a\x7f" else f"{code}_idempotency_key"
    assert (answer.status, json.loads(answer.body)["code"]) in (wanted, (400, f"{code}_idempotency_key"))


# --- what did not take effect ----------------------------------------------------------------------------------


NOT_DONE = {
    "422": (PATH, b'{"kind":"for ever"}', 422),
    "not JSON": (PATH, b"{", 400),
    "404": (f"{PATH}/01890000-0000-7000-8000-000000000000/release", b"{}", 404),
    "503": (PATH, b'{"kind":"formal","presentation":{"type":"ecard_code","code":"12345678"}}', 503),
}


@pytest.mark.parametrize("name", NOT_DONE)
async def test_what_did_not_take_effect_leaves_its_key_free(gateway: Running, kiosk: Client, name: str) -> None:
    path, body, status = NOT_DONE[name]
    key, before = fresh_key(), await rows(gateway)
    for _ in range(2):
        assert (await ask(kiosk, path, body, key)).status == status
    assert await rows(gateway) == before
    done = await ask(kiosk, PATH, report_of(await add_card(gateway)), key)
    assert done.status == 200 and not done.replayed


EDGES = {
    "the last millisecond": "ffffffff-ffff-7fff-bfff-ffffffffffff",
    "beyond the year 9999": "e677d21f-dc00-7000-8000-000000000000",
    "an hour before it": "e677d21f-dbff-7000-8000-000000000000",
    "1970": "00000000-0000-7000-8000-000000000000",
}


@pytest.mark.parametrize("name", EDGES)
async def test_a_reference_of_any_time_is_just_not_found(gateway: Running, kiosk: Client, name: str) -> None:
    """A reference holds a time that the caller may choose: none may end the worker's loop, or disturb a mate."""
    card, log = await add_card(gateway), len(gateway.log)
    refused, done = await asyncio.gather(
        ask(kiosk, f"{PATH}/{EDGES[name]}/release", b"{}", fresh_key()),
        ask(kiosk, PATH, report_of(card), fresh_key()),
    )
    assert (refused.status, refused.code, done.status) == (404, "not_found", 200)
    assert "a loop has failed" not in gateway.log[log:] and "child ended" not in gateway.log[log:]


# --- mates of one batch -----------------------------------------------------------------------------------------


POISON = """
CREATE TABLE poison (card_id uuid, sqlstate text);
GRANT SELECT ON poison TO yikatong_app;
CREATE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
    SELECT sqlstate INTO found FROM poison WHERE card_id = NEW.card_id;
    IF found IS NOT NULL THEN RAISE EXCEPTION 'poison' USING ERRCODE = found; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER poison BEFORE INSERT ON operation FOR EACH ROW EXECUTE FUNCTION refuse_poison();
"""


class Batch(NamedTuple):
    """64 effects sent at once, of which the one in the middle is poison."""

    cards: list[TestCard]
    ids: list[UUID]
    keys: list[str]
    answers: list[Answered]

    @property
    def bad(self) -> Answered:
        return self.answers[40]

    @property
    def mates(self) -> list[Answered]:
        return self.answers[:40] + self.answers[41:]


async def send_poison(client: Client, sqlstate: str) -> Batch:
    gateway = client.gateway
    cards, keys = [new_card() for _ in range(64)], [fresh_key() for _ in range(64)]
    ids = await add_cards(gateway.environment["DATABASE_URL"], open_folder(gateway.data_dir / "keys"), tuple(cards))
    async with owner(gateway) as connection:
        await connection.execute(POISON)
        await connection.execute("INSERT INTO poison VALUES ($1, $2)", ids[40], sqlstate)
    await client.token()
    answers = await asyncio.gather(
        *(ask(client, PATH, report_of(card), key) for card, key in zip(cards, keys, strict=True))
    )
    return Batch(cards, ids, keys, answers)


@pytest.mark.parametrize("sqlstate", ["23514", "40001"])
async def test_an_effect_that_the_database_refuses_fails_alone(alone: Client, sqlstate: str) -> None:
    """63 others are on their way with it; its key is free, and works once the database takes it."""
    sent = await send_poison(alone, sqlstate)
    assert {answer.status for answer in sent.mates} == {200}
    assert sent.bad.status == 503 and sent.bad.headers["Retry-After"]
    assert "effect failed" in alone.gateway.log, "it had mates"
    assert len(await operations_of(alone.gateway, sent.ids)) == 63 and (await rows(alone.gateway))[1] == 63
    async with owner(alone.gateway) as connection:
        await connection.execute("TRUNCATE poison")
    assert (await ask(alone, PATH, report_of(sent.cards[40]), sent.keys[40])).status == 200


async def test_control_a_batch_that_fails_together_is_noticed(
    postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> None:
    async with (
        own_gateway(postgres, template, tmp_path / "data", "1", **plant("batch_fails_together")) as running,
        Client(running, "demo-kiosk") as client,
    ):
        sent = await send_poison(client, "23514")
    assert 503 in {answer.status for answer in sent.mates}


async def test_a_mistake_of_ours_is_that_of_one_effect(
    postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> None:
    """Whoever finds what breaks our code gets a 500: the loop, the worker and the mates go on, and nothing is kept."""
    async with (
        own_gateway(postgres, template, tmp_path / "data", "1", **plant("effect_mistake")) as running,
        Client(running, "demo-kiosk") as client,
    ):
        await client.token()
        worker = running.children("serve-worker")[0].pid
        wanted = [(report_of(await add_card(running), "formal" if n % 8 == 5 else "temporary")) for n in range(32)]
        answers = await asyncio.gather(*(ask(client, PATH, body, f"mistake-{n}") for n, body in enumerate(wanted)))
        assert [answer.status for answer in answers] == [500 if n % 8 == 5 else 200 for n in range(32)]
        assert await rows(running) == (28, 28)
        assert running.children("serve-worker")[0].pid == worker and "ZeroDivisionError" in running.log
        assert (await ask(client, PATH, report_of(await add_card(running)), "mistake-5")).status == 200


@pytest.mark.parametrize("held", [1, 24])
async def test_a_key_that_another_process_holds_is_waited_for_and_its_mates_go_through(
    alone: Client, held: int
) -> None:
    """The other process is a transaction of ours that has claimed the keys and stands."""
    gateway = alone.gateway
    cards = [await add_card(gateway) for _ in range(held + 24)]
    keys = [fresh_key() for _ in cards]
    random.Random(1).shuffle(keys)
    async with owner(gateway) as connection:
        claim = connection.transaction()
        await claim.start()
        await connection.executemany(
            "INSERT INTO idempotency_key (caller, key, fingerprint) VALUES ('demo-kiosk', $1, '')",
            [(key,) for key in keys[:held]],
        )
        answers = await asyncio.gather(
            *(ask(alone, PATH, report_of(card), key) for card, key in zip(cards, keys, strict=True))
        )
        for answer in answers[:held]:
            assert (answer.status, answer.code) == (409, "idempotency_key_in_use") and answer.headers["Retry-After"]
        assert [answer.status for answer in answers[held:]] == [200] * 24
        await claim.rollback()  # as if it had been killed
    again = [await ask(alone, PATH, report_of(card), key) for card, key in zip(cards, keys, strict=True)]
    assert [answer.status for answer in again] == [200] * len(cards)
    assert [answer.replayed for answer in again] == [False] * held + [True] * 24


@pytest.mark.parametrize("count", [8, 100])
async def test_a_card_that_somebody_holds_does_not_hold_up_the_others(alone: Client, count: int) -> None:
    """A long transaction on one card's row: its report is told to come back, its batch mates are carried out."""
    gateway = alone.gateway
    cards = tuple(new_card() for _ in range(count))
    ids = await add_cards(gateway.environment["DATABASE_URL"], open_folder(gateway.data_dir / "keys"), cards)
    keys = [fresh_key() for _ in cards]
    async with owner(gateway) as connection:
        async with connection.transaction():
            await connection.execute("SELECT FROM card WHERE card_id = $1 FOR UPDATE", ids[count // 2])
            answers = await asyncio.gather(
                *(ask(alone, PATH, report_of(card), key) for card, key in zip(cards, keys, strict=True))
            )
        held = answers.pop(count // 2)
        assert (held.status, held.code) == (503, "unavailable") and held.headers["Retry-After"]
        assert [answer.status for answer in answers] == [200] * (count - 1)
    again = await ask(alone, PATH, report_of(cards[count // 2]), keys[count // 2])
    assert again.status == 200 and not again.replayed


async def test_who_waits_for_another_process_gets_its_answer(gateway: Running, kiosk: Client) -> None:
    """Two workers, one key: while the first stands at a locked card, the second waits, then replays or is told so."""
    card, key = await add_card(gateway), fresh_key()
    body = report_of(card)
    async with new_connections(gateway) as session:

        async def answered() -> Answered | None:
            answer = await ask(kiosk, PATH, body, key, session)
            assert answer.status in (200, 409), answer
            return answer if answer.status == 200 else None

        answers = await asyncio.gather(*(eventually(answered, 10, "an answer") for _ in range(16)))
    assert len({answer.body for answer in answers if answer}) == 1
    assert sum(not answer.replayed for answer in answers if answer) == 1


# --- in opposite orders -----------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
async def test_crossed_keys_and_cards_never_wait_in_a_circle(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Two workers, two transactions each; few cards and keys, reports and releases mixed, in every order."""
    async with (
        own_gateway(postgres, template, tmp_path_factory.mktemp("crossed"), "2") as gateway,
        Client(gateway, "demo-kiosk") as kiosk,
        Client(gateway, "demo-bureau") as bureau,
    ):
        await cross(gateway, kiosk, bureau)


STATISTICS = "FROM pg_stat_database WHERE datname = current_database()"


async def cross(gateway: Running, kiosk: Client, bureau: Client) -> None:
    chance = random.Random(20261123)
    cards = [await add_card(gateway) for _ in range(12)]
    references = [(await kiosk.report_loss(card))["reference"] for card in cards]
    keys = itertools.cycle([fresh_key() for _ in range(CROSSED // 20)])
    statuses: Counter[str] = Counter()
    left = itertools.count()
    async with new_connections(gateway) as session:

        async def keep_asking() -> None:
            while next(left) < CROSSED:
                client = kiosk if chance.random() < 0.7 else bureau
                number, key = chance.randrange(12), next(keys) if chance.random() < 0.2 else fresh_key()
                path, body = PATH, report_of(cards[number])
                if client is kiosk and chance.random() < 0.5:
                    path, body = f"{PATH}/{references[number]}/release", b"{}"
                answer = await ask(client, path, body, key, session)
                statuses[f"{answer.status} {answer.code if answer.status != 200 else ''}".strip()] += 1

        await asyncio.gather(*(keep_asking() for _ in range(64)))
    async with owner(gateway) as connection:
        deadlocks = await connection.fetchval(f"SELECT deadlocks {STATISTICS}")
        undone = await connection.fetchval(f"SELECT xact_rollback {STATISTICS}")
        done = await connection.fetchval("SELECT count(*) FROM operation")
        kept = await connection.fetchval("SELECT count(*) FROM idempotency_key")
    print(f"\n{sum(statuses.values())} effects: {dict(statuses)}, {deadlocks} deadlocks, {undone} undone")
    assert not {status for status in statuses if status.startswith("5")}, statuses
    assert deadlocks == 0 and done == kept
    assert undone <= 3, "who waits in a circle gives up after claim_timeout, is undone and tries again"
    assert "effect failed" not in gateway.log and "batch failed" not in gateway.log
    assert statuses["200"] >= CROSSED * 3 // 4, "keys that are in use or were used otherwise are the few"
    assert statuses["409 idempotency_key_in_use"] <= CROSSED // 20, "nobody waits for a card so long that it gives up"
