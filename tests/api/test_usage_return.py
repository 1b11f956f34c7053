"""POST /v1/usage-events: every line by itself, every id once for ever."""

import asyncio
import datetime as dt
import json
import secrets
from typing import Any

import asyncpg
import pytest

from gateway.domain.times import CHINA
from gateway.domain.usage import BULK_LINES_MAX
from tests.registry import CARDS
from tests.returns import PATH, ago, line, ndjson, returned, reversal, send
from tests.running import Client, Running, eventually, labelled
from tests.signing import Signing, signed_headers

OK, SECOND = CARDS[0], CARDS[1]


@pytest.mark.parametrize("form", ["x-ndjson", "json"])
async def test_lines_are_created_and_shown_in_the_feed(
    bank: Client, merchant: Client, bureau: Client, form: str
) -> None:
    terminal = f"T-{form}"
    use = line(terminal_id=terminal)
    failed = line(
        SECOND, terminal_id=terminal, result="failed", amount_fen=None, discount_fen=None, scene="library.loan"
    )
    assert await send(bank, [use, failed], form) == (
        200, {"received": 2, "created": 2, "duplicate": 0, "rejected": []},
    )  # fmt: skip
    back = reversal(use)
    assert await returned(bank, back) == (1, 0, [])
    first, second, third = await bureau.events_at(terminal, merchant)
    other = ("event_id", "recorded_at", "card_ref", "occurred_at")
    assert {name: value for name, value in first.items() if name not in other} == {
        "kind": "usage", "caller": "demo-bank", "medium": "third_gen", "region": "330424", "scene": "market.till",
        "terminal_id": terminal, "result": "success", "amount_fen": 1250, "discount_fen": 50,
        "caller_event_id": use["id"],
    }  # fmt: skip
    assert second.keys() == first.keys() - {"amount_fen", "discount_fen"}
    assert (second["result"], second["medium"], second["caller_event_id"]) == ("failed", "second_gen", failed["id"])
    assert (third["reversal_of"], third["caller_event_id"]) == (use["id"], back["id"])
    assert third["card_ref"] == first["card_ref"] != second["card_ref"]


async def test_a_card_by_its_reference_is_the_same_content(bank: Client) -> None:
    card_ref = (await bank.verify(OK.number, OK.identifier, "bank.counter"))["card_ref"]
    use = line()
    by_reference = {name: value for name, value in use.items() if not name.startswith("card_")} | {"card_ref": card_ref}
    swapped = use | {"card_number": use["card_identifier"], "card_identifier": use["card_number"]}
    assert await returned(bank, use) == (1, 0, [])
    assert await returned(bank, by_reference, swapped) == (0, 2, [])


@pytest.mark.parametrize("form", ["x-ndjson", "json"])
async def test_a_time_is_taken_with_any_offset_of_rfc_3339(
    bank: Client, merchant: Client, bureau: Client, form: str
) -> None:
    terminal, at = f"T-offset-{form}", dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    offsets = [dt.timezone(dt.timedelta(minutes=minutes)) for minutes in (-1439, -961, -960, 0, 960, 1439)]
    lines = [line(terminal_id=terminal, occurred_at=at.astimezone(offset).isoformat()) for offset in offsets]
    assert await send(bank, lines, form) == (200, {"received": 6, "created": 6, "duplicate": 0, "rejected": []})
    events = await bureau.events_at(terminal, merchant)
    assert [event["occurred_at"] for event in events] == [at.astimezone(CHINA).isoformat()] * 6
    elsewhere = [each | {"occurred_at": at.astimezone(CHINA).isoformat()} for each in lines]
    assert await returned(bank, *elsewhere) == (0, 6, []), "the same moment"


async def test_an_id_is_good_once(bank: Client) -> None:
    use = line()
    assert await returned(bank, use) == (1, 0, [])
    assert await returned(bank, use, use) == (0, 2, [])
    changes: list[dict[str, Any]] = [
        {"amount_fen": 1251}, {"discount_fen": None}, {"scene": "dining.till"}, {"terminal_id": "T-0002"},
        {"occurred_at": ago(minutes=2)}, {"result": "failed"},
        {"card_number": SECOND.number, "card_identifier": SECOND.identifier},
    ]  # fmt: skip
    others = [{name: value for name, value in (use | change).items() if value is not None} for change in changes]
    assert await returned(bank, *others) == (0, 0, [(number, "id_conflict") for number in range(len(others))])
    assert await returned(bank, reversal(line(), id=use["id"])) == (0, 0, [(0, "id_conflict")])


async def test_an_id_twice_in_one_bulk_is_good_once(bank: Client) -> None:
    use, other = line(), line()
    assert await returned(bank, use, other, use, other | {"amount_fen": 1}) == (2, 1, [(3, "id_conflict")])
    mended = line()
    unknown = mended | {"card_number": "ZZ0000000"}
    assert await returned(bank, unknown, mended) == (1, 0, [(0, "unrecognised")]), "a reject does not use up its id"


BAD: list[tuple[dict[str, Any] | bytes, str, str | None]] = [
    (b"{", "malformed_json", None),
    (b"\xff\xfe", "malformed_json", None),
    (json.dumps(line(terminal_id="x")).encode().replace(b'"x"', b'"\xff"'), "malformed_json", None),
    (b"[" * 5000, "validation_failed", "$"),
    (b'{"id": ' + b"[" * 5000, "validation_failed", "$.id"),
    (b'{"colour": ' + b"[" * 5000, "validation_failed", "$"),
    (json.dumps(line(terminal_id="x" * 20_000)).encode(), "malformed_json", "$"),
    (b"17", "validation_failed", "$"),
    (line() | {"colour": "red"}, "validation_failed", "$"),
    (line(id=None), "validation_failed", "$.id"),
    (line(id=""), "validation_failed", "$.id"),
    (line(id="with blank"), "validation_failed", "$.id"),
    (line(id="i" * 65), "validation_failed", "$.id"),
    (line(id="a\n"), "validation_failed", "$.id"),
    (line(scene="nowhere.at_all"), "unknown_scene", "$.scene"),
    (line(scene=None), "validation_failed", "$.scene"),
    (line(terminal_id="tab\tin it"), "validation_failed", "$.terminal_id"),
    (line(terminal_id="nul\0"), "validation_failed", "$.terminal_id"),
    (line(occurred_at="2026-11-23T10:00:00"), "validation_failed", "$.occurred_at"),
    (line(occurred_at="yesterday"), "validation_failed", "$.occurred_at"),
    (line(occurred_at=ago(hours=-9)), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at=ago(days=91)), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at="0001-01-01T00:00:00+14:00"), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at="9999-12-31T23:59:59-14:00"), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at="0001-01-01T00:00:00+23:59"), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at="9999-12-31T23:59:59-23:59"), "time_out_of_bounds", "$.occurred_at"),
    (line(occurred_at="2026-11-23T10:00:00+24:00"), "validation_failed", "$.occurred_at"),
    (line(amount_fen=-1), "validation_failed", "$.amount_fen"),
    (line(amount_fen=10**9 + 1), "validation_failed", "$.amount_fen"),
    (line(amount_fen=10**30), "validation_failed", "$.amount_fen"),
    (line(amount_fen=1.5), "validation_failed", "$.amount_fen"),
    (line(amount_fen="1250"), "validation_failed", "$.amount_fen"),
    (line(amount_fen=True), "validation_failed", "$.amount_fen"),
    (line(discount_fen=-1), "validation_failed", "$.discount_fen"),
    (line(result="perhaps"), "validation_failed", "$.result"),
    (line(result=None), "validation_failed", "$.result"),
    (line(card_number=None), "validation_failed", "$"),
    (line(card_number=None, card_identifier=None), "validation_failed", "$"),
    (line(card_ref="k" * 33), "validation_failed", "$"),
    (line(card_number="short"), "validation_failed", "$.card_number"),
    (line(card_identifier=OK.number), "validation_failed", "$.card_number"),
    (line(card_number="ZZ0000000"), "unrecognised", None),
    (line(card_identifier=SECOND.identifier), "unrecognised", None),
    (line(card_number=None, card_identifier=None, card_ref="not_ours"), "unrecognised", None),
    (line(card_number=None, card_identifier=None, card_ref="k" + "0" * 32), "unrecognised", None),
    (line(reversal_of="nobody-knows"), "unknown_original", None),
    (line(id="self", reversal_of="self"), "validation_failed", "$.reversal_of"),
    (line(reversal_of="x", result="failed"), "validation_failed", "$.result"),
]  # fmt: skip


async def test_a_bad_line_is_told_and_never_loses_its_neighbours(bank: Client) -> None:
    """All of them in one bulk, a good line before and after each."""
    lines: list[dict[str, Any] | bytes] = []
    for bad, _, _ in BAD:
        lines += [line(), bad]
    status, answer = await send(bank, [*lines, line()])
    assert status == 200
    assert (answer["created"], answer["duplicate"]) == (len(BAD) + 1, 0)
    found = {each["index"]: each for each in answer["rejected"]}
    assert sorted(found) == list(range(1, 2 * len(BAD), 2)) and list(found) == sorted(found)
    for number, (bad, code, field) in enumerate(BAD):
        reject = found[2 * number + 1]
        fields = [error["field"] for error in reject["errors"]]
        assert (reject["code"], fields) == (code, [field] if field else []), (number, bad)
        good = (
            isinstance(bad, dict) and isinstance(bad.get("id"), str) and bad["id"].isascii() and bad["id"].isprintable()
        )
        if isinstance(bad, dict):
            known = bad["id"] if good and " " not in bad["id"] and 0 < len(bad["id"]) <= 64 else None
            assert reject["id"] == known, "a sender finds its line again"
        assert "tab" not in json.dumps(reject["errors"]), "no value is said"


async def test_items_of_an_array_are_lines(bank: Client) -> None:
    status, answer = await send(bank, [line(), 17, {}, [], line()], "json")  # type: ignore[list-item]
    assert (status, answer["created"]) == (200, 2)
    assert [(each["index"], each["code"]) for each in answer["rejected"]] == [
        (1, "validation_failed"), (2, "validation_failed"), (3, "validation_failed"),
    ]  # fmt: skip


WHOLE: list[tuple[str, bytes, int, str]] = [
    ("json", b"{}", 422, "validation_failed"),
    ("json", b"[]", 422, "validation_failed"),
    ("json", b"[1,", 400, "malformed_json"),
    ("json", b"[" * 5000, 400, "malformed_json"),
    ("json", b'[{"id": ' + b"[" * 5000 + b"]" * 5000 + b"}]", 400, "malformed_json"),
    ("json", b'["\xff"]', 400, "malformed_json"),
    ("json", b"[" + b"1," * BULK_LINES_MAX + b"1]", 422, "validation_failed"),
    ("json", b"", 400, "malformed_json"),
    ("x-ndjson", b"", 422, "validation_failed"),
    ("x-ndjson", b"\n \r\n\n", 422, "validation_failed"),
    ("x-ndjson", b"{}\n" * BULK_LINES_MAX + b"{}", 422, "validation_failed"),
    ("x-ndjson", b"\n" * 8_388_608, 422, "validation_failed"),
    ("x-ndjson", b"x" * 8_388_609, 413, "body_too_large"),
    ("xml", b"<lines/>", 415, "unsupported_media_type"),
]


@pytest.mark.parametrize(
    ("form", "body", "status", "code"), WHOLE, ids=[f"{one[0]}-{n}" for n, one in enumerate(WHOLE)]
)
async def test_what_is_no_bulk_is_refused_whole(bank: Client, form: str, body: bytes, status: int, code: str) -> None:
    found, answer = await send(bank, body, form)
    assert (found, answer["code"]) == (status, code)


async def test_as_many_lines_as_allowed_are_taken_and_blank_ones_are_none(bank: Client) -> None:
    assert (await send(bank, b"{}\n" * BULK_LINES_MAX))[0] == 200
    status, answer = await send(bank, b"\n" + b"{}\n\r\n" * BULK_LINES_MAX)
    assert (status, answer.get("received")) == (422, None), "so many blank ones are no oversight"
    status, answer = await send(bank, b"\n\n" + b"{}\n" * BULK_LINES_MAX + b"\n")
    assert (status, answer["received"]) == (200, BULK_LINES_MAX)
    status, answer = await send(bank, b"\r\n" + ndjson([line()]).replace(b"\n", b"\r\n") + b"\n{}")
    assert (status, answer["received"], answer["created"]) == (200, 2, 1)
    assert [each["index"] for each in answer["rejected"]] == [3], "places are counted with the blank lines"


async def test_the_larger_body_is_for_bulks_alone(bank: Client, kiosk: Client) -> None:
    lines = [line() for _ in range(1000)]
    assert len(ndjson(lines)) > 262_144
    assert (await returned(bank, *lines))[0] == 1000
    status, answer, _ = await kiosk.post("/v1/cards/verify", {"scene": "x" * 262_144})
    assert (status, answer["code"]) == (413, "body_too_large")


async def test_a_key_or_a_signature_is_refused_not_ignored(bank: Client) -> None:
    body = ndjson([line()])
    assert (await send(bank, body, **{"Idempotency-Key": "k"}))[1]["code"] == "idempotency_key_refused"
    host = f"127.0.0.1:{bank.gateway.port}"
    signed = signed_headers(Signing.of(bank.file), "POST", host, PATH, body, f"Bearer {await bank.token()}")
    assert (await send(bank, body, **signed))[1]["code"] == "idempotency_key_refused"
    signed.pop("Idempotency-Key")
    assert (await send(bank, body, **signed))[1]["code"] == "invalid_signature"
    assert (await send(bank, body))[1]["created"] == 1


async def test_a_reversal_takes_back_once_whatever_the_order(bank: Client) -> None:
    use = line()
    back = reversal(use)
    assert await returned(bank, back, use) == (2, 0, []), "within a bulk the order does not matter"
    assert await returned(bank, back) == (0, 1, [])
    assert await returned(bank, reversal(use)) == (0, 0, [(0, "already_reversed")])
    early = line()
    assert await returned(bank, reversal(early)) == (0, 0, [(0, "unknown_original")])
    assert await returned(bank, early) == (1, 0, [])
    assert await returned(bank, reversal(early), reversal(early)) == (1, 0, [(1, "already_reversed")])


async def test_what_cannot_be_taken_back_is_rejected(bank: Client) -> None:
    use, failed = line(), line(result="failed")
    back = reversal(use)
    assert await returned(bank, use, failed, back) == (3, 0, [])
    other_card = {"card_number": SECOND.number, "card_identifier": SECOND.identifier}
    assert await returned(
        bank, reversal(back), reversal(failed, result="success"), reversal(line(id=failed["id"]), **other_card)
    ) == (0, 0, [(0, "not_reversible"), (1, "not_reversible"), (2, "not_reversible")])
    use = line()
    assert await returned(bank, use, reversal(use, **other_card), reversal(use, amount_fen=1)) == (
        1, 0, [(1, "reversal_mismatch"), (2, "reversal_mismatch")],
    )  # fmt: skip


async def test_bulks_with_the_same_ids_at_once_create_each_once(bank: Client) -> None:
    """Sixteen at a time, in sixteen orders, over both workers; some are told to come again."""
    lines = [line() for _ in range(200)]
    lines += [reversal(each) for each in lines[:50]]

    async def until_taken(turn: int) -> int:
        mine = lines[turn * 15 :] + lines[: turn * 15]
        for _ in range(200):
            status, answer = await send(bank, mine)
            if status == 200:
                assert answer["rejected"] == [] and answer["created"] + answer["duplicate"] == 250
                return int(answer["created"])
            assert status == 503, answer
            await asyncio.sleep(0.01 * turn)
        raise AssertionError("never taken")

    assert sum(await asyncio.gather(*(until_taken(turn) for turn in range(16)))) == 250


async def test_points_are_earned_and_taken_back(gateway: Running, bank: Client) -> None:
    use, failed = line(amount_fen=4200, occurred_at=ago(days=40)), line(result="failed", amount_fen=9900)
    assert await returned(bank, use, failed) == (2, 0, [])
    assert await returned(bank, use, reversal(use)) == (1, 1, [])
    connection = await asyncpg.connect(gateway.environment["DATABASE_URL"])
    try:
        rows = await connection.fetch(
            "SELECT t.points FROM usage_return r JOIN points_transfer t ON t.transfer_id = r.event_id OR"
            " t.corrects = r.event_id WHERE r.id = ANY($1) ORDER BY 1 DESC",
            [use["id"], failed["id"]],
        )
    finally:
        await connection.close()
    assert [row["points"] for row in rows] == [42, -42]


async def test_lines_are_counted_by_what_became_of_them(gateway: Running, bank: Client) -> None:
    """So many that what earlier tests have left uncounted does not matter."""

    async def counts() -> dict[str, int]:
        found = labelled(await gateway.metrics(), "yikatong_usage_lines_total")
        return {
            result: int(value)
            for (caller, result, way), value in found.items()
            if (caller, way) == ("demo-bank", "bulk")
        }

    before = await counts()
    uses = [line() for _ in range(1000)]
    sent: list[dict[str, Any] | bytes] = [*uses, *uses, *([line(scene="no.where")] * 1000), *([b"{"] * 1000)]
    assert (await returned(bank, *sent))[:2] == (1000, 1000)

    async def counted() -> bool:
        after = await counts()
        results = ("created", "duplicate", "unknown_scene", "malformed_json")
        return all(after.get(result, 0) >= before.get(result, 0) + 1000 for result in results)

    await eventually(counted, 5, "all lines are counted")


async def test_a_terminal_with_a_backslash_stays_as_it_is(bank: Client, merchant: Client, bureau: Client) -> None:
    """COPY reads backslashes: they are escaped."""
    terminal = "T\\N\\t" + secrets.token_hex(4)
    use = line(terminal_id=terminal, id=f"\\N\\{secrets.token_hex(4)}")
    assert await returned(bank, use, reversal(use, id=f"\\.{secrets.token_hex(4)}")) == (2, 0, [])
    first, second = await bureau.events_at(terminal, merchant)
    assert (first["caller_event_id"], second["reversal_of"]) == (use["id"], use["id"])
    assert await returned(bank, use) == (0, 1, [])
