"""Effects that share a batch, or cross each other: one that fails or waits disturbs no other."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import pytest

from gateway.crypto.key_files import open_folder
from gateway.store.embedded import EmbeddedPostgres
from tests.api.test_effects import (
    PATH,
    Answered,
    ask,
    fresh_key,
    new_connections,
    operations_of,
    own_gateway,
    owner,
    report_of,
    rows,
)
from tests.conftest import add_card
from tests.faults.planted import plant
from tests.registry import TestCard, add_cards, new_card
from tests.running import MANY, Client, Running, eventually

CROSSED = 20_000 if MANY else 2_000


@pytest.fixture(scope="module")
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


POISON = """
CREATE TABLE IF NOT EXISTS poison (card_id uuid, sqlstate text);
GRANT SELECT ON poison TO yikatong_app;
CREATE OR REPLACE FUNCTION refuse_poison() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE found text;
BEGIN
    SELECT sqlstate INTO found FROM poison WHERE card_id = NEW.card_id;
    IF found IS NOT NULL THEN RAISE EXCEPTION 'poison' USING ERRCODE = found; END IF;
    RETURN NEW;
END $$;
CREATE OR REPLACE TRIGGER poison BEFORE INSERT ON operation FOR EACH ROW EXECUTE FUNCTION refuse_poison();
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
    before, said = await rows(alone.gateway), len(alone.gateway.log)
    sent = await send_poison(alone, sqlstate)
    assert {answer.status for answer in sent.mates} == {200}
    assert sent.bad.status == 503 and sent.bad.headers["Retry-After"]
    assert "effect failed" in alone.gateway.log[said:], "it had mates"
    assert len(await operations_of(alone.gateway, sent.ids)) == 63
    assert (await rows(alone.gateway))[1] - before[1] == 63
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


async def test_a_kept_answer_that_does_not_open_is_its_own_trouble(alone: Client) -> None:
    """Its mates in the batch are new effects, and are told so."""
    gateway, damaged = alone.gateway, fresh_key()
    body = report_of(await add_card(gateway))
    assert (await ask(alone, PATH, body, damaged)).status == 200
    async with owner(gateway) as connection:
        await connection.execute(
            "UPDATE idempotency_key SET answer_sealed = set_byte(answer_sealed, 30, 255 - get_byte(answer_sealed, 30))"
            " WHERE key = $1",
            damaged,
        )
    cards = [await add_card(gateway) for _ in range(16)]
    again, *mates = await asyncio.gather(
        ask(alone, PATH, body, damaged), *(ask(alone, PATH, report_of(card), fresh_key()) for card in cards)
    )
    assert (again.status, again.code) == (500, "internal")
    assert [(mate.status, mate.replayed) for mate in mates] == [(200, False)] * 16


async def test_a_data_key_under_an_unknown_kek_stops_effects_and_nothing_else(
    postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> None:
    """Another machine has rotated its KEK and made this month's key; the file is not here yet."""
    async with (
        own_gateway(postgres, template, tmp_path / "data", "1") as gateway,
        Client(gateway, "demo-kiosk") as kiosk,
        owner(gateway) as connection,
    ):
        card, worker = await add_card(gateway), gateway.children("serve-worker")[0].pid
        await connection.execute(
            "INSERT INTO data_key (table_group, month, kek_id, algorithm, wrapped) VALUES"
            " ('answers', date_trunc('month', now() AT TIME ZONE 'UTC')::date, 'kek-9', 'SM4-GCM', $1)",
            bytes(24),
        )
        for number in range(8):
            answer = await ask(kiosk, PATH, report_of(card), f"kek-{number}")
            assert (answer.status, answer.code) == (503, "unavailable") and answer.headers["Retry-After"]
        assert (await kiosk.verify(card.number, card.identifier, "kiosk.service"))["reason"] == "ok"
        assert gateway.children("serve-worker")[0].pid == worker, "no worker has ended"
        await connection.execute("DELETE FROM data_key WHERE kek_id = 'kek-9'")
        assert (await ask(kiosk, PATH, report_of(card), "kek-1")).status == 200


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
