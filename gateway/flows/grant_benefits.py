"""Benefits claimed with what they are for: one discount, the greatest that its card is entitled to and that is not used
up; and at a visit what is given in kind."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from gateway.domain.benefits import Facts, SceneBenefits
from gateway.domain.scenes import VisitKind
from gateway.metrics import BENEFITS
from gateway.store import benefits
from gateway.store.benefits import Want

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection


class Granted(NamedTuple):
    """Nothing off, and by nothing, where no benefit is left."""

    off: int = 0
    """Fen of an amount; where only a price is told of, percent of that."""
    benefit: str | None = None
    """Which takes it off."""
    in_kind: tuple[str, ...] = ()


class Use(NamedTuple):
    """A use of a card, with the benefits that it may be granted with."""

    reference: UUID
    card_id: UUID
    rules: SceneBenefits
    day: dt.date
    discounts: Sequence[tuple[int, str]]
    """(what it takes off, benefit), the greatest first: they do not add up, so it is granted one."""
    in_kind: Sequence[str] = ()
    """It is granted all of these."""


def of_payment(
    reference: UUID, card_id: UUID, rules: SceneBenefits, facts: Facts, amount_fen: int, only_free: bool
) -> Use:
    """`only_free`: the bank behind the card cannot be asked, so only what leaves nothing to pay helps."""
    discounts = rules.by_discount(rules.entitled(facts), amount_fen)
    some = [(fen, benefit) for fen, benefit in discounts if fen == amount_fen] if only_free else discounts
    return Use(reference, card_id, rules, facts.day, some)


def of_visit(
    kind: VisitKind, reference: UUID, card_id: UUID, rules: SceneBenefits, facts: Facts, amount_fen: int = 0
) -> Use:
    """With the discounts that have an effect: at a hotel's desk parts of its price, on the way in none."""
    entitled = rules.entitled(facts)
    discounts: Sequence[tuple[int, str]] = ()
    if kind is VisitKind.CHECK_IN:
        discounts = rules.by_percent(entitled)
    elif amount_fen:
        discounts = rules.by_discount(entitled, amount_fen)
    return Use(reference, card_id, rules, facts.day, discounts, rules.in_kind(entitled))


async def grant(connection: "AnyConnection", uses: Sequence[Use]) -> Mapping[UUID, Granted]:
    """What each is granted by its reference, claimed; inside the transaction that records the uses."""
    options = {use.reference: _options(use) for use in uses}
    wants = []
    for use in uses:
        discounts = [option.benefit for option in options[use.reference] if option.benefit is not None]
        for some, only_one in ((discounts, True), (use.in_kind, False)):
            counters = [use.rules.counters(benefit, use.day) for benefit in some if use.rules.is_capped(benefit)]
            if counters:
                wants.append(Want(use.reference, use.card_id, counters, only_one))
    refused: dict[UUID, set[str]] = {use.reference: set() for use in uses}
    for want, refusals in zip(wants, await benefits.claim(connection, wants), strict=True):
        refused[want.source].update(refusals)
        for benefit, reason in refusals.items():
            BENEFITS.add((benefit, reason))
    granted = {}
    for use in uses:
        gone = refused[use.reference]
        discount = next(option for option in options[use.reference] if option.benefit not in gone)
        in_kind = tuple(benefit for benefit in use.in_kind if benefit not in gone)
        granted[use.reference] = discount._replace(in_kind=in_kind)
    return granted


def named(rules: SceneBenefits | None, granted: Granted) -> str:
    """The ids of what was granted, in the order of benefits.toml, with blanks between. `rules`: the scene's, if any."""
    if rules is None:
        return ""
    return " ".join(rules.in_order((*granted.in_kind, *([granted.benefit] if granted.benefit else ()))))


def _options(use: Use) -> list[Granted]:
    """The greatest first, up to one that is surely left: it has no cap, or is nothing at all."""
    options = []
    for off, benefit in use.discounts:
        options.append(Granted(off, benefit))
        if not use.rules.is_capped(benefit):
            return options
    return [*options, Granted()]
