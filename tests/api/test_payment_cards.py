"""Payments with cards that are not good, or of which nothing is known: the bank is not asked (api.md)."""

import datetime as dt
import json

import asyncpg
import pytest

from gateway.domain.cards import CardStatus
from tests.registry import new_card
from tests.tills import PATH, Till, order
from tests.tills import till as till


@pytest.mark.parametrize(
    ("status", "account", "code"),
    [
        (CardStatus.LOST_FORMAL, True, "lost_formal"), (CardStatus.LOCKED, True, "locked"),
        (CardStatus.NORMAL, False, "no_account"),
    ],
)  # fmt: skip
async def test_a_card_that_is_not_good_is_declined_without_the_bank(
    till: Till, status: CardStatus, account: bool, code: str
) -> None:
    before = len(till.bank.messages)
    card = await till.card(status, account)
    http, answer = await till.pay(card)
    assert (http, answer["status"], answer["decline_code"]) == (200, "declined", code)
    assert len(till.bank.messages) == before
    assert await till.steps(answer["reference"]) == ["declined"]


async def test_an_unknown_card_is_declined(till: Till) -> None:
    _, answer = await till.pay(new_card())
    assert (answer["status"], answer["decline_code"]) == ("declined", "unrecognised")
    assert (await till.undo(answer["reference"], "reversals"))[1]["code"] == "payment_state"


async def test_a_card_of_which_nothing_is_known_now_leaves_key_and_order_free(till: Till) -> None:
    card = await till.card()
    body, owner = order(card), await asyncpg.connect(till.dsn)
    try:
        sources = "UPDATE registry_source SET as_of = as_of + $1"
        fresh = "UPDATE card SET status_as_of = status_as_of + $1"
        for statement in (sources, fresh):
            await owner.execute(statement, dt.timedelta(days=-30))
        status, raw, headers = await till.merchant.effect(PATH, body, key="stale")
        assert (status, json.loads(raw)["code"]) == (503, "unavailable") and headers["Retry-After"]
        for statement in (sources, fresh):
            await owner.execute(statement, dt.timedelta(days=30))
        status, raw, _ = await till.merchant.effect(PATH, body, key="stale")
        assert (status, json.loads(raw)["status"]) == (200, "approved")
        events = await owner.fetch("SELECT reason FROM usage_event ORDER BY position")
        assert [row["reason"] for row in events][-2:] == ["status_stale", "ok"]
    finally:
        await owner.close()
