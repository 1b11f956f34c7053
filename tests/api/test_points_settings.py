"""Points' settings change while the gateway runs, and the worker ends what time ends."""

import json
from pathlib import Path
from typing import Any

from tests.ledger import add_holder, rules_broken_at
from tests.registry import TestCard
from tests.running import Client, Running, eventually

PATH = "/v1/points/redemptions"


async def redeem(
    kiosk: Client, card: TestCard, amount: int, key: str | None = None
) -> tuple[int, dict[str, Any]]:  # fmt: skip
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    body = {"presentation": presentation, "points": amount, "item": "towel-set", "outlet_id": "wuyuan-01"}
    status, raw, _ = await kiosk.effect(PATH, body, key=key)
    return status, json.loads(raw)


async def test_a_new_price_is_taken_up_and_a_reservation_ends_by_itself(operated: Running) -> None:
    card = await add_holder(operated, 300)
    file = Path(operated.environment["CONFIG_DIR"]) / "points.toml"
    async with Client(operated, "demo-kiosk") as kiosk:
        status, problem = await redeem(kiosk, card, 79)
        assert (status, problem["errors"][0]["field"]) == (422, "$.points")
        status, first = await redeem(kiosk, card, 80, key="before")
        assert (status, first["status"]) == (200, "reserved")
        text = (
            file.read_text().replace("points = 80", "points = 79").replace("reserved_for_s = 600", "reserved_for_s = 1")
        )
        file.with_suffix(".new").write_text(text)
        file.with_suffix(".new").replace(file)

        async def reserved() -> str | None:
            status, answer = await redeem(kiosk, card, 79)
            return str(answer["reference"]) if status == 200 and answer["status"] == "reserved" else None

        reference = await eventually(reserved, 60, "the new price is taken up")
        assert await redeem(kiosk, card, 80, key="before") == (200, first), "its answer is kept, whatever changed since"
        assert (await redeem(kiosk, card, 80))[0] == 422

        async def expired() -> bool:
            path = f"/v1/operations/{reference}"
            async with kiosk.session.get(path, headers=await kiosk.authorization()) as answer:
                return bool((await answer.json())["status"] == "expired")

        await eventually(expired, 60, "the worker ends the reservation")
        status, raw, _ = await kiosk.effect(f"{PATH}/{reference}/commit", {})
        assert (status, json.loads(raw)["code"]) == (409, "redemption_state")
    assert await rules_broken_at(operated.environment["DATABASE_URL"]) == {}
