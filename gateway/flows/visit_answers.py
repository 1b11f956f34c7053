"""What callers are told of a visit: the same bytes for the same state, whoever makes them."""

import datetime as dt

import msgspec

from gateway.domain.scenes import VisitKind
from gateway.domain.times import CHINA
from gateway.domain.visits import OPEN, VisitState, public
from gateway.flows.kept_answers import Answer
from gateway.store.visits import Visit

_K, _S = VisitKind, VisitState
_SHOWN = frozenset({_S.DONE, _S.DUE, _S.INTENT, _S.UNSURE, _S.UNKNOWN})
"""States in which what was granted stands."""
_encode = msgspec.json.Encoder().encode


class VisitAnswer(msgspec.Struct, frozen=True, gc=False):
    """A visit as it stands. What does not apply is absent."""

    reference: str
    status: str
    """`opened`, `checked_in`, `discounted`; `due`: pay `amount_fen`, then open; `refused` with a reason; `pending`:
    what the merchant's system did is being found out; `unknown`: nobody could, people have to look; `expired`: not
    paid."""
    reason: str | msgspec.UnsetType = msgspec.UNSET
    """That of a verdict, or the merchant's."""
    benefits: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    fee_fen: int | msgspec.UnsetType = msgspec.UNSET
    discount_fen: int | msgspec.UnsetType = msgspec.UNSET
    amount_fen: int | msgspec.UnsetType = msgspec.UNSET
    """What is left to pay."""
    rate_percent: int | msgspec.UnsetType = msgspec.UNSET
    """What part of a hotel's price the guest pays."""
    expires_at: dt.datetime | msgspec.UnsetType = msgspec.UNSET
    """Of a fee that is due."""
    payment: str | msgspec.UnsetType = msgspec.UNSET
    operation: str | msgspec.UnsetType = msgspec.UNSET
    """The reference of the opening itself, when it was paid."""


def visit_answer(visit: Visit) -> VisitAnswer:
    shown, unset = visit.state in _SHOWN, msgspec.UNSET
    has_amounts = shown and visit.fee_fen is not None
    return VisitAnswer(
        str(visit.reference), public(visit.kind, visit.state), visit.reason or unset,
        tuple(visit.benefits.split()) if shown else unset,
        visit.fee_fen if has_amounts and visit.fee_fen is not None and visit.kind is _K.EXIT else unset,
        (visit.discount_fen or 0) if has_amounts else unset,
        visit.amount_fen if has_amounts else unset,
        visit.rate_percent if shown and visit.rate_percent is not None else unset,
        visit.expires_at.astimezone(CHINA).replace(microsecond=0)
        if visit.state is _S.DUE and visit.expires_at is not None else unset,
        str(visit.payment) if visit.payment else unset,
        str(visit.opening) if visit.opening else unset,
    )  # fmt: skip


def answer_of(visit: Visit) -> Answer:
    return Answer(202 if visit.state in OPEN else 200, _encode(visit_answer(visit)))
