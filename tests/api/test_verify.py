"""POST /v1/cards/verify against a running gateway."""

import datetime as dt
import json
from typing import Any

import pytest

from gateway.crypto.card_proof import expected_cryptogram
from gateway.crypto.key_files import open_folder
from gateway.crypto.key_store import KeyUse
from tests.registry import CARDS, TestCard, identifier
from tests.running import Client, verify_body

OK, SECOND = CARDS[0], CARDS[1]
BY_REASON = {card.reason: card for card in reversed(CARDS)}
CHINA = dt.timezone(dt.timedelta(hours=8))
CHALLENGE = bytes(range(16))


def without_event(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "event_id"}


async def verify_ref(client: Client, card_ref: str, scene: str = "library.loan") -> dict[str, Any]:
    body = {"presentation": {"type": "card_ref", "card_ref": card_ref}, "scene": scene, "terminal_id": "P-0001"}
    status, answer, _ = await client.post("/v1/cards/verify", body)
    assert status == 200, answer
    return dict(answer)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: f"{card.reason}-{card.number}")
async def test_every_state_has_its_reason(merchant: Client, card: TestCard) -> None:
    answer = await merchant.verify(card.number, card.identifier)
    assert answer["reason"] == card.reason
    assert answer["verdict"] == {"ok": "valid", "status_stale": "unknown"}.get(card.reason, "refused")
    assert answer["medium"] == ("third_gen" if card.generation == 3 else "second_gen")
    assert answer["region"] == card.region
    assert ("holder" in answer) == ("benefits" in answer) == (card.reason == "ok")
    assert answer["card_ref"] and answer["event_id"] and answer["status_as_of"].endswith("+08:00")


@pytest.mark.parametrize("card", [OK, BY_REASON["locked"]], ids=lambda card: card.reason)
async def test_number_and_identifier_are_told_apart_by_shape(merchant: Client, card: TestCard) -> None:
    straight = await merchant.verify(card.number, card.identifier)
    swapped = await merchant.verify(card.identifier, card.number)
    lower_case = await merchant.verify(card.number, card.identifier.lower())
    assert straight["reason"] == card.reason
    assert without_event(straight) == without_event(swapped) == without_event(lower_case)
    assert len({straight["event_id"], swapped["event_id"], lower_case["event_id"]}) == 3


@pytest.mark.parametrize(
    ("one", "other"), [(OK.number, SECOND.number), (OK.identifier, SECOND.identifier)], ids=["numbers", "identifiers"]
)
async def test_two_values_of_one_shape_are_refused(merchant: Client, one: str, other: str) -> None:
    status, answer, _ = await merchant.post("/v1/cards/verify", verify_body(one, other))
    assert status == 422
    assert [error["field"] for error in answer["errors"]] == ["$.presentation"]
    assert one not in json.dumps(answer) and other not in json.dumps(answer)


UNRECOGNISED = {
    "unknown number and identifier": {"card_number": "QX7654399", "card_identifier": identifier(0xDEAD)},
    "unknown identifier": {"card_number": OK.number, "card_identifier": identifier(0xDEAD)},
    "unknown number": {"card_number": "QX7654399", "card_identifier": OK.identifier},
    "another card's identifier": {"card_number": OK.number, "card_identifier": SECOND.identifier},
    "a locked card's identifier": {"card_number": OK.number, "card_identifier": BY_REASON["locked"].identifier},
    "a proof for no card": {
        "card_number": "QX7654399", "card_identifier": OK.identifier,
        "proof": {"challenge": CHALLENGE.hex(), "cryptogram": "00" * 16},
    },
    "a reference nobody issued": {"type": "card_ref", "card_ref": "k" + "0" * 32},
    "a reference of no known form": {"type": "card_ref", "card_ref": "not-a-reference"},
}  # fmt: skip


@pytest.mark.parametrize("presentation", UNRECOGNISED.values(), ids=UNRECOGNISED)
async def test_a_card_we_do_not_know_and_a_pair_that_does_not_match_are_one_answer(
    merchant: Client, presentation: dict[str, Any]
) -> None:
    body = {
        "presentation": {"type": "chip_card"} | presentation,
        "scene": "parking.exit",
        "terminal_id": "P-0001",
    }
    status, answer, _ = await merchant.post("/v1/cards/verify", body)
    assert status == 200
    assert without_event(answer) == {"verdict": "refused", "reason": "unrecognised"}


async def test_a_card_ref_is_stable_for_one_caller_and_another_for_the_next(merchant: Client, kiosk: Client) -> None:
    first = await merchant.verify(OK.number, OK.identifier, "library.loan")
    again = await merchant.verify(OK.identifier.lower(), OK.number, "library.loan")
    elsewhere = await kiosk.verify(OK.number, OK.identifier, "library.loan")
    other_card = await merchant.verify(SECOND.number, SECOND.identifier, "library.loan")
    assert first["card_ref"] == again["card_ref"]
    assert len({first["card_ref"], elsewhere["card_ref"], other_card["card_ref"]}) == 3
    # nor do the two share a part by which they could be joined
    assert first["card_ref"][1:17] != elsewhere["card_ref"][1:17]
    assert first["card_ref"][17:] != elsewhere["card_ref"][17:]


@pytest.mark.parametrize("card", [OK, SECOND, BY_REASON["expired"]], ids=lambda card: card.number)
async def test_a_card_ref_stands_for_the_card(merchant: Client, card: TestCard) -> None:
    answer = await merchant.verify(card.number, card.identifier, "library.loan")
    assert without_event(await verify_ref(merchant, answer["card_ref"])) == without_event(answer)


async def test_another_callers_card_ref_is_unrecognised(merchant: Client, kiosk: Client) -> None:
    card_ref = (await merchant.verify(OK.number, OK.identifier, "library.loan"))["card_ref"]
    assert (await verify_ref(merchant, card_ref))["reason"] == "ok"
    assert without_event(await verify_ref(kiosk, card_ref)) == {"verdict": "refused", "reason": "unrecognised"}


@pytest.mark.parametrize(
    ("card", "holder"),
    [(OK, {"name": "*三", "age_band": "60-69"}), (SECOND, {"name": "**小明", "age_band": "30-39"})],
    ids=["two characters", "four characters"],
)
async def test_the_holder_is_masked(merchant: Client, card: TestCard, holder: dict[str, str]) -> None:
    answer = await merchant.verify(card.number, card.identifier)
    assert answer["holder"] == holder
    assert card.name not in json.dumps(answer, ensure_ascii=False)


@pytest.mark.parametrize(
    ("who", "scene", "reason"),
    [
        ("merchant", "parking.entry", "ok"), ("merchant", "transit.bus", "scene_not_allowed"),
        ("merchant", "bank.counter", "scene_not_allowed"), ("bank", "bank.counter", "ok"),
        ("bank", "parking.exit", "scene_not_allowed"), ("kiosk", "kiosk.service", "ok"),
        ("kiosk", "market.till", "scene_not_allowed"),
    ],
)  # fmt: skip
async def test_a_scene_is_for_its_kinds_of_caller(
    who: str, scene: str, reason: str, merchant: Client, bank: Client, kiosk: Client
) -> None:
    client = {"merchant": merchant, "bank": bank, "kiosk": kiosk}[who]
    answer = await client.verify(OK.number, OK.identifier, scene)
    assert answer["reason"] == reason
    assert ("holder" in answer) == (reason == "ok")


def right_cryptogram(merchant: Client, card: TestCard) -> str:
    (key,) = open_folder(merchant.gateway.data_dir / "keys").working_keys(KeyUse.CARD_PROOF)
    return expected_cryptogram(key, card.identifier, CHALLENGE).hex()


@pytest.mark.parametrize("swapped", [False, True], ids=["straight", "swapped"])
@pytest.mark.parametrize("letters", [str.lower, str.upper], ids=["lower case", "upper case"])
async def test_a_right_proof_is_accepted(merchant: Client, swapped: bool, letters: Any) -> None:
    proof = {"challenge": letters(CHALLENGE.hex()), "cryptogram": letters(right_cryptogram(merchant, OK))}
    pair = (OK.number, letters(OK.identifier))
    answer = await merchant.verify(*(reversed(pair) if swapped else pair), presentation={"proof": proof})
    assert answer["reason"] == "ok"


WRONG_PROOFS = {
    "zeros": (CHALLENGE.hex(), "00" * 16),
    "another card's answer": (CHALLENGE.hex(), None),
    "one digit off": (CHALLENGE.hex(), "right^1"),
    "an answer to another challenge": ("ff" * 16, "right"),
    "a longer answer": (CHALLENGE.hex(), "right00"),
    "half an answer": (CHALLENGE.hex(), "00" * 8),
    "a short challenge": ("00", "00" * 16),
    "not hex": ("xyz", "---"),
    "an odd number of digits": ("0" * 31, "0" * 31),
    "letters beyond ASCII": ("挑" * 16, "战" * 16),
}


@pytest.mark.parametrize("name", WRONG_PROOFS)
async def test_a_wrong_proof_is_refused(merchant: Client, name: str) -> None:
    challenge, cryptogram = WRONG_PROOFS[name]
    right = right_cryptogram(merchant, OK)
    if cryptogram is None:
        cryptogram = right_cryptogram(merchant, SECOND)
    cryptogram = cryptogram.replace("right^1", f"{int(right[0], 16) ^ 1:x}{right[1:]}").replace("right", right)
    proof = {"challenge": challenge, "cryptogram": cryptogram}
    answer = await merchant.verify(OK.number, OK.identifier, presentation={"proof": proof})
    assert (answer["verdict"], answer["reason"]) == ("refused", "proof_failed")
    assert "holder" not in answer and "benefits" not in answer


@pytest.mark.parametrize(
    ("presentation", "medium"),
    [({"type": "ecard_code", "code": "12345678901234567890"}, "ecard"), ({"type": "transit_qr", "qr": "gQEC"}, None)],
    ids=["ecard_code", "transit_qr"],
)
async def test_what_no_platform_is_connected_for_is_unknown_and_recorded(
    merchant: Client, bureau: Client, presentation: dict[str, str], medium: str | None
) -> None:
    terminal = f"P-{presentation['type']}"
    body = {"presentation": presentation, "scene": "parking.exit", "terminal_id": terminal}
    status, answer, _ = await merchant.post("/v1/cards/verify", body)
    expected = {"verdict": "unknown", "reason": "platform_unavailable"} | ({"medium": medium} if medium else {})
    assert (status, without_event(answer)) == (200, expected)
    (event,) = await bureau.events_at(terminal, merchant)
    assert event["event_id"] == answer["event_id"]
    assert event["reason"] == "platform_unavailable" and event.get("medium") == medium and "card_ref" not in event


HOUR, MINUTE = 3600, 60


@pytest.mark.parametrize(
    ("seconds", "status"),
    [
        (0, 200), (-24 * HOUR + MINUTE, 200), (-24 * HOUR - MINUTE, 422), (5 * MINUTE - 20, 200),
        (5 * MINUTE + 20, 422), (-30 * 24 * HOUR, 422), (365 * 24 * HOUR, 422),
    ],
)  # fmt: skip
async def test_the_time_of_use_has_bounds(merchant: Client, seconds: int, status: int) -> None:
    at = dt.datetime.now(CHINA) + dt.timedelta(seconds=seconds)
    body = verify_body(OK.number, OK.identifier, occurred_at=at.isoformat())
    found, answer, _ = await merchant.post("/v1/cards/verify", body)
    assert found == status, answer
    if status == 422:
        assert [error["field"] for error in answer["errors"]] == ["$.occurred_at"]
        assert at.isoformat() not in json.dumps(answer)


async def test_the_time_of_use_is_kept_whatever_its_offset(merchant: Client, bureau: Client) -> None:
    at = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(hours=20)
    written = [at.isoformat(), at.isoformat().replace("+00:00", "Z"), at.astimezone(CHINA).isoformat()]
    written += [at.astimezone(dt.timezone(dt.timedelta(minutes=minutes))).isoformat() for minutes in (-1439, 1439)]
    for text in written:
        await merchant.verify(OK.number, OK.identifier, terminal_id="P-offset", occurred_at=text)
    events = await bureau.events_at("P-offset", merchant)
    assert [event["occurred_at"] for event in events] == [at.astimezone(CHINA).isoformat()] * 5


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-11-23T10:00:00+24:00"])
async def test_a_time_at_the_calendars_end_is_refused(merchant: Client, at: str) -> None:
    status, answer, _ = await merchant.post("/v1/cards/verify", verify_body(OK.number, OK.identifier, occurred_at=at))
    assert (status, [error["field"] for error in answer["errors"]]) == (422, ["$.occurred_at"])
