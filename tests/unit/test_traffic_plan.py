"""The sandbox's day: the same every time, as people live, and nobody's hand-tried card in it."""

import datetime as dt
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from gateway.domain.anomaly_rules import RuleName
from gateway.domain.cards import CardStatus
from gateway.domain.errors import CannotStart
from gateway.domain.masking import age_on
from gateway.domain.times import CHINA
from gateway.sandbox import traffic
from gateway.sandbox.county import CARDS, County
from gateway.sandbox.files import write_cards_csv
from gateway.sandbox.oddities import plan_oddities
from gateway.sandbox.townscape import journey_s
from gateway.sandbox.traffic_plan import PlannedUse, first_person, people_of, plan_day
from gateway.settings import load

SEED, TODAY = 330424, dt.date(2026, 11, 23)
DAY = dt.date(2026, 11, 26)


@pytest.fixture(scope="module")
def county() -> County:
    return County(SEED, CARDS, TODAY)


@pytest.fixture(scope="module")
def day(county: County) -> list[PlannedUse]:
    return plan_day(county, DAY, people_of(county, 4000))


def in_two_places(uses: list[PlannedUse]) -> list[tuple[PlannedUse, PlannedUse]]:
    """Pairs of uses of one card that nobody could make."""
    of_person: defaultdict[int, list[PlannedUse]] = defaultdict(list)
    for use in uses:
        if use.town is not None:
            of_person[use.person].append(use)
    return [
        (one, other)
        for some in of_person.values()
        for one, other in itertools.pairwise(some)
        if one.town != other.town and other.at_s - one.at_s < journey_s(one.town or "", other.town or "")
    ]


def test_the_same_seed_and_day_are_the_same_plan(county: County, day: list[PlannedUse]) -> None:
    people = people_of(county, 4000)
    assert plan_day(County(SEED, CARDS, TODAY), DAY, people) == day
    assert plan_day(county, DAY + dt.timedelta(days=1), people) != day
    assert plan_day(County(SEED + 1, CARDS, TODAY), DAY, people) != day
    assert day == sorted(day, key=lambda use: use.at_s) and day[0].at_s >= 0 and day[-1].at_s < 86_400


def test_everybody_uses_cards_where_the_scene_allows_it(day: list[PlannedUse]) -> None:
    settings = load({})
    assert {use.scene for use in day} >= {
        "transit.bus", "market.till", "dining.till", "medical.window", "library.loan", "kiosk.service", "region.visit",
        "parking.exit",
    }  # fmt: skip
    for use in day:
        caller = settings.callers[use.caller]
        assert use.returned or caller.kind in settings.scenes[use.scene].callers
        assert use.returned == (use.amount_fen is not None)
        assert not caller.quota_per_second


def test_the_old_are_early_and_those_who_work_eat_at_noon(county: County, day: list[PlannedUse]) -> None:
    hours: defaultdict[str, list[float]] = defaultdict(list)
    for use in day:
        age = age_on(county.citizen(use.person).birth_date, DAY)
        hours["old" if age >= 60 else "working" if age >= 16 else "child"].append(use.at_s / 3600)
        if use.scene == "medical.window":
            assert 6.5 <= use.at_s / 3600 <= 11.5
    before_nine = {who: sum(hour < 9 for hour in some) / len(some) for who, some in hours.items()}
    assert before_nine["old"] > 0.5 > 0.3 > before_nine["working"]
    at_noon = Counter(use.scene for use in day if 11 * 3600 <= use.at_s < 13 * 3600)
    assert at_noon.most_common(1)[0][0] == "dining.till"
    assert not [use for use in day if use.at_s < 5 * 3600]


def test_nobody_is_in_two_towns_at_once_but_who_is_planted(county: County, day: list[PlannedUse]) -> None:
    assert in_two_places(day) == []
    odd = plan_oddities(county, DAY, range(7 * 3600, 17 * 3600, 1200), people_of(county, 4000))
    found = in_two_places(odd.uses)
    planted = [each for each in odd.planted if each.rule is RuleName.TWO_PLACES]
    assert {one.person for one, _ in found} == {each.person for each in planted} and len(found) == len(planted) >= 5
    assert set(RuleName) == {each.rule for each in odd.planted}


@pytest.mark.parametrize("cards", [2_000, CARDS])
def test_no_card_that_people_try_by_hand_is_used(cards: int, tmp_path: Path) -> None:
    county = County(SEED, cards, TODAY)
    write_cards_csv(county, tmp_path / "cards.csv")
    listed = [line.split(",")[0] for line in (tmp_path / "cards.csv").read_text().splitlines()[1:]]
    if cards < 10_000:  # nearly all of such a county is in the file: its first rows are left alone
        listed = listed[:100]
    people = people_of(county, 2000)
    odd = plan_oddities(county, DAY, range(0, 86_400, 3600), people)
    uses = plan_day(county, DAY, people) + odd.uses
    assert len({use.person for use in odd.uses}) > 300
    assert not {use.person for use in odd.uses} & set(people), "nobody lives a day and is odd besides"
    assert min(use.person for use in uses) >= first_person(county)
    assert not set(listed) & {county.citizen(use.person).card_number for use in uses}


def test_a_life_goes_on_over_midnight(county: County) -> None:
    begin = dt.datetime(2026, 11, 26, 19, 30, tzinfo=CHINA)
    uses = traffic.uses_from(county, traffic.SPEED_MAX, begin)
    after = [after_s for after_s, _ in itertools.takewhile(lambda step: step[0] < 86_400, uses)]
    assert after == sorted(after) and after[0] >= 0
    assert sum(after_s > 4.5 * 3600 for after_s in after) > 100, "of the next day"


def test_a_refused_card_is_seldom(county: County, day: list[PlannedUse]) -> None:
    bad = sum(county.citizen(use.person).status != CardStatus.NORMAL for use in day)
    assert 0 < bad < len(day) / 50


@pytest.mark.parametrize(("text", "speed"), [("off", None), ("OFF", None), ("1", 1.0), ("10", 10.0), ("0.5", 0.5)])
def test_the_speed_is_read(text: str, speed: float | None) -> None:
    assert traffic.read_speed(text) == speed


@pytest.mark.parametrize("text", ["", "fast", "0", "-1", "61", "nan", "inf"])
def test_another_speed_is_refused(text: str) -> None:
    with pytest.raises(CannotStart):
        traffic.read_speed(text)


def test_who_starts_at_night_sees_the_morning() -> None:
    def hour(of_day: int) -> int:
        return traffic.begin_at(dt.datetime(2026, 11, 26, of_day, 5, tzinfo=CHINA)).hour

    assert [hour(of_day) for of_day in (0, 6, 7, 12, 19, 20, 23)] == [7, 7, 7, 12, 19, 7, 7]
