"""Capped benefits when many ask at once, and when the gateway dies between the claim and the answer."""

import datetime as dt
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.crypto.key_files import open_folder
from tests.api.test_benefits import MEAL, MEALS, NOW, PATH, storm
from tests.conftest import Database, start_gateway
from tests.faults.planted import plant
from tests.registry import TODAY, TestCard, add_cards, new_card
from tests.running import Client, Running, eventually, verify_body


async def elder(running: Running) -> TestCard:
    card = new_card()._replace(birth_date=dt.date(TODAY.year - 65, 1, 1))
    await add_cards(running.environment["DATABASE_URL"], open_folder(running.data_dir / "keys"), (card,))
    return card


async def test_a_count_that_is_looked_at_first_and_written_later_is_noticed(tmp_path: Path, database: Database) -> None:
    """The control of the same storm in tests/api/test_benefits.py."""
    running = await start_gateway(tmp_path, database, WORKERS="2", **plant("benefits_looked_at_first"))
    try:
        async with Client(running, "demo-merchant") as merchant:
            given = await storm(running, merchant, await elder(running))
        assert sum(MEAL in each for each in given) > MEALS
    finally:
        await running.stop()


async def again(merchant: Client, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of the worker that the supervisor starts in the dead one's place."""

    async def answered() -> dict[str, Any]:
        try:
            status, answer, _ = await merchant.post(PATH, body)
        except aiohttp.ClientError:
            return {}
        return answer if status == 200 else {}

    return await eventually(answered, 30, "a new worker answers")


async def test_a_claim_counts_though_the_gateway_dies_before_its_answer(tmp_path: Path, database: Database) -> None:
    """Nobody was told, and it is used up: the other way round it could be given twice. The use is in the feed."""
    running = await start_gateway(tmp_path, database, WORKERS="1", **plant("dies_after_a_claim"))
    try:
        async with Client(running, "demo-merchant") as merchant, Client(running, "demo-bureau") as bureau:
            card = await elder(running)
            body = verify_body(card.number, card.identifier, "dining.till", occurred_at=NOW, terminal_id="T-dead")
            await merchant.token()
            (running.data_dir / "die").touch()
            with pytest.raises(aiohttp.ClientError):
                await merchant.post(PATH, body)
            given = [MEAL in (await again(merchant, body))["benefits"] for _ in range(MEALS)]
            assert given == [True, False]
            assert len(await bureau.events_at("T-dead", merchant)) >= 1 + MEALS
    finally:
        await running.stop()
