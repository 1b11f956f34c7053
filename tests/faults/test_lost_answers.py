"""Answers of a bank are lost at every step, gateways are killed: in the end its book is ours, and nobody paid twice."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
import msgspec
import pytest

from gateway.domain.errors import Problem
from gateway.domain.outcome import Approved, NotSent, Outcome, Unknown
from gateway.flows.settle_payment import Banks
from gateway.settings import load
from gateway.store import payments as stored
from gateway.store.embedded import EmbeddedPostgres
from tests.bank import Bank, Fault, Hold, Resolver, banks
from tests.conftest import Database, drop_database, make_database, prepare_data_dir
from tests.faults.planted import plant
from tests.faults.refusing import refuse_steps
from tests.running import Client
from tests.served import Served, short_config
from tests.tills import PATH, Till, order

FAULTS: tuple[Fault, ...] = ("drop_before", "drop_after", "garbage", "pending")


class Counter:
    """A gateway that may be killed and started again, over one database and one bank."""

    def __init__(self, folder: Path, database: Database, bank: Bank, bug: str = "") -> None:
        self._config = str(short_config(folder))
        self.bank = bank
        self.dsn = database.dsn
        more = plant(bug) if bug else {}
        self.gateway = Served(
            folder / "data", DATABASE_URL=database.dsn, CONFIG_DIR=self._config, BANK_PORT=str(bank.port), **more
        )
        prepare_data_dir(self.gateway.data_dir, self.gateway.port)

    async def till(self) -> Till:
        await self.gateway.start()
        settings = load({"DATA_DIR": str(self.gateway.data_dir), "CONFIG_DIR": self._config})
        resolver = Resolver(settings, self.dsn, banks(self.bank.port))
        await resolver.open()
        merchant = Client(self.gateway, "demo-merchant")
        await merchant.token()
        return Till(self.gateway, self.bank, merchant, resolver, self.dsn)

    async def leave(self, till: Till) -> None:
        await till.merchant.session.close()
        await till.resolver.close()

    async def differences(self) -> list[str]:
        """References whose money stands otherwise in our table than in the bank's book."""
        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch("SELECT reference::text, kind, state FROM payment WHERE kind <> 'reversal'")
        finally:
            await connection.close()
        ours = {row["reference"] for row in rows if row["state"] == "approved"}
        theirs = {reference for reference, line in self.bank.lines().items() if line.state == "approved"}
        return sorted(ours ^ theirs)


@pytest.fixture
async def counter(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, template: str, tmp_path: Path
) -> AsyncIterator[Counter]:
    """Its parameter, if there is one, is a plant."""
    database = await make_database(postgres, template)
    bank = await Bank(tmp_path / "book").open()
    made = Counter(tmp_path, database, bank, getattr(request, "param", ""))
    yield made
    if made.gateway.process is not None:
        await made.gateway.stop()
    await bank.close()
    await drop_database(postgres, database)


@pytest.mark.parametrize("where", ["before the bank acts", "after the bank acts"])
async def test_a_gateway_killed_while_the_bank_has_the_payment(counter: Counter, where: str) -> None:
    """Intent committed, message out, nothing written since: the resolver finds out, and the waiting key gets it."""
    till = await counter.till()
    body = order(await till.card())
    hold = Hold.new()
    counter.bank.faults["purchase"].append(hold)
    asked = asyncio.create_task(till.merchant.effect(PATH, body, key="killed"))
    await hold.arrived.wait()
    if where == "after the bank acts":  # its answer meets nobody
        counter.gateway.process.kill()  # type: ignore[union-attr]
        hold.go.set()
        await hold.done.wait()
    await counter.gateway.kill()
    with pytest.raises((OSError, aiohttp.ClientError)):
        await asked
    if where == "before the bank acts":
        counter.bank._fault = lambda op: None  # type: ignore[method-assign]
    await counter.leave(till)
    till = await counter.till()
    status, raw, _ = await till.merchant.effect(PATH, body, key="killed")
    assert (status, json.loads(raw)["code"]) == (409, "idempotency_key_in_use")
    await till.resolver.until_nothing_is_left()
    hold.go.set()
    status, raw, headers = await till.merchant.effect(PATH, body, key="killed")
    answer = json.loads(raw)
    assert status == 200 and headers["Idempotency-Replayed"] == "true"
    assert answer["status"] == ("approved" if where == "after the bank acts" else "reversed")
    assert await counter.differences() == []
    purchases = [reference for op, reference in counter.bank.messages if op == "purchase"]
    assert purchases == [answer["reference"]], "it was sent once"
    assert await till.status(answer["reference"]) == answer["status"]
    await counter.leave(till)


async def test_a_refund_that_nobody_can_ask_about_is_answered_as_pending(counter: Counter) -> None:
    """Its process was killed and the bank has no query: its key does not wait for an answer that never comes."""
    till = await counter.till()
    path, hold = f"{PATH}/{await till.paid()}/refunds", Hold.new()
    counter.bank.faults["refund"].append(hold)
    asked = asyncio.create_task(till.merchant.effect(path, {"amount_fen": 50}, key="killed"))
    await hold.arrived.wait()
    await counter.gateway.kill()
    with pytest.raises((OSError, aiohttp.ClientError)):
        await asked
    hold.go.set()
    await counter.leave(till)
    till = await counter.till()
    till.resolver.settle._banks = banks(counter.bank.port, can_query=False)
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    status, raw, headers = await till.merchant.effect(path, {"amount_fen": 50}, key="killed")
    assert (status, headers["Idempotency-Replayed"]) == (202, "true"), raw
    assert await till.steps(json.loads(raw)["reference"]) == ["intent", "unknown"]
    await counter.leave(till)


async def test_an_outcome_that_cannot_be_written_is_found_out_again(counter: Counter) -> None:
    """The bank has approved; the row is locked against the writing of it, and the gateway dies waiting."""
    till = await counter.till()
    body = order(await till.card())
    hold = Hold.new()
    counter.bank.faults["purchase"].append(hold)
    asked = asyncio.create_task(till.merchant.effect(PATH, body, key="unwritten"))
    await hold.arrived.wait()
    owner = await asyncpg.connect(counter.dsn)
    async with owner.transaction():
        await owner.execute("SELECT FROM payment FOR UPDATE")
        hold.go.set()
        status, pending, _ = await asked
        assert (status, json.loads(pending)["status"]) == (202, "pending"), "503 would say that nothing was sent"
        await counter.gateway.kill()
    await owner.close()
    await counter.leave(till)
    till = await counter.till()
    assert (await till.merchant.effect(PATH, body, key="unwritten"))[0] == 409
    await till.resolver.until_nothing_is_left()
    status, raw, _ = await till.merchant.effect(PATH, body, key="unwritten")
    assert (status, json.loads(raw)["status"]) == (200, "approved")
    assert json.loads(raw)["reference"] == json.loads(pending)["reference"]
    assert await counter.differences() == []
    await counter.leave(till)


@pytest.mark.parametrize("counter", ["commit_unheard"], indirect=True)
async def test_what_was_not_sent_is_not_said_to_be_pending(counter: Counter) -> None:
    """That it was not sent is committed, which nobody heard of: key and order are free, so nothing else may be said."""
    till = await counter.till()
    for what, tries in (("payments", 1), ("payments", 2), ("reversals", 2), ("refunds", 2)):
        (till.gateway.data_dir / "unheard").write_text(str(tries))
        assert await not_sent(till, *await request_of(till, what), key=f"{what}-{tries}") == (503, 200)
        assert (till.gateway.data_dir / "unheard").read_text() == "0"
    await counter.leave(till)


@pytest.mark.parametrize("counter", ["pending_in_doubt"], indirect=True)
async def test_control_what_was_not_sent_and_is_said_to_be_pending_is_noticed(counter: Counter) -> None:
    till = await counter.till()
    (till.gateway.data_dir / "unheard").write_text("2")
    assert await not_sent(till, *await request_of(till, "payments"), key="unheard") == (202, 200)
    await counter.leave(till)


async def test_that_nothing_was_sent_is_written_by_the_second_try(counter: Counter) -> None:
    """The database has refused the first: key and order are free at once all the same."""
    till = await counter.till()
    await refuse_steps(counter.dsn, "payment", "not_sent", 1)
    assert await not_sent(till, *await request_of(till, "payments"), key="refused") == (503, 200)
    await counter.leave(till)


async def test_control_that_nothing_was_sent_and_is_never_written_is_noticed(counter: Counter) -> None:
    """Then it is taken for sent: key and order wait for the resolver, which reverses it."""
    till = await counter.till()
    await refuse_steps(counter.dsn, "payment", "not_sent", 2)
    path, body = await request_of(till, "payments")
    assert await not_sent(till, path, body, key="refused") == (503, 409)
    _, raw, _ = await till.merchant.effect(path, body, key="another")
    assert json.loads(raw)["code"] == "order_id_used"
    await till.resolver.until_nothing_is_left()
    status, raw, _ = await till.merchant.effect(path, body, key="refused")
    assert (status, json.loads(raw)["status"]) == (200, "reversed")
    assert await counter.differences() == []
    await counter.leave(till)


async def request_of(till: Till, what: str) -> tuple[str, dict[str, Any]]:
    """(path, body)"""
    if what == "payments":
        return PATH, order(await till.card())
    return f"{PATH}/{await till.paid(50)}/{what}", {"amount_fen": 50} if what == "refunds" else {}


async def not_sent(till: Till, path: str, body: dict[str, Any], key: str) -> tuple[int, int]:
    """The answers to one key, while the bank is away, and after."""
    assert till.bank._server is not None
    till.bank._server.close()
    first, _, _ = await till.merchant.effect(path, body, key=key)
    await till.bank.open()
    then, raw, headers = await till.merchant.effect(path, body, key=key)
    assert "Idempotency-Replayed" not in headers, raw
    return first, then


@pytest.mark.parametrize("can_query", [True, False], ids=["a bank that can be asked", "a bank that can only reverse"])
async def test_lost_answers_at_every_step(counter: Counter, can_query: bool) -> None:
    till = await counter.till()
    till.resolver.settle._banks = banks(counter.bank.port, can_query)
    await storm(till, 120, refunds=can_query)
    assert await counter.differences() == []
    statuses = await states(counter)
    assert statuses["approved"] and statuses["reversed"] and not statuses.keys() & {"intent", "unknown", "reversing"}
    await counter.leave(till)


async def test_control_an_unknown_outcome_taken_for_not_sent_is_caught(counter: Counter) -> None:
    """The bug that this is all about: no answer is taken for no message, and the order is free again."""
    till = await counter.till()
    ask = till.resolver.settle._banks.ask

    async def optimist(name: str, operation: Any, deadline_s: float) -> Outcome:
        outcome = await ask(name, operation, deadline_s)
        return NotSent("surely") if isinstance(outcome, Unknown) else outcome

    till.resolver.settle._banks = Banks(optimist, lambda name, kind: True)
    await planted_storm(till, 60)
    assert await counter.differences() != []
    await counter.leave(till)


async def test_control_a_forgotten_reversal_is_caught(counter: Counter) -> None:
    till = await counter.till()
    ask = till.resolver.settle._banks.ask

    async def forgetful(name: str, operation: Any, deadline_s: float) -> Outcome:
        if type(operation).__name__ == "Reverse":
            return Approved()  # it says so, and sends nothing
        return await ask(name, operation, deadline_s)

    till.resolver.settle._banks = Banks(forgetful, lambda name, kind: False)
    await storm(till, 60)
    assert await counter.differences() != []
    await counter.leave(till)


async def storm(till: Till, payments: int, refunds: bool = False) -> None:
    """Payments, with every message of the bank met by a fault at even odds, then resolved under the same faults."""
    dice = random.Random(330424)
    till.bank.chance = lambda op: dice.choice(FAULTS) if dice.random() < 0.5 else None
    card = await till.card()
    answers = await asyncio.gather(*(till.pay(card, 100 + turn) for turn in range(payments)))
    approved = [answer["reference"] for _, answer in answers if answer.get("status") == "approved"]
    undone = [till.undo(reference, "reversals") for reference in approved[::4]]
    if refunds:
        undone += [till.undo(reference, "refunds", amount_fen=50) for reference in approved[1::4]]
    await asyncio.gather(*undone)
    till.resolver.settle._settings = msgspec.structs.replace(till.resolver.settle._settings, look_again_s=1)
    await till.resolver.until_nothing_is_left(turns_max=200)


async def planted_storm(till: Till, payments: int) -> None:
    """The same, but the first half too is done by this process's planted code."""
    dice = random.Random(330424)
    till.bank.chance = lambda op: dice.choice(FAULTS) if dice.random() < 0.5 else None
    card = await till.card()
    hold_all = till.bank.chance
    till.bank.chance = lambda op: "drop_before"
    answers = await asyncio.gather(*(till.pay(card, 100 + turn) for turn in range(payments)))
    till.bank.chance = hold_all
    connection = await asyncpg.connect(till.dsn)
    try:  # as they were before their first message
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("UPDATE payment SET state = 'intent'")
    finally:
        await connection.close()
    for _, answer in answers:
        async with till.resolver.pool.acquire() as pooled:
            payment = await stored.find(pooled, UUID(answer["reference"]))
        assert payment is not None
        with contextlib.suppress(Problem):
            await till.resolver.settle.first(payment)
    await till.resolver.until_nothing_is_left(turns_max=200)


async def states(counter: Counter) -> dict[str, int]:
    connection = await asyncpg.connect(counter.dsn)
    try:
        return {row[0]: row[1] for row in await connection.fetch("SELECT state, count(*) FROM payment GROUP BY state")}
    finally:
        await connection.close()
