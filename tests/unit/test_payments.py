"""The rules of a payment's states, whatever a bank says, in whatever order."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown
from gateway.domain.payments import (
    BEGINNINGS,
    OPEN,
    TRANSITIONS,
    PaymentKind,
    PaymentState,
    Question,
    backoff_s,
    learned,
    next_question,
    public,
    reversal_reference,
)

_K, _S = PaymentKind, PaymentState
OUTCOMES: list[Outcome] = [
    Approved(), Pending(), NotSent("x"), Unknown("x"), *(Declined(code) for code in DeclineCode),
]  # fmt: skip
outcomes = st.sampled_from(OUTCOMES)
kinds = st.sampled_from(list(PaymentKind))


parents = st.sampled_from([_S.APPROVED, _S.REVERSING, _S.REVERSED])
"""Of a caller's reversal: how its payment stands."""


@given(kinds, outcomes, st.lists(outcomes, max_size=12), st.booleans(), st.integers(0, 6), parents)
def test_every_answer_leads_along_the_table_and_never_out_of_a_final_state(
    kind: PaymentKind, first: Outcome, answers: list[Outcome], can_query: bool, queries_max: int, parent: PaymentState
) -> None:
    """As the request and the resolver do it, without a database."""
    state = _S.INTENT
    after = learned(kind, Question.FIRST, first, parent)
    assert after in TRANSITIONS[kind, state], "the first answer always says where to go on"
    state = after
    for tries, answer in enumerate(answers, 1):
        if state not in OPEN:
            return
        question = next_question(kind, state, tries, can_query, queries_max)
        assert (question is Question.NONE) == (kind is _K.REFUND and not can_query)
        assert not (kind is _K.REFUND and question is Question.REVERSE), "a refund is never reversed"
        if question is Question.NONE:
            return
        if question is Question.REVERSE and state is _S.UNKNOWN and kind is _K.PAYMENT:
            state = _S.REVERSING
        after = learned(kind, question, answer, parent)
        if after is not None:
            assert after in TRANSITIONS[kind, state]
            state = after


@given(outcomes)
def test_only_a_clear_yes_is_approved(outcome: Outcome) -> None:
    for kind in (_K.PAYMENT, _K.REFUND):
        for question in (Question.FIRST, Question.QUERY):
            assert (learned(kind, question, outcome) is _S.APPROVED) == isinstance(outcome, Approved)


def test_what_was_perhaps_sent_is_never_said_not_to_be() -> None:
    for outcome in OUTCOMES:
        for kind in PaymentKind:
            state = learned(kind, Question.FIRST, outcome, _S.APPROVED)
            assert (state is _S.NOT_SENT) == isinstance(outcome, NotSent)
            for question in (Question.QUERY, Question.REVERSE):
                assert learned(kind, question, outcome, _S.APPROVED) is not _S.NOT_SENT
    assert learned(_K.PAYMENT, Question.FIRST, Declined(DeclineCode.DUPLICATE)) is _S.UNKNOWN


def test_a_reversal_ends_with_reversed_or_nothing_found_alone() -> None:
    ends = [outcome for outcome in OUTCOMES if learned(_K.PAYMENT, Question.REVERSE, outcome) is not None]
    assert ends == [Approved(), Declined(DeclineCode.NOT_FOUND)]


@given(st.sampled_from(list(DeclineCode)), st.sampled_from([Question.FIRST, Question.REVERSE]), parents)
def test_a_bank_that_says_no_to_a_callers_reversal(code: DeclineCode, question: Question, parent: PaymentState) -> None:
    state = learned(_K.REVERSAL, question, Declined(code), parent)
    if parent is _S.REVERSED:
        assert state is _S.REVERSED, "whoever did it"
    elif parent is _S.APPROVED:
        assert state is not _S.REVERSED, "the money is still with the merchant, as far as anybody knows"
        first = question is Question.FIRST and code is not DeclineCode.DUPLICATE
        assert (state is _S.DECLINED) == first, "a repetition may meet what the first one did"
    else:
        assert (state is _S.REVERSED) == (code is DeclineCode.NOT_FOUND)
        assert state is not _S.DECLINED, "it is being reversed by us"


def test_every_state_but_the_final_ones_goes_on_and_is_pending() -> None:
    for kind in PaymentKind:
        reached = set(BEGINNINGS[kind])
        while more := {after for state in reached for after in TRANSITIONS.get((kind, state), ())} - reached:
            reached |= more
        for state in reached:
            assert (public(state) == "pending") == (state in OPEN)
            if state in OPEN:
                assert TRANSITIONS[kind, state]
    final = {key for key in TRANSITIONS if key[1] not in OPEN}
    assert final == {(_K.PAYMENT, _S.APPROVED)}, "an approved payment alone may still be reversed"


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_the_wait_is_bounded_and_reaches_its_cap(tries: int, chance: float) -> None:
    assert 0 <= backoff_s(tries, 1, 300, chance) <= 300
    assert backoff_s(tries, 1, 300, 1) == min(300, 2.0 ** min(tries, 30))


def test_our_reversals_have_references_of_their_own() -> None:
    reference = UUID("01a2094a-958b-79ef-9703-c03bc30f62b6")
    made = {reference, reversal_reference(reference, False), reversal_reference(reference, True)}
    assert len(made) == 3 and {each.version for each in made} == {7}
