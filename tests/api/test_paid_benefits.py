"""Payments that a benefit makes cheaper: the greatest one, charged at the bank, given back with the payment."""

import asyncio
import datetime as dt
import json
from collections import Counter
from typing import Any

import asyncpg
import pytest

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from tests.bank import give_account
from tests.registry import TODAY, TestCard, add_cards, new_card
from tests.running import verify_body
from tests.tills import PATH, Till, order
from tests.tills import till as till

DISCOUNT, MEAL, FREE = "dining.card_discount", "dining.elder_meal", "scenic.resident_free"
MEALS, FREE_ENTRIES = 2, 2
"""Caps (config/benefits.toml): of a day, of a month."""


async def add(till: Till, age: int, account: bool = True, **more: Any) -> TestCard:
    card = new_card(**more)._replace(birth_date=dt.date(TODAY.year - age, 1, 1))
    keys = open_folder(till.gateway.data_dir / "keys")
    (card_id,) = await add_cards(till.dsn, keys, (card,))
    if account:
        await give_account(till.dsn, keys, card_id)
    return card


async def pay(till: Till, card: TestCard, amount_fen: int = 1250, scene: str = "dining.till") -> dict[str, Any]:
    body = order(card, amount_fen) | {"scene": scene, "apply_benefits": True}
    status, answer, _ = await till.merchant.effect(PATH, body)
    assert status == 200, answer
    return dict(json.loads(answer))


def taken(answer: dict[str, Any]) -> tuple[int, int, list[str]]:
    return answer["amount_fen"], answer["discount_fen"], answer["benefits"]


async def claims(till: Till) -> bool:
    """Whether the counts are what the record says."""
    connection = await asyncpg.connect(till.dsn)
    try:
        wrong = await connection.fetch(
            "SELECT FROM benefit_use LEFT JOIN (SELECT since, span, benefit, holder, sum(delta) AS n FROM benefit_claim"
            " GROUP BY 1, 2, 3, 4) AS record USING (since, span, benefit, holder) WHERE used <> n"
        )
    finally:
        await connection.close()
    return not wrong


async def test_the_bank_is_asked_for_less_and_the_answer_says_why(till: Till) -> None:
    body = order(await add(till, 30), 1001) | {"scene": "dining.till", "apply_benefits": True}
    status, raw, _ = await till.merchant.effect(PATH, body, key="cheaper")
    answer = json.loads(raw)
    assert (status, answer["status"], taken(answer)) == (200, "approved", (950, 51, [DISCOUNT]))
    assert till.bank.lines()[answer["reference"]].amount_fen == 950
    assert (await till.merchant.effect(PATH, body, key="cheaper"))[1] == raw
    assert taken((await till.operation(answer["reference"]))[1]) == (950, 51, [DISCOUNT])


async def test_a_till_that_does_not_ask_charges_what_it_says(till: Till) -> None:
    card = await add(till, 65)
    for _ in range(MEALS + 1):
        status, raw, _ = await till.merchant.effect(PATH, order(card) | {"scene": "dining.till"})
        answer = json.loads(raw)
        assert (status, answer["amount_fen"]) == (200, 1250) and not {"discount_fen", "benefits"} & answer.keys()
    assert taken(await pay(till, card)) == (950, 300, [MEAL]), "nothing was used up"


async def test_the_greatest_that_is_left_is_applied(till: Till) -> None:
    card = await add(till, 65)
    for _ in range(MEALS):
        assert taken(await pay(till, card)) == (950, 300, [MEAL])
    assert taken(await pay(till, card)) == (1187, 63, [DISCOUNT])
    assert taken(await pay(till, card, scene="market.till")) == (1250, 0, [])


async def test_verify_and_payment_count_together(till: Till) -> None:
    card = await add(till, 65)
    answer = await till.merchant.verify(card.number, card.identifier, "dining.till")
    assert MEAL in answer["benefits"]
    assert [taken(await pay(till, card))[2] for _ in range(2)] == [[MEAL], [DISCOUNT]]


@pytest.mark.parametrize("account", [True, False])
async def test_what_is_free_needs_no_bank(till: Till, account: bool) -> None:
    before = len(till.bank.messages)
    answer = await pay(till, await add(till, 70, account), 8000, "scenic.entry")
    assert (answer["status"], taken(answer)) == ("approved", (0, 8000, ["scenic.elder_free"]))
    assert await till.steps(answer["reference"]) == ["approved"]
    status, refund = await till.undo(answer["reference"], "refunds", amount_fen=1)
    assert (status, refund["code"]) == (409, "refund_too_large")
    for _ in range(2):
        status, undone = await till.undo(answer["reference"], "reversals")
        assert (status, undone["status"], undone["amount_fen"]) == (200, "reversed", 0)
    assert await till.steps(answer["reference"]) == ["approved", "reversed"]
    assert len(till.bank.messages) == before
    assert await till.resolver.make_due() == 0, "nothing is left to do"


async def test_only_a_free_one_helps_a_card_without_an_account(till: Till) -> None:
    answer = await pay(till, await add(till, 65, account=False))
    assert (answer["status"], answer["decline_code"], taken(answer)) == ("declined", "no_account", (1250, 0, []))
    assert await claims(till)


async def test_a_free_one_is_back_when_its_payment_is_reversed(till: Till) -> None:
    card = await add(till, 30)
    free = [await pay(till, card, 8000, "scenic.entry") for _ in range(FREE_ENTRIES)]
    assert [taken(answer) for answer in free] == [(0, 8000, [FREE])] * FREE_ENTRIES
    assert taken(await pay(till, card, 8000, "scenic.entry")) == (8000, 0, [])
    assert (await till.undo(free[0]["reference"], "reversals"))[1]["status"] == "reversed"
    assert [taken(await pay(till, card, 8000, "scenic.entry"))[0] for _ in range(2)] == [0, 8000]
    assert await claims(till)


async def test_a_declined_payment_uses_nothing_up(till: Till) -> None:
    card = await add(till, 65)
    till.bank.faults["purchase"] += ["decline:insufficient_funds"] * 3
    for _ in range(3):
        answer = await pay(till, card)
        assert (answer["status"], taken(answer)) == ("declined", (950, 300, [MEAL]))
    assert [taken(await pay(till, card))[2] for _ in range(MEALS + 1)] == [[MEAL], [MEAL], [DISCOUNT]]
    assert await claims(till)


async def test_a_card_that_is_not_good_uses_nothing_up(till: Till) -> None:
    answer = await pay(till, await add(till, 65, status=CardStatus.LOST_FORMAL))
    assert (answer["status"], answer["decline_code"], taken(answer)) == ("declined", "lost_formal", (1250, 0, []))
    assert await claims(till)


async def test_a_reversed_payment_gives_back_whoever_reversed_it(till: Till) -> None:
    """The merchant, or the resolver that could not find out what became of it."""
    card = await add(till, 65)
    answer = await pay(till, card)
    assert (await till.undo(answer["reference"], "reversals"))[1]["status"] == "reversed"
    till.bank.faults["purchase"].append("drop_before")
    status, raw, _ = await till.merchant.effect(PATH, order(card) | {"scene": "dining.till", "apply_benefits": True})
    assert (status, taken(json.loads(raw))[2]) == (202, [MEAL])
    await till.resolver.until_nothing_is_left()
    assert await till.status(json.loads(raw)["reference"]) == "reversed"
    assert [taken(await pay(till, card))[2] for _ in range(MEALS + 1)] == [[MEAL], [MEAL], [DISCOUNT]]
    assert await claims(till)


async def test_a_bank_that_cannot_be_reached_uses_nothing_up(till: Till) -> None:
    card = await add(till, 65)
    body = order(card) | {"scene": "dining.till", "apply_benefits": True}
    assert till.bank._server is not None
    till.bank._server.close()
    try:
        for _ in range(MEALS):
            assert (await till.merchant.effect(PATH, body))[0] == 503
    finally:
        await till.bank.open()
    assert [taken(await pay(till, card))[2] for _ in range(MEALS + 1)] == [[MEAL], [MEAL], [DISCOUNT]]
    assert await claims(till)


async def test_64_payments_and_verifies_at_once_are_given_the_cap(till: Till) -> None:
    card = await add(till, 65)

    async def verify() -> list[str]:
        body = verify_body(card.number, card.identifier, "dining.till")
        return list((await till.merchant.post("/v1/cards/verify", body))[1]["benefits"])

    async def cheaper() -> list[str]:
        return taken(await pay(till, card))[2]

    given = Counter(name for each in await asyncio.gather(*(f() for _ in range(32) for f in (verify, cheaper)))
                    for name in each)  # fmt: skip
    assert given[MEAL] == MEALS
    assert await claims(till)


async def test_where_no_money_moves_nothing_is_paid(till: Till) -> None:
    status, raw, _ = await till.merchant.effect(PATH, order(await till.card()) | {"scene": "library.loan"})
    assert (status, json.loads(raw)["errors"][0]["field"]) == (422, "$.scene")
