"""Merchants that lose answers, are away, or think too long: what acts acts once, in time or never."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.running import eventually
from tests.visits import CHEAP, DEAR, ENDS_S, Street, barriers, street_at

UNCLEAR = {
    "the answer is lost": {"kind": "drop_after"},
    "the answer is cut": {"kind": "half_close"},
    "the answer is garbage": {"kind": "garbage"},
    "the answer is forged": {"kind": "bad_signature"},
    "the answer is late": {"kind": "late", "ms": 2500},
}


@pytest.fixture(scope="module")
async def street(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Street]:
    async with street_at(tmp_path_factory.mktemp("street"), postgres, pay_within_s=3) as made:
        yield made


@pytest.fixture(autouse=True)
async def healed(street: Street) -> AsyncIterator[None]:
    await street.breaker_is_closed()
    yield
    await street.host.faults()


@pytest.mark.parametrize("fault", UNCLEAR.values(), ids=UNCLEAR.keys())
async def test_it_is_asked_after_and_has_opened_once(street: Street, fault: dict[str, Any]) -> None:
    card = await street.card()
    await street.host.faults(fault)
    status, answer = await street.visit(card, "parking.entry", "L-1", key=f"unclear-{card.number}")
    assert (status, answer["status"]) == (202, "pending")
    await street.host.faults()
    assert await street.came_to(answer["reference"]) == "opened"
    assert barriers(await street.book(answer["reference"])) == ["in"]
    assert await street.steps(answer["reference"]) == ["intent", "unsure", "done"]
    assert await street.visit(card, "parking.entry", "L-1", key=f"unclear-{card.number}") == (202, answer)


async def test_a_message_that_the_network_brings_twice_opens_once(street: Street) -> None:
    await street.host.faults({"kind": "duplicate"})
    _, answer = await street.visit(await street.card(), "parking.entry", "L-1")
    await street.host.faults()
    assert await street.came_to(answer["reference"]) == "opened"
    assert barriers(await street.book(answer["reference"])) == ["in"]


async def test_what_never_arrived_is_refused_when_its_time_is_over(street: Street) -> None:
    card = await street.card(age=65)
    await street.host.faults({"kind": "drop_before"})
    status, answer = await street.visit(card, "dining.till", "D-1", ticket="lost", amount_fen=2000)
    assert (status, answer["status"], answer["benefits"]) == (202, "pending", ["dining.elder_meal"])
    await street.host.faults()
    assert await street.came_to(answer["reference"]) == "refused"
    assert (await street.operation(answer["reference"]))["reason"] == "not_found"
    assert await street.book(answer["reference"]) == []
    left = await street.fetch("SELECT sum(delta) FROM benefit_claim WHERE source = $1", answer["reference"])
    assert left == 0, "the benefit is given back"


@pytest.mark.parametrize(
    ("scene", "terminal", "details"),
    [
        ("parking.entry", "L-1", {}),
        ("hotel.checkin", "H-1", {"booking": "late"}),
        ("dining.till", "D-1", {"ticket": "late", "amount_fen": 2000}),
    ],
)
async def test_what_would_act_too_late_does_not(
    street: Street, scene: str, terminal: str, details: dict[str, Any]
) -> None:
    """The message stands somewhere for longer than it is good."""
    await street.host.faults({"kind": "delay", "ms": 3500})
    status, answer = await street.visit(await street.card(), scene, terminal, **details)
    assert (status, answer["status"]) == (202, "pending")
    await street.host.faults()
    assert await street.came_to(answer["reference"]) == "refused"
    assert await street.book(answer["reference"]) == []


async def test_what_nobody_can_find_out_is_for_people(street: Street) -> None:
    await street.host.faults({"kind": "drop_after"})
    _, answer = await street.visit(await street.card(), "parking.entry", "L-1")
    assert await street.came_to(answer["reference"]) == "unknown"
    assert await street.steps(answer["reference"]) == ["intent", "unsure", "unknown"]


async def test_merchants_that_are_away_were_told_nothing(street: Street) -> None:
    card = await street.card(account=True)
    due = await street.due(card)
    payment = await street.pay(card, 1000)
    await street.host.kill()
    for scene, terminal, details in (
        ("parking.entry", "L-1", {}), ("parking.exit", "L-2", {"plate": CHEAP}),
        ("hotel.checkin", "H-1", {"booking": "B"}),
    ):  # fmt: skip
        status, answer = await street.visit(card, scene, terminal, key=f"away-{scene}", **details)
        assert (status, answer["code"]) == (503, "unavailable")
    status, answer = await street.open(due["reference"], payment, key="away-open")
    assert (status, answer["code"]) == (503, "unavailable")
    assert (await street.operation(due["reference"]))["status"] == "due"
    await street.host.start()

    async def opens() -> bool:
        status, answer = await street.open(due["reference"], payment, key="away-open")
        return status == 200 and answer["status"] == "opened"

    await eventually(opens, ENDS_S, "the same key and payment open it now")
    status, answer = await street.visit(card, "parking.exit", "L-2", key="away-parking.exit", plate=CHEAP)
    assert (status, answer["status"]) == (200, "opened"), "the key was given back"
    assert barriers(await street.book(due["reference"])) == ["out"]


async def test_a_fee_that_nobody_pays_stands_for_its_time_alone(street: Street) -> None:
    card = await street.card(account=True)
    due, payment = await street.due(card, DEAR), await street.pay(card, 1000)

    async def over() -> bool:
        return str((await street.operation(due["reference"]))["status"]) == "expired"

    await eventually(over, ENDS_S, "it has expired")
    assert (await street.open(due["reference"], payment))[1]["code"] == "visit_state"
    assert await street.book(due["reference"]) == []
