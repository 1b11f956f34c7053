"""A synthetic county: citizens and their cards, each computed from its index alone. No one in it exists.

Pure and random-access: the same seed, number of cards and day give the same citizen for an index, in any process. Two
orders of the indexes carry the county's figures: one walks the age pyramid, the other the states of the cards. Both are
steps of a fixed width around a ring, so each place is taken once: counts are exact and identity numbers unique.
"""

import datetime as dt
import json
import struct
from bisect import bisect_right
from collections.abc import Sequence
from hashlib import blake2b
from itertools import accumulate
from math import gcd
from pathlib import Path
from typing import NamedTuple

import msgspec

from gateway.domain.cards import CardStatus
from gateway.domain.ids import id_number_check, uuid7
from gateway.domain.masking import age_on

CARDS = 415_000
"""Cards in use at the end of 2020: 41.5 万 (plan.md [S])."""
ECARDS = 170_000
"""E-cards signed at the end of 2020: 17 万 (plan.md [S]). Counties of other sizes keep the proportion."""
CARDS_MAX = 10_000_000
"""What seven digits of a card number and three digits of an identity number's sequence hold."""
COUNTY_REGION = "330424"

_THIRD_GENERATION_FROM = dt.date(2021, 1, 1)
"""[S] plan.md: 第三代社会保障卡从2021年开始启动发放."""
_THIRD_GENERATION_SHARE = 0.53
"""[G] 55 % of all cards with the youngest, who cannot have another. The plan's 41.2 万 is the stock of all cards."""
_ECARD_FROM = dt.date(2018, 4, 22)
"""[K] The first e-card was issued on this day."""
_ECARD_LEVEL_2_AGES = range(16, 80)
_ECARD_LEVEL_2_SHARE = 0.6
_VALID_YEARS = 10
"""[S] domain.md §1.4."""
_EXPIRED_WITHIN_DAYS = 3 * 365

_COUNTY_SHARE = 0.96
_EXPIRED_PER_MILLE = 11
_STATUS_PER_MILLE = {
    CardStatus.SEALED: 12,
    CardStatus.LOST_FORMAL: 10,
    CardStatus.LOCKED: 5,
    CardStatus.LOST_TEMPORARY: 8,
    CardStatus.VOID: 4,
    CardStatus.CANCELLED: 26,
}
"""[G] The others are normal."""
_FATES = (CardStatus.NORMAL, CardStatus.NORMAL, *_STATUS_PER_MILLE)
_EXPIRED = 1
"""What becomes of a card: valid, expired, or of another status."""

_PYRAMID = (32, 46, 45, 40, 45, 55, 75, 80, 72, 76, 90, 88, 68, 65, 52, 33, 20, 11, 4.5, 1.2, 0.3)
"""[G] Per mille of the people by five years of age, the last group from 100 on: an ageing county, a quarter is 60+."""
_AGE_MAX = 105

_TOWNS = (
    *("武原",) * 33, *("西塘桥",) * 15, *("百步",) * 10, *("通元",) * 8, *("沈荡",) * 8, *("秦山",) * 7, *("澉浦",) * 7,
    *("元通",) * 6, *("于城",) * 5,
)  # fmt: skip
"""[G] The county's nine towns, weighted roughly by size."""

_NEIGHBOURS = ("330402", "330411", "330421", "330481", "330482", "330483")
_REGIONS = (
    *_NEIGHBOURS * 4,
    "310101", "310104", "310105", "310106", "310107", "310109", "310110", "310112", "310113", "310114", "310115",
    "310116", "310117", "310118", "310120", "310151", "320102", "320104", "320205", "320505", "320506", "320507",
    "320508", "320509", "320583", "330102", "330105", "330106", "330108", "330110", "330203", "330502", "330503",
    "330602", "340102", "340104", "340202", "340503", "340506", "341802",
)  # fmt: skip
"""Districts and counties of the 长三角 (31 上海, 32 江苏, 33 浙江, 34 安徽) whose cards are used here [K]."""

_LOCAL_ORIGINS = (*("330499",) * 28, "310199", "320599", "330199", "340199")
_ORIGIN_BY_PROVINCE = {"31": "310199", "32": "320599", "33": "330199", "34": "340199"}
"""First six digits of the identity numbers: codes that no place has been given, so that none is a real person's.
They say where a person was first registered: an eighth of the county's own came from elsewhere [G]."""

_SURNAMES = (
    *"陈陈陈陈陈陈陈陈张张张张张张张王王王王王王王沈沈沈沈沈沈朱朱朱朱朱徐徐徐徐徐吴吴吴吴吴周周周周李李李李顾顾顾顾"
    "陆陆陆陆杨杨杨俞俞俞许许许金金金姚姚姚钱钱孙孙马马胡胡何何黄黄林林刘刘赵赵郑郑方方宋宋曹曹冯冯倪倪富富祝祝蒋汪"
    "章戴施董叶潘丁夏贾步崔谢邵余蔡范石万殷鲍计茅屠查褚汤郁凌盛翁庄干",
    "欧阳", "上官", "司徒", "诸葛",
)  # fmt: skip
_GIVEN_MALE = (
    "伟强军明华国平志勇建文斌杰峰涛超林鑫浩宇轩泽辰睿博晨阳凯磊鹏飞龙海江山松根荣福祥忠良德兴生春永庆宏新晓一子俊家"
)
_GIVEN_FEMALE = (
    "芳英丽敏静秀娟霞燕玲红梅兰凤琴云萍雪莲珍菊月仙宝花佳欣怡婷雅琪萱涵梓诗语妍悦蕾洁倩琳瑶晓文一子思雨心美彩亚"
)
_ONE_CHARACTER_SHARE = 0.18

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_SERIES = [one + other for one in _LETTERS for other in _LETTERS]
_NUMBERS = 10**7
_NUMBER_STEP = 7_548_777
BANKS = ("bank-haiyan", "bank-jiaxing")
"""[G] The county's own bank and the city's."""
_BANKS = (*BANKS[:1] * 3, *BANKS[1:] * 2)
_NO_BANK = "999999"
_ACCOUNTS = 10**11
_DOUBLED = str.maketrans("0123456789", "0246813579")
"""A digit to the sum of the digits of its double."""
_TWO_64 = 1 << 64
_IDENTIFIER_STEP = 0x9E37_79B9_7F4A_7C15
_SEQUENCES = 999
_SEQUENCE_STEP = 389
"""Steps without a common factor with their ring, so that they visit every place of it."""

_DRAWS = struct.Struct(">2I10H6s6s")
_DRAW = 1 << 16  # of the two-byte draws


class Citizen(msgspec.Struct, frozen=True, gc=False):
    """A person who does not exist, and the one card that the person holds."""

    person_id: bytes
    card_id: bytes
    name: str
    id_number: str
    birth_date: dt.date
    town: str | None
    """None for a holder from another region."""
    card_number: str
    card_identifier: str
    generation: int
    status: CardStatus
    issued_on: dt.date
    valid_until: dt.date
    region: str
    ecard_level: int | None
    ecard_signed_on: dt.date | None


class Account(NamedTuple):
    """The bank account behind a card. `number` looks like a bank card's and is of a range that no bank was given."""

    bank: str
    number: str


class _Cohort(msgspec.Struct, frozen=True):
    """The people born in one year, spread evenly over its days."""

    first_place: int
    people: int
    first_day: int
    days: int


class County:
    """Citizens by index, from 0 to cards - 1, as they are on the day `today`."""

    def __init__(self, seed: int, cards: int, today: dt.date) -> None:
        assert 1 <= cards <= CARDS_MAX, f"a county has 1 to {CARDS_MAX} cards"
        assert today >= _THIRD_GENERATION_FROM, "the county has cards of the third generation"
        self.seed = seed
        self.cards = cards
        self.today = today
        self.ecards = round(cards * ECARDS / CARDS)
        self._salt = seed.to_bytes(8, "big", signed=True)
        turns = struct.unpack(">4Q", blake2b(self._salt, digest_size=32).digest())
        # The steps of the best known even spread in two dimensions (powers of the plastic number): in a county of any
        # size the age of a holder says nothing of the state of the card.
        self._age_step, self._age_turn = _coprime(cards, 0.754_877_666_2), turns[0]
        self._fate_step, self._fate_turn = _coprime(cards, 0.569_840_291_0), turns[1]
        self._number_turn, self._identifier_turn = turns[2], turns[3]

        self._cohorts = _cohorts(cards, today)
        assert all(cohort.people <= cohort.days * _SEQUENCES for cohort in self._cohorts), "a day has 999 numbers"
        self._cohort_starts = [cohort.first_place for cohort in self._cohorts]
        # the ring of fates: valid cards, of which the first have an e-card; expired ones; those of another status
        rare = [cards * share // 1000 for share in (_EXPIRED_PER_MILLE, *_STATUS_PER_MILLE.values())]
        self._fate_ends = list(accumulate([cards - sum(rare), *rare]))

        self._today = today.toordinal()
        self._ids_from_ms = (today - dt.date(1970, 1, 1)).days * 86_400_000 - cards
        self._first_valid = _first_valid_issue(today).toordinal()
        self._third_from = _THIRD_GENERATION_FROM.toordinal()

    def citizen(self, i: int) -> Citizen:
        """The citizen of an index: always the same one."""
        assert 0 <= i < self.cards
        tail = i.to_bytes(4, "big")
        draws = _DRAWS.unpack(blake2b(self._salt + tail, digest_size=_DRAWS.size).digest())
        issue, signing, place, town, origin, series, surname, given, first, second, level, third, *bits = draws
        born, sequence = self._birth(i)
        fate_place = (i * self._fate_step + self._fate_turn) % self.cards
        fate = bisect_right(self._fate_ends, fate_place)
        generation, issued_on = self._issue(born, fate == _EXPIRED, issue, third < _THIRD_GENERATION_SHARE * _DRAW)
        if place < _COUNTY_SHARE * _DRAW:
            region, prefix = COUNTY_REGION, _pick(_LOCAL_ORIGINS, origin)
        else:
            region = _pick(_REGIONS, origin)
            prefix = _ORIGIN_BY_PROVINCE[region[:2]]
        birth_date = dt.date.fromordinal(born)
        first17 = f"{prefix}{birth_date.isoformat().replace('-', '')}{sequence:03}"
        ms = self._ids_from_ms + i
        ecard_level, ecard_signed_on = None, None
        if fate_place < self.ecards:
            age = age_on(birth_date, self.today)
            ecard_level, ecard_signed_on = self._ecard(age, generation, issued_on, level, signing)
        return Citizen(
            uuid7(ms, bits[0] + tail),
            uuid7(ms, bits[1] + tail),
            _name(sequence, surname, given, first, second),
            first17 + id_number_check(first17),
            birth_date,
            _pick(_TOWNS, town) if region == COUNTY_REGION else None,
            f"{_pick(_SERIES, series)}{(i * _NUMBER_STEP + self._number_turn) % _NUMBERS:07}",
            f"{region}D156000005{(i * _IDENTIFIER_STEP + self._identifier_turn) % _TWO_64:016X}",
            generation,
            _FATES[fate],
            issued_on,
            _valid_until(issued_on),
            region,
            ecard_level,
            ecard_signed_on,
        )

    def by_card_number(self, card_number: str) -> Citizen | None:
        """The citizen of a card number: the way of citizen() back, without a table."""
        if len(card_number) != 9 or not (card_number[2:].isascii() and card_number[2:].isdigit()):
            return None
        i = (int(card_number[2:]) - self._number_turn) * pow(_NUMBER_STEP, -1, _NUMBERS) % _NUMBERS
        citizen = self.citizen(i) if i < self.cards else None
        return citizen if citizen is not None and citizen.card_number == card_number else None

    def by_id_number(self, id_number: str) -> Citizen | None:
        """The citizen of an identity number, in the same way."""
        try:
            born = dt.datetime.strptime(id_number[6:14], "%Y%m%d").replace(tzinfo=dt.UTC).toordinal()
            sequence = int(id_number[14:17])
        except ValueError:
            return None
        nth_of_day = (sequence - 1 - born * 610) * pow(_SEQUENCE_STEP, -1, _SEQUENCES) % _SEQUENCES
        for cohort in self._cohorts:
            day = born - cohort.first_day
            if 0 <= day < cohort.days:
                place = cohort.first_place + nth_of_day + -(-day * cohort.people // cohort.days)
                i = (place - self._age_turn) * pow(self._age_step, -1, self.cards) % self.cards
                citizen = self.citizen(i)
                return citizen if citizen.id_number == id_number else None
        return None

    def account(self, i: int) -> Account:
        """The account of an index: always the same one, and nobody else's."""
        place = (i * _NUMBER_STEP + self._number_turn) % _ACCOUNTS
        bank = _BANKS[place % len(_BANKS)]
        first18 = f"{_NO_BANK}{_BANKS.index(bank)}{place:011}"
        return Account(bank, first18 + _luhn(first18))

    def _birth(self, i: int) -> tuple[int, int]:
        """(birth day, sequence of the day): no two citizens have the same, and the sequence's parity is the sex."""
        place = (i * self._age_step + self._age_turn) % self.cards
        cohort = self._cohorts[bisect_right(self._cohort_starts, place) - 1]
        nth = place - cohort.first_place
        day = nth * cohort.days // cohort.people
        nth_of_day = nth + -day * cohort.people // cohort.days
        born = cohort.first_day + day
        return born, (nth_of_day * _SEQUENCE_STEP + born * 610) % _SEQUENCES + 1

    def _issue(self, born: int, expired: bool, draw: int, third: bool) -> tuple[int, dt.date]:
        """(generation, day of issue): no card is older than its holder, no third generation older than 2021."""
        if expired and born < self._first_valid:
            first, last = max(born, self._first_valid - _EXPIRED_WITHIN_DAYS), self._first_valid - 1
        elif third or max(born, self._first_valid) >= self._third_from:
            first, last = max(born, self._first_valid, self._third_from), self._today
        else:
            first, last = max(born, self._first_valid), self._third_from - 1
        day = first + (draw * (last - first + 1) >> 32)
        return (3 if day >= self._third_from else 2), dt.date.fromordinal(day)

    def _ecard(self, age: int, generation: int, issued_on: dt.date, level: int, draw: int) -> tuple[int, dt.date]:
        """(level, day of signing). A card of the third generation comes with its e-card [S] domain.md §2.1."""
        sign_level = 2 if age in _ECARD_LEVEL_2_AGES and level < _ECARD_LEVEL_2_SHARE * _DRAW else 1
        if generation == 3:
            return sign_level, issued_on
        first = max(issued_on, _ECARD_FROM).toordinal()
        return sign_level, dt.date.fromordinal(first + (draw * (self._today - first + 1) >> 32))


def read_county(data_dir: Path) -> County:
    """The county that a sandbox's data folder was loaded with. Raises FileNotFoundError if none was."""
    facts = json.loads((data_dir / "sandbox" / "county.json").read_text())
    return County(facts["seed"], facts["cards"], dt.date.fromisoformat(facts["today"]))


def _luhn(digits: str) -> str:
    """The check digit of a card number (ISO/IEC 7812-1)."""
    return str(-(sum(map(int, digits[::-2].translate(_DOUBLED))) + sum(map(int, digits[-2::-2]))) % 10)


def _pick(choices: Sequence[str], draw: int) -> str:
    return choices[draw * len(choices) >> 16]


def _name(sequence: int, surname: int, given: int, first: int, second: int) -> str:
    characters = _GIVEN_MALE if sequence % 2 else _GIVEN_FEMALE
    name = _pick(_SURNAMES, surname) + _pick(characters, first)
    return name if given < _ONE_CHARACTER_SHARE * _DRAW else name + _pick(characters, second)


def _cohorts(cards: int, today: dt.date) -> list[_Cohort]:
    """The people by year of birth, youngest first; this year's only up to today."""
    shares, first_days, days = [], [], []
    for age in range(_AGE_MAX + 1):
        first = dt.date(today.year - age, 1, 1)
        last = dt.date(first.year, 12, 31)
        born_by = min(last, today)
        group = min(age // 5, len(_PYRAMID) - 1)
        group_years = 5 if group < len(_PYRAMID) - 1 else _AGE_MAX - 99
        days.append((born_by - first).days + 1)
        first_days.append(first.toordinal())
        shares.append(_PYRAMID[group] / group_years * days[-1] / ((last - first).days + 1))
    total = sum(shares)
    ends = [round(cards * share / total) for share in accumulate(shares)]
    starts = [0, *ends[:-1]]
    return [
        _Cohort(start, end - start, first_day, count)
        for start, end, first_day, count in zip(starts, ends, first_days, days, strict=True)
        if end > start
    ]


def _coprime(ring: int, share: float) -> int:
    """A step of about a share of the ring that visits every place of it."""
    step = max(1, round(ring * share))
    while gcd(step, ring) != 1:
        step += 1
    return step


def _valid_until(issued_on: dt.date) -> dt.date:
    if (issued_on.month, issued_on.day) == (2, 29):
        return dt.date(issued_on.year + _VALID_YEARS, 2, 28)
    return issued_on.replace(year=issued_on.year + _VALID_YEARS)


def _first_valid_issue(today: dt.date) -> dt.date:
    """The earliest day of issue of a card that is still valid."""
    day = dt.date(today.year - _VALID_YEARS, today.month, min(today.day, 28))
    while _valid_until(day) < today:
        day += dt.timedelta(days=1)
    return day
