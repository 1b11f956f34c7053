"""Payments through the simulated banks' real bytes, by the whole gateway: its worker finds out what is not answered."""

import asyncio
import datetime as dt
import functools
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, NamedTuple
from uuid import UUID

import pytest

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from gateway.domain.times import CHINA
from gateway.sandbox.county import Citizen
from gateway.sandbox.load import load_county
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.faults.home import configuration
from tests.partners import test_verify_ecard
from tests.partners.ecard_wire import COUNTY, Peer, platform
from tests.running import ROOT, Client, Running, eventually
from tests.simulated_banks import BANKS, HAIYAN, JIAXING, OPENING_FEN, QUICK, Banks, Line, banks
from tests.tills import PATH, order_of


class Counter(NamedTuple):
    gateway: Running
    banks: Banks
    platform: Peer
    merchant: Client

    async def pay(self, bank: str, amount_fen: int = 1250) -> tuple[int, dict[str, Any]]:
        return await self.post(PATH, order_of(chip(holder(bank)), amount_fen))

    async def paid(self, bank: str, amount_fen: int = 1250) -> str:
        """The reference of an approved payment."""
        status, answer = await self.pay(bank, amount_fen)
        assert (status, answer["status"]) == (200, "approved"), answer
        return str(answer["reference"])

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        status, raw, _ = await self.merchant.effect(path, body)
        return status, json.loads(raw)

    async def operation(self, reference: str) -> dict[str, Any]:
        headers = await self.merchant.authorization()
        async with self.merchant.session.get(f"/v1/operations/{reference}", headers=headers) as answer:
            assert answer.status == 200
            return dict(await answer.json())

    async def decided(self, reference: str) -> str:
        """What it came to, when the worker has found out."""

        async def status() -> str:
            found = str((await self.operation(reference))["status"])
            return "" if found == "pending" else found

        return await eventually(status, 60, "the operation is decided")

    async def line(self, bank: str, reference: str) -> Line | None:
        """What the bank has."""
        return (await self.banks.book())[bank].get(UUID(reference))


@functools.cache
def holder(bank: str, ecard: bool = False) -> Citizen:
    """Of a good card with an account there."""
    for i in range(COUNTY.cards):
        citizen = COUNTY.citizen(i)
        good = citizen.status is CardStatus.NORMAL and citizen.valid_until > COUNTY.today
        if good and COUNTY.account(i).bank == bank and (citizen.ecard_level is not None or not ecard):
            return citizen
    raise AssertionError(f"nobody has an account at {bank}")


def chip(citizen: Citizen) -> dict[str, Any]:
    return {
        "type": "chip_card", "card_number": citizen.card_number, "card_identifier": citizen.card_identifier,
    }  # fmt: skip


@pytest.fixture(scope="module")
async def counter(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Counter]:
    """With the county, both banks and the platform of e-cards; `serve` with one worker and its background loops."""
    folder = tmp_path_factory.mktemp("counter")
    data_dir, config = folder / "data", folder / "config"
    async with AsyncExitStack() as stack:
        database = await make_database(postgres, template)
        stack.push_async_callback(drop_database, postgres, database)
        both = await stack.enter_async_context(banks(folder / "banks"))
        ecards = await stack.enter_async_context(platform(data_dir / "keys-of-platform"))
        configuration(config, **QUICK)
        test_verify_ecard.configure(config, ecards)
        with (config / "partners.toml").open("a") as stream:
            stream.write(both.blocks(timeout_ms=700))
        running = Running(data_dir, "serve", DATABASE_URL=database.dsn, CONFIG_DIR=str(config))
        prepare_data_dir(data_dir, running.port)
        await load_county(database.dsn, functools.partial(open_folder, data_dir / "keys"), COUNTY, lambda _: None, 1)
        await running.start()
        stack.push_async_callback(running.stop)
        merchant = await stack.enter_async_context(Client(running, "demo-merchant"))
        yield Counter(running, both, ecards, merchant)


@pytest.mark.parametrize("bank", BANKS)
async def test_an_approved_payment_is_in_the_banks_book(counter: Counter, bank: str) -> None:
    reference = await counter.paid(bank)
    assert await counter.line(bank, reference) == Line("purchase", 1250, "approved")
    shown = await counter.operation(reference)
    assert [step["status"] for step in shown["history"]] == ["intent", "approved"]


@pytest.mark.parametrize(
    ("bank", "fault", "code"),
    [
        (HAIYAN, "", "insufficient_funds"), (JIAXING, "", "insufficient_funds"),
        (HAIYAN, "41", "lost_card"), (JIAXING, "100002", "lost_card"),
        (HAIYAN, "61", "limit_exceeded"), (JIAXING, "100005", "limit_exceeded"),
    ],
)  # fmt: skip
async def test_a_refusal_is_in_the_shared_words(counter: Counter, bank: str, fault: str, code: str) -> None:
    if fault:
        await counter.banks.faults({"kind": "decline", "code": fault})
    try:
        status, answer = await counter.pay(bank, 100 if fault else 2 * OPENING_FEN)
    finally:
        await counter.banks.faults()
    assert (status, answer["status"], answer["decline_code"]) == (200, "declined", code)
    line = await counter.line(bank, answer["reference"])
    assert line is not None and line.state == "declined"


@pytest.mark.parametrize(
    ("bank", "kind", "decided"),
    [
        (JIAXING, "drop_after", "approved"),  # it is asked
        (HAIYAN, "drop_after", "reversed"),  # it cannot be asked
        (JIAXING, "drop_before", "reversed"),
        (HAIYAN, "drop_before", "reversed"),
    ],
)
async def test_a_payment_without_an_answer_is_pending_and_then_decided(
    counter: Counter, bank: str, kind: str, decided: str
) -> None:
    await counter.banks.faults({"kind": kind})
    try:
        status, answer = await counter.pay(bank)
    finally:
        await counter.banks.faults()
    assert (status, answer["status"]) == (202, "pending"), answer
    assert await counter.decided(answer["reference"]) == decided
    line = await counter.line(bank, answer["reference"])
    assert (line is not None and line.state == "approved") == (decided == "approved")


@pytest.mark.parametrize("bank", BANKS)
async def test_a_payment_is_reversed(counter: Counter, bank: str) -> None:
    reference = await counter.paid(bank)
    status, answer = await counter.post(f"{PATH}/{reference}/reversals", {"reason": "the customer left"})
    assert (status, answer["status"], answer["payment"]) == (200, "reversed", reference)
    assert await counter.line(bank, reference) == Line("purchase", 1250, "reversed")
    assert (await counter.operation(reference))["status"] == "reversed"


async def test_a_late_answer_to_the_resolver_ends_a_reversal(counter: Counter) -> None:
    """Over a link, of which each repetition is answered when the resolver has given it up."""
    reference = await counter.paid(HAIYAN)
    await counter.banks.faults({"kind": "drop_before"})
    try:
        status, answer = await counter.post(f"{PATH}/{reference}/reversals", {})
        assert (status, answer["status"]) == (202, "pending")
        await counter.banks.faults({"kind": "late", "ms": 1500})
        assert await counter.decided(answer["reference"]) == "reversed"
    finally:
        await counter.banks.faults()
    assert (await counter.operation(reference))["status"] == "reversed"


@pytest.mark.parametrize("bank", BANKS)
async def test_parts_of_a_payment_are_given_back(counter: Counter, bank: str) -> None:
    reference = await counter.paid(bank, 1000)
    status, answer = await counter.post(f"{PATH}/{reference}/refunds", {"amount_fen": 400})
    assert (status, answer["status"]) == (200, "approved")
    assert await counter.line(bank, answer["reference"]) == Line("refund", 400, "approved")
    assert (await counter.post(f"{PATH}/{reference}/refunds", {"amount_fen": 601}))[1]["code"] == "refund_too_large"
    assert (await counter.post(f"{PATH}/{reference}/reversals", {}))[1]["code"] == "payment_state"
    assert (await counter.operation(reference))["refunded_fen"] == 400


@pytest.mark.parametrize("bank", BANKS)
async def test_an_ecard_pays_from_the_account_of_its_card_once(counter: Counter, bank: str) -> None:
    code = await counter.platform.show(holder(bank, ecard=True).card_number)
    status, answer = await counter.post(PATH, order_of({"type": "ecard_code", "code": code}, 300))
    assert (status, answer["status"]) == (200, "approved"), answer
    assert await counter.line(bank, answer["reference"]) == Line("purchase", 300, "approved")
    _, again = await counter.post(PATH, order_of({"type": "ecard_code", "code": code}, 300))
    assert (again["status"], again["decline_code"]) == ("declined", "code_replayed")


async def test_the_banks_own_check_file_fits_our_day(counter: Counter) -> None:
    """Whatever the tests before have left; a payment that came about midnight is found in its day."""
    await counter.paid(JIAXING)
    day = dt.datetime.now(CHINA).date().isoformat()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", "reconcile", JIAXING, day, cwd=ROOT,
        env=os.environ | {"DATA_DIR": str(counter.gateway.data_dir)} | counter.gateway.environment,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = (await process.communicate())[0].decode()
    counts = {words[0]: words[1] for words in map(str.split, said.splitlines()) if len(words) == 2}
    assert process.returncode == 0 and int(counts.pop("matched")) >= 1, said
    assert {name for name, count in counts.items() if count.isdigit() and count != "0"} == set(), said
