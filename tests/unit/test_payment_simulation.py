"""Ten thousand payments in virtual time, messages and answers lost at every step: all end, and the bank's book fits.

The decisions (domain/payments.py) and the times are the gateway's own; bank, wire and clock are modelled.
"""

import random
from typing import NamedTuple

import pytest

from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Unknown
from gateway.domain.payments import (
    OPEN,
    PaymentKind,
    PaymentState,
    Question,
    backoff_s,
    found_nothing,
    learned,
    next_question,
)
from gateway.settings import load

SEEDS = 10_000
LOSS = 0.3
"""Of each message, and of each answer: half of all tries fail."""
ARRIVES_WITHIN_S = 100.0
END_S = 15 * 60
SHIPPED = load({}).gateway.payments
DEADLINE_S = SHIPPED.deadline_ms / 1000

_K, _S = PaymentKind, PaymentState


class End(NamedTuple):
    state: PaymentState
    charged: bool
    took_s: float
    """Until it was decided."""


class Bank:
    """It forgets reversals that found nothing. `send` takes its time."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self.now = 0.0
        self._book = ""
        self._arrives_at = float("inf")

    def charged(self) -> bool:
        """In the end, when what is late has arrived."""
        return self._book == "approved" or (not self._book and self._arrives_at < float("inf"))

    def send(self, question: Question) -> Outcome:
        self.now += 0.1
        if self.now >= self._arrives_at and not self._book:
            self._book = "approved"
        if self._dice.random() < LOSS:  # on the way there
            self.now += DEADLINE_S
            if question is Question.FIRST and self._dice.random() < 0.5:  # not lost, only late
                self._arrives_at = self._dice.uniform(self.now, ARRIVES_WITHIN_S)
            return Unknown("lost")
        answer = self._answer(question)
        if self._dice.random() < LOSS:  # on the way back
            self.now += DEADLINE_S
            return Unknown("lost")
        return answer

    def _answer(self, question: Question) -> Outcome:
        if question is Question.FIRST:
            self._book = "approved"
        elif not self._book:
            return Declined(DeclineCode.NOT_FOUND)
        elif question is Question.REVERSE:
            self._book = "reversed"
        return Approved()


def run(seed: int, *, can_query: bool, looks_again: bool = True, guesses: bool = False) -> End:
    """One payment, as SettlePayment takes it. `guesses` plants: no answer is no message."""
    dice = random.Random(seed)
    bank = Bank(dice)
    outcome = bank.send(Question.FIRST)
    if guesses and isinstance(outcome, Unknown):
        outcome = NotSent("surely")
    state = learned(_K.PAYMENT, Question.FIRST, outcome)
    assert state is not None
    tries = 0

    def again() -> Outcome:
        nonlocal tries, state
        tries += 1
        bank.now += backoff_s(tries, SHIPPED.retry_base_ms / 1000, SHIPPED.retry_cap_s, dice.random())
        assert state is not None
        question = next_question(_K.PAYMENT, state, tries, can_query, SHIPPED.queries_max)
        if state is _S.UNKNOWN and question is Question.REVERSE:
            state = _S.REVERSING
        outcome = bank.send(question)
        if state is not _S.REVERSED:
            state = learned(_K.PAYMENT, question, outcome) or state
        return outcome

    while state in OPEN:
        outcome = again()
    decided_at = bank.now
    if state is _S.REVERSED and found_nothing(outcome) and looks_again:
        bank.now += SHIPPED.look_again_s
        while not isinstance(outcome := again(), Approved) and not found_nothing(outcome):
            pass
    return End(state, bank.charged(), decided_at)


@pytest.mark.parametrize("can_query", [True, False])
def test_all_end_in_time_and_nobody_is_charged_for_nothing(can_query: bool) -> None:
    ends = [run(seed, can_query=can_query) for seed in range(SEEDS)]
    assert {end.state for end in ends} == {_S.APPROVED, _S.REVERSED}
    assert [seed for seed, end in enumerate(ends) if end.charged != (end.state is _S.APPROVED)] == []
    assert max(end.took_s for end in ends) < END_S


def test_control_without_the_second_look_a_late_payment_is_charged() -> None:
    ends = [run(seed, can_query=False, looks_again=False) for seed in range(SEEDS)]
    assert any(end.charged and end.state is _S.REVERSED for end in ends)


def test_control_a_guess_that_nothing_was_sent_is_found() -> None:
    ends = [run(seed, can_query=True, guesses=True) for seed in range(SEEDS)]
    assert any(end.charged and end.state is _S.NOT_SENT for end in ends)
