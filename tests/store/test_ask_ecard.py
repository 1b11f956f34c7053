"""What becomes of the platform's outcomes, on a real database; the platform is a function here."""

import asyncio
import datetime as dt
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from gateway.crypto.blind_index import BlindIndex
from gateway.crypto.key_store import KeyStore, KeyUse
from gateway.domain.errors import Problem
from gateway.domain.masking import Secret
from gateway.domain.operations import VerifyEcardCode
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown
from gateway.domain.presentations import EcardCode
from gateway.flows import ask_ecard
from gateway.flows.ask_ecard import LOOKUP_S, AskEcard, Lookups
from gateway.settings import load
from gateway.store import ecards
from gateway.store.batch import Batcher
from gateway.store.pool import connect
from gateway.store.verify import Presented, verify_batch
from tests.conftest import Database
from tests.registry import add_cards, new_card
from tests.running import BUSY

CARD = new_card()
BLANK = Presented(
    str(uuid4()), "", "", "demo-merchant", "parking.exit", "P-1", "0", "14", "platform_unavailable", "ecard"
)
WHOSE = {"id_number": Secret(CARD.id_number.lower()), "card_number": Secret(CARD.number), "name": Secret(CARD.name)}
DEADLINE_S = 1.0


class Platform:
    """Answers what it is told to, when it is told to."""

    def __init__(self, outcome: Outcome | BaseException) -> None:
        self.outcome = outcome
        self.asked: list[VerifyEcardCode] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def ask(self, op: VerifyEcardCode, deadline: float) -> Outcome:
        self.asked.append(op)
        assert 0 < deadline - time.monotonic() <= DEADLINE_S
        await self.may_answer.wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


class Bench:
    def __init__(self, dsn: str, lookups: Lookups, index: BlindIndex) -> None:
        self.dsn = dsn
        self.lookups = lookups
        self.index = index
        self.away = False

    def connect(self, platform: Platform) -> AskEcard:
        return AskEcard(self.lookups, self.index, platform.ask, DEADLINE_S)

    async def open(self) -> Any:
        if self.away:
            raise ConnectionRefusedError
        return await connect(Secret(self.dsn), load({}).gateway.database, "test")

    async def end_connections(self) -> None:
        owner = await asyncpg.connect(self.dsn)
        await owner.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test'")
        await owner.close()

    async def judge(self, presented: Presented) -> None:
        connection = await self.open()
        await verify_batch(connection, [presented], dt.timedelta(days=1), 5)
        await connection.close()


@pytest.fixture
async def bench(database: Database, keys: KeyStore) -> AsyncIterator[Bench]:
    await add_cards(database.dsn, keys, (CARD,))
    made: Bench
    lookups: Lookups = Batcher(
        lambda: made.open(),
        ecards.look,
        batch_max=100,
        queue_max=100,
        deadline_s=LOOKUP_S * BUSY,
        on_batch=lambda _: None,
    )
    made = Bench(database.dsn, lookups, BlindIndex(keys.working_keys(KeyUse.INDEX)[-1]))
    loop = asyncio.create_task(lookups.run())
    yield made
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


def new_code() -> EcardCode:
    return EcardCode(str(int.from_bytes(os.urandom(8), "big")).zfill(22))


OUTCOMES: dict[str, tuple[Outcome | BaseException, str]] = {
    "approved": (Approved(facts=WHOSE), ""),
    "code expired": (Declined(DeclineCode.CODE_EXPIRED), "code_expired"),
    "code replayed": (Declined(DeclineCode.CODE_REPLAYED), "code_replayed"),
    "code invalid": (Declined(DeclineCode.CODE_INVALID), "code_invalid"),
    "another refusal": (Declined(DeclineCode.NOT_ALLOWED), "platform_unavailable"),
    "its own failure": (Declined(DeclineCode.PARTNER_FAILURE), "platform_unavailable"),
    "not sent": (NotSent("no_connection"), "platform_unavailable"),
    "unknown": (Unknown("late"), "platform_unavailable"),
    "pending": (Pending(), "platform_unavailable"),
    "a deadline": (TimeoutError(), "platform_unavailable"),
    "nobody": (Approved(), "platform_unavailable"),
    "no card": (Approved(facts={"id_number": WHOSE["id_number"]}), "platform_unavailable"),
    "a number for a card": (Approved(facts=WHOSE | {"card_number": 1}), "platform_unavailable"),
}


@pytest.mark.parametrize("name", OUTCOMES)
async def test_only_a_clear_answer_is_more_than_unknown(bench: Bench, name: str) -> None:
    outcome, preset = OUTCOMES[name]
    platform = Platform(outcome)
    code = new_code()
    found = await bench.connect(platform).complete(BLANK, code)
    assert (found.preset, found.medium) == (preset, "ecard")
    assert bool(found.card_id) == bool(found.code_digest) == (preset == "")
    assert found._replace(card_id="", code_digest="", preset=BLANK.preset) == BLANK, "nothing else has changed"
    (asked,) = platform.asked
    assert asked.code.reveal() == code.code and asked.reference.version == 7 and asked.at.tzinfo is dt.UTC


async def test_a_card_of_somebody_else_is_not_found_and_the_code_is_used_up(bench: Bench) -> None:
    platform = Platform(Approved(facts=WHOSE | {"id_number": Secret(new_card().id_number)}))
    found = await bench.connect(platform).complete(BLANK, new_code())
    assert (found.card_id, found.preset) == ("", "") and found.code_digest


async def test_a_code_that_was_claimed_is_not_asked_again(bench: Bench) -> None:
    platform, code = Platform(Approved(facts=WHOSE)), new_code()
    first = await bench.connect(platform).complete(BLANK, code)
    await bench.judge(first)
    other_worker = bench.connect(platform)
    again = await other_worker.complete(BLANK, code)
    assert (again.preset, again.card_id, again.code_digest) == ("code_replayed", "", "")
    assert len(platform.asked) == 1


async def test_what_was_not_decided_may_be_asked_again(bench: Bench) -> None:
    platform, code = Platform(Unknown("late")), new_code()
    connected = bench.connect(platform)
    first = await connected.complete(BLANK, code)
    await bench.judge(first)
    platform.outcome = Approved(facts=WHOSE)
    assert (await connected.complete(BLANK, code)).preset == ""
    assert len(platform.asked) == 2


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - turns of the loop, nothing is waited out
            await asyncio.sleep(0.001)


async def at_once(connected: AskEcard, platform: Platform, code: EcardCode, count: int) -> list[Any]:
    platform.may_answer.clear()
    waiting = [asyncio.create_task(connected.complete(BLANK, code)) for _ in range(count)]
    await eventually(lambda: bool(platform.asked))
    platform.may_answer.set()
    return await asyncio.gather(*waiting)


async def test_those_who_ask_at_once_share_one_question(bench: Bench) -> None:
    platform = Platform(Approved(facts=WHOSE))
    connected = bench.connect(platform)
    found = await at_once(connected, platform, new_code(), 64)
    assert len(platform.asked) == 1 and len(set(found)) == 1 and len(connected) == 0
    await at_once(connected, platform, new_code(), 2)
    assert len(platform.asked) == 2, "another code is another question"


async def test_who_hangs_up_does_not_take_the_question_along(bench: Bench) -> None:
    platform, code = Platform(Approved(facts=WHOSE)), new_code()
    connected = bench.connect(platform)
    platform.may_answer.clear()
    impatient, patient = (asyncio.create_task(connected.complete(BLANK, code)) for _ in range(2))
    await eventually(lambda: bool(platform.asked))
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    platform.may_answer.set()
    assert (await patient).card_id and len(platform.asked) == 1


async def test_a_platform_that_heeds_no_deadline_is_left(bench: Bench) -> None:
    platform = Platform(Approved(facts=WHOSE))
    platform.may_answer.clear()
    began = time.monotonic()
    found = await bench.connect(platform).complete(BLANK, new_code())
    assert found.preset == "platform_unavailable" and time.monotonic() - began < DEADLINE_S + 0.5 * BUSY


async def test_questions_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ask_ecard, "QUESTIONS_MAX", 3)
    platform = Platform(Approved(facts=WHOSE))
    connected = bench.connect(platform)
    platform.may_answer.clear()
    waiting = [asyncio.create_task(connected.complete(BLANK, new_code())) for _ in range(3)]
    await eventually(lambda: len(platform.asked) == 3)
    with pytest.raises(Problem, match="overloaded"):
        await connected.complete(BLANK, new_code())
    platform.may_answer.set()
    assert all(found.card_id for found in await asyncio.gather(*waiting))
    assert (await connected.complete(BLANK, new_code())).card_id


async def test_without_the_database_nobody_is_told_anything(bench: Bench) -> None:
    platform = Platform(Approved(facts=WHOSE))
    connected = bench.connect(platform)
    code = new_code()
    assert (await connected.complete(BLANK, code)).card_id
    await bench.end_connections()
    bench.away = True
    found = await asyncio.gather(*(connected.complete(BLANK, code) for _ in range(3)), return_exceptions=True)
    assert [problem.code for problem in found if isinstance(problem, Problem)] == ["unavailable"] * 3
    assert len(platform.asked) == 1 and len(connected) == 0
    bench.away = False
    assert (await connected.complete(BLANK, code)).card_id


async def test_a_mistake_of_ours_is_told_to_all_and_leaves_nothing_behind(bench: Bench) -> None:
    platform, code = Platform(RuntimeError("a mistake")), new_code()
    connected = bench.connect(platform)
    ask: Callable[[], Awaitable[Presented]] = lambda: connected.complete(BLANK, code)  # noqa: E731
    found = await asyncio.gather(ask(), ask(), return_exceptions=True)
    assert [type(error) for error in found] == [RuntimeError] * 2 and len(connected) == 0


async def test_closing_ends_the_questions(bench: Bench) -> None:
    platform = Platform(Approved(facts=WHOSE))
    connected = bench.connect(platform)
    platform.may_answer.clear()
    waiting = asyncio.create_task(connected.complete(BLANK, new_code()))
    await eventually(lambda: bool(platform.asked))
    await connected.close()
    assert len(connected) == 0
    await asyncio.gather(waiting, return_exceptions=True)
    assert waiting.cancelled()
