"""What a payment may become: its states, what may follow what, and what to do while its outcome is not known.

An operation is known to the bank by our reference. Its first message is sent once; after that it is asked about, or
reversed, until it is known. Nothing is guessed: see domain.md §4.2 for the rule of the timeout.
"""

from enum import StrEnum
from uuid import UUID

from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome


class PaymentKind(StrEnum):
    PAYMENT = "payment"
    REVERSAL = "reversal"
    REFUND = "refund"


class PaymentState(StrEnum):
    INTENT = "intent"
    """Recorded; whether anything was sent is not known to anyone but the process that is at it."""
    UNKNOWN = "unknown"
    """Sent, or perhaps sent, without a clear answer: it is asked about."""
    REVERSING = "reversing"
    """It will be reversed, whatever it came to."""
    APPROVED = "approved"
    DECLINED = "declined"
    NOT_SENT = "not_sent"
    """Not a byte reached the bank."""
    REVERSED = "reversed"


_K, _S = PaymentKind, PaymentState

OPEN = frozenset({_S.INTENT, _S.UNKNOWN, _S.REVERSING})
"""What a caller is told is `pending`. All other states are final; only an approved payment may still be reversed."""

BEGINNINGS: dict[PaymentKind, frozenset[PaymentState]] = {
    # declined and approved: by us, the bank was not asked; approved, as a benefit left nothing to pay
    _K.PAYMENT: frozenset({_S.INTENT, _S.DECLINED, _S.APPROVED}),
    _K.REFUND: frozenset({_S.INTENT}),
    _K.REVERSAL: frozenset({_S.INTENT, _S.REVERSED}),  # reversed: it was so already
}

TRANSITIONS: dict[tuple[PaymentKind, PaymentState], frozenset[PaymentState]] = {
    (_K.PAYMENT, _S.INTENT): frozenset({_S.APPROVED, _S.DECLINED, _S.NOT_SENT, _S.UNKNOWN}),
    (_K.PAYMENT, _S.UNKNOWN): frozenset({_S.APPROVED, _S.DECLINED, _S.REVERSING}),
    (_K.PAYMENT, _S.REVERSING): frozenset({_S.REVERSED}),
    (_K.PAYMENT, _S.APPROVED): frozenset({_S.REVERSED}),
    (_K.REFUND, _S.INTENT): frozenset({_S.APPROVED, _S.DECLINED, _S.NOT_SENT, _S.UNKNOWN}),
    (_K.REFUND, _S.UNKNOWN): frozenset({_S.APPROVED, _S.DECLINED}),
    (_K.REVERSAL, _S.INTENT): frozenset({_S.REVERSED, _S.DECLINED, _S.NOT_SENT, _S.UNKNOWN}),
    (_K.REVERSAL, _S.UNKNOWN): frozenset({_S.REVERSED, _S.DECLINED}),
}
"""The one table of what may follow what; the database holds the same (payment_step) and refuses everything else."""


class Question(StrEnum):
    """What is sent to the bank about an operation."""

    FIRST = "first"
    """The operation itself."""
    QUERY = "query"
    REVERSE = "reverse"
    NONE = "none"
    """This dialect has no way to learn more: people have to."""


def public(state: PaymentState) -> str:
    """The caller's word for a state."""
    return "pending" if state in OPEN else state.value


def next_question(kind: PaymentKind, state: PaymentState, tries: int, can_query: bool, queries_max: int) -> Question:
    """How to learn what became of an operation whose first message may be out. Not INTENT: that is UNKNOWN by then."""
    if kind is _K.REVERSAL or state in (_S.REVERSING, _S.REVERSED):
        return Question.REVERSE  # it may be sent any number of times
    if kind is _K.REFUND:
        return Question.QUERY if can_query else Question.NONE  # never reversed, and never sent twice
    return Question.QUERY if can_query and tries <= queries_max else Question.REVERSE


def learned(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None = None
) -> PaymentState | None:
    """The state that an answer leads to; None: the answer says nothing.

    `parent` is how the payment stands that a caller wants reversed, if the bank has declined that: see _after_decline.
    """
    if kind is _K.REVERSAL or question is Question.REVERSE:
        return _after_reverse(kind, question, outcome, parent)
    match outcome:
        case Approved():
            return _S.APPROVED
        case Declined(code=DeclineCode.DUPLICATE):
            state = _S.UNKNOWN  # the bank has seen this reference: what it did is not said
        case Declined(code=DeclineCode.NOT_FOUND) if question is Question.QUERY and kind is _K.PAYMENT:
            return _S.REVERSING  # it may be on its way: a reversal makes the bank refuse it
        case Declined():
            return _S.DECLINED
        case NotSent():
            state = _S.NOT_SENT
        case _:
            state = _S.UNKNOWN
    return state if question is Question.FIRST else None


def _after_reverse(
    kind: PaymentKind, question: Question, outcome: Outcome, parent: PaymentState | None
) -> PaymentState | None:
    state = None
    match outcome:
        case Approved():
            return _S.REVERSED
        case Declined() if kind is _K.REVERSAL:
            state = _after_decline(question, outcome, parent)
        case Declined(code=DeclineCode.NOT_FOUND):
            return _S.REVERSED  # whatever it came to, there is nothing of it; ours is repeated after any other answer
        case NotSent() if question is Question.FIRST:
            return _S.NOT_SENT
    return state or (_S.UNKNOWN if question is Question.FIRST else None)


def _after_decline(question: Question, outcome: Declined, parent: PaymentState | None) -> PaymentState | None:
    """What a bank's no means to a caller who wants a payment reversed; None: nothing.

    "Nothing found" ends a reversal only of what may never have been there (domain.md §4.2): a bank that has approved a
    payment and does not find it has not given the money back. And a no to a repetition may be one to what the first
    message has done.
    """
    assert parent is not None, "who asks has looked"
    if parent is _S.REVERSED:
        return _S.REVERSED
    if parent is _S.APPROVED:
        # a duplicate: the bank has seen this reference, and does not say what it did
        first = question is Question.FIRST and outcome.code is not DeclineCode.DUPLICATE
        return _S.DECLINED if first else None
    return _S.REVERSED if outcome.code is DeclineCode.NOT_FOUND else None


def found_nothing(outcome: Outcome) -> bool:
    """A reversal that found nothing to reverse: the payment itself may still arrive."""
    return isinstance(outcome, Declined) and outcome.code is DeclineCode.NOT_FOUND


def reversal_reference(payment: UUID, again: bool) -> UUID:
    """Of our own reversal of a payment: the same in every try, another for the look after it.

    A bank that answers a repeated reference from memory must not take the second look for the first reversal.
    """
    return UUID(int=payment.int ^ (2 if again else 1))


def backoff_s(tries: int, base_s: float, cap_s: float, chance: float) -> float:
    """Full jitter: evenly from nothing to the doubled, capped base; `chance` is from 0 to 1."""
    return chance * min(cap_s, base_s * 2.0 ** min(tries, 30))
