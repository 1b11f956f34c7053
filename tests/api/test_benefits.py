"""Benefits in the answer to a verify: who is entitled, why the others are not, and capped ones that many ask for."""

import asyncio
import datetime as dt
import json
import secrets
from typing import Any

import pytest

from gateway.crypto.key_files import open_folder
from tests.registry import CARDS, TODAY, TestCard, add_cards, new_card
from tests.running import Client, Running, eventually, labelled, request, send_raw, verify_body

PATH = "/v1/cards/verify"
AT_ONCE = 64
MEAL, DISCOUNT = "dining.elder_meal", "dining.card_discount"
MEALS = 2
"""The cap of a day (config/benefits.toml)."""
NOW = dt.datetime.now(dt.UTC).isoformat()
"""Of all uses here: on one day, though midnight passes."""


async def add(gateway: Running, age: int, **more: Any) -> TestCard:
    card = new_card(**more)._replace(birth_date=dt.date(TODAY.year - age, 1, 1))
    await add_cards(gateway.environment["DATABASE_URL"], open_folder(gateway.data_dir / "keys"), (card,))
    return card


def meal(card: TestCard, **more: Any) -> dict[str, Any]:
    return verify_body(card.number, card.identifier, "dining.till", occurred_at=NOW) | more


async def ask(merchant: Client, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    status, answer, _ = await merchant.post(PATH, body, **headers)
    assert status == 200, answer
    return dict(answer)


@pytest.mark.parametrize(
    ("age", "region", "benefits"),
    [
        (59, "330424", []), (60, "330424", ["scenic.elder_half"]), (69, "310104", ["scenic.elder_half"]),
        (70, "330424", ["scenic.elder_free"]), (70, "110101", []),
    ],
)  # fmt: skip
async def test_a_verify_carries_what_the_holder_is_entitled_to(
    gateway: Running, merchant: Client, age: int, region: str, benefits: list[str]
) -> None:
    card = await add(gateway, age, region=region)
    answer = await merchant.verify(card.number, card.identifier, "scenic.entry")
    resident = ["scenic.resident_free"] if region == "330424" else []
    assert answer["benefits"] == benefits + resident and "benefits_refused" not in answer


async def test_a_capped_benefit_is_given_up_to_its_cap(gateway: Running, merchant: Client) -> None:
    card = await add(gateway, 65)
    for _ in range(MEALS):
        assert (await ask(merchant, meal(card)))["benefits"] == [DISCOUNT, MEAL]
    assert (await ask(merchant, meal(card)))["benefits"] == [DISCOUNT]
    answer = await ask(merchant, meal(card, explain=True))
    assert answer["benefits"] == [DISCOUNT]
    assert answer["benefits_refused"] == [{"benefit": MEAL, "reason": "cap_day"}]


async def test_who_asks_why_is_told(gateway: Running, merchant: Client) -> None:
    card = await add(gateway, 30, generation=2, region="310104")
    answer = await ask(merchant, verify_body(card.number, card.identifier, "parking.exit", explain=True))
    assert answer["benefits"] == []
    assert answer["benefits_refused"] == [
        {"benefit": "parking.first_hour_free", "reason": "medium"},
        {"benefit": "parking.talent_free", "reason": "talent_unknown"},
    ]
    answer = await ask(merchant, meal(card, explain=True))
    assert [each["reason"] for each in answer["benefits_refused"]] == ["medium", "region"]
    answer = await ask(merchant, verify_body(card.number, card.identifier, "market.till", explain=True))
    assert (answer["benefits"], answer["benefits_refused"]) == ([], [])


@pytest.mark.parametrize("card", [card for card in CARDS if card.reason != "ok"], ids=lambda card: card.reason)
async def test_a_card_that_is_not_good_has_none_and_no_reasons(merchant: Client, card: TestCard) -> None:
    answer = await ask(merchant, meal(card, explain=True))
    assert answer["reason"] == card.reason and "benefits" not in answer and "benefits_refused" not in answer


async def test_a_repeated_key_takes_nothing_more(gateway: Running, merchant: Client) -> None:
    card, key = await add(gateway, 65), secrets.token_hex(8)
    for explain in (False, True):
        first = await ask(merchant, meal(card, explain=explain), **{"Idempotency-Key": f"{key}{explain}"})
        for _ in range(3):
            assert await ask(merchant, meal(card, explain=explain), **{"Idempotency-Key": f"{key}{explain}"}) == first
        assert first["benefits"] == [DISCOUNT, MEAL]
        assert first.get("benefits_refused", []) == []
    assert (await ask(merchant, meal(card)))["benefits"] == [DISCOUNT]


async def storm(gateway: Running, merchant: Client, card: TestCard) -> list[list[str]]:
    """The benefits of 64 answers, asked for at once, each over its own connection; every fourth with a key. On a busy
    machine one may be a 503, which has none."""
    authorization = f"Bearer {await merchant.token()}"

    async def till(number: int) -> list[str]:
        key = None if number % 4 else secrets.token_hex(8)
        body = json.dumps(meal(card, terminal_id=f"T-{number}")).encode()
        sent = request("POST", PATH, body, authorization=authorization, idempotency_key=key)
        answer = await send_raw(gateway.port, sent, used=True)
        assert answer.status in (200, 503), answer.body
        return list(json.loads(answer.body).get("benefits", ()))

    return list(await asyncio.gather(*map(till, range(AT_ONCE))))


async def test_exactly_the_cap_is_given_to_64_tills_that_ask_at_once(gateway: Running, merchant: Client) -> None:
    """Two workers, both lanes. The control is in tests/faults/test_benefits.py."""
    for _ in range(3):
        given = await storm(gateway, merchant, await add(gateway, 65))
        assert sum(MEAL in each for each in given) == MEALS
        assert [each for each in given if each and DISCOUNT not in each] == []


async def test_benefits_are_counted(gateway: Running, merchant: Client) -> None:
    """The reasons are those of nobody else here."""
    resident, visitor = await add(gateway, 30), await add(gateway, 30, region="110101")
    for card, times in ((resident, 3), (visitor, 1)):
        for _ in range(times):
            await ask(
                merchant, verify_body(card.number, card.identifier, "scenic.entry", occurred_at=NOW, explain=True)
            )

    async def counted() -> bool:
        found = labelled(await gateway.metrics(), "yikatong_benefits_total")
        free = {result: count for (benefit, result), count in found.items() if benefit == "scenic.resident_free"}
        return free.get("granted", 0) >= 2 and (free.get("cap_month"), free.get("region")) == (1, 1)

    await eventually(counted, 10, "the workers have handed over what they count")
