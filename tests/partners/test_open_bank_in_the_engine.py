"""The open bank behind the engine itself: a partners.toml block, key files, call.py, the simulated faults."""

import datetime as dt
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.domain.operations import Operation, QueryStatus, Reverse
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Pending, Unknown
from gateway.domain.times import CHINA
from gateway.partners.call import Partners
from gateway.partners.registry import read
from gateway.settings import Settings, SettingsError, load
from tests.faults.waiting import until
from tests.partners.open_bank import (
    ELSEWHERE,
    ID_NUMBER,
    PAYEE,
    PAYER,
    Caller,
    balance_fen,
    check,
    loss,
    payroll,
    purchase,
    refund,
    transfer,
)
from tests.partners.peers import partners
from tests.running import ROOT

BLOCK = """
[partners.open-bank]
name = "示范银行(合成)"
adapter = "bank_signed_http"
operations = ["account_check", "balance", "purchase", "reverse", "refund", "transfer", "batch_transfer", "notify_loss",
              "check_file", "query_status"]
timeout_ms = {timeout_ms}
[partners.open-bank.http]
base_url = "{base}"
[partners.open-bank.keys]
sign = {{ kind = "sm2", file = "keys/sign.key" }}
encrypt = {{ kind = "sm4-cbc", file = "keys/encrypt.key" }}
partner = {{ kind = "sm2", file = "keys/partner.key" }}
[partners.open-bank.dialect]
app_id = "yikatong"
bank_id = "330424"
merchants = {{ M-0001 = {{ account = "6217000000000009001", name = "海盐停车" }} }}
"""


class Engine:
    def __init__(self, made: Partners) -> None:
        self.partners = made

    async def call(self, op: Operation) -> Outcome:
        return await self.partners.call("open-bank", op, time.monotonic() + 5)

    async def ask(self, op: Operation) -> Outcome:
        return await self.call(QueryStatus(reference=op.reference, at=op.at, original=op))


@asynccontextmanager
async def engine(folder: Path, bank: Caller, timeout_ms: int = 5000) -> AsyncIterator[Engine]:
    async with partners(folder, BLOCK.format(base=bank._base, timeout_ms=timeout_ms)) as made:
        yield Engine(made)


def of_today(op: Any) -> Any:
    """Made ten minutes ago."""
    return msgspec.structs.replace(op, at=dt.datetime.now(CHINA) - dt.timedelta(minutes=10))


async def test_every_operation_and_nothing_personal_is_kept(tmp_path: Path, bank: Caller) -> None:
    async with engine(tmp_path, bank) as gateway:
        paid, salaries = purchase(1000), payroll(PAYEE)
        approved = [check("张三"), paid, refund(paid, 100), transfer(10), Reverse(
            reference=transfer().reference, at=paid.at, original=of_today(purchase()),
        ), salaries, loss()]  # fmt: skip
        outcomes = [await gateway.call(op) for op in approved]
        assert [type(outcome) for outcome in outcomes] == [
            Approved, Approved, Approved, Approved, Declined, Pending, Approved,
        ]  # fmt: skip
        assert isinstance(await gateway.ask(salaries), Approved)
        assert await gateway.call(purchase()) == Declined(DeclineCode.LOST_CARD)
        kept = repr(gateway.partners.transcript("open-bank"))
        assert str(paid.reference) in kept
        for personal in (PAYER, PAYEE, ELSEWHERE, ID_NUMBER, "张三", "王五"):
            assert personal not in kept


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        ({"kind": "drop_before"}, False),
        ({"kind": "drop_after"}, True),
        ({"kind": "half_close"}, True),
        ({"kind": "garbage"}, True),
        ({"kind": "bad_signature"}, True),
        ({"kind": "delay", "ms": 700}, True),
        ({"kind": "late", "ms": 700}, True),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
async def test_what_a_fault_left_unknown_is_learnt(
    tmp_path: Path, bank: Caller, fault: dict[str, Any], done: bool
) -> None:
    async with engine(tmp_path, bank, timeout_ms=400) as gateway:
        op = of_today(purchase(1234))
        before = await balance_fen(bank)
        await bank.faults(fault)
        assert isinstance(await gateway.call(op), Unknown)
        await bank.heal()

        async def recorded() -> bool:
            return await bank.line(op.reference) is not None

        if done:
            await until(recorded, 5, "what was on its way")
    async with engine(tmp_path, bank) as gateway:
        outcome = await gateway.ask(op)
        assert isinstance(outcome, Approved) if done else outcome == Declined(DeclineCode.NOT_FOUND)
        assert await balance_fen(bank) == before - (1234 if done else 0)


async def test_an_answer_twice_is_one_and_the_next_call_reads_its_own(tmp_path: Path, bank: Caller) -> None:
    async with engine(tmp_path, bank) as gateway:
        await bank.faults({"kind": "duplicate"})
        for amount_fen in (1, 2, 3):
            assert isinstance(await gateway.call(purchase(amount_fen)), Approved)
        assert [item["amount_fen"] for item in await bank.book()] == [1, 2, 3]


def test_the_sample_blocks_are_right(tmp_path: Path) -> None:
    """Those of config/partners.toml, with its remarks taken as configuration."""
    config = tmp_path / "config"
    shutil.copytree(ROOT / "config", config)
    parts = (config / "partners.toml").read_text().split("\n#\n")
    sample = "\n".join(part for part in parts if part.startswith("# [partners."))
    (config / "partners.toml").write_text(re.sub("(?m)^# ?", "", sample))
    settings = load({"CONFIG_DIR": str(config), "DATA_DIR": str(tmp_path)})
    adapters = sorted(block.adapter for block in settings.partners.values())
    assert adapters == sorted(file.stem for file in (ROOT / "adapters").glob("[a-z]*.py")), "one of each dialect"
    assert read_mistakes(settings) == []


def read_mistakes(settings: Settings) -> list[str]:
    """Those that are not of files which only a real partner gives."""
    try:
        read(settings, {})
    except SettingsError as error:
        return [mistake for mistake in error.mistakes if "No such file" not in mistake]
    return []
