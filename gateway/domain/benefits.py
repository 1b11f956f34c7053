"""Benefits: what the holder of a card is given where the card is used. A row of benefits.toml, never code.

Equal treatment in the 长三角 is a property of each benefit, not of all (domain.md §0 [S]: the base fare is everybody's,
the transfer discount the local cards'), so each says for itself whom it is for. Every condition is a set of benefits,
held as the bits of a number: what a card is entitled to is one `&` a condition, for two benefits or two hundred.
"""

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, NamedTuple

import msgspec

from gateway.domain.cards import Medium

BENEFIT_PATTERN = r"^[a-z][a-z0-9_]{0,30}\.[a-z][a-z0-9_]{0,30}$"
CAPPED_MAX = 16
"""Of one scene: a verify claims all of them together."""
_AGE_MAX = 150
_KNOWN_SETS_MAX = 4096
_KNOWN_DAYS_MAX = 8
_KNOWN_REGIONS_MAX = 4000


class Refusal(StrEnum):
    """Why a benefit is not given: the first of these that holds."""

    NOT_YET = "not_yet"
    ENDED = "ended"
    MEDIUM = "medium"
    REGION = "region"
    AGE = "age"
    TALENT_UNKNOWN = "talent_unknown"
    """Nothing is known of the holder's level: not entitled, rather than guessed."""
    TALENT = "talent"
    CAP_DAY = "cap_day"
    CAP_MONTH = "cap_month"
    CAP_TOTAL = "cap_total"


class Span(StrEnum):
    """What a cap is counted over: one holder's day or month, or everybody's day, in +08:00."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


USED_UP: dict[Span, Refusal] = {
    Span.DAY: Refusal.CAP_DAY,
    Span.MONTH: Refusal.CAP_MONTH,
    Span.TOTAL: Refusal.CAP_TOTAL,
}


class CapHolder(StrEnum):
    """Whose uses are counted together. A person keeps what was used when the card is replaced."""

    PERSON = "person"
    CARD = "card"


_Cap = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Age = Annotated[int, msgspec.Meta(ge=0, le=_AGE_MAX)]


class Discount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an amount: percent of it, some fen, or all of it."""

    percent: Annotated[int, msgspec.Meta(ge=1, le=100)] | None = None
    fen: Annotated[int, msgspec.Meta(ge=1, le=5_000_000)] | None = None
    free: bool = False

    def __post_init__(self) -> None:
        if (self.percent is not None) + (self.fen is not None) + self.free != 1:
            raise ValueError("needs one of percent, fen and free = true")

    def of(self, amount_fen: int) -> int:
        """Fen that are taken off, at most the amount. A part of a fen is a whole one, in the citizen's favour."""
        if self.percent is not None:
            return -(-amount_fen * self.percent // 100)
        return amount_fen if self.fen is None else min(self.fen, amount_fen)


class Caps(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often it is given, at most."""

    per: CapHolder = CapHolder.PERSON
    day: _Cap | None = None
    month: _Cap | None = None
    total_day: _Cap | None = None
    """To all holders together."""

    def __post_init__(self) -> None:
        if self.day is None and self.month is None and self.total_day is None:
            raise ValueError("needs one of day, month and total_day")


class Benefit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One block of benefits.toml. A condition that is left out is met by every card."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=40)]
    scenes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    age_from: _Age | None = None
    age_to: _Age | None = None
    """Years of age, both inclusive, on the day of the use."""
    media: Annotated[tuple[Medium, ...], msgspec.Meta(min_length=1)] = tuple(Medium)
    regions: tuple[Annotated[str, msgspec.Meta(pattern=r"^([0-9]{2}){1,3}$", max_length=6)], ...] = ()
    """First 2, 4 or 6 digits of where the card was issued (AAB301, domain.md §5)."""
    talent: tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=40)], ...] = ()
    """Talent levels, by their codes (domain.md §6)."""
    discount: Discount | None = None
    """None: given in kind, and the caller knows how."""
    caps: Caps | None = None
    valid_from: dt.date | None = None
    valid_to: dt.date | None = None
    """Both inclusive, days in +08:00."""

    def takes_age(self, age: int) -> bool:
        return (self.age_from or 0) <= age <= (_AGE_MAX if self.age_to is None else self.age_to)


def mistakes_of(benefits: Mapping[str, Benefit | None], scenes: Collection[str]) -> list[str]:
    """What is wrong between fields and blocks, each by its path; nothing of a block that is wrong in itself."""
    mistakes = []
    capped: dict[str, int] = {}
    for benefit_id, benefit in benefits.items():
        if benefit is None:
            continue
        path = f"benefits.{benefit_id}"
        for scene in benefit.scenes:
            if scene not in scenes:
                mistakes.append(f"{path}.scenes: {scene} is not in scenes.toml")
            capped[scene] = capped.get(scene, 0) + (benefit.caps is not None)
            if capped[scene] == CAPPED_MAX + 1 and benefit.caps is not None:
                mistakes.append(f"{path}.caps: more than {CAPPED_MAX} benefits with caps in {scene}")
        if len(set(benefit.scenes)) != len(benefit.scenes):
            mistakes.append(f"{path}.scenes: one is there twice")
        if benefit.age_to is not None and benefit.age_to < (benefit.age_from or 0):
            mistakes.append(f"{path}.age_to: is before age_from")
        if benefit.valid_to is not None and benefit.valid_to < (benefit.valid_from or dt.date.min):
            mistakes.append(f"{path}.valid_to: is before valid_from")
    return mistakes


class Facts(NamedTuple):
    """What a decision looks at."""

    age: int
    medium: str
    region: str
    day: dt.date
    """Of the use, in +08:00."""
    talent: Collection[str] | None = None
    """The holder's levels; None: not known."""


class Entitled(NamedTuple):
    """Benefits of a card, in the order of benefits.toml; the capped ones are not given before they are claimed."""

    free_of_caps: tuple[str, ...]
    capped: tuple[str, ...]


class Counter(NamedTuple):
    """One count that a claim raises by one, up to `most`."""

    benefit: str
    span: Span
    since: dt.date
    """The first day of what it counts over."""
    per: CapHolder | None
    """None: everybody's."""
    most: int


NOTHING = Entitled((), ())


class SceneBenefits:
    """The benefits of one scene, compiled. Asked at every verify there."""

    def __init__(self, benefits: Mapping[str, Benefit]) -> None:
        self._benefits = dict(benefits)
        self._ids = tuple(benefits)
        self._place = {benefit_id: place for place, benefit_id in enumerate(benefits)}
        rows = tuple(benefits.values())
        self._all = (1 << len(rows)) - 1
        self._by_age = tuple(_bits(row.takes_age(age) for row in rows) for age in range(_AGE_MAX + 1))
        self._by_medium = {medium.value: _bits(medium in row.media for row in rows) for medium in Medium}
        self._anywhere = _bits(not row.regions for row in rows)
        self._by_prefix = {
            prefix: _bits(prefix in row.regions for row in rows) for row in rows for prefix in row.regions
        }
        self._anyone = _bits(not row.talent for row in rows)
        self._by_level = {level: _bits(level in row.talent for row in rows) for row in rows for level in row.talent}
        self._capped = _bits(row.caps is not None for row in rows)
        self._by_day: dict[dt.date, tuple[int, int]] = {}
        self._by_region: dict[str, int] = {}
        self._known: dict[int, Entitled] = {}

    def entitled(self, facts: Facts) -> Entitled:
        """What this card may be given here."""
        begun, not_ended = self._on(facts.day)
        found = begun & not_ended & self._by_medium[facts.medium] & self._of_region(facts.region)
        found &= self._of_age(facts.age) & self._of_talent(facts.talent)
        return (self._known.get(found) or self._name(found)) if found else NOTHING

    def refused(self, facts: Facts) -> dict[str, Refusal]:
        """Why each of the others is not, in the order of benefits.toml."""
        begun, not_ended = self._on(facts.day)
        talent = Refusal.TALENT_UNKNOWN if facts.talent is None else Refusal.TALENT
        left = self._all
        why: dict[str, Refusal] = {}
        for reason, met in (
            (Refusal.NOT_YET, begun), (Refusal.ENDED, not_ended), (Refusal.MEDIUM, self._by_medium[facts.medium]),
            (Refusal.REGION, self._of_region(facts.region)), (Refusal.AGE, self._of_age(facts.age)),
            (talent, self._of_talent(facts.talent)),
        ):  # fmt: skip
            why |= dict.fromkeys(self._ids_of(left & ~met), reason)
            left &= met
        return {benefit_id: why[benefit_id] for benefit_id in self.in_order(why)}

    def counters(self, benefit_id: str, day: dt.date) -> list[Counter]:
        """What a claim of a capped benefit counts against, the narrowest first."""
        caps = self._benefits[benefit_id].caps
        assert caps is not None, "only a capped benefit is claimed"
        wanted = (
            (Span.DAY, day, caps.per, caps.day),
            (Span.MONTH, day.replace(day=1), caps.per, caps.month),
            (Span.TOTAL, day, None, caps.total_day),
        )
        return [Counter(benefit_id, span, since, per, most) for span, since, per, most in wanted if most is not None]

    def is_capped(self, benefit_id: str) -> bool:
        return self._benefits[benefit_id].caps is not None

    def by_discount(self, entitled: Entitled, amount_fen: int) -> list[tuple[int, str]]:
        """(fen taken off, benefit), the greatest first, of equal ones the first of the file: they do not add up."""
        discounts = self._discounts(entitled)
        return _greatest_first((discount.of(amount_fen), benefit_id) for benefit_id, discount in discounts)

    def by_percent(self, entitled: Entitled) -> list[tuple[int, str]]:
        """The same where no price is known yet, in percent of it; without those that take off some fen."""
        parts = ((100 if each.free else each.percent, benefit_id) for benefit_id, each in self._discounts(entitled))
        return _greatest_first((percent, benefit_id) for percent, benefit_id in parts if percent is not None)

    def in_kind(self, entitled: Entitled) -> tuple[str, ...]:
        """Those that are no discount."""
        some = (*entitled.free_of_caps, *entitled.capped)
        return tuple(benefit_id for benefit_id in some if self._benefits[benefit_id].discount is None)

    def in_order(self, benefit_ids: Iterable[str]) -> tuple[str, ...]:
        """As they stand in benefits.toml."""
        return tuple(sorted(benefit_ids, key=self._place.__getitem__))

    def _discounts(self, entitled: Entitled) -> Iterable[tuple[str, Discount]]:
        """In the order of benefits.toml."""
        for benefit_id in self.in_order(entitled.free_of_caps + entitled.capped):
            discount = self._benefits[benefit_id].discount
            if discount is not None:
                yield benefit_id, discount

    def _on(self, day: dt.date) -> tuple[int, int]:
        """(those that have begun by a day, those that have not ended)."""
        found = self._by_day.get(day)
        if found is None:
            rows = self._benefits.values()
            found = (
                _bits(row.valid_from is None or row.valid_from <= day for row in rows),
                _bits(row.valid_to is None or day <= row.valid_to for row in rows),
            )
            if len(self._by_day) >= _KNOWN_DAYS_MAX:
                self._by_day.clear()
            self._by_day[day] = found
        return found

    def _of_region(self, region: str) -> int:
        found = self._by_region.get(region)
        if found is None:
            found = self._anywhere
            for length in (2, 4, 6):
                found |= self._by_prefix.get(region[:length], 0)
            if len(self._by_region) >= _KNOWN_REGIONS_MAX:
                self._by_region.clear()
            self._by_region[region] = found
        return found

    def _of_age(self, age: int) -> int:
        return self._by_age[min(max(age, 0), _AGE_MAX)]

    def _of_talent(self, levels: Collection[str] | None) -> int:
        found = self._anyone
        for level in levels or ():
            found |= self._by_level.get(level, 0)
        return found

    def _name(self, found: int) -> Entitled:
        named = Entitled(tuple(self._ids_of(found & ~self._capped)), tuple(self._ids_of(found & self._capped)))
        if len(self._known) >= _KNOWN_SETS_MAX:
            self._known.clear()
        self._known[found] = named
        return named

    def _ids_of(self, found: int) -> list[str]:
        return [benefit_id for place, benefit_id in enumerate(self._ids) if found >> place & 1]


def compile_scenes(benefits: Mapping[str, Benefit]) -> dict[str, SceneBenefits]:
    """By scene; a scene without benefits is absent."""
    by_scene: dict[str, dict[str, Benefit]] = {}
    for benefit_id, benefit in benefits.items():
        for scene in benefit.scenes:
            by_scene.setdefault(scene, {})[benefit_id] = benefit
    return {scene: SceneBenefits(rows) for scene, rows in by_scene.items()}


def _greatest_first(found: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    return sorted(found, key=lambda each: -each[0])


def _bits(members: Iterable[bool]) -> int:
    """The n-th bit is the n-th benefit's."""
    return sum(1 << place for place, is_member in enumerate(members) if is_member)
