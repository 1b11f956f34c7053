"""Cards presented at merchants' own systems: gateway, its worker, lot, hotel, restaurant and bank on real sockets."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.domain.cards import CardStatus
from gateway.store.embedded import EmbeddedPostgres
from tests.api.test_changes import put
from tests.api.test_evidence import show
from tests.running import eventually, labelled
from tests.visits import CHEAP, DEAR, ENDS_S, Street, barriers, street_at


@pytest.fixture(scope="module")
async def street(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Street]:
    async with street_at(tmp_path_factory.mktemp("street"), postgres, "looks_often") as made:
        yield made


@pytest.fixture(autouse=True)
async def healed(street: Street) -> AsyncIterator[None]:
    await street.breaker_is_closed()
    yield
    await street.host.faults()


async def test_a_car_is_let_in_once(street: Street) -> None:
    card = await street.card()
    first = await street.visit(card, "parking.entry", "L-1", key="in-once", plate=CHEAP)
    reference = first[1]["reference"]
    assert first == (200, {"reference": reference, "status": "opened", "benefits": []})
    assert await street.visit(card, "parking.entry", "L-1", key="in-once", plate=CHEAP) == first
    assert barriers(await street.book(reference)) == ["in"]
    shown = await street.operation(reference)
    assert (shown["kind"], shown["status"], shown["benefits"]) == ("visit_entry", "opened", [])
    assert await street.steps(reference) == ["intent", "done"]


async def test_a_card_that_is_not_good_opens_nothing(street: Street) -> None:
    lost = await street.card(CardStatus.LOST_FORMAL)
    for scene, terminal, details in (
        ("parking.entry", "L-1", {}), ("parking.exit", "L-2", {"plate": DEAR}),
        ("hotel.checkin", "H-1", {"booking": "B"}), ("dining.till", "D-1", {"ticket": "1", "amount_fen": 100}),
    ):  # fmt: skip
        status, answer = await street.visit(lost, scene, terminal, **details)
        reference = answer["reference"]
        assert (status, answer) == (200, {"reference": reference, "status": "refused", "reason": "lost_formal"})
        assert await street.book(reference) == []
        assert await street.steps(reference) == ["refused"]


async def test_an_exit_that_a_benefit_makes_free_opens_at_once(street: Street) -> None:
    status, answer = await street.visit(await street.card(), "parking.exit", "L-2", plate=CHEAP)
    assert (status, answer) == (200, {
        "reference": answer["reference"], "status": "opened", "benefits": ["parking.first_hour_free"], "fee_fen": 500,
        "discount_fen": 500, "amount_fen": 0,
    })  # fmt: skip
    assert barriers(await street.book(answer["reference"])) == ["out"]
    assert await street.steps(answer["reference"]) == ["asking", "intent", "done"]

    async def counted() -> bool:
        granted = labelled(await street.running.metrics(), "yikatong_benefits_total")
        return granted.get(("parking.first_hour_free", "granted"), 0) > 0

    await eventually(counted, ENDS_S, "the worker has handed over what it counts")


async def test_an_exit_is_paid_and_opens_once(street: Street) -> None:
    card = await street.card(account=True)
    due = await street.due(card)
    assert (due["fee_fen"], due["discount_fen"], due["amount_fen"]) == (1500, 500, 1000)
    assert due["benefits"] == ["parking.first_hour_free"] and due["expires_at"].endswith("+08:00")
    reference, payment = due["reference"], await street.pay(card, 1000)
    assert barriers(await street.book(reference)) == []
    status, opened = await street.open(reference, payment, key="open-once")
    assert status == 200 and opened == {
        "reference": reference, "status": "opened", "benefits": ["parking.first_hour_free"], "fee_fen": 1500,
        "discount_fen": 500, "amount_fen": 1000, "payment": payment, "operation": opened["operation"],
    }  # fmt: skip
    assert await street.open(reference, payment, key="open-once") == (200, opened)
    assert barriers(await street.book(reference)) == ["out"]
    status, again = await street.open(reference, payment)
    assert (status, again["code"]) == (409, "visit_state")
    assert await street.steps(reference) == ["asking", "due", "intent", "done"]
    kept = "SELECT count(*) FROM visit WHERE reference = $1 AND details_sealed IS NOT NULL"
    assert await street.fetch(kept, reference) == 0, "the plate is erased"
    for shown in (await street.operation(reference), await street.operation(opened["operation"])):
        assert (shown["status"], shown["payment"]) == ("opened", payment)
    code, said = await show(street.running, opened["operation"])
    assert code == 0 and "visit_open" in said, said


async def test_a_payment_opens_one_barrier_however_many_ask_at_once(street: Street) -> None:
    card = await street.card(account=True)
    dues = [(await street.due(card))["reference"] for _ in range(4)]
    payment = await street.pay(card, 1000)
    answers = await asyncio.gather(*(street.open(reference, payment) for reference in dues))
    codes = [str(answer.get("code", answer.get("status"))) for _, answer in answers]
    assert sorted(codes) == ["opened", "payment_used", "payment_used", "payment_used"]
    opened = [barriers(await street.book(reference)) for reference in dues]
    assert sum(map(len, opened)) == 1


async def test_what_does_not_pay_a_fee_opens_nothing(street: Street) -> None:
    card = await street.card(account=True)
    reference, nobodys = (await street.due(card))["reference"], "0199f000-0000-7000-8000-000000000001"
    little = await street.pay(card, 999)
    reversed_ = await street.pay(card, 1001)
    await street.merchant.effect(f"/v1/payments/{reversed_}/reversals", {})
    less = await street.pay(card, 1002)
    await street.merchant.effect(f"/v1/payments/{less}/refunds", {"amount_fen": 3})
    for payment, code in (
        (nobodys, "validation_failed"), (little, "payment_too_small"), (reversed_, "payment_state"),
        (less, "payment_too_small"),
    ):  # fmt: skip
        assert (await street.open(reference, payment))[1]["code"] == code
    assert (await street.open(nobodys, little))[1]["code"] == "not_found"
    assert barriers(await street.book(reference)) == []


async def test_a_hotel_is_told_the_masked_name_and_the_rate(street: Street) -> None:
    status, answer = await street.visit(await street.card(), "hotel.checkin", "H-1", booking="B-17")
    assert (status, answer) == (200, {
        "reference": answer["reference"], "status": "checked_in",
        "benefits": ["hotel.member_rate", "hotel.late_checkout"], "rate_percent": 90,
    })  # fmt: skip
    (line,) = await street.book(answer["reference"])
    assert line["facts"] == {"at": "hotel", "name": "*三", "rate": 90}


async def test_a_till_is_told_the_discount_and_a_failed_one_is_given_back(street: Street) -> None:
    """elder_meal: 3 yuan off, twice a day, so a third one counts whether it was given back."""
    card = await street.card(age=65)
    for turn in range(2):
        await street.host.faults({"kind": "decline"})
        refused = await street.visit(card, "dining.till", "D-1", ticket=f"no-{turn}", amount_fen=2000)
        assert refused[1]["status"] == "refused" and refused[1]["reason"] == "not_allowed"
        await street.host.faults()
    for off, name in ((300, "dining.elder_meal"), (300, "dining.elder_meal"), (100, "dining.card_discount")):
        status, answer = await street.visit(card, "dining.till", "D-1", ticket=f"yes-{off}", amount_fen=2000)
        assert (status, answer) == (200, {
            "reference": answer["reference"], "status": "discounted", "benefits": [name], "discount_fen": off,
            "amount_fen": 2000 - off,
        })  # fmt: skip
        (line,) = await street.book(answer["reference"])
        assert (line["kind"], line["amount_fen"]) == ("discount", off)


MORE_BENEFITS = """
[benefits."hotel.fifth"]
name = "x"
scenes = ["hotel.checkin"]
discount = { percent = 20 }
caps = { month = 1 }
[benefits."hotel.seventh"]
name = "x"
scenes = ["hotel.checkin"]
discount = { percent = 15 }
caps = { month = 1 }
[benefits."hotel.voucher"]
name = "x"
scenes = ["hotel.checkin"]
discount = { fen = 500 }
caps = { month = 1 }
[benefits."hotel.least"]
name = "x"
scenes = ["hotel.checkin"]
discount = { percent = 5 }
caps = { month = 1 }
[benefits."hotel.breakfast"]
name = "x"
scenes = ["hotel.checkin", "parking.entry"]
caps = { month = 2 }
[benefits."hotel.bath"]
name = "x"
scenes = ["hotel.checkin"]
caps = { month = 2 }
[benefits."parking.coupon"]
name = "x"
scenes = ["parking.entry"]
discount = { fen = 500 }
caps = { month = 1 }
[benefits."dining.soup"]
name = "x"
scenes = ["dining.till", "parking.exit"]
"""


async def test_one_discount_that_has_an_effect_is_used_up_and_all_that_is_in_kind_is_named(street: Street) -> None:
    file = "benefits.toml"
    text = (Path(street.running.environment["CONFIG_DIR"]) / file).read_text()
    put(street.running, file, text + MORE_BENEFITS)

    async def is_given(*benefits: str) -> bool:
        answer = (await street.visit(await street.card(), "dining.till", "D-1", ticket="1", amount_fen=2000))[1]
        return bool(answer["benefits"] == [*benefits])

    await eventually(lambda: is_given("dining.card_discount", "dining.soup"), 60, "the change is taken up")
    card, twice = await street.card(), ["hotel.breakfast", "hotel.bath"]
    assert (await street.due(card))["benefits"] == ["parking.first_hour_free", "dining.soup"]
    for name, rate, in_kind in (
        ("hotel.fifth", 80, twice), ("hotel.seventh", 85, twice), ("hotel.member_rate", 90, []),
    ):  # fmt: skip
        _, answer = await street.visit(card, "hotel.checkin", "H-1", booking="B-17")
        assert answer["rate_percent"] == rate
        assert sorted(answer["benefits"]) == sorted([name, "hotel.late_checkout", *in_kind])
    assert (await street.visit(await street.card(), "parking.entry", "L-1"))[1]["benefits"] == ["hotel.breakfast"]
    # the last takes less off than one that has no cap
    unused = ["hotel.voucher", "parking.coupon", "hotel.least"]
    assert await street.fetch("SELECT count(*) FROM benefit_use WHERE benefit = ANY($1) AND used > 0", unused) == 0
    put(street.running, file, text)
    await eventually(lambda: is_given("dining.card_discount"), 60, "it is as before")


@pytest.mark.parametrize(
    ("scene", "terminal", "details", "field"),
    [
        ("parking.entry", "X-1", {}, "$.terminal_id"),
        ("parking.entry", "H-1", {}, "$.scene"),
        ("library.loan", "L-1", {}, "$.scene"),
        ("no.scene", "L-1", {}, "$.scene"),
        ("parking.exit", "L-2", {}, "$.details"),
        ("parking.entry", "L-1", {"booking": "B"}, "$.details.booking"),
        ("hotel.checkin", "H-1", {}, "$.details.booking"),
        ("dining.till", "D-1", {"ticket": "1"}, "$.details.amount_fen"),
        ("dining.till", "D-1", {"ticket": "1", "amount_fen": 0}, "$.details.amount_fen"),
        ("parking.entry", "L-1", {"plate": "x\r\ny"}, "$.details.plate"),
        ("parking.entry", "L-1", {"no": "such"}, "$.details"),
    ],
)
async def test_what_is_wrong_is_named(
    street: Street, scene: str, terminal: str, details: dict[str, Any], field: str
) -> None:
    status, answer = await street.visit(await street.card(), scene, terminal, **details)
    assert (status, answer["code"], answer["errors"][0]["field"]) == (422, "validation_failed", field)


CHANGES = {
    "nobody acts there": ("scenes.toml", 'visit = "check_in"\n', "", "$.scene"),
    "it is another visit": ("scenes.toml", 'visit = "check_in"\n', 'visit = "bill"\n', "$.details.amount_fen"),
    "the merchant has gone": ("partners.toml", '"H-*"', '"X-*"', "$.terminal_id"),
}
"""In which file, what becomes what, and what does not fit then."""


@pytest.mark.parametrize("name", CHANGES)
async def test_a_repeated_visit_has_its_answer_whatever_changed_since(street: Street, name: str) -> None:
    card, (file, before, after, field) = await street.card(), CHANGES[name]
    text = (Path(street.running.environment["CONFIG_DIR"]) / file).read_text()
    assert text.count(before) == 1
    key = f"before-{name}".replace(" ", "-")
    first = await street.visit(card, "hotel.checkin", "H-1", key, booking="B-1")
    assert (first[0], first[1]["status"]) == (200, "checked_in")

    async def new_ones_are(status: int) -> bool:
        return (await street.visit(card, "hotel.checkin", "H-1", booking="B-2"))[0] == status

    put(street.running, file, text.replace(before, after))
    await eventually(lambda: new_ones_are(422), 60, "the change is taken up")
    assert await street.visit(card, "hotel.checkin", "H-1", key, booking="B-1") == first
    assert (await street.visit(card, "hotel.checkin", "H-1", key, booking="B-2"))[1]["code"] == "idempotency_key_reused"
    status, answer = await street.visit(card, "hotel.checkin", "H-1", f"meanwhile-{key}", booking="B-3")
    assert (status, answer["code"], answer["errors"][0]["field"]) == (422, "validation_failed", field)

    put(street.running, file, text)
    await eventually(lambda: new_ones_are(200), 60, "it is as before")
    status, _ = await street.visit(card, "hotel.checkin", "H-1", f"meanwhile-{key}", booking="B-3")
    assert status == 200, "a refusal was not kept"


async def test_a_new_merchant_is_one_block(street: Street) -> None:
    """Added while it runs: the same lot once more, at terminals of another name."""
    card, file = await street.card(), Path(street.running.environment["CONFIG_DIR"]) / "partners.toml"
    assert (await street.visit(card, "parking.entry", "N-1"))[0] == 422
    block = file.read_text().partition("[partners.hotel-haiyan]")[0].replace("parking-wuyuan", "parking-new")
    file.write_text(file.read_text() + block.replace("L-*", "N-1"))

    async def is_there() -> bool:
        return (await street.visit(card, "parking.entry", "N-1"))[1].get("status") == "opened"

    await eventually(is_there, ENDS_S, "the new merchant is connected")
