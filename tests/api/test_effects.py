"""Idempotent effects: whatever is repeated, crossed or broken, each is carried out once and disturbs no other."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import aiohttp
import asyncpg
import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import add_card, drop_database, make_database, start_gateway
from tests.registry import CARDS, TestCard
from tests.running import MANY, Client, Running, request, send_raw, verify_body
from tests.signing import Signing, signed_headers

PATH = "/v1/cards/loss-reports"
REPLAYS = 100_000 if MANY else 1_000


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
