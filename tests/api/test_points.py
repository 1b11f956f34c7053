"""Redeeming points at an outlet, and what a card's holder has (api.md, Operations with effects)."""

import asyncio
import json
import secrets
from typing import Any

import asyncpg
import pytest

from gateway.domain.cards import CardStatus
from gateway.domain.points import ISSUED, REDEEMED, merchant_account
from tests.ledger import add_holder, rules_broken_at
from tests.registry import CARDS, TestCard, new_card
from tests.running import Client, Running, labelled

PATH = "/v1/points/redemptions"
TOWELS = {"points": 80, "item": "towel-set", "outlet_id": "wuyuan-01"}


def wish(card: TestCard, **changes: Any) -> dict[str, Any]:
    presentation = {"type": "chip_card", "card_number": card.number, "card_identifier": card.identifier}
    return {"presentation": presentation} | TOWELS | changes


async def redeem(kiosk: Client, card: TestCard, key: str = "", **changes: Any) -> tuple[int, dict[str, Any]]:
    status, raw, _ = await kiosk.effect(PATH, wish(card, **changes), **({"key": key} if key else {}))
    return status, json.loads(raw)


async def end(client: Client, reference: str, how: str) -> tuple[int, dict[str, Any]]:
    status, raw, _ = await client.effect(f"{PATH}/{reference}/{how}", {})
    return status, json.loads(raw)


async def get(client: Client, path: str) -> tuple[int, dict[str, Any]]:
    async with client.session.get(path, headers=await client.authorization()) as answer:
        return answer.status, await answer.json()


async def points_of(client: Client, card: TestCard) -> dict[str, Any]:
    card_ref = (await client.verify(card.number, card.identifier, "kiosk.service"))["card_ref"]
    status, answer = await get(client, f"/v1/points/{card_ref}")
    assert status == 200, answer
    return answer


@pytest.fixture(autouse=True)
async def the_ledger_is_whole(gateway: Running) -> Any:
    yield
    assert await rules_broken_at(gateway.environment["DATABASE_URL"]) == {}


async def balance(gateway: Running, account_id: Any) -> int:
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        found = await connection.fetchval("SELECT balance FROM points_account WHERE account_id = $1", account_id)
    finally:
        await connection.close()
    return int(found or 0)


async def test_reserve_and_commit(gateway: Running, kiosk: Client, bureau: Client) -> None:
    card, redeemed = await add_holder(gateway, 101), await balance(gateway, REDEEMED)
    body, key = wish(card), secrets.token_hex(8)
    status, raw, _ = await kiosk.effect(PATH, body, key=key)
    answer = json.loads(raw)
    assert status == 200 and answer.pop("expires_at").endswith("+08:00")
    reference = answer["reference"]
    assert answer == TOWELS | {"reference": reference, "status": "reserved", "balance": 101, "available": 21}
    have = await points_of(kiosk, card)
    assert (have["balance"], have["available"]) == (101, 21)
    assert [each["points"] for each in have["expiring"]] == [51, 50]
    status, again, headers = await kiosk.effect(PATH, body, key=key)
    assert (again, headers["Idempotency-Replayed"]) == (raw, "true")

    status, committed = await end(kiosk, reference, "commit")
    operation = committed.pop("operation")
    assert committed == TOWELS | {"reference": reference, "status": "committed", "balance": 21, "available": 21}
    have = await points_of(kiosk, card)
    assert (have["balance"], have["available"], [each["points"] for each in have["expiring"]]) == (21, 21, [21])
    assert await balance(gateway, REDEEMED) == redeemed + 80
    status, shown = await get(kiosk, f"/v1/operations/{reference}")
    assert (shown["kind"], shown["status"], shown["points"]) == ("points_redemption", "committed", 80)
    assert [step["status"] for step in shown["history"]] == ["reserved", "committed"]
    status, shown = await get(kiosk, f"/v1/operations/{operation}")
    assert (shown["kind"], shown["undoes"]) == ("points_commit", reference)
    events = [event for event in await bureau.whole_feed() if event["scene"] == "points.redeem"]
    assert events and events[-1]["terminal_id"] == "wuyuan-01"


async def test_cancel_gives_back(gateway: Running, kiosk: Client) -> None:
    card = await add_holder(gateway, 80)
    reference = (await redeem(kiosk, card))[1]["reference"]
    assert (await redeem(kiosk, card))[1]["reason"] == "insufficient_points"
    status, answer = await end(kiosk, reference, "cancel")
    assert (status, answer["status"], answer["balance"], answer["available"]) == (200, "cancelled", 80, 80)
    assert (await redeem(kiosk, card))[1]["status"] == "reserved"


async def test_goods_of_the_outlet_are_credited_to_its_caller(gateway: Running, kiosk: Client) -> None:
    card, account = await add_holder(gateway, 80), merchant_account("demo-kiosk")
    before = await balance(gateway, account)
    reference = (await redeem(kiosk, card, outlet_id="ganpu-01"))[1]["reference"]
    assert (await end(kiosk, reference, "commit"))[1]["balance"] == 0
    assert await balance(gateway, account) == before + 80


@pytest.mark.parametrize("first", ["commit", "cancel"])
async def test_it_ends_once(gateway: Running, kiosk: Client, first: str) -> None:
    card = await add_holder(gateway, 200)
    reference = (await redeem(kiosk, card))[1]["reference"]
    assert (await end(kiosk, reference, first))[0] == 200
    for second in ("commit", "cancel"):
        status, problem = await end(kiosk, reference, second)
        assert (status, problem["code"]) == (409, "redemption_state")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(CardStatus.LOST_TEMPORARY, "lost_temporary"), (CardStatus.LOCKED, "locked"), (CardStatus.NORMAL, "unrecognised")],
)
async def test_a_card_that_is_not_good_reserves_nothing(
    gateway: Running, kiosk: Client, status: CardStatus, reason: str
) -> None:
    card = new_card() if reason == "unrecognised" else await add_holder(gateway, 100, status)
    http, answer = await redeem(kiosk, card)
    assert (http, answer["status"], answer["reason"]) == (200, "refused", reason)
    assert not {"balance", "available", "expires_at"} & answer.keys()
    status_, problem = await end(kiosk, answer["reference"], "commit")
    assert (status_, problem["code"]) == (409, "redemption_state")
    shown = (await get(kiosk, f"/v1/operations/{answer['reference']}"))[1]
    assert (shown["status"], shown["reason"]) == ("refused", reason)


STALE = next(card for card in CARDS if card.reason == "status_stale")
UNKNOWN: dict[str, dict[str, Any]] = {
    "status_stale": {},
    "ecard_code": {"presentation": {"type": "ecard_code", "code": "12345678"}},
    "transit_qr": {"presentation": {"type": "transit_qr", "qr": "gQEC"}},
}


@pytest.mark.parametrize("name", UNKNOWN)
async def test_a_card_of_which_nothing_is_known_now_leaves_its_key_free(
    gateway: Running, kiosk: Client, name: str
) -> None:
    """As with a payment: it is no refusal (test_ecard_effects.py has the control)."""
    card, key = await add_holder(gateway, 80), secrets.token_hex(8)
    status, raw, headers = await kiosk.effect(PATH, wish(STALE, **UNKNOWN[name]), key=key)
    assert (status, json.loads(raw)["code"]) == (503, "unavailable") and headers["Retry-After"]
    status, answer = await redeem(kiosk, card, key)
    assert (status, answer["status"]) == (200, "reserved")


async def test_points_that_do_not_suffice_are_an_answer(gateway: Running, kiosk: Client) -> None:
    for amount in (0, 79):
        card = await add_holder(gateway, amount)
        status, answer = await redeem(kiosk, card)
        assert (status, answer["status"], answer["reason"]) == (200, "refused", "insufficient_points")
        assert (answer["balance"], answer["available"]) == (amount, amount)
        assert (await points_of(kiosk, card))["available"] == amount


async def test_of_many_at_once_only_as_many_as_the_points_suffice_for(gateway: Running, kiosk: Client) -> None:
    card = await add_holder(gateway, 250)
    answers = await asyncio.gather(*(redeem(kiosk, card) for _ in range(32)))
    assert {status for status, _ in answers} == {200}
    references = [answer["reference"] for _, answer in answers if answer["status"] == "reserved"]
    assert len(references) == 3
    ends = await asyncio.gather(
        *(end(kiosk, reference, how) for reference in references for how in ("commit", "cancel"))
    )
    assert sorted(status for status, _ in ends) == [200] * 3 + [409] * 3


async def commit_while_locked(gateway: Running, kiosk: Client, account_id: Any) -> int:
    """The status of a commit while somebody else holds a shared account, as a long ingest does."""
    reference = (await redeem(kiosk, await add_holder(gateway, 80)))[1]["reference"]
    other = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        async with other.transaction():
            await other.fetchval("SELECT balance FROM points_account WHERE account_id = $1 FOR UPDATE", account_id)
            return (await end(kiosk, reference, "commit"))[0]
    finally:
        await other.close()


async def test_a_long_ingest_does_not_hold_up_redemptions(gateway: Running, kiosk: Client) -> None:
    assert await commit_while_locked(gateway, kiosk, ISSUED) == 200


async def test_control_one_account_for_both_would(gateway: Running, kiosk: Client) -> None:
    assert await commit_while_locked(gateway, kiosk, REDEEMED) == 503


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({"points": 0}, "$.points"),
    "less than nothing": ({"points": -80}, "$.points"),
    "another price": ({"points": 81}, "$.points"),
    "a fraction": ({"points": 80.5}, "$.points"),
    "no such item": ({"item": "gold-bar"}, "$.item"),
    "an item of another outlet": ({"item": "rice-5kg", "outlet_id": "ganpu-01", "points": 300}, "$.item"),
    "no such outlet": ({"outlet_id": "nowhere"}, "$.outlet_id"),
    "an outlet with a line feed": ({"outlet_id": "wuyuan-01\n"}, "$.outlet_id"),
    "an unknown field": ({"cash": 80}, "$"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_bad_input_names_the_field(gateway: Running, kiosk: Client, name: str) -> None:
    changes, field = INVALID[name]
    status, problem = await redeem(kiosk, new_card(), **changes)
    assert (status, problem["code"]) == (422, "validation_failed")
    assert [error["field"] for error in problem["errors"]] == [field]


async def test_wrong_references_and_bodies(gateway: Running, kiosk: Client) -> None:
    for wrong in ("x", "01890000-0000-7000-8000-000000000000", "01A20000-0000-7000-8000-000000000000"):
        for how in ("commit", "cancel"):
            assert (await end(kiosk, wrong, how))[0] == 404
        assert (await get(kiosk, f"/v1/points/{wrong}"))[0] == 404
    assert (await get(kiosk, f"/v1/points/k{'0' * 32}"))[0] == 404
    status, raw, _ = await kiosk.effect(f"{PATH}/01890000-0000-7000-8000-000000000000/commit", {"cash": True})
    assert (status, json.loads(raw)["errors"][0]["field"]) == (422, "$")


async def test_another_callers_redemption_is_not_there(gateway: Running, kiosk: Client) -> None:
    """By the database's own rows: no second caller of the sandbox may redeem."""
    card = await add_holder(gateway, 100)
    reference = (await redeem(kiosk, card))[1]["reference"]
    owner = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        await owner.execute("UPDATE points_redemption SET caller = 'demo-bank' WHERE reference = $1", reference)
    except asyncpg.CheckViolationError:
        await owner.execute("SET session_replication_role = replica")
        await owner.execute("UPDATE points_redemption SET caller = 'demo-bank' WHERE reference = $1", reference)
    finally:
        await owner.close()
    for how in ("commit", "cancel"):
        assert (await end(kiosk, reference, how))[0] == 404


async def test_what_is_counted(gateway: Running, kiosk: Client) -> None:
    card = await add_holder(gateway, 80)
    before = labelled(await gateway.metrics(), "yikatong_redemptions_total")
    key = secrets.token_hex(8)
    reference = (await redeem(kiosk, card, key))[1]["reference"]
    await redeem(kiosk, card, key)
    await end(kiosk, reference, "commit")
    after = labelled(await gateway.metrics(), "yikatong_redemptions_total")
    for state in ("reserved", "committed"):
        assert after["demo-kiosk", state] == before.get(("demo-kiosk", state), 0) + 1
