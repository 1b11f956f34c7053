"""Report a card lost, and release it: the social security side (api.md, domain.md §1.4)."""

import asyncio
import json
import time
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.crypto.key_files import open_folder
from gateway.domain.cards import CardStatus
from tests.conftest import add_card
from tests.registry import TestCard, add_cards, new_id_number
from tests.running import Client, Running, verify_body

PATH = "/v1/cards/loss-reports"
WORDS = {
    CardStatus.SEALED: "not_activated", CardStatus.LOCKED: "locked", CardStatus.VOID: "void",
    CardStatus.CANCELLED: "cancelled",
}  # fmt: skip


async def reason(client: Client, card: TestCard) -> str:
    return str((await client.verify(card.number, card.identifier))["reason"])


@pytest.mark.parametrize("kind", ["temporary", "formal"])
@pytest.mark.parametrize("how", ["numbers", "chip_card", "card_ref"])
async def test_a_lost_card_is_refused_everywhere_until_it_is_released(
    gateway: Running, merchant: Client, kiosk: Client, kind: str, how: str
) -> None:
    card = await add_card(gateway)
    body: dict[str, Any] = {"kind": kind}
    if how == "numbers":
        body |= {"card_number": card.number, "id_number": card.id_number}
    elif how == "chip_card":
        body |= {"presentation": verify_body(card.number, card.identifier)["presentation"]}
    else:
        card_ref = (await kiosk.verify(card.number, card.identifier))["card_ref"]
        body |= {"presentation": {"type": "card_ref", "card_ref": card_ref}}
    status, raw, _ = await kiosk.effect(PATH, body)
    answer = json.loads(raw)
    assert status == 200, answer
    assert answer == {
        "reference": answer["reference"],
        "social_security": {"status": "accepted", "card_status": f"lost_{kind}"},
        "bank": {"status": "not_connected"},
    }
    assert UUID(answer["reference"]).version == 7
    assert await reason(merchant, card) == f"lost_{kind}"
    released = await kiosk.release_loss(answer["reference"])
    assert released["social_security"] == {"status": "released", "card_status": "normal"}
    assert released["reference"] != answer["reference"]
    assert await reason(merchant, card) == "ok"


async def test_a_formal_report_goes_before_a_temporary_one_and_is_not_weakened(
    gateway: Running, merchant: Client, kiosk: Client
) -> None:
    card = await add_card(gateway)
    for kind, then in [("temporary", "lost_temporary"), ("formal", "lost_formal"), ("temporary", "lost_formal")]:
        answer = await kiosk.report_loss(card, kind)
        assert answer["social_security"] == {"status": "accepted", "card_status": then}
        assert await reason(merchant, card) == then


@pytest.mark.parametrize("status", WORDS, ids=lambda status: status.name)
async def test_what_the_table_of_states_does_not_have_is_refused_and_recorded(
    gateway: Running, kiosk: Client, status: CardStatus
) -> None:
    card = await add_card(gateway, status)
    answer = await kiosk.report_loss(card)
    assert answer["social_security"] == {"status": "refused", "reason": WORDS[status]}
    assert (await operation(gateway, answer["reference"]))["result"] == "refused"


async def test_number_and_id_number_must_belong_together(gateway: Running, merchant: Client, kiosk: Client) -> None:
    card, other = await add_card(gateway), await add_card(gateway)
    for wrong in (card._replace(id_number=other.id_number), card._replace(id_number=new_id_number(card.birth_date))):
        answer = await kiosk.report_loss(wrong)
        assert answer["social_security"] == {"status": "refused", "reason": "unrecognised"}
    assert await reason(merchant, card) == await reason(merchant, other) == "ok"
    assert (await kiosk.report_loss(card._replace(id_number=card.id_number.lower())))["social_security"][
        "status"
    ] == "accepted"


async def test_a_replaced_card_keeps_its_number_and_the_living_one_is_reported(
    gateway: Running, merchant: Client, kiosk: Client
) -> None:
    old = await add_card(gateway, CardStatus.CANCELLED)
    new = old._replace(identifier=old.identifier[:-4] + "FFFF", status=CardStatus.NORMAL)
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:  # the same person's: the sample registry makes one person for each card
        (new_id,) = await add_cards(
            gateway.environment["DATABASE_URL"], open_folder(gateway.data_dir / "keys"), (new._replace(id_number=""),)
        )
        await connection.execute(
            "UPDATE card SET person_id = old.person_id FROM card old"
            " WHERE card.card_id = $1 AND old.card_id <> $1 AND old.number_index = card.number_index",
            new_id,
        )
    finally:
        await connection.close()
    assert (await kiosk.report_loss(old))["social_security"]["status"] == "accepted"
    assert await reason(merchant, new) == "lost_temporary"
    assert await reason(merchant, old) == "cancelled"


async def came_to(client: Client, reference: str) -> tuple[str, list[str]]:
    """As its caller is told: (status, steps)."""
    headers = await client.authorization()
    async with client.session.get(f"/v1/operations/{reference}", headers=headers) as answer:
        shown = await answer.json()
    return shown["status"], [step["status"] for step in shown["history"]]


async def test_only_the_reporter_may_release_and_only_its_own_loss(
    gateway: Running, merchant: Client, kiosk: Client, bureau: Client
) -> None:
    card = await add_card(gateway)
    first = (await kiosk.report_loss(card))["reference"]
    for who, reference in [(bureau, first), (kiosk, "01890000-0000-7000-8000-000000000000"), (kiosk, "x")]:
        status, raw, _ = await who.effect(f"{PATH}/{reference}/release", {})
        assert (status, json.loads(raw)["code"]) == (404, "not_found")
    assert await reason(merchant, card) == "lost_temporary"
    assert await came_to(kiosk, first) == ("accepted", ["accepted"])
    release = (await kiosk.release_loss(first))["reference"]
    assert await came_to(kiosk, first) == ("released", ["accepted", "released"])
    # a release is no report
    assert (await kiosk.effect(f"{PATH}/{release}/release", {}))[0] == 404
    second = (await bureau.report_loss(card))["reference"]
    refused = await kiosk.release_loss(first)
    assert refused["social_security"] == {"status": "refused", "reason": "other_report"}
    assert await reason(merchant, card) == "lost_temporary"
    assert (await bureau.release_loss(second))["social_security"]["status"] == "released"
    again = await bureau.release_loss(second)
    assert again["social_security"] == {"status": "released", "card_status": "normal"}


async def test_a_release_that_names_a_card_must_name_that_one(
    gateway: Running, merchant: Client, kiosk: Client
) -> None:
    card, other = await add_card(gateway), await add_card(gateway)
    reference = (await kiosk.report_loss(card))["reference"]
    for wrong in (other, card._replace(id_number=other.id_number)):
        body = {"card_number": wrong.number, "id_number": wrong.id_number, "kind": "temporary"}
        status, raw, _ = await kiosk.effect(f"{PATH}/{reference}/release", body)
        assert status == 200 and json.loads(raw)["social_security"] == {"status": "refused", "reason": "unrecognised"}
    assert await reason(merchant, card) == "lost_temporary"
    presented = {"presentation": verify_body(card.number, card.identifier)["presentation"]}
    status, raw, _ = await kiosk.effect(f"{PATH}/{reference}/release", presented)
    assert status == 200 and json.loads(raw)["social_security"]["status"] == "released"
    assert await reason(merchant, card) == "ok"


async def test_who_found_the_card_lost_already_may_not_release_it(
    gateway: Running, merchant: Client, kiosk: Client, bank: Client
) -> None:
    """By the registry's word, or by the same report of another caller."""
    for status in (CardStatus.LOST_TEMPORARY, CardStatus.LOST_FORMAL):
        card = await add_card(gateway, status)
        word = await reason(merchant, card)
        report = await kiosk.report_loss(card)
        assert report["social_security"]["status"] == "accepted"
        refused = await kiosk.release_loss(report["reference"])
        assert refused["social_security"] == {"status": "refused", "reason": "other_report"}
        assert await reason(merchant, card) == word
    card = await add_card(gateway)
    mine, theirs = [(await who.report_loss(card))["reference"] for who in (kiosk, bank)]
    assert (await bank.release_loss(theirs))["social_security"] == {"status": "refused", "reason": "other_report"}
    assert await reason(merchant, card) == "lost_temporary"
    assert (await kiosk.release_loss(mine))["social_security"]["status"] == "released"
    assert await reason(merchant, card) == "ok"


async def test_who_raises_a_loss_takes_no_more_back_than_that(
    gateway: Running, merchant: Client, kiosk: Client, bank: Client
) -> None:
    """Else two requests of any caller would open a card that others, or the registry, say is lost."""
    card = await add_card(gateway)
    mine = (await kiosk.report_loss(card))["reference"]
    theirs = (await bank.report_loss(card, "formal"))["reference"]
    assert (await kiosk.release_loss(mine))["social_security"] == {"status": "refused", "reason": "other_report"}
    assert await reason(merchant, card) == "lost_formal"
    lowered = await bank.release_loss(theirs)
    assert lowered["social_security"] == {"status": "released", "card_status": "lost_temporary"}
    assert await reason(merchant, card) == "lost_temporary"
    assert (await bank.release_loss(theirs))["social_security"] == {"status": "refused", "reason": "other_report"}
    assert (await kiosk.release_loss(mine))["social_security"] == {"status": "released", "card_status": "normal"}
    assert await reason(merchant, card) == "ok"
    card = await add_card(gateway, CardStatus.LOST_TEMPORARY)
    raised = (await kiosk.report_loss(card, "formal"))["reference"]
    assert (await kiosk.release_loss(raised))["social_security"]["card_status"] == "lost_temporary"
    assert await reason(merchant, card) == "lost_temporary"


async def test_a_report_and_its_release_do_not_make_an_old_status_fresh(
    gateway: Running, merchant: Client, kiosk: Client
) -> None:
    card = await add_card(gateway, source_id=3)
    assert await reason(merchant, card) == "status_stale"
    reference = (await kiosk.report_loss(card))["reference"]
    assert await reason(merchant, card) == "lost_temporary"
    assert (await kiosk.release_loss(reference))["social_security"]["status"] == "released"
    assert await reason(merchant, card) == "status_stale"


async def test_a_formal_loss_is_final_once_a_replacement_was_started(
    gateway: Running, merchant: Client, kiosk: Client
) -> None:
    card = await add_card(gateway)
    reference = (await kiosk.report_loss(card, "formal"))["reference"]
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        await connection.execute(
            "UPDATE card SET replacement_started = true WHERE card_id = (SELECT card_id FROM operation"
            " WHERE reference = $1)",
            UUID(reference),
        )
    finally:
        await connection.close()
    answer = await kiosk.release_loss(reference)
    assert answer["social_security"] == {"status": "refused", "reason": "replacement_started"}
    assert await reason(merchant, card) == "lost_formal"


async def test_what_is_recorded_says_who_did_what_and_when(gateway: Running, kiosk: Client) -> None:
    card = await add_card(gateway)
    before = time.time()
    report = (await kiosk.report_loss(card))["reference"]
    release = (await kiosk.release_loss(report))["reference"]
    first, second = await operation(gateway, report), await operation(gateway, release)
    assert (first["kind"], first["caller"], first["result"]) == ("loss_report", "demo-kiosk", "accepted")
    assert (first["card_status_before"], first["card_status_after"]) == (1, 4)
    assert (second["kind"], second["parent"], second["result"]) == ("loss_release", UUID(report), "released")
    assert second["card_id"] == first["card_id"] is not None
    for row in (first, second):
        assert before - 1 <= row["recorded_at"].timestamp() <= time.time() + 1
        assert row["algorithm"] == "ed25519" and row["key_id"] == "demo-kiosk-signing-1" and len(row["signature"]) == 64


async def operation(gateway: Running, reference: str) -> Any:
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        return await connection.fetchrow("SELECT * FROM operation WHERE reference = $1", UUID(reference))
    finally:
        await connection.close()


INVALID: dict[str, tuple[Any, str]] = {
    "nothing": ({}, "$.kind"),
    "no kind": ({"card_number": "AB1234567", "id_number": "330499199001011239"}, "$.kind"),
    "another kind": ({"kind": "forever", "card_number": "AB1234567"}, "$.kind"),
    "a number alone": ({"kind": "formal", "card_number": "AB1234567"}, "$"),
    "an id number alone": ({"kind": "formal", "id_number": "330499199001011239"}, "$"),
    "a wrong check character": (
        {"kind": "formal", "card_number": "AB1234567", "id_number": "330499199001011230"},
        "$.id_number",
    ),
    "an id number that is too short": ({"kind": "formal", "card_number": "AB1234567", "id_number": "3"}, "$.id_number"),
    "both ways": (
        {"kind": "formal", "card_number": "AB1234567", "presentation": {"type": "card_ref", "card_ref": "k" * 33}},
        "$.presentation",
    ),
    "an unknown field": ({"kind": "formal", "colour": "red"}, "$"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_bad_input_names_the_field_and_leaves_the_key_free(gateway: Running, kiosk: Client, name: str) -> None:
    body, field = INVALID[name]
    key = f"bad-input-{name.replace(' ', '-')}-{time.time_ns()}"
    status, raw, _ = await kiosk.effect(PATH, body, key=key)
    problem = json.loads(raw)
    assert (status, problem["code"], [error["field"] for error in problem["errors"]]) == (
        422, "validation_failed", [field],
    ), problem  # fmt: skip
    card = await add_card(gateway)
    assert (await kiosk.report_loss(card, key=key))["social_security"]["status"] == "accepted"


async def test_the_scope_is_needed(merchant: Client) -> None:
    status, raw, _ = await merchant.effect(PATH, {"kind": "temporary"})
    assert (status, json.loads(raw)["code"]) == (403, "insufficient_scope")


async def test_an_ecard_code_cannot_be_read_without_a_platform_and_keeps_nothing(kiosk: Client) -> None:
    body = {"kind": "temporary", "presentation": {"type": "ecard_code", "code": "12345678"}}
    status, raw, headers = await kiosk.effect(PATH, body)
    assert (status, json.loads(raw)["code"]) == (503, "unavailable") and headers["Retry-After"]


async def test_once_a_loss_is_accepted_no_worker_says_valid(gateway: Running, merchant: Client, kiosk: Client) -> None:
    """Verifies run all the time on connections to both workers: none that began after the answer says valid."""
    card = await add_card(gateway)
    accepted_at = 0.0
    seen: list[tuple[float, str]] = []
    enough = asyncio.Event()

    async def watch() -> None:
        while not accepted_at or time.monotonic() < accepted_at + 0.5:
            began = time.monotonic()
            seen.append((began, await reason(merchant, card)))
            if len(seen) == 50:
                enough.set()

    watchers = [asyncio.create_task(watch()) for _ in range(16)]
    await enough.wait()
    await kiosk.report_loss(card)
    accepted_at = time.monotonic()
    await asyncio.gather(*watchers)
    after = [word for began, word in seen if began >= accepted_at]
    assert len(after) > 50 and set(after) == {"lost_temporary"}
    assert "ok" in {word for began, word in seen if began < accepted_at}, "the card was good before"
