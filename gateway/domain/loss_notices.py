"""What the bank's half of a loss report may become: its states, what may follow what, how an open one goes on.

A notice is known to the bank by our reference and may be sent any number of times. Notices of one card are told in
the order in which the card was reported and released, so a release never overtakes its loss (domain.md §1.4).
"""

from enum import StrEnum
from typing import NamedTuple

from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome


class NoticeKind(StrEnum):
    """By the name of the operation that it is the bank's half of."""

    LOSS = "loss_report"
    RELEASE = "loss_release"


class NoticeState(StrEnum):
    INTENT = "intent"
    """Recorded; nothing is known to have reached the bank."""
    UNKNOWN = "unknown"
    """Sent, or perhaps sent, without a clear answer."""
    ACCEPTED = "accepted"
    REFUSED = "refused"


_S = NoticeState

OPEN = frozenset({_S.INTENT, _S.UNKNOWN})
"""What a caller is told is `pending`."""

TRANSITIONS: dict[NoticeState | None, frozenset[NoticeState]] = {
    None: frozenset({_S.INTENT, _S.ACCEPTED, _S.REFUSED}),
    _S.INTENT: frozenset({_S.UNKNOWN, _S.ACCEPTED, _S.REFUSED}),
    _S.UNKNOWN: frozenset({_S.ACCEPTED, _S.REFUSED}),
}
"""The one table of what may follow what; what begins decided is not told. The database holds the same
(loss_notice_step) and refuses everything else."""


class Heard(NamedTuple):
    """What a card's bank knows where a release does not open the card."""

    frozen: bool
    """What it took last, or will, is a loss."""
    reported: bool
    """It was told of the report that is released."""
    released: bool
    """And has taken a release since."""


def first_state(still_lost: bool, heard: Heard) -> NoticeState | None:
    """The first state of the notice of a release that does not open the card; None: there is no notice.

    The account stays frozen for another report that it was frozen for (`refused`). One that was freed is not freed
    again (`accepted`): its holder may have had it frozen since. Nor is one of whose loss the bank never heard.
    """
    if still_lost:
        return _S.REFUSED if heard.frozen else None
    if not heard.reported:
        return None
    if not heard.released:
        return _S.INTENT
    return _S.REFUSED if heard.frozen else _S.ACCEPTED


class Question(StrEnum):
    TELL = "tell"
    """The notice itself."""
    QUERY = "query"


def public(state: NoticeState) -> str:
    """The caller's word for a state."""
    return "pending" if state in OPEN else state.value


def next_question(state: NoticeState, tries: int, can_query: bool) -> Question:
    """Told again, which does no harm; in turn asked after, for a bank that says no more than that it has seen it."""
    return Question.QUERY if state is _S.UNKNOWN and can_query and tries % 2 == 0 else Question.TELL


def learned(question: Question, outcome: Outcome) -> NoticeState | None:
    """The state that an answer leads to; None: it says nothing."""
    match outcome:
        case Approved():
            return _S.ACCEPTED
        case Declined(code=DeclineCode.DUPLICATE):
            return _S.UNKNOWN  # the bank has seen this reference: what it did is not said
        case Declined(code=DeclineCode.NOT_FOUND) if question is Question.QUERY:
            return None  # it has not arrived: it is told again
        case Declined():
            return _S.REFUSED
        case NotSent():
            return None
    return _S.UNKNOWN if question is Question.TELL else None
