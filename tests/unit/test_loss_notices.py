"""The rules of a loss notice's states, whatever a bank says, in whatever order."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.loss_notices import OPEN, TRANSITIONS, NoticeState, Question, learned, next_question, public
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome, Pending, Unknown

_S = NoticeState
OUTCOMES: list[Outcome] = [
    Approved(), Pending(), NotSent("x"), Unknown("x"), *(Declined(code) for code in DeclineCode),
]  # fmt: skip


@given(st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=12), st.booleans())
def test_every_answer_leads_along_the_table_and_never_out_of_a_final_state(
    answers: list[Outcome], can_query: bool
) -> None:
    """As the request and the resolver do it, without a database."""
    state = _S.INTENT
    for tries, answer in enumerate(answers):
        if state not in OPEN:
            return
        question = next_question(state, tries, can_query) if tries else Question.TELL
        after = learned(question, answer)
        if after is not None and after is not state:
            assert after in TRANSITIONS[state]
            state = after


def test_only_a_clear_answer_ends_it() -> None:
    for question in Question:
        ends = [outcome for outcome in OUTCOMES if (learned(question, outcome) or _S.INTENT) not in OPEN]
        says_nothing = {DeclineCode.DUPLICATE} | ({DeclineCode.NOT_FOUND} if question is Question.QUERY else set())
        assert ends == [Approved(), *(Declined(code) for code in DeclineCode if code not in says_nothing)]
        assert learned(question, Approved()) is _S.ACCEPTED
        assert learned(question, NotSent("x")) is None, "what was perhaps sent before is not forgotten"


def test_it_is_told_at_least_every_other_time() -> None:
    """So that one which never arrived does not wait for a bank that knows nothing of it."""
    for tries in range(1, 20):
        assert next_question(_S.INTENT, tries, can_query=True) is Question.TELL
        assert next_question(_S.UNKNOWN, tries, can_query=False) is Question.TELL
        both = {next_question(_S.UNKNOWN, tries + more, can_query=True) for more in (0, 1)}
        assert both == set(Question)


def test_every_state_but_the_final_ones_goes_on_and_is_pending() -> None:
    for state in NoticeState:
        assert (public(state) == "pending") == (state in OPEN) == bool(TRANSITIONS.get(state))
