"""Benefits claimed with what they are for: the one that makes a bill cheaper, the greatest that its card is entitled to
and that is not used up; or all that a card is entitled to where it is presented."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.benefits import Facts, SceneBenefits
from gateway.metrics import BENEFITS
from gateway.store import benefits
from gateway.store.benefits import Want

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Granted(NamedTuple):
    """Nothing off, and by nothing, where no benefit is left."""

    discount_fen: int = 0
    benefit: str | None = None


class Bill(NamedTuple):
    """A payment that may be made cheaper."""

    reference: UUID
    card_id: UUID
    rules: SceneBenefits
    facts: Facts
    amount_fen: int
    only_free: bool
    """The bank behind the card cannot be asked: only a benefit that leaves nothing to pay helps."""


class Visitor(NamedTuple):
    """A card that is given all that it is entitled to."""

    reference: UUID
    card_id: UUID
    rules: SceneBenefits
    facts: Facts


async def grant_all(connection: "AnyConnection", visitors: Sequence[Visitor]) -> Mapping[UUID, tuple[str, ...]]:
    """The benefits of each by its reference, in the order of benefits.toml; capped ones are claimed."""
    entitled = {visitor.reference: visitor.rules.entitled(visitor.facts) for visitor in visitors}
    wants = [
        Want(
            visitor.reference, visitor.card_id,
            [visitor.rules.counters(benefit, visitor.facts.day) for benefit in entitled[visitor.reference].capped],
        )
        for visitor in visitors
    ]  # fmt: skip
    refused = await benefits.claim(connection, wants)
    given = {}
    for visitor, refusals in zip(visitors, refused, strict=True):
        for benefit, reason in refusals.items():
            BENEFITS.add((benefit, reason))
        free_of_caps, capped = entitled[visitor.reference]
        claimed = [benefit for benefit in capped if benefit not in refusals]
        given[visitor.reference] = visitor.rules.in_order((*free_of_caps, *claimed))
    return given


async def grant(connection: "AnyConnection", bills: Sequence[Bill]) -> Mapping[UUID, Granted]:
    """The benefit of each bill by its reference, claimed; inside the transaction that records the payments."""
    options = {bill.reference: _options(bill) for bill in bills}
    wants = []
    for bill in bills:
        counters = [
            bill.rules.counters(option.benefit, bill.facts.day)
            for option in options[bill.reference]
            if option.benefit is not None and bill.rules.is_capped(option.benefit)
        ]
        if counters:
            wants.append(Want(bill.reference, bill.card_id, counters, only_one=True))
    refused = {
        want.source: refusals for want, refusals in zip(wants, await benefits.claim(connection, wants), strict=True)
    }
    for refusals in refused.values():
        for benefit, reason in refusals.items():
            BENEFITS.add((benefit, reason))
    return {
        reference: next(option for option in those if option.benefit not in refused.get(reference, ()))
        for reference, those in options.items()
    }


def _options(bill: Bill) -> list[Granted]:
    """The greatest first, up to one that is surely left: it has no cap, or is nothing at all."""
    options = []
    for fen, benefit in bill.rules.by_discount(bill.rules.entitled(bill.facts), bill.amount_fen):
        if not bill.only_free or fen == bill.amount_fen:
            options.append(Granted(fen, benefit))
            if not bill.rules.is_capped(benefit):
                return options
    return [*options, Granted()]
