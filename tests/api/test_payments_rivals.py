"""Two at one operation: two resolvers, an operator, a late answer. What one has learned is not lost on the other."""

import asyncio
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.domain.operations import Operation, QueryStatus, Reverse
from gateway.domain.outcome import Approved, DeclineCode, Declined, Outcome, Unknown
from gateway.domain.payments import PaymentKind, PaymentState
from gateway.flows.decide_payment import NotDecided, decide
from gateway.flows.settle_payment import Banks
from tests.tills import Till
from tests.tills import till as till

_S = PaymentState
NOTHING = Declined(DeclineCode.NOT_FOUND)
CONTRADICTED = "the bank approved late what is ended"


class Asked(NamedTuple):
    """A question at the bank, whose answer the test gives."""

    operation: Operation
    answer: asyncio.Future[Outcome]


class Desk:
    """The bank's: questions come to it one by one."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[Asked] = asyncio.Queue()

    async def ask(self, name: str, operation: Operation, deadline_s: float) -> Outcome:
        asked = Asked(operation, asyncio.get_running_loop().create_future())
        self._asked.put_nowait(asked)
        return await asked.answer

    async def question(self) -> Asked:
        return await asyncio.wait_for(self._asked.get(), 10)


@pytest.fixture
def at_desk(till: Till, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The resolver's questions come here, not to the bank."""
    desk, settle = Desk(), till.resolver.settle
    monkeypatch.setattr(settle, "_banks", Banks(desk.ask, settle._banks.can))
    return desk


async def open_reversal(till: Till) -> str:
    """Of an approved payment: it has not come to the bank, which is not known here."""
    payment = await till.paid()
    till.bank.faults["reverse"].append("drop_before")
    status, answer = await till.undo(payment, "reversals")
    assert (status, answer["status"]) == (202, "pending")
    return str(answer["reference"])


async def open_payment(till: Till) -> str:
    """It has not come to the bank, which is not known here."""
    till.bank.faults["purchase"].append("drop_before")
    status, answer = await till.pay(await till.card())
    assert (status, answer["status"]) == (202, "pending")
    return str(answer["reference"])


async def look(till: Till) -> asyncio.Task[None]:
    """A resolver takes up what is left to do."""
    await till.resolver.make_due()
    return asyncio.create_task(till.resolver.resolve.turn())


async def test_a_reversal_that_the_bank_does_after_people_have_declined_it_is_told(till: Till, at_desk: Desk) -> None:
    reference = await open_reversal(till)
    turn = await look(till)
    asked = await at_desk.question()
    await decide(till.resolver.pool, till.resolver.settle._outcomes, UUID(reference), _S.DECLINED, "the bank's desk")
    with capture_logs() as lines:
        asked.answer.set_result(Approved())
        await turn
    assert [(line["log_level"], line["event"]) for line in lines] == [("error", CONTRADICTED)]
    assert await till.status(reference) == "declined"
    assert await till.notes(reference) == ["decided by hand: the bank's desk", "approved late: people have to look"]


async def test_so_it_is_by_an_answer_that_comes_late_once(till: Till) -> None:
    reference = await open_reversal(till)
    await decide(till.resolver.pool, till.resolver.settle._outcomes, UUID(reference), _S.DECLINED, "the bank's desk")
    with capture_logs() as lines:
        for outcome in (NOTHING, Approved(), Approved()):
            await till.hear_late(reference, outcome)
    assert [(line["log_level"], line["event"]) for line in lines] == [("error", CONTRADICTED)]
    assert await till.status(reference) == "declined"
    assert await till.notes(reference) == ["decided by hand: the bank's desk", "approved late: people have to look"]


async def test_a_late_yes_ends_a_reversal_and_a_late_no_does_not(till: Till) -> None:
    """A no may be one to a repetition of what the first message has done."""
    reference = await open_reversal(till)
    payment = (await till.operation(reference))[1]["undoes"]
    for outcome, stands in (
        (NOTHING, ("pending", "approved")), (Declined(DeclineCode.NOT_ALLOWED), ("pending", "approved")),
        (Approved(), ("reversed", "reversed")), (Approved(), ("reversed", "reversed")),
    ):  # fmt: skip
        await till.hear_late(reference, outcome)
        assert (await till.status(reference), await till.status(payment)) == stands
    assert await till.notes(reference) == await till.notes(payment) == []
    assert await till.resolver.make_due() == 0


async def test_a_late_answer_to_a_question_decides_nothing(till: Till, at_desk: Desk) -> None:
    """The payment may have been on its way when it was not found; and it may have been reversed since it was."""
    reference = await open_payment(till)
    turn = await look(till)
    asked = await at_desk.question()
    asked.answer.set_result(Unknown("late"))
    await turn
    assert isinstance(asked.operation, QueryStatus)
    for outcome in (NOTHING, Approved()):
        await till.resolver.settle.take_late(asked.operation, outcome)
        assert await till.status(reference) == "pending"
    await till.hear_late(reference, Declined(DeclineCode.DO_NOT_HONOUR))
    assert await till.status(reference) == "declined"
    assert await till.resolver.make_due() == 0


@pytest.mark.parametrize("kind", [PaymentKind.REVERSAL, PaymentKind.PAYMENT])
async def test_two_resolvers_that_both_reverse_are_of_one_mind(till: Till, at_desk: Desk, kind: PaymentKind) -> None:
    reference = await (open_reversal if kind is PaymentKind.REVERSAL else open_payment)(till)
    if kind is PaymentKind.PAYMENT:
        turn = await look(till)
        (await at_desk.question()).answer.set_result(NOTHING)  # it is to be reversed
        await turn
    turns = [await look(till)]
    asked = [await at_desk.question()]
    turns.append(await look(till))
    asked.append(await at_desk.question())
    with capture_logs() as lines:
        for one in asked:
            assert isinstance(one.operation, Reverse)
            one.answer.set_result(Approved())
        await asyncio.gather(*turns)
    assert await till.status(reference) == "reversed"
    assert lines == [] and await till.notes(reference) == []
    assert await till.resolver.make_due() == 0, "nobody looks for it again"


async def reversed_unseen(till: Till, at_desk: Desk) -> str:
    """A payment of which the bank has found nothing: it is to be looked for once more."""
    reference = await open_payment(till)
    for _ in range(2):  # asked about, then reversed
        turn = await look(till)
        (await at_desk.question()).answer.set_result(NOTHING)
        await turn
    assert await till.status(reference) == "reversed"
    return reference


async def test_a_look_that_found_nothing_does_not_end_that_of_another(till: Till, at_desk: Desk) -> None:
    """The first is overtaken by a late approval, and by who looks for it: the bank has not done that reversal yet."""
    reference = await reversed_unseen(till, at_desk)
    first = await look(till)
    found_nothing = await at_desk.question()
    await till.hear_late(reference, Approved())
    second = asyncio.create_task(till.resolver.resolve.turn())
    without_answer = await at_desk.question()
    for asked, turn, outcome in ((found_nothing, first, NOTHING), (without_answer, second, Unknown("link down"))):
        asked.answer.set_result(outcome)
        await turn
    third = await look(till)
    (await at_desk.question()).answer.set_result(Approved())
    await third
    assert await till.notes(reference) == ["approved late: reversed again", "a late approval was reversed"]
    assert await till.resolver.make_due() == 0


async def test_each_late_approval_is_reversed_and_all_of_them_are_two_notes(till: Till, at_desk: Desk) -> None:
    reference = await reversed_unseen(till, at_desk)
    with capture_logs() as lines:
        for _ in range(3):
            await till.hear_late(reference, Approved())
            turn = asyncio.create_task(till.resolver.resolve.turn())
            asked = await at_desk.question()
            assert isinstance(asked.operation, Reverse)
            asked.answer.set_result(Approved())
            await turn
    assert [line["event"] for line in lines] == ["an approval came after the reversal: it is reversed again"]
    assert await till.notes(reference) == ["approved late: reversed again", "a late approval was reversed"]
    assert await till.resolver.make_due() == 0


async def test_what_people_have_let_rest_is_not_looked_for_again(till: Till, at_desk: Desk) -> None:
    """Though a resolver is at it: its bank says neither yes nor that there is nothing."""
    reference = await reversed_unseen(till, at_desk)
    pool, outcomes = till.resolver.pool, till.resolver.settle._outcomes
    for _ in range(2):
        turn = await look(till)
        (await at_desk.question()).answer.set_result(Declined(DeclineCode.NOT_ALLOWED))
        await turn
    turn = await look(till)
    asked = await at_desk.question()
    for wrong in (_S.APPROVED, _S.DECLINED):
        with pytest.raises(NotDecided, match="nothing by hand"):
            await decide(pool, outcomes, UUID(reference), wrong, "x")
    assert (await decide(pool, outcomes, UUID(reference), _S.REVERSED, "its desk")).state is _S.REVERSED
    asked.answer.set_result(Declined(DeclineCode.NOT_ALLOWED))
    await turn
    assert await till.resolver.make_due() == 0
    with pytest.raises(NotDecided, match="nothing by hand"):
        await decide(pool, outcomes, UUID(reference), _S.REVERSED, "again")
    assert await till.notes(reference) == ["decided by hand: its desk"]


async def test_an_approval_of_what_was_declined_is_told_once_by_two_who_hear_it_at_once(till: Till) -> None:
    payment = await till.paid()
    till.bank.faults["refund"].append("decline:not_allowed")
    _, answer = await till.undo(payment, "refunds", amount_fen=250)
    reference = UUID(answer["reference"])
    connection = await asyncpg.connect(till.dsn)
    try:
        with capture_logs() as lines:
            async with connection.transaction():
                await connection.execute("SELECT FROM payment WHERE reference = $1 FOR UPDATE", reference)
                told = [asyncio.create_task(till.hear_late(answer["reference"], Approved())) for _ in range(2)]
                while await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted") < 2:
                    assert not any(task.done() for task in told), "each waits for its turn"
            await asyncio.gather(*told)
    finally:
        await connection.close()
    assert await till.notes(answer["reference"]) == ["approved late: people have to look"]
    assert [line["event"] for line in lines] == [CONTRADICTED]
