"""Which benefits a card is entitled to, why not the others, and what they take off."""

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.benefits import (
    CAPPED_MAX,
    Benefit,
    CapHolder,
    Caps,
    Discount,
    Entitled,
    Facts,
    Refusal,
    SceneBenefits,
    Span,
    compile_scenes,
    mistakes_of,
)
from gateway.domain.cards import Medium
from gateway.domain.times import CHINA, china_day
from gateway.settings import load

DAY = dt.date(2026, 11, 23)
SCENE = "scenic.entry"
DAYS = st.dates(DAY - dt.timedelta(days=3), DAY + dt.timedelta(days=3))
AGES = st.integers(0, 120)
REGIONS = ["330424", "330402", "310104", "320505", "110101"]
PREFIXES = sorted({region[:length] for region in REGIONS for length in (2, 4, 6)})
LEVELS = ["A", "B", "haiyan-D"]


def benefit(**more: Any) -> Benefit:
    return Benefit(**({"name": "优惠", "scenes": (SCENE,)} | more))


BENEFITS = st.builds(
    benefit,
    age_from=st.none() | AGES, age_to=st.none() | AGES,
    media=st.sets(st.sampled_from(Medium), min_size=1).map(tuple),
    regions=st.sets(st.sampled_from(PREFIXES), max_size=3).map(tuple),
    talent=st.sets(st.sampled_from(LEVELS), max_size=2).map(tuple),
    valid_from=st.none() | DAYS, valid_to=st.none() | DAYS,
    caps=st.sampled_from([None, Caps(day=1)]),
)  # fmt: skip
FACTS = st.builds(
    Facts,
    age=AGES, medium=st.sampled_from([medium.value for medium in Medium]), region=st.sampled_from(REGIONS), day=DAYS,
    talent=st.none() | st.sets(st.sampled_from([*LEVELS, "Z"])),
)  # fmt: skip


def judged_by_hand(rule: Benefit, facts: Facts) -> Refusal | None:
    """The same rules, one benefit at a time."""
    if rule.valid_from is not None and facts.day < rule.valid_from:
        return Refusal.NOT_YET
    if rule.valid_to is not None and facts.day > rule.valid_to:
        return Refusal.ENDED
    if facts.medium not in rule.media:
        return Refusal.MEDIUM
    if rule.regions and not facts.region.startswith(rule.regions):
        return Refusal.REGION
    if facts.age < (rule.age_from or 0) or (rule.age_to is not None and facts.age > rule.age_to):
        return Refusal.AGE
    if rule.talent and facts.talent is None:
        return Refusal.TALENT_UNKNOWN
    if rule.talent and not set(rule.talent) & set(facts.talent or ()):
        return Refusal.TALENT
    return None


@given(st.lists(BENEFITS, max_size=12), st.lists(FACTS, min_size=1, max_size=6))
def test_the_engine_says_what_one_rule_after_the_other_says(rules: list[Benefit], asked: list[Facts]) -> None:
    """Also in an engine that has answered before."""
    table = {f"b.{i}": rule for i, rule in enumerate(rules)}
    engine = SceneBenefits(table)
    for facts in [*asked, *asked]:
        by_hand = {name: judged_by_hand(rule, facts) for name, rule in table.items()}
        entitled = [name for name, reason in by_hand.items() if reason is None]
        assert engine.entitled(facts) == Entitled(
            tuple(name for name in entitled if table[name].caps is None),
            tuple(name for name in entitled if table[name].caps is not None),
        )
        assert engine.refused(facts) == {name: reason for name, reason in by_hand.items() if reason is not None}
        assert list(engine.refused(facts)) == [name for name, reason in by_hand.items() if reason is not None]


def test_two_hundred_benefits_are_told_apart() -> None:
    table = {f"b.{i}": benefit(age_from=i // 2, age_to=i // 2) for i in range(200)}
    engine = SceneBenefits(table)
    for age in range(100):
        assert engine.entitled(Facts(age, "ecard", "330424", DAY))[0] == (f"b.{2 * age}", f"b.{2 * age + 1}")


@pytest.mark.parametrize(
    ("age", "entitled"), [(59, ()), (60, ("half",)), (69, ("half",)), (70, ("free",)), (-1, ()), (151, ("free",))]
)
def test_the_bands_of_the_elderly(age: int, entitled: tuple[str, ...]) -> None:
    """domain.md §0 [S]: 60 to 69 an agreed discount, from 70 on free."""
    engine = SceneBenefits({"half": benefit(age_from=60, age_to=69), "free": benefit(age_from=70)})
    assert engine.entitled(Facts(age, "third_gen", "330424", DAY)) == Entitled(entitled, ())


def test_same_treatment_is_of_each_benefit() -> None:
    """domain.md §0 [S]: the base fare for every district's card, the transfer for the local one."""
    table = {"t.fare": benefit(regions=("3304",)), "t.transfer": benefit(regions=("330424",))}
    engine = SceneBenefits(table)
    assert engine.entitled(Facts(30, "third_gen", "330402", DAY))[0] == ("t.fare",)
    assert engine.refused(Facts(30, "third_gen", "330402", DAY)) == {"t.transfer": Refusal.REGION}
    assert engine.entitled(Facts(30, "third_gen", "330424", DAY))[0] == ("t.fare", "t.transfer")


def test_what_is_remembered_is_bounded() -> None:
    engine = SceneBenefits({f"b.{i}": benefit(talent=(str(i),), valid_from=DAY) for i in range(13)})
    for number in range(1 << 13):
        levels = [str(i) for i in range(13) if number >> i & 1]
        assert len(engine.entitled(Facts(1, "ecard", "330424", DAY, levels))[0]) == len(levels)
    for day in range(100):
        assert engine.refused(Facts(1, "ecard", "330424", DAY - dt.timedelta(days=1 + day)))
    assert len(engine._known) <= 4096 and len(engine._by_day) <= 8


@given(st.integers(1, 5_000_000), st.integers(1, 100), st.integers(1, 5_000_000))
def test_a_discount_is_whole_fen_in_the_citizens_favour(amount: int, percent: int, fen: int) -> None:
    off = Discount(percent=percent).of(amount)
    assert 0 < off <= amount and off - 1 < amount * percent / 100 <= off
    assert Discount(fen=fen).of(amount) == min(fen, amount)
    assert Discount(free=True).of(amount) == Discount(percent=100).of(amount) == amount


def test_the_greatest_discount_goes_first_and_they_do_not_add_up() -> None:
    engine = SceneBenefits({
        "a.kind": benefit(), "a.five": benefit(discount=Discount(percent=5)),
        "a.fen": benefit(discount=Discount(fen=100), caps=Caps(day=1)), "a.same": benefit(discount=Discount(fen=100)),
    })  # fmt: skip
    entitled = engine.entitled(Facts(30, "ecard", "330424", DAY))
    assert engine.by_discount(entitled, 1000) == [(100, "a.fen"), (100, "a.same"), (50, "a.five")]
    assert engine.by_discount(entitled, 10_001)[0] == (501, "a.five")


def test_where_no_price_is_known_only_its_parts_count() -> None:
    engine = SceneBenefits({
        "a.kind": benefit(), "a.fen": benefit(discount=Discount(fen=9)),
        "a.five": benefit(discount=Discount(percent=5)),
        "a.free": benefit(discount=Discount(free=True), caps=Caps(day=1)), "a.more": benefit(caps=Caps(day=1)),
    })  # fmt: skip
    entitled = engine.entitled(Facts(30, "ecard", "330424", DAY))
    assert engine.by_percent(entitled) == [(100, "a.free"), (5, "a.five")]
    assert engine.in_kind(entitled) == ("a.kind", "a.more")


def test_what_a_claim_counts_against() -> None:
    engine = SceneBenefits({"a.b": benefit(caps=Caps(per=CapHolder.CARD, day=1, month=9, total_day=500))})
    assert [tuple(counter) for counter in engine.counters("a.b", DAY)] == [
        ("a.b", Span.DAY, DAY, CapHolder.CARD, 1), ("a.b", Span.MONTH, dt.date(2026, 11, 1), CapHolder.CARD, 9),
        ("a.b", Span.TOTAL, DAY, None, 500),
    ]  # fmt: skip


@given(st.integers(0, 7_000_000_000_000_000))
def test_a_day_is_one_of_china(unix_us: int) -> None:
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=unix_us)
    assert china_day(unix_us) == moment.astimezone(CHINA).date()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Discount(), "one of"), (lambda: Discount(percent=1, fen=1), "one of"),
        (lambda: Discount(free=False), "one of"), (lambda: Caps(), "one of"),
    ],
)  # fmt: skip
def test_a_discount_is_of_one_kind_and_caps_cap_something(make: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()


def test_mistakes_between_fields_and_blocks_are_named() -> None:
    rules = {
        "a.scene": benefit(scenes=("moon.entry",)), "a.twice": benefit(scenes=(SCENE, SCENE)),
        "a.age": benefit(age_from=70, age_to=60),
        "a.days": benefit(valid_from=DAY, valid_to=DAY - dt.timedelta(days=1)),
        "a.wrong": None, "a.good": benefit(age_from=60, age_to=60, valid_from=DAY, valid_to=DAY),
    }  # fmt: skip
    assert [mistake.split(": ")[0] for mistake in mistakes_of(rules, {SCENE})] == [
        "benefits.a.scene.scenes", "benefits.a.twice.scenes", "benefits.a.age.age_to", "benefits.a.days.valid_to",
    ]  # fmt: skip
    many: dict[str, Benefit | None] = {f"a.b{i}": benefit(caps=Caps(day=1)) for i in range(CAPPED_MAX + 2)}
    assert [mistake.split(": ")[0] for mistake in mistakes_of(many, {SCENE})] == [f"benefits.a.b{CAPPED_MAX}.caps"]


def test_the_sandbox_has_benefits_where_the_plan_wants_them() -> None:
    """plan.md 专栏8-01: parking, hotels, dining; domain.md §0: transit, sights and the library."""
    scenes = compile_scenes(load({}).benefits)
    assert {scene.split(".")[0] for scene in scenes} >= {"parking", "hotel", "dining", "transit", "scenic", "library"}
    local = Facts(35, "third_gen", "330424", DAY)
    assert scenes["parking.exit"].entitled(local) == Entitled(("parking.first_hour_free",), ())
    assert scenes["parking.exit"].refused(local) == {"parking.talent_free": Refusal.TALENT_UNKNOWN}
