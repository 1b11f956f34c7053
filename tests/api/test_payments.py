"""Payments, reversals, refunds and what became of them, against a bank that can be told what goes wrong (api.md)."""

import asyncio
import json
import secrets
import time
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.domain.operations import Operation, QueryStatus
from gateway.domain.outcome import Approved, Outcome
from gateway.flows.settle_payment import Banks
from tests.bank import NO_TERMINAL, Hold, banks
from tests.running import Client
from tests.tills import PATH, Till, order
from tests.tills import till as till


async def test_an_approved_payment(till: Till) -> None:
    card = await till.card()
    body = order(card)
    status, raw, _ = await till.merchant.effect(PATH, body, key="approved-1")
    answer = json.loads(raw)
    assert status == 200
    assert answer == {
        "reference": answer["reference"], "status": "approved", "amount_fen": 1250,
        "merchant_order_id": body["merchant_order_id"],
    }  # fmt: skip
    line = till.bank.lines()[answer["reference"]]
    assert (line.kind, line.amount_fen, line.state) == ("purchase", 1250, "approved")
    status, again, headers = await till.merchant.effect(PATH, body, key="approved-1")
    assert (status, again, headers["Idempotency-Replayed"]) == (200, raw, "true")
    _, shown = await till.operation(answer["reference"])
    assert [step["status"] for step in shown.pop("history")] == ["intent", "approved"]
    assert shown == answer | {"kind": "payment"}
    connection = await asyncpg.connect(till.dsn)
    try:
        event = await connection.fetchrow(
            "SELECT caller, scene, terminal_id, reason FROM usage_event ORDER BY event_id DESC"
        )
        operation = await connection.fetchrow("SELECT * FROM operation WHERE reference = $1", UUID(answer["reference"]))
    finally:
        await connection.close()
    assert event is not None and tuple(event) == ("demo-merchant", "market.till", "T-1", "ok")
    assert operation is not None and (operation["kind"], operation["result"]) == ("payment", "begun")
    assert operation["proof_sealed"] and operation["algorithm"] == "ed25519"


@pytest.mark.parametrize("code", ["insufficient_funds", "limit_exceeded", "lost_card"])
async def test_what_the_bank_declines_is_declined_with_its_code(till: Till, code: str) -> None:
    till.bank.faults["purchase"].append(f"decline:{code}")
    status, answer = await till.pay(await till.card())
    assert (status, answer["status"], answer["decline_code"]) == (200, "declined", code)
    assert await till.steps(answer["reference"]) == ["intent", "declined"]


@pytest.mark.parametrize("fault", ["drop_before", "drop_after", "garbage", "pending"])
async def test_an_unclear_answer_is_pending_until_the_resolver_knows(till: Till, fault: str) -> None:
    till.bank.faults["purchase"].append(fault)
    body = order(await till.card())
    status, raw, _ = await till.merchant.effect(PATH, body, key=f"pending-{fault}")
    answer = json.loads(raw)
    assert (status, answer["status"]) == (202, "pending")
    assert await till.status(answer["reference"]) == "pending"
    await till.resolver.until_nothing_is_left()
    done = fault in ("drop_after", "garbage")
    assert await till.status(answer["reference"]) == ("approved" if done else "reversed")
    line = till.bank.lines().get(answer["reference"])
    assert (line is not None and line.state == "approved") == done
    # what was answered first is answered again, byte for byte
    replay = await till.merchant.effect(PATH, body, key=f"pending-{fault}")
    assert replay[:2] == (202, raw)


async def test_a_bank_that_cannot_be_reached_leaves_key_and_order_free(till: Till) -> None:
    body = order(await till.card())
    assert till.bank._server is not None
    till.bank._server.close()
    status, raw, headers = await till.merchant.effect(PATH, body, key="not-sent")
    assert (status, json.loads(raw)["code"]) == (503, "unavailable") and headers["Retry-After"]
    await till.bank.open()
    status, raw, headers = await till.merchant.effect(PATH, body, key="not-sent")
    assert (status, json.loads(raw)["status"]) == (200, "approved") and "Idempotency-Replayed" not in headers


async def test_what_the_bank_has_no_message_for_is_refused_and_not_to_be_tried_again(till: Till) -> None:
    body = order(await till.card())
    status, raw, headers = await till.merchant.effect(PATH, body | {"terminal_id": NO_TERMINAL}, key="no-message")
    assert (status, json.loads(raw)["code"]) == (422, "not_at_this_bank") and "Retry-After" not in headers
    status, raw, _ = await till.merchant.effect(PATH, body, key="no-message")
    assert (status, json.loads(raw)["status"]) == (200, "approved"), "key and order are free"


async def test_an_order_is_paid_once(till: Till) -> None:
    body = order(await till.card())
    answers = await asyncio.gather(*(till.merchant.effect(PATH, body, key=f"once-{turn}") for turn in range(20)))
    assert sorted(status for status, _, _ in answers) == [200] + [409] * 19
    assert {json.loads(raw)["code"] for status, raw, _ in answers if status == 409} == {"order_id_used"}
    later = await till.merchant.effect(PATH, body, key="once-later")
    assert (later[0], json.loads(later[1])["code"]) == (409, "order_id_used")
    (paid,) = [json.loads(raw)["reference"] for status, raw, _ in answers if status == 200]
    assert json.loads(later[1])["detail"] == f"by {paid}", "for who has lost its key"


async def test_64_repetitions_are_one_charge(till: Till) -> None:
    body = order(await till.card())
    before = till.bank.charged_fen()
    hold = Hold.new()
    till.bank.faults["purchase"].append(hold)
    first = asyncio.create_task(till.merchant.effect(PATH, body, key="storm"))
    await hold.arrived.wait()
    rivals = await asyncio.gather(*(till.merchant.effect(PATH, body, key="storm") for _ in range(63)))
    assert {status for status, _, _ in rivals} == {409}
    hold.go.set()
    status, raw, _ = await first
    assert status == 200
    answers = await asyncio.gather(*(till.merchant.effect(PATH, body, key="storm") for _ in range(64)))
    assert {again for status, again, _ in answers if status == 200} == {raw}
    assert {status for status, _, _ in answers} <= {200, 409}, "409: beside one that was being answered"
    assert till.bank.charged_fen() - before == 1250


async def test_a_payment_is_reversed_once(till: Till) -> None:
    reference = await till.paid()
    status, answer = await till.undo(reference, "reversals", reason="the customer left")
    assert (status, answer["status"], answer["payment"]) == (200, "reversed", reference)
    assert answer["reference"] != reference and till.bank.lines()[reference].state == "reversed"
    assert await till.status(reference) == "reversed"
    messages = len(till.bank.messages)
    assert (await till.undo(reference, "reversals"))[1]["status"] == "reversed"
    assert len(till.bank.messages) == messages, "it is so already"
    assert (await till.undo(reference, "refunds", amount_fen=1))[1]["code"] == "payment_state"
    assert (await till.operation(answer["reference"]))[1]["undoes"] == reference
    assert (await till.undo(answer["reference"], "reversals"))[0] == 404, "a reversal is no payment"


async def test_a_reversal_that_is_refused_changes_nothing(till: Till) -> None:
    reference = await till.paid()
    till.bank.faults["reverse"].append("decline:not_allowed")
    _, answer = await till.undo(reference, "reversals")
    assert (answer["status"], answer["decline_code"]) == ("declined", "not_allowed")
    assert await till.status(reference) == "approved"


async def test_a_reversal_without_an_answer_is_repeated(till: Till) -> None:
    reference = await till.paid()
    till.bank.faults["reverse"].extend(["drop_before", "drop_after", "garbage"])
    status, answer = await till.undo(reference, "reversals")
    assert (status, answer["status"]) == (202, "pending")
    assert (await till.undo(reference, "reversals"))[1]["code"] == "payment_pending"
    assert (await till.undo(reference, "refunds", amount_fen=1))[1]["code"] == "payment_pending"
    await till.resolver.until_nothing_is_left()
    assert await till.status(reference) == await till.status(answer["reference"]) == "reversed"
    assert till.bank.lines()[reference].state == "reversed"


async def test_a_pending_payment_may_be_reversed(till: Till) -> None:
    till.bank.faults["purchase"].append("drop_after")
    _, payment = await till.pay(await till.card())
    status, answer = await till.undo(payment["reference"], "reversals")
    assert (status, answer["status"]) == (200, "reversed")
    assert await till.steps(payment["reference"]) == ["intent", "unknown", "reversing", "reversed"]
    assert till.bank.lines()[payment["reference"]].state == "reversed"


async def test_a_payment_that_never_arrived_is_looked_for_once_after_its_reversal(till: Till) -> None:
    till.bank.faults["purchase"].append("drop_before")
    _, payment = await till.pay(await till.card())
    _, answer = await till.undo(payment["reference"], "reversals")
    assert answer["status"] == await till.status(payment["reference"]) == "reversed"
    messages = len(till.bank.messages)
    await till.resolver.until_nothing_is_left()
    [(op, reference)] = till.bank.messages[messages:]
    assert op == "reverse" and reference not in (payment["reference"], answer["reference"]), "a reversal of its own"


async def test_refunds_never_exceed_the_payment(till: Till) -> None:
    reference = await till.paid(1000)
    answers = await asyncio.gather(*(till.undo(reference, "refunds", amount_fen=300) for _ in range(12)))
    approved = [answer for status, answer in answers if status == 200]
    assert len(approved) == 3 and {answer["status"] for answer in approved} == {"approved"}
    assert {answer["code"] for status, answer in answers if status == 409} == {"refund_too_large"}
    assert (await till.undo(reference, "refunds", amount_fen=100))[0] == 200
    assert (await till.undo(reference, "reversals"))[1]["code"] == "payment_state"
    refunds = [line for line in till.bank.lines().values() if line.kind == "refund"]
    assert sum(line.amount_fen for line in refunds if line.reference in {a["reference"] for a in approved}) == 900
    assert (await till.operation(reference))[1]["refunded_fen"] == 1000


@pytest.mark.parametrize(("fault", "then"), [("drop_after", "approved"), ("drop_before", "declined")])
async def test_a_refund_without_an_answer_is_asked_about_and_never_reversed(till: Till, fault: str, then: str) -> None:
    reference = await till.paid()
    till.bank.faults["refund"].append(fault)
    status, answer = await till.undo(reference, "refunds", amount_fen=250)
    assert (status, answer["status"]) == (202, "pending")
    if then == "declined":  # while it is young, it may be on its way
        await till.resolver.make_due()
        await till.resolver.resolve.turn()
        assert await till.status(answer["reference"]) == "pending"
        till.resolver.settle._settings = _aged(till.resolver.settle._settings)
    await till.resolver.until_nothing_is_left()
    assert await till.status(answer["reference"]) == then
    assert ("reverse", answer["reference"]) not in till.bank.messages
    assert await till.status(reference) == "approved"


def _aged(settings: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(settings, look_again_s=0)


async def test_only_the_own_operations_are_shown(till: Till) -> None:
    reference = await till.paid()
    async with Client(till.gateway, "demo-kiosk") as kiosk:
        assert (await till.operation(reference, kiosk))[0] == 404
        card = await till.card(account=False)
        loss = (await kiosk.report_loss(card))["reference"]
        status, answer = await till.operation(loss, kiosk)
        assert (status, answer["kind"], answer["status"]) == (200, "loss_report", "accepted")
        assert [step["status"] for step in answer["history"]] == ["accepted"]
        assert (await till.operation(loss))[0] == 404
    for wrong in ("x", "01890000-0000-7000-8000-000000000000", reference.upper()):
        assert (await till.operation(wrong))[0] == 404
        for what, body in (("reversals", {}), ("refunds", {"amount_fen": 1})):
            assert (await till.undo(wrong, what, **body))[0] == 404


async def test_a_token_without_the_scope_is_not_shown_a_payment(till: Till) -> None:
    reference = await till.paid()
    async with Client(till.gateway, "demo-merchant") as client:
        _, answer = await client.ask_token(scope="cards:verify")
        client._token = answer["access_token"]
        status, shown = await till.operation(reference, client)
    assert (status, shown["code"]) == (403, "insufficient_scope")


INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "nothing to pay": ({"amount_fen": 0}, "$.amount_fen"),
    "less than nothing": ({"amount_fen": -1}, "$.amount_fen"),
    "too much": ({"amount_fen": 5_000_001}, "$.amount_fen"),
    "a fraction": ({"amount_fen": 12.5}, "$.amount_fen"),
    "no such scene": ({"scene": "moon.landing"}, "$.scene"),
    "an empty order id": ({"merchant_order_id": ""}, "$.merchant_order_id"),
    "an order id with a line feed": ({"merchant_order_id": "a\n"}, "$.merchant_order_id"),
    "an unknown field": ({"colour": "red"}, "$"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_bad_input_names_the_field(till: Till, name: str) -> None:
    changes, field = INVALID[name]
    body = order(await till.card()) | changes
    status, raw, _ = await till.merchant.effect(PATH, body)
    problem = json.loads(raw)
    assert (status, problem["code"], [error["field"] for error in problem["errors"]]) == (
        422, "validation_failed", [field],
    )  # fmt: skip


async def test_a_late_approval_after_a_reversal_is_reversed_again(
    till: Till, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The bank gets the message after the reversal, and does not remember that it was reversed."""
    till.bank._remembers = False
    hold = Hold.new()
    till.bank.faults["purchase"].append(hold)
    began = time.monotonic()
    status, answer = await till.pay(await till.card())
    assert (status, answer["status"]) == (202, "pending") and time.monotonic() - began < 5
    reference = answer["reference"]
    await till.resolver.make_due()
    await till.resolver.resolve.turn()  # asked: not found, so it is to be reversed
    await till.resolver.make_due()
    await till.resolver.resolve.turn()  # reversed: not found
    assert await till.status(reference) == "reversed"
    hold.go.set()
    await hold.done.wait()
    assert till.bank.lines()[reference].state == "approved", "the customer is charged"
    await till.resolver.until_nothing_is_left()
    till.bank._remembers = True
    assert till.bank.lines()[reference].state == "reversed"
    shown = (await till.operation(reference))[1]
    assert shown["status"] == "reversed" and shown["history"][-1]["note"] == "a late approval was reversed"


async def test_keys_are_not_mixed_up(till: Till) -> None:
    body, key = order(await till.card()), secrets.token_hex(8)
    assert (await till.merchant.effect(PATH, body, key=key))[0] == 200
    status, raw, _ = await till.merchant.effect(PATH, body | {"amount_fen": 1}, key=key)
    assert (status, json.loads(raw)["code"]) == (422, "idempotency_key_reused")


async def test_a_request_that_was_overtaken_by_the_resolver_has_its_approval_reversed(till: Till) -> None:
    """As after a process stood still: its lease was over, and the bank approves only then."""
    till.bank._remembers = False
    hold = Hold.new()
    till.bank.faults["purchase"].append(hold)
    asked = asyncio.create_task(till.pay(await till.card()))
    await hold.arrived.wait()
    for _ in range(2):  # asked: not found; reversed: not found
        await till.resolver.make_due()
        await till.resolver.resolve.turn()
    hold.go.set()
    status, answer = await asked
    assert (status, answer["status"]) == (200, "reversed"), "what the resolver decided stays"
    reference = answer["reference"]
    assert till.bank.lines()[reference].state == "approved"
    await till.resolver.until_nothing_is_left()
    till.bank._remembers = True
    assert till.bank.lines()[reference].state == await till.status(reference) == "reversed"
    notes = [step.get("note") for step in (await till.operation(reference))[1]["history"]]
    assert "approved late: reversed again" in notes


async def test_what_the_bank_says_is_taken_from_a_request_that_was_overtaken(
    till: Till, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank that cannot be asked what became of a refund: this answer is the only one there will be."""
    monkeypatch.setattr(till.resolver.settle, "_banks", banks(till.bank.port, can_query=False))
    reference = await till.paid()
    hold = Hold.new()
    till.bank.faults["refund"].append(hold)
    asked = asyncio.create_task(till.undo(reference, "refunds", amount_fen=250))
    await hold.arrived.wait()
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    hold.go.set()
    status, answer = await asked
    assert (status, answer["status"]) == (200, "approved")
    assert await till.steps(answer["reference"]) == ["intent", "unknown", "approved"]


async def test_one_that_meets_a_mistake_of_ours_holds_up_no_other(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    till.bank.faults["purchase"].extend(["drop_after", "drop_after"])
    unlucky, other = [(await till.pay(await till.card()))[1]["reference"] for _ in range(2)]
    reached = till.resolver.settle._banks

    async def mistaken(name: str, operation: Operation, deadline_s: float) -> Outcome:
        if isinstance(operation, QueryStatus) and str(operation.original.reference) == unlucky:
            raise ZeroDivisionError
        return await reached.ask(name, operation, deadline_s)

    monkeypatch.setattr(till.resolver.settle, "_banks", Banks(mistaken, reached.can))
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    assert (await till.status(unlucky), await till.status(other)) == ("pending", "approved")
    monkeypatch.undo()
    await till.resolver.until_nothing_is_left()
    assert await till.status(unlucky) == "approved", "it was still due"


async def test_an_answer_that_comes_late_is_taken(till: Till) -> None:
    till.bank.faults["purchase"].extend(["drop_after", "drop_after"])
    references = [(await till.pay(await till.card()))[1]["reference"] for _ in range(2)]
    await till.hear_late(references[0], Approved())
    assert await till.status(references[0]) == "approved"
    assert (await till.undo(references[1], "reversals"))[1]["status"] == "reversed"
    messages = len(till.bank.messages)
    await till.hear_late(references[1], Approved())
    await till.resolver.until_nothing_is_left()
    assert [op for op, _ in till.bank.messages[messages:]] == ["reverse"], "once more, and then it rests"
    assert await till.status(references[1]) == "reversed"
    await till.hear_late(references[0], Approved())
    await till.hear_late("01890000-0000-7000-8000-000000000000", Approved())
    assert await till.status(references[0]) == "approved"
