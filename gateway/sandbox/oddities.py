"""Odd things that are planted into a day's plan, one of a kind after the other: what usage monitoring is to find.

Some are as plain as they come, some are near to what may happen of itself.
"""

import datetime as dt
import random
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from gateway.domain.anomaly_rules import RuleName
from gateway.domain.cards import CardStatus
from gateway.sandbox.county import County
from gateway.sandbox.townscape import OUTLETS, TOWNS, Outlet, km_between
from gateway.sandbox.traffic_plan import BANK, PlannedUse, first_person

_APART_KM = 9.0
_TOWNS = list(TOWNS)


class Planted(NamedTuple):
    """What should be found, and where."""

    rule: RuleName
    """That should find it."""
    from_s: int
    until_s: int
    person: int | None
    """Whose card, where the oddity is a card's."""
    outlet_id: str | None
    terminal_id: str | None


class OddDay(NamedTuple):
    uses: list[PlannedUse]
    planted: list[Planted]


def plan_oddities(county: County, day: dt.date, begin_s: Iterable[int], regulars: range) -> OddDay:
    """One oddity at each of these seconds of the day, the kinds in turn, by people who are none of the regulars."""
    chance = random.Random(f"{county.seed} {day} odd")  # noqa: S311 - to be repeatable
    odd = OddDay([], [])
    kinds = list(RuleName)
    for number, at_s in enumerate(begin_s):
        plant = _PLANTS[kinds[(number + day.toordinal()) % len(kinds)]]
        uses, planted = plant(partial(_people, county, chance, regulars), chance, at_s)
        odd.uses.extend(use for use in uses if use.at_s < 86_400)
        odd.planted.append(planted)
    return odd


def _people(county: County, chance: random.Random, regulars: range, count: int) -> list[int]:
    """Holders of good cards, each once; a small county may not have so many."""
    found: dict[int, None] = {}
    for _ in range(20 * count):
        i = chance.randrange(first_person(county), county.cards)
        citizen = county.citizen(i)
        good = citizen.status == CardStatus.NORMAL and citizen.valid_until > county.today + dt.timedelta(days=30)
        if good and i not in regulars:
            found[i] = None
        if len(found) == count:
            break
    return list(found)


def _outlet(chance: random.Random, scenes: tuple[str, ...]) -> Outlet:
    return chance.choice([outlet for (_, scene), some in OUTLETS.items() if scene in scenes for outlet in some])


def _at(outlet: Outlet, at_s: int, person: int, terminal_id: str, spoilt: bool = False) -> PlannedUse:
    return PlannedUse(at_s, person, outlet.caller, outlet.scene, terminal_id, outlet.town, None, spoilt, odd=True)


People = Callable[[int], list[int]]
Plant = tuple[list[PlannedUse], Planted]


def _two_places(people: People, chance: random.Random, at_s: int) -> Plant:
    """One card in two towns within minutes."""
    (person,) = people(1)
    first = chance.choice(_TOWNS)
    other = chance.choice([town for town in _TOWNS if km_between(first, town) > _APART_KM])
    later_s = at_s + chance.randint(60, 480)
    uses = []
    for town, moment in ((first, at_s), (other, later_s)):
        outlet = OUTLETS[town, chance.choice(("market.till", "dining.till"))][0]
        uses.append(_at(outlet, moment, person, outlet.terminal(chance.random())))
    return uses, Planted(RuleName.TWO_PLACES, at_s, later_s, person, None, None)


def _sudden_volume(people: People, chance: random.Random, at_s: int) -> Plant:
    """A shop that has many times its usual customers."""
    outlet, lasts_s = _outlet(chance, ("market.till", "dining.till")), chance.randint(1200, 2400)
    uses = [
        _at(outlet, at_s + chance.randrange(lasts_s), person, outlet.terminal(number / 97 % 1))
        for number, person in enumerate(people(chance.randint(80, 160)))
    ]
    return uses, Planted(RuleName.SUDDEN_VOLUME, at_s, at_s + lasts_s, None, outlet.id, None)


def _refusals(people: People, chance: random.Random, at_s: int) -> Plant:
    """A terminal that refuses one card after the other."""
    outlet, lasts_s = _outlet(chance, ("market.till", "medical.window", "kiosk.service")), 900
    terminal = outlet.terminal(chance.random())
    uses = [
        _at(outlet, at_s + chance.randrange(lasts_s), person, terminal, spoilt=True)
        for person in people(chance.randint(9, 25))
    ]
    return uses, Planted(RuleName.REFUSALS, at_s, at_s + lasts_s, None, outlet.id, terminal)


def _many_cards(people: People, chance: random.Random, at_s: int) -> Plant:
    """A till where somebody runs through a stack of cards."""
    outlet, lasts_s = _outlet(chance, ("market.till", "dining.till")), 480
    terminal = outlet.terminal(chance.random())
    uses = [
        _at(outlet, at_s + chance.randrange(lasts_s), person, terminal) for person in people(chance.randint(35, 60))
    ]
    return uses, Planted(RuleName.MANY_CARDS, at_s, at_s + lasts_s, None, outlet.id, terminal)


def _points_farming(people: People, chance: random.Random, at_s: int) -> Plant:
    """A purchase split into many, for the points."""
    (person,) = people(1)
    outlet = _outlet(chance, ("market.till",))
    terminal = outlet.terminal(chance.random())
    moments = sorted(at_s + chance.randrange(2 * 3600) for _ in range(chance.randint(11, 30)))
    uses = [
        PlannedUse(moment, person, BANK, outlet.scene, terminal, outlet.town, chance.randint(100, 300), odd=True)
        for moment in moments
    ]
    return uses, Planted(RuleName.POINTS_FARMING, moments[0], moments[-1], person, outlet.id, terminal)


_PLANTS = {
    RuleName.TWO_PLACES: _two_places,
    RuleName.SUDDEN_VOLUME: _sudden_volume,
    RuleName.REFUSALS: _refusals,
    RuleName.MANY_CARDS: _many_cards,
    RuleName.POINTS_FARMING: _points_farming,
}
