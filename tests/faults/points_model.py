"""The points ledger in memory, written anew from its rules: what the database is compared with."""

import copy
import datetime as dt
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.domain.points import EarnRules, PointsRule

VALID_MONTHS = 24
RULES = EarnRules(
    {"till": PointsRule(per_yuan=1, daily_max=60), "bus": PointsRule(per_use=7, daily_max=20)}, VALID_MONTHS
)


def last_day(day: dt.date) -> dt.date:
    """Of points that were earned on a day: the month's end two years later."""
    return dt.date(day.year + 2 + day.month // 12, day.month % 12 + 1, 1) - dt.timedelta(days=1)


@dataclass
class Person:
    lots: dict[dt.date, int] = field(default_factory=dict)
    reserved: int = 0
    good: bool = True
    """The card."""
    earned: dict[tuple[str, dt.date], int] = field(default_factory=dict)
    expired: list[tuple[dt.date, int]] = field(default_factory=list)
    """(on which day, how many)."""

    @property
    def balance(self) -> int:
        return sum(self.lots.values())

    @property
    def available(self) -> int:
        return self.balance - self.reserved

    def spend(self, points: int) -> None:
        """First in, first out."""
        for on in sorted(self.lots):
            taken = min(points, self.lots[on])
            self.lots[on] -= taken
            points -= taken
        assert points == 0

    def earn(self, scene: str, fen: int, day: dt.date) -> int:
        rule = RULES.scenes[scene]
        wanted = fen // 100 * rule.per_yuan + rule.per_use
        granted = max(0, min(wanted, rule.daily_max - self.earned.get((scene, day), 0)))
        self.earned[scene, day] = self.earned.get((scene, day), 0) + granted
        self.lots[last_day(day)] = self.lots.get(last_day(day), 0) + granted
        return granted

    def give_back(self, scene: str, day: dt.date, points: int) -> None:
        """Out of its own lot, then of those that expire last; what is spent or reserved is not there, and counts as
        earned on its day. What its lot lacks is not taken from others as far as points have expired since its day."""
        lacking = max(0, points - self.lots[last_day(day)])
        expired = sum(amount for on, amount in self.expired if on > last_day(day))
        left = min(points - min(lacking, expired), self.available)
        self.earned[scene, day] -= left
        for on in sorted(self.lots, key=lambda on: (on == last_day(day), on), reverse=True):
            taken = min(left, self.lots[on])
            self.lots[on] -= taken
            left -= taken

    def expire(self, today: dt.date) -> None:
        over = sum(points for on, points in self.lots.items() if on < today)
        amount = max(0, over - self.reserved)
        self.spend(amount)
        self.expired.append((today, amount))


class Event(NamedTuple):
    person: int
    scene: str
    fen: int
    day: dt.date
    reverses: int | None = None
    """Place of the event that it undoes."""


@dataclass
class Redemption:
    person: int
    points: int
    state: str
    late: bool
    """Its time is over from the beginning."""


@dataclass
class Model:
    people: list[Person]
    events: list[Event] = field(default_factory=list)
    granted: dict[int, int] = field(default_factory=dict)
    """By the place of the event; taken out when it is given back."""
    done: set[int] = field(default_factory=set)
    redemptions: list[Redemption] = field(default_factory=list)

    def use(self, places: list[int]) -> bool:
        """A batch of events: first everything that earns, then everything that is reversed.

        False: one that has earned would earn again, and so nothing of the batch is done.
        """
        before, granted = copy.deepcopy(self.people), dict[int, int]()
        places = list(dict.fromkeys(places))
        for place in places:
            event = self.events[place]
            if event.reverses is None and (points := self.people[event.person].earn(event.scene, event.fen, event.day)):
                if place in self.done:
                    self.people = before
                    return False
                granted[place] = points  # one that earned nothing left nothing
        self.granted |= granted
        self.done |= granted.keys()
        for place in places:
            event = self.events[place]
            if event.reverses is None or place in self.done:
                continue
            if points := self.granted.pop(event.reverses, 0):
                self.people[event.person].give_back(event.scene, event.day, points)
                self.done.add(place)
        return True

    def reserve(self, person: int, points: int, late: bool) -> Redemption:
        holder = self.people[person]
        state = "refused" if not holder.good or holder.available < points else "reserved"
        holder.reserved += points if state == "reserved" else 0
        self.redemptions.append(Redemption(person, points, state, late))
        return self.redemptions[-1]

    def end(self, place: int, state: str) -> bool:
        """Whether it was this that ended it."""
        redemption = self.redemptions[place]
        if redemption.state != "reserved" or redemption.late != (state == "expired"):
            return False
        redemption.state = state
        holder = self.people[redemption.person]
        holder.reserved -= redemption.points
        if state == "committed":
            holder.spend(redemption.points)
        return True
