"""How well the anomaly rules do on the sandbox county: days of its traffic in memory, with planted cases, and what was
found of them. Deterministic: the same seed gives the same figures."""

import datetime as dt
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gateway.domain.anomalies import Anomaly, Detector, Seen
from gateway.domain.anomaly_rules import AnomalySettings, Places, RuleName
from gateway.domain.cards import CardStatus
from gateway.domain.ids import uuid7
from gateway.domain.times import CHINA
from gateway.sandbox import traffic
from gateway.sandbox.county import Citizen, County
from gateway.sandbox.oddities import Planted, plan_oddities
from gateway.sandbox.traffic_plan import PlannedUse, in_order, people_of, plan_day

CARDS, SEED = 415_000, 330424
DAY = dt.date(2026, 11, 26)
PEOPLE = traffic.PEOPLE
LEARNING_DAYS = 2
CASES = 60
_FROM_S, _UNTIL_S = 6 * 3600, 21 * 3600
_NEAR_US = 30 * 60_000_000


class Score(NamedTuple):
    """Of one rule."""

    rule: RuleName
    planted: int
    found: int
    """Of those planted."""
    stated: int
    true: int
    """Of those stated: about something that was planted, also if it was for another rule."""

    @property
    def precision(self) -> float | None:
        return self.true / self.stated if self.stated else None

    @property
    def recall(self) -> float:
        return self.found / self.planted


class _Remembered(County):
    """Each citizen is computed once."""

    def __init__(self, seed: int, cards: int, today: dt.date) -> None:
        super().__init__(seed, cards, today)
        self._citizens: dict[int, Citizen] = {}

    def citizen(self, i: int) -> Citizen:
        if i not in self._citizens:
            self._citizens[i] = super().citizen(i)
        return self._citizens[i]


class _Case(NamedTuple):
    rule: RuleName
    from_us: int
    until_us: int
    card_id: bytes | None
    outlet: str | None
    terminal_id: str | None


def rehearse(settings: AnomalySettings, seed: int = SEED) -> list[Score]:
    """Some quiet days to learn from, then one with CASES planted cases. A score for each rule."""
    county = _Remembered(seed, CARDS, DAY)
    people = people_of(county, PEOPLE)
    every_s = (_UNTIL_S - _FROM_S) // CASES
    odd = plan_oddities(county, DAY, range(_FROM_S, _UNTIL_S, every_s), people)
    detector, places = Detector(settings), Places(settings)
    stated: list[Anomaly] = []
    for ago in range(LEARNING_DAYS, -1, -1):
        day = DAY - dt.timedelta(days=ago)
        uses = plan_day(county, day, people)
        for use in seen(county, day, uses if ago else in_order([*uses, *odd.uses])):
            stated += detector.see(use)
    cases = [_case(county, each) for each in odd.planted]
    return [_score(rule, cases, [each for each in stated if each.rule is rule], places) for rule in RuleName]


def seen(county: County, day: dt.date, uses: Sequence[PlannedUse]) -> Iterator[Seen]:
    """Planned uses as the gateway would record them."""
    midnight_us = _midnight_us(day)
    for number, use in enumerate(uses):
        citizen = county.citizen(use.person)
        good = citizen.status == CardStatus.NORMAL and citizen.valid_until >= day and not use.spoilt
        at_us = midnight_us + use.at_s * 1_000_000
        yield Seen(
            uuid7(at_us // 1000, number.to_bytes(10, "big")), at_us, at_us, use.caller, use.scene, use.terminal_id,
            None if use.spoilt else citizen.card_id, use.returned or good, not use.returned and not good,
            use.amount_fen, f"{day}-{number}" if use.returned else None,
        )  # fmt: skip


def lines(scores: Sequence[Score]) -> list[str]:
    """A table to print."""
    shown = [f"{'rule':<16}{'planted':>8}{'found':>8}{'recall':>8}{'stated':>8}{'true':>8}{'precision':>11}"]
    for score in scores:
        precision = "-" if score.precision is None else f"{score.precision:.2f}"
        shown.append(
            f"{score.rule:<16}{score.planted:>8}{score.found:>8}{score.recall:>8.2f}{score.stated:>8}{score.true:>8}"
            f"{precision:>11}"
        )
    return shown


def _case(county: County, planted: Planted) -> _Case:
    card_id = None if planted.person is None else county.citizen(planted.person).card_id
    of_card = planted.rule in (RuleName.TWO_PLACES, RuleName.POINTS_FARMING)
    midnight_us = _midnight_us(DAY)
    return _Case(
        planted.rule, midnight_us + planted.from_s * 1_000_000, midnight_us + planted.until_s * 1_000_000,
        card_id if of_card else None, planted.outlet_id, planted.terminal_id,
    )  # fmt: skip


def _about(anomaly: Anomaly, case: _Case, places: Places) -> bool:
    subject = anomaly.subject
    if anomaly.until_us < case.from_us - _NEAR_US or anomaly.from_us > case.until_us + _NEAR_US:
        return False
    if subject.card_id is not None:
        return subject.card_id == case.card_id
    outlet = subject.outlet
    if subject.caller is not None and subject.terminal_id is not None:
        if case.terminal_id is not None:
            return subject.terminal_id == case.terminal_id
        outlet = places.outlet_of(subject.caller, subject.terminal_id)
    return outlet == case.outlet


def _score(rule: RuleName, cases: Sequence[_Case], stated: Sequence[Anomaly], places: Places) -> Score:
    of_rule = [case for case in cases if case.rule is rule]
    begun = [anomaly for anomaly in stated if anomaly.restates is None]
    return Score(
        rule,
        len(of_rule),
        sum(any(_about(anomaly, case, places) for anomaly in stated) for case in of_rule),
        len(begun),
        sum(any(_about(anomaly, case, places) for case in cases) for anomaly in begun),
    )


def _midnight_us(day: dt.date) -> int:
    return int(dt.datetime.combine(day, dt.time(), CHINA).timestamp()) * 1_000_000
