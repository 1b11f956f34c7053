"""The synthetic county: nobody real, nothing twice, and the plan's figures."""

import csv
import datetime as dt
import pickle
import random
import re
from collections import Counter
from pathlib import Path
from uuid import UUID

import pytest

from gateway.domain.cards import CARD_IDENTIFIER_PATTERN, CARD_NUMBER_PATTERN, CardStatus
from gateway.domain.ids import is_id_number, uuid7_unix_ms
from gateway.domain.masking import age_on
from gateway.sandbox.county import CARDS, CARDS_MAX, COUNTY_REGION, ECARDS, Citizen, County
from gateway.sandbox.files import write_cards_csv

SEED, TODAY = 330424, dt.date(2026, 11, 23)
UNASSIGNED = {"330499", "310199", "320599", "330199", "340199"}
"""County codes that GB/T 2260 has given to no place."""
TOWNS = {"武原", "西塘桥", "元通", "秦山", "沈荡", "百步", "于城", "澉浦", "通元"}


@pytest.fixture(scope="module")
def county() -> County:
    return County(SEED, CARDS, TODAY)


@pytest.fixture(scope="module")
def citizens(county: County) -> list[Citizen]:
    return [county.citizen(i) for i in range(county.cards)]


def valid(citizen: Citizen, today: dt.date = TODAY) -> bool:
    return citizen.status == CardStatus.NORMAL and citizen.valid_until >= today


def assert_plausible(citizen: Citizen, today: dt.date) -> None:
    """What holds of every citizen on every day."""
    assert is_id_number(citizen.id_number, today) and citizen.id_number[:6] in UNASSIGNED
    assert citizen.id_number[6:14] == f"{citizen.birth_date:%Y%m%d}"
    assert 2 <= len(citizen.name) <= 4
    assert re.fullmatch(CARD_NUMBER_PATTERN, citizen.card_number)
    assert re.fullmatch(CARD_IDENTIFIER_PATTERN, citizen.card_identifier) and citizen.card_identifier.isupper()
    assert citizen.card_identifier.startswith(f"{citizen.region}D156000005")
    assert citizen.birth_date <= citizen.issued_on <= today
    assert citizen.generation == (3 if citizen.issued_on >= dt.date(2021, 1, 1) else 2)
    same_day = min(citizen.issued_on.day, 28) if citizen.issued_on.month == 2 else citizen.issued_on.day
    assert citizen.valid_until == citizen.issued_on.replace(year=citizen.issued_on.year + 10, day=same_day)
    if citizen.status != CardStatus.NORMAL:
        assert citizen.valid_until >= today
    assert (citizen.ecard_level is None) == (citizen.ecard_signed_on is None)
    if citizen.ecard_signed_on is not None:
        assert valid(citizen, today) and citizen.ecard_level in (1, 2)
        assert citizen.issued_on <= citizen.ecard_signed_on <= today
    assert (citizen.town in TOWNS) if citizen.region == COUNTY_REGION else (citizen.town is None)


def test_a_citizen_is_the_same_in_any_order_and_process(county: County, citizens: list[Citizen]) -> None:
    again = pickle.loads(pickle.dumps(County(SEED, CARDS, TODAY)))  # noqa: S301 - as a worker process gets it
    for i in random.Random(1).sample(range(CARDS), 1000):
        assert again.citizen(i) == citizens[i]
    assert County(SEED + 1, CARDS, TODAY).citizen(0) != citizens[0]


def test_a_citizen_is_the_same_in_the_next_release(county: County) -> None:
    """A loaded county is computed anew at every start: another generator would no longer fit its database."""
    citizen = county.citizen(330424)
    assert citizen.id_number == "330499198310133201"
    assert (citizen.name, citizen.birth_date, citizen.town) == ("陈文", dt.date(1983, 10, 13), "沈荡")
    assert citizen.card_number == "UH4991455"
    assert citizen.card_identifier == "330424D156000005F0C8AFE9E75C8398"
    assert (citizen.generation, citizen.status, citizen.issued_on) == (2, CardStatus.NORMAL, dt.date(2019, 5, 29))
    assert (citizen.ecard_level, citizen.ecard_signed_on) == (1, dt.date(2021, 12, 17))
    assert citizen.person_id.hex() == "01a205b285a07ad4b97b17dc00050ab8"
    assert citizen.card_id.hex() == "01a205b285a07fb1b524bd0d00050ab8"


@pytest.mark.parametrize("field", ["person_id", "card_id", "id_number", "card_number", "card_identifier"])
def test_nothing_is_given_twice(citizens: list[Citizen], field: str) -> None:
    assert len({getattr(citizen, field) for citizen in citizens}) == CARDS


def test_nothing_is_given_twice_in_the_largest_county() -> None:
    county = County(SEED, CARDS_MAX, TODAY)
    indexes = {0, 1, CARDS_MAX - 2, CARDS_MAX - 1, *random.Random(2).sample(range(CARDS_MAX), 300_000)}
    seen: list[set[object]] = [set() for _ in range(5)]
    for i in indexes:
        citizen = county.citizen(i)
        names = (citizen.person_id, citizen.card_id, citizen.id_number, citizen.card_number, citizen.card_identifier)
        for values, value in zip(seen, names, strict=True):
            values.add(value)
    assert [len(values) for values in seen] == [len(indexes)] * 5


def test_every_citizen_is_plausible(citizens: list[Citizen]) -> None:
    for citizen in citizens:
        assert_plausible(citizen, TODAY)


@pytest.mark.parametrize("today", ["2021-01-01", "2024-02-29", "2026-01-01", "2030-12-31", "2031-01-01", "2038-02-28"])
def test_every_day_has_a_plausible_county(today: str) -> None:
    day = dt.date.fromisoformat(today)
    county = County(7, 3000, day)
    citizens = [county.citizen(i) for i in range(county.cards)]
    for citizen in citizens:
        assert_plausible(citizen, day)
    assert any(citizen.valid_until < day for citizen in citizens)


def test_ids_are_uuid7_in_the_order_of_the_indexes(citizens: list[Citizen]) -> None:
    for ids in ([citizen.card_id for citizen in citizens], [citizen.person_id for citizen in citizens]):
        assert ids == sorted(ids)
        assert all(value[6] >> 4 == 7 and value[8] >> 6 == 0b10 for value in ids)
    last = dt.datetime.fromtimestamp(uuid7_unix_ms(UUID(bytes=citizens[-1].card_id)) / 1000, dt.UTC)
    assert last.date() == TODAY - dt.timedelta(days=1)


def test_the_county_has_the_plans_cards_and_ecards(county: County, citizens: list[Citizen]) -> None:
    """41.5 万 cards, 17 万 e-cards (plan.md)."""
    assert (CARDS, ECARDS) == (415_000, 170_000)
    assert sum(citizen.ecard_level is not None for citizen in citizens) == 170_000 == county.ecards


@pytest.mark.parametrize("cards", [1, 2, 7, 2000, 3001, 50_021])
def test_other_sizes_keep_the_share_of_ecards_exactly(cards: int) -> None:
    county = County(SEED, cards, TODAY)
    citizens = [county.citizen(i) for i in range(cards)]
    assert sum(citizen.ecard_level is not None for citizen in citizens) == round(cards * 170 / 415)
    assert len({citizen.id_number for citizen in citizens}) == cards


def test_the_states_have_their_shares(citizens: list[Citizen]) -> None:
    shares = {status: count / CARDS for status, count in Counter(citizen.status for citizen in citizens).items()}
    assert set(shares) == set(CardStatus)
    assert shares.pop(CardStatus.NORMAL) == pytest.approx(0.935, abs=0.001)
    assert min(shares.values()) >= 0.003
    expired = sum(citizen.status == CardStatus.NORMAL and citizen.valid_until < TODAY for citizen in citizens)
    assert expired / CARDS == pytest.approx(0.01, abs=0.001)


def test_generations_regions_and_levels_have_their_shares(citizens: list[Citizen]) -> None:
    assert sum(citizen.generation == 3 for citizen in citizens) / CARDS == pytest.approx(0.55, abs=0.01)
    regions = Counter(citizen.region for citizen in citizens)
    assert regions.pop(COUNTY_REGION) / CARDS == pytest.approx(0.96, abs=0.002)
    assert {region[:2] for region in regions} == {"31", "32", "33", "34"} and len(regions) > 30
    assert {citizen.town for citizen in citizens} == TOWNS | {None}
    assert all(citizen.ecard_level != 2 for citizen in citizens if age_on(citizen.birth_date, TODAY) < 16)


def test_the_pyramid_is_that_of_an_ageing_county(citizens: list[Citizen]) -> None:
    ages = Counter(age_on(citizen.birth_date, TODAY) for citizen in citizens)
    assert set(ages) == set(range(106))
    assert 0.22 < sum(count for age, count in ages.items() if age >= 60) / CARDS < 0.32
    assert 0.10 < sum(count for age, count in ages.items() if age < 16) / CARDS < 0.18
    assert ages[55] > ages[25] > ages[80] > ages[95]
    men = sum(int(citizen.id_number[16]) % 2 for citizen in citizens)
    assert men / CARDS == pytest.approx(0.5, abs=0.01)
    birthdays = Counter((citizen.birth_date.month, citizen.birth_date.day) for citizen in citizens)
    assert len(birthdays) == 366
    by_day = [count for day, count in birthdays.items() if day != (2, 29)]
    assert max(by_day) < 1.2 * min(by_day)


def test_the_state_of_a_card_does_not_depend_on_the_age(citizens: list[Citizen]) -> None:
    with_ecard: Counter[int] = Counter()
    valid_cards: Counter[int] = Counter()
    for citizen in citizens:
        decade = age_on(citizen.birth_date, TODAY) // 10
        valid_cards[decade] += valid(citizen)
        with_ecard[decade] += citizen.ecard_level is not None
    for decade in range(9):
        assert with_ecard[decade] / valid_cards[decade] == pytest.approx(0.443, abs=0.02)


@pytest.mark.parametrize("cards", [CARDS, 30_000])
def test_the_cards_file_has_every_state(tmp_path: Path, cards: int) -> None:
    path = tmp_path / "cards.csv"
    write_cards_csv(County(SEED, cards, TODAY), path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["cards.csv"]
    assert path.read_text().startswith(
        "card_number,card_identifier,medium,status,valid_until,region,birth_date\n"
    )  # fmt: skip
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len({row["card_number"] for row in rows}) == 3000
    statuses = Counter(row["status"] for row in rows)
    assert set(statuses) == {"0", "1", "2", "3", "4", "6", "9"} and min(statuses.values()) >= 60
    unexpired = [row for row in rows if row["status"] == "1" and row["valid_until"] >= TODAY.isoformat()]
    assert statuses["1"] - len(unexpired) >= 60
    assert len(unexpired) > len(rows) / 2
    assert sum(row["region"] != COUNTY_REGION for row in rows) >= 100
    assert {row["medium"] for row in rows} == {"second_gen", "third_gen"}


def test_a_card_number_and_an_id_number_lead_back_to_their_citizen() -> None:
    for cards in (1, 7, 500, 30_000):
        county = County(SEED, cards, TODAY)
        for i in range(0, cards, max(1, cards // 500)):
            citizen = county.citizen(i)
            assert county.by_card_number(citizen.card_number) == citizen
            assert county.by_id_number(citizen.id_number) == citizen


@pytest.mark.parametrize(
    "text", ["", "x", "AB", "AB123456", "AB12345678", "ABxxxxxxx", "AB１２３４５６７", "QQ0000001"]
)
def test_what_is_no_card_number_of_the_county_leads_to_nobody(text: str) -> None:
    assert County(SEED, 500, TODAY).by_card_number(text) is None


@pytest.mark.parametrize("text", ["", "x" * 18, "330499196013010010", "330499196001010010", "330499299901010010"])
def test_what_is_no_id_number_of_the_county_leads_to_nobody(text: str) -> None:
    assert County(SEED, 500, TODAY).by_id_number(text) is None


def test_normal_cards_of_the_file_have_an_ecard_where_the_county_has_enough(tmp_path: Path) -> None:
    for cards, least in ((30_000, 1.0), (3000, 0.4)):
        county, path = County(SEED, cards, TODAY), tmp_path / f"{cards}.csv"
        write_cards_csv(county, path)
        with path.open() as stream:
            numbers = [row["card_number"] for row in csv.DictReader(stream) if row["status"] == "1"]
        citizens = [citizen for number in numbers if (citizen := county.by_card_number(number)) is not None]
        normal = [
            citizen for citizen in citizens if citizen.valid_until >= TODAY and citizen.region == COUNTY_REGION
        ]  # fmt: skip
        assert sum(citizen.ecard_level is not None for citizen in normal) >= least * len(normal)


def test_the_cards_file_is_the_same_each_time_and_its_cards_are_the_countys(tmp_path: Path) -> None:
    county = County(SEED, 5000, TODAY)
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    write_cards_csv(county, one)
    write_cards_csv(County(SEED, 5000, TODAY), other)
    assert one.read_bytes() == other.read_bytes()
    of_number = {citizen.card_number: citizen for citizen in map(county.citizen, range(county.cards))}
    with one.open() as stream:
        for row in csv.DictReader(stream):
            citizen = of_number[row["card_number"]]
            assert row["card_identifier"] == citizen.card_identifier
            assert row["medium"] == ("third_gen" if citizen.generation == 3 else "second_gen")
            assert (int(row["status"]), row["valid_until"]) == (citizen.status, citizen.valid_until.isoformat())
            assert (row["region"], row["birth_date"]) == (citizen.region, citizen.birth_date.isoformat())


def test_an_account_is_nobody_elses_and_of_no_real_bank() -> None:
    county = County(330424, 5000, TODAY)
    accounts = [county.account(i) for i in range(county.cards)]
    assert len({account.number for account in accounts}) == county.cards
    assert accounts == [County(330424, 5000, TODAY).account(i) for i in range(county.cards)]
    for account in accounts:
        assert len(account.number) == 19 and account.number.startswith("999999")
        digits = [int(digit) * (1 + nth % 2) for nth, digit in enumerate(reversed(account.number))]
        assert sum(sum(divmod(digit, 10)) for digit in digits) % 10 == 0
    shares = [sum(account.bank == bank for account in accounts) for bank in ("bank-haiyan", "bank-jiaxing")]
    assert sum(shares) == county.cards and min(shares) > county.cards / 3
