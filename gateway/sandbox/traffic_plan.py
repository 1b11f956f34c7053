"""A day of the county, planned: who uses which card where and when. Pure: same seed, day and people, same plan.

The mix is a guess [G] by age: those who work commute, eat out at noon and shop in the evening; the old are out early,
at the market and the hospital; children take the bus and borrow books. Nobody is in two towns sooner than a bus is.
"""

import datetime as dt
import random
from collections.abc import Iterable
from typing import NamedTuple

from gateway.domain.cards import CardStatus
from gateway.domain.masking import age_on
from gateway.sandbox.county import Citizen, County
from gateway.sandbox.points import PEOPLE_MAX
from gateway.sandbox.townscape import CITIES, OUTLETS, TOWNS, Outlet, bus, journey_s

BANK = "demo-bank"
_TRANSIT = "demo-transit"
_CHILD, _OLD = 16, 60
_TOWNS = list(TOWNS)
_CENTRE = _TOWNS[0]
_RETURNED_SHARE = 0.6
"""Of purchases: paid with the card's bank account, so the bank returns them."""
_LATE_S = 1800
_DAY_S = 86_400


class PlannedUse(NamedTuple):
    """One use: a verify by the outlet's caller, or a use that the bank returns."""

    at_s: int
    """Since midnight in China."""
    person: int
    """Index in the county."""
    caller: str
    scene: str
    terminal_id: str
    town: str | None
    """None on the road."""
    amount_fen: int | None = None
    """Of what is returned."""
    spoilt: bool = False
    """The reader misreads the card's identifier."""
    odd: bool = False
    """Planted (oddities.py)."""

    @property
    def returned(self) -> bool:
        return self.caller == BANK


def first_person(county: County) -> int:
    """Those before it are left alone: cards.csv and the opening points are theirs, and what people try by hand."""
    return min(PEOPLE_MAX, county.cards // 2)


def people_of(county: County, count: int) -> range:
    """About `count` people (half of all at most) from all over the county: every day the same ones, who have habits."""
    first = first_person(county)
    return range(first, county.cards, max(2, (county.cards - first) // count))


def plan_day(county: County, day: dt.date, people: Iterable[int]) -> list[PlannedUse]:
    """In the order of time."""
    uses: list[PlannedUse] = []
    for i in people:
        citizen = county.citizen(i)
        walk = _Walk(i, citizen, random.Random(f"{county.seed} {day} {i}"), uses)  # noqa: S311 - to be repeatable
        if citizen.status != CardStatus.NORMAL or citizen.valid_until < day:
            _try_in_vain(walk)
        elif citizen.town is None:
            _visit(walk)
        else:
            _live(walk, age_on(citizen.birth_date, day), day.weekday() >= 5)
    return in_order(uses)


def in_order(uses: Iterable[PlannedUse]) -> list[PlannedUse]:
    return sorted(uses, key=lambda use: (use.at_s, use.person, use.caller, use.terminal_id))


class _Walk:
    """Where a person is, and the time."""

    def __init__(self, person: int, citizen: Citizen, chance: random.Random, uses: list[PlannedUse]) -> None:
        self._person = person
        self._uses = uses
        self._chance = chance
        self.home = citizen.town or _CENTRE
        self.work = self.home if person % 5 < 3 else _TOWNS[person // 5 % len(_TOWNS)]
        self._town, self._now = self.home, 0

    def happens(self, probability: float) -> bool:
        return self._chance.random() < probability

    def choose(self, towns: Iterable[str]) -> str:
        return self._chance.choice(list(towns))

    def ride(self, after: float, before: float) -> None:
        """A bus at the town where the person is; hours of the day."""
        if self._arrive(self._town, after, before):
            gate = bus(self._town, self._chance.random())
            self._uses.append(PlannedUse(self._now, self._person, _TRANSIT, "transit.bus", gate, None))

    def use(self, scene: str, town: str, after: float, before: float, yuan: tuple[int, int] | None = None) -> None:
        """At an outlet of the town, or of the centre where the town has none; `yuan` is what a purchase may cost."""
        town = town if (town, scene) in OUTLETS else _CENTRE
        if not self._arrive(town, after, before):
            return
        outlet: Outlet = self._chance.choice(OUTLETS[town, scene])
        terminal = outlet.terminal(self._chance.random())
        self._uses.append(PlannedUse(self._now, self._person, outlet.caller, scene, terminal, town))
        if yuan is not None and self.happens(_RETURNED_SHARE):
            fen = self._chance.randint(yuan[0] * 100, yuan[1] * 100)
            self._now = min(self._now + self._chance.randint(2, 20), _DAY_S - 1)
            self._uses.append(PlannedUse(self._now, self._person, BANK, scene, terminal, town, fen))

    def _arrive(self, town: str, after: float, before: float) -> bool:
        """Whether the person can be there in time, which moves it there."""
        wished = int(self._chance.triangular(after, before) * 3600)
        arrives = max(wished, self._now + journey_s(self._town, town))
        if arrives > before * 3600 + _LATE_S or arrives >= _DAY_S:
            return False
        self._town, self._now = town, arrives
        return True


def _try_in_vain(walk: _Walk) -> None:
    """Somebody has not noticed that the card is not good."""
    if walk.happens(0.1):
        walk.use("market.till", walk.home, 7, 19)


def _visit(walk: _Walk) -> None:
    """A holder from another region who is in the county today."""
    if walk.happens(0.3):
        walk.use("hotel.checkin", walk.choose(("武原", "澉浦")), 13, 22)
    if walk.happens(0.3):
        walk.use("dining.till", walk.choose(TOWNS), 17, 20, (20, 200))


def _live(walk: _Walk, age: int, weekend: bool) -> None:
    if walk.happens(0.3):  # at home, or out without the card
        return
    if age >= _CHILD and walk.happens(0.008):
        walk.use("region.visit", walk.choose(CITIES), 10, 16)
        walk.use("market.till", walk.home, 17, 20, (10, 80))
    elif age < _CHILD:
        _grow_up(walk, age, weekend)
    elif age < _OLD:
        _work(walk, weekend)
    else:
        _grow_old(walk)


def _grow_up(walk: _Walk, age: int, weekend: bool) -> None:
    if age < 7:
        return
    if not weekend and walk.happens(0.3):
        walk.ride(6.8, 7.6)
        walk.ride(15.8, 17.2)
    elif walk.happens(0.2):
        walk.use("library.loan", _CENTRE, 9, 17)


def _work(walk: _Walk, weekend: bool) -> None:
    if walk.happens(0.25):  # a day off, or a night shift
        walk.use("market.till", walk.home, 8.5, 17, (5, 80))
        if walk.happens(0.3):
            walk.ride(13, 17)
        return
    place = walk.home if weekend else walk.work
    by_bus = not weekend and walk.happens(0.35)
    if by_bus:
        walk.ride(6.4, 8.4)
    if walk.happens(0.45):
        walk.use("dining.till", place, 11.2, 13, (8, 40))
    if walk.happens(0.02):
        walk.use("kiosk.service", place, 13, 16.5)
    if by_bus:
        walk.ride(16.6, 18.4)
    if walk.happens(0.4):
        walk.use("market.till", walk.home, 17, 19.5, (5, 120))
    if walk.happens(0.12):
        walk.use("dining.till", walk.choose((walk.home, _CENTRE)), 18, 20.5, (30, 300))
    if not by_bus and walk.happens(0.12):
        walk.use("parking.exit", walk.choose(("武原", "西塘桥")), 18.5, 21.5)
    if weekend and walk.happens(0.06):
        walk.use("library.loan", _CENTRE, 13, 17)


def _grow_old(walk: _Walk) -> None:
    """Up early: to the market, or to the hospital before its windows are full."""
    if walk.happens(0.4):
        walk.ride(5.3, 7.2)
    if walk.happens(0.1):
        walk.use("medical.window", walk.choose((walk.home, _CENTRE)), 6.8, 10.5)
    elif walk.happens(0.6):
        walk.use("market.till", walk.home, 5.5, 8.8, (3, 60))
    if walk.happens(0.04):
        walk.use("kiosk.service", walk.home, 8.5, 11)
    if walk.happens(0.3):
        walk.ride(8.5, 11)
    if walk.happens(0.03):
        walk.use("library.loan", _CENTRE, 13.5, 16)
    if walk.happens(0.25):
        walk.use("market.till", walk.home, 12.5, 17.5, (3, 40))
