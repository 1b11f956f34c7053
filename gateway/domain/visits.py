"""A visit: a card presented where a merchant's own system acts on it. What it may become, and what an answer means.

What acts (a barrier, a hotel's desk, a till) is told once, and before a time; after that it is only asked about. A
barrier that opens minutes later opens for another car, so what nobody could find out in time is for people.
"""

from enum import StrEnum

from gateway.domain.operations import HotelCheckIn, OpenBarrier, Operation, ParkingFee, TillDiscount
from gateway.domain.outcome import Approved, DeclineCode, Declined, NotSent, Outcome
from gateway.domain.scenes import VisitKind


class VisitState(StrEnum):
    ASKING = "asking"
    """Of an exit: what it costs is being asked, which changes nothing."""
    DUE = "due"
    """Of an exit: it opens when this is paid."""
    INTENT = "intent"
    """The merchant is being told; only the process that is at it knows whether anything was sent."""
    UNSURE = "unsure"
    """Told, or perhaps told, without a clear answer: it is asked about."""
    DONE = "done"
    REFUSED = "refused"
    NOT_SENT = "not_sent"
    """The merchant knows nothing of it, and the caller was told so."""
    EXPIRED = "expired"
    """Not paid in time."""
    UNKNOWN = "unknown"
    """Nobody could find out in time."""


_K, _S = VisitKind, VisitState

DOES: dict[VisitKind, tuple[type[Operation], ...]] = {
    _K.ENTRY: (OpenBarrier,),
    _K.EXIT: (ParkingFee, OpenBarrier),
    _K.CHECK_IN: (HotelCheckIn,),
    _K.BILL: (TillDiscount,),
}
"""What the merchant's system must be able to do for a kind."""

NEEDS: dict[VisitKind, tuple[frozenset[str], frozenset[str]]] = {
    _K.ENTRY: (frozenset(), frozenset({"plate", "ticket"})),
    _K.EXIT: (frozenset(), frozenset({"plate", "ticket"})),
    _K.CHECK_IN: (frozenset({"booking"}), frozenset({"booking"})),
    _K.BILL: (frozenset({"ticket", "amount_fen"}), frozenset({"ticket", "amount_fen"})),
}
"""(details that must be given, those that may). An exit needs one of its two."""

OPEN = frozenset({_S.ASKING, _S.INTENT, _S.UNSURE})
"""What a caller is told is `pending`."""

BEGINNINGS = frozenset({_S.ASKING, _S.INTENT, _S.REFUSED})
"""refused: by us, the merchant was not told."""

TRANSITIONS: dict[VisitState, frozenset[VisitState]] = {
    _S.ASKING: frozenset({_S.DUE, _S.INTENT, _S.REFUSED, _S.NOT_SENT}),
    _S.DUE: frozenset({_S.INTENT, _S.EXPIRED}),
    # due: it was paid, and not a byte was sent: it may be tried again
    _S.INTENT: frozenset({_S.DONE, _S.REFUSED, _S.NOT_SENT, _S.UNSURE, _S.DUE}),
    _S.UNSURE: frozenset({_S.DONE, _S.REFUSED, _S.UNKNOWN}),
}
"""The one table of what may follow what; the database holds the same (visit_step) and refuses everything else."""

_DONE = {_K.ENTRY: "opened", _K.EXIT: "opened", _K.CHECK_IN: "checked_in", _K.BILL: "discounted"}


def public(kind: VisitKind, state: VisitState) -> str:
    """The caller's word for a state."""
    if state is _S.DONE:
        return _DONE[kind]
    return "pending" if state in OPEN else state.value


def told(outcome: Outcome) -> VisitState:
    """Where the answer to the merchant's being told leads."""
    match outcome:
        case Approved():
            return _S.DONE
        case Declined(code=DeclineCode.DUPLICATE):
            return _S.UNSURE  # it was seen before: what it came to is not said
        case Declined():
            return _S.REFUSED
        case NotSent():
            return _S.NOT_SENT
    return _S.UNSURE


def found_out(outcome: Outcome, over: bool) -> VisitState | None:
    """Where the answer to a question leads; None: it says nothing. `over`: its time is, nothing is on its way now."""
    match outcome:
        case Approved():
            return _S.DONE
        case Declined(code=DeclineCode.NOT_FOUND | DeclineCode.DUPLICATE) if not over:
            return None  # it may be on its way
        case Declined(code=DeclineCode.DUPLICATE):
            return _S.UNKNOWN
        case Declined():
            return _S.REFUSED
    return _S.UNKNOWN if over else None
