"""A bank that contradicts itself, or answers when it is too late: nobody is told that money is back which is not."""

import asyncio
from collections.abc import Callable
from uuid import UUID

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.domain.operations import Operation
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome
from gateway.domain.payments import PaymentKind, PaymentState, Question, learned
from gateway.flows import settle_payment
from gateway.flows.settle_payment import Banks
from gateway.store import payments
from tests.bank import Hold, banks
from tests.tills import Till
from tests.tills import till as till

Rule = Callable[[PaymentKind, Question, Outcome, PaymentState | None], PaymentState | None]


def as_if_never_approved(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None
) -> PaymentState | None:
    """The planted bug: nothing found ends every reversal."""
    return learned(kind, question, outcome, parent and PaymentState.REVERSING)


def as_if_sent_once(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None
) -> PaymentState | None:
    """The planted bug: a no is believed, though an earlier message may have been done."""
    return learned(kind, Question.FIRST if kind is PaymentKind.REVERSAL else question, outcome, parent)


def plant(monkeypatch: pytest.MonkeyPatch, rule: Rule | None) -> None:
    if rule is not None:
        monkeypatch.setattr(settle_payment, "learned", rule)


async def test_a_bank_that_does_not_find_what_it_has_approved_has_given_nothing_back(till: Till) -> None:
    reference = await till.paid(1000)
    till.bank.faults["reverse"].append("decline:not_found")
    status, answer = await till.undo(reference, "reversals")
    assert (status, answer["status"], answer["decline_code"]) == (200, "declined", "not_found")
    assert till.bank.lines()[reference].state == await till.status(reference) == "approved", "the customer is charged"
    assert (await till.undo(reference, "refunds", amount_fen=1000))[1]["status"] == "approved", "there is another way"


@pytest.mark.parametrize("rule", [None, as_if_never_approved], ids=["as it is", "control"])
async def test_nor_has_one_that_does_not_find_it_when_it_is_asked_again(
    till: Till, monkeypatch: pytest.MonkeyPatch, rule: Rule | None
) -> None:
    plant(monkeypatch, rule)
    reference = await till.paid(1000)
    till.bank.faults["reverse"].extend(["drop_before", "decline:not_found"])
    status, answer = await till.undo(reference, "reversals")
    assert (status, answer["status"]) == (202, "pending")
    await till.resolver.make_due()
    with capture_logs() as lines:
        await till.resolver.resolve.turn()
    assert till.bank.lines()[reference].state == "approved", "the customer is charged"
    told = await till.status(reference), await till.status(answer["reference"])
    assert told == (("approved", "pending") if rule is None else ("reversed", "reversed"))
    assert [line["event"] for line in lines] == ["the bank does not find what it has approved"]
    await till.resolver.until_nothing_is_left()
    assert till.bank.lines()[reference].state == "reversed"


@pytest.mark.parametrize("rule", [None, as_if_sent_once], ids=["as it is", "control"])
@pytest.mark.parametrize("no", ["partner_failure", "not_allowed", "not_found"])
async def test_a_no_to_a_repeated_reversal_is_not_believed(
    till: Till, monkeypatch: pytest.MonkeyPatch, no: str, rule: Rule | None
) -> None:
    """The first one was done, and its answer lost."""
    plant(monkeypatch, rule)
    reference = await till.paid()
    till.bank.faults["reverse"].extend(["drop_after", f"decline:{no}"])
    status, answer = await till.undo(reference, "reversals")
    assert (status, answer["status"]) == (202, "pending")
    await till.resolver.until_nothing_is_left()
    assert till.bank.lines()[reference].state == "reversed"
    stands = await till.status(reference), await till.status(answer["reference"])
    assert stands == (("reversed", "reversed") if rule is None else ("approved", "declined"))


async def begun(till: Till) -> str:
    """The refund of which the outcome is not known yet."""
    connection = await asyncpg.connect(till.dsn)
    try:
        reference = await connection.fetchval(
            "SELECT reference FROM payment WHERE kind = 'refund' AND state = 'intent'"
        )
    finally:
        await connection.close()
    return str(reference)


@pytest.mark.parametrize("asked", [None, (PaymentState.UNKNOWN,)], ids=["as it is", "control"])
async def test_an_answer_that_comes_before_its_request_has_given_up_is_taken(
    till: Till, monkeypatch: pytest.MonkeyPatch, asked: tuple[PaymentState, ...] | None
) -> None:
    """At a bank that cannot be asked: it is the only one there will be."""
    if asked is not None:
        monkeypatch.setattr(settle_payment, "_ASKED", asked)
    settle = till.resolver.settle
    monkeypatch.setattr(settle, "_banks", banks(till.bank.port, can_query=False))
    payment = await till.paid()
    hold = Hold.new()
    till.bank.faults["refund"].append(hold)
    asking = asyncio.create_task(till.undo(payment, "refunds", amount_fen=250))
    await hold.arrived.wait()
    reference = await begun(till)
    await till.hear_late(reference, Approved())
    assert (await till.status(reference) == "approved") == (asked is None)
    hold.go.set()
    await asking


async def test_an_approval_of_what_was_declined_is_kept_for_people_to_see(till: Till) -> None:
    payment = await till.paid()
    till.bank.faults["refund"].append("decline:not_allowed")
    _, answer = await till.undo(payment, "refunds", amount_fen=250)
    assert answer["status"] == "declined"
    with capture_logs() as lines:
        for _ in range(3):
            await till.hear_late(answer["reference"], Approved())
    assert [(line["log_level"], line["event"]) for line in lines] == [("error", "the bank approved late what is ended")]
    shown = (await till.operation(answer["reference"]))[1]
    assert shown["status"] == "declined"
    assert [step.get("note") for step in shown["history"]] == [None, None, "approved late: people have to look"]


@pytest.mark.parametrize("forgets", [False, True], ids=["as it is", "control"])
async def test_a_payment_is_looked_for_where_it_was_made_though_its_bank_is_routed_anew(
    till: Till, monkeypatch: pytest.MonkeyPatch, forgets: bool
) -> None:
    settle = till.resolver.settle
    reached = settle._banks

    async def ask(name: str, operation: Operation, deadline_s: float) -> Outcome:
        if name == "another":
            return Declined(DeclineCode.NOT_FOUND)
        return await reached.ask(name, operation, deadline_s)

    till.bank.faults["purchase"].append("drop_after")
    _, answer = await till.pay(await till.card())
    if forgets:
        connection = await asyncpg.connect(till.dsn)
        try:
            await connection.execute(
                "UPDATE payment SET partner = NULL WHERE reference = $1", UUID(answer["reference"])
            )
        finally:
            await connection.close()
    routes = {"bank-jiaxing": "another"}
    monkeypatch.setattr(settle, "_settings", msgspec.structs.replace(settle._settings, routes=routes))
    monkeypatch.setattr(settle, "_banks", Banks(ask, reached.can))
    await till.resolver.until_nothing_is_left()
    assert till.bank.lines()[answer["reference"]].state == "approved", "the customer is charged"
    assert await till.status(answer["reference"]) == ("reversed" if forgets else "approved")


@pytest.mark.parametrize("final", [None, lambda kind, state: True], ids=["as it is", "control"])
async def test_a_request_that_was_overtaken_does_not_believe_a_no_to_its_reversal(
    till: Till, monkeypatch: pytest.MonkeyPatch, final: Callable[[PaymentKind, PaymentState], bool] | None
) -> None:
    """The resolver has sent its message meanwhile, which may have been done: this one was the repetition."""
    if final is not None:
        monkeypatch.setattr(settle_payment, "_is_final_word", final)
    settle = till.resolver.settle
    reached = settle._banks

    async def no(name: str, operation: Operation, deadline_s: float) -> Outcome:
        return Declined(DeclineCode.NOT_ALLOWED)

    payment = await till.paid()
    till.bank.faults["reverse"].append("drop_before")
    _, answer = await till.undo(payment, "reversals")
    async with till.resolver.pool.acquire() as connection:
        begun = await payments.find(connection, UUID(answer["reference"]))
    assert begun is not None and begun.state is PaymentState.UNKNOWN
    monkeypatch.setattr(settle, "_banks", Banks(no, reached.can))
    await settle.first(begun._replace(state=PaymentState.INTENT))
    assert (await till.status(answer["reference"]) == "pending") == (final is None)
    monkeypatch.setattr(settle, "_banks", reached)
    await till.resolver.until_nothing_is_left()


async def test_a_look_that_finds_nothing_does_not_forget_an_approval_that_came_meanwhile(till: Till) -> None:
    till.bank.faults["purchase"].append("drop_before")
    _, answer = await till.pay(await till.card())
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    reference = UUID(answer["reference"])
    assert await till.status(answer["reference"]) == "reversed"
    async with till.resolver.pool.acquire() as connection:
        payment = await payments.find(connection, reference)
        assert payment is not None
        await payments.try_now(connection, payment)
        await payments.try_again(connection, payment, None)
        left = await connection.fetchval("SELECT next_try_at <= now() FROM payment WHERE reference = $1", reference)
    assert left is True
    await till.resolver.until_nothing_is_left()
