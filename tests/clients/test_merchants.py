"""What the README says to merchants, line by line, with each client."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.clients.partner import LANGUAGES, command
from tests.visits import CHEAP, DEAR, barriers, street_at


@pytest.mark.parametrize("language", LANGUAGES)
async def test_merchants_with_and_without_a_system_of_their_own(
    tmp_path: Path, postgres: EmbeddedPostgres, template: str, language: str
) -> None:
    async with street_at(tmp_path, postgres) as street:
        card = await street.card(account=True)
        till = street.running.data_dir / "sandbox" / "callers" / "demo-merchant.json"
        presented = (card.number, card.identifier)

        async def run(*arguments: str) -> dict[str, Any]:
            ended = await command(language, till, *arguments)
            assert ended.code == 0, (ended.out, ended.err)
            return dict(json.loads(ended.out))

        verdict = await run("verify", *presented, "hotel.checkin")
        assert (verdict["verdict"], verdict["benefits"]) == ("valid", ["hotel.member_rate", "hotel.late_checkout"])
        paid = await run("pay", *presented, "30000", f"order-{uuid.uuid4()}", f"key-{uuid.uuid4()}", "hotel.checkin")
        assert (paid["status"], paid["amount_fen"], paid["discount_fen"]) == ("approved", 27000, 3000)

        key = f"key-{uuid.uuid4()}"
        entry = ("visit", *presented, "parking.entry", "L-1", json.dumps({"plate": DEAR}), key)
        opened = await run(*entry)
        assert opened["status"] == "opened" and await run(*entry) == opened
        free = await run("visit", *presented, "parking.exit", "L-2", json.dumps({"plate": CHEAP}))
        assert (free["status"], free["amount_fen"]) == ("opened", 0)
        due = await run("visit", *presented, "parking.exit", "L-2", json.dumps({"plate": DEAR}))
        assert (due["status"], due["amount_fen"]) == ("due", 1000)
        paid = await run("pay", *presented, str(due["amount_fen"]), f"order-{uuid.uuid4()}")
        out = await run("open", due["reference"], paid["reference"])
        assert (out["status"], out["payment"]) == ("opened", paid["reference"])
        assert barriers(await street.host.lines()) == ["in", "out", "out"]

        guest = await run("visit", *presented, "hotel.checkin", "H-1", json.dumps({"booking": "B-1"}))
        assert (guest["status"], guest["rate_percent"]) == ("checked_in", 90)
        bill = await run("visit", *presented, "dining.till", "D-1", json.dumps({"ticket": "1", "amount_fen": 2000}))
        assert (bill["status"], bill["discount_fen"], bill["amount_fen"]) == ("discounted", 100, 1900)
