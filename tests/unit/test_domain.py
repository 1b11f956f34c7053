"""The pure rules."""

import datetime as dt
import itertools
import json
import re
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.callers import CallerKind
from gateway.domain.cards import (
    CARD_IDENTIFIER_PATTERN,
    CARD_KEY_PATTERN,
    CARD_NUMBER_PATTERN,
    STATUS_REASON,
    CardStatus,
    Medium,
    tell_apart,
)
from gateway.domain.errors import PROBLEMS, Problem, overloaded, unavailable
from gateway.domain.ids import id_number_check, is_id_number, uuid7, uuid7_unix_ms
from gateway.domain.masking import Secret, age_band, age_on, mask_name
from gateway.domain.presentations import CardRef, ChipCard, EcardCode, Presentation, TransitQr
from gateway.domain.scenes import Scene
from gateway.domain.verdicts import VERDICT_OF, Reason, Verdict
from gateway.store.payments import created_at
from tests.running import ROOT

TODAY = dt.date(2026, 11, 23)
NUMBERS = st.from_regex(f"(?:{CARD_NUMBER_PATTERN})", fullmatch=True)
IDENTIFIERS = st.from_regex(f"(?:{CARD_IDENTIFIER_PATTERN})", fullmatch=True)
DAYS = st.dates(dt.date(1900, 1, 1), TODAY)


@given(NUMBERS, IDENTIFIERS)
def test_a_pair_is_told_apart_in_either_order(number: str, identifier: str) -> None:
    assert tell_apart(number, identifier) == tell_apart(identifier, number) == (number, identifier.upper())


@given(st.one_of(st.tuples(NUMBERS, NUMBERS), st.tuples(IDENTIFIERS, IDENTIFIERS)))
def test_two_of_one_shape_are_not_told_apart(pair: tuple[str, str]) -> None:
    assert tell_apart(*pair) is None


@given(st.one_of(NUMBERS, IDENTIFIERS, st.text(max_size=40)))
def test_what_may_be_a_card_key_is_exactly_the_two_shapes(text: str) -> None:
    shapes = [pattern for pattern in (CARD_NUMBER_PATTERN, CARD_IDENTIFIER_PATTERN) if re.fullmatch(pattern, text)]
    assert (re.search(CARD_KEY_PATTERN, text) is not None) == bool(shapes)


@pytest.mark.parametrize(
    "text", ["AB1234567\n", "A" * 32 + "\n", "\nAB1234567", "AB1234567 ", "", "ab1234567", "AB12345678"]
)
def test_nothing_but_the_two_shapes_is_a_card_key(text: str) -> None:
    assert re.search(CARD_KEY_PATTERN, text) is None


def with_check(first17: str) -> str:
    return first17 + id_number_check(first17)


GOOD_IDS = {
    "one": "330424190001010016", "two": "330424194912310026", "the classic": "11010519491231002X",
    "a resident of 香港": with_check("81000019900101000"), "born today": with_check(f"330424{TODAY:%Y%m%d}001"),
}  # fmt: skip
BAD_IDS = {
    "29 February 1900": "330424190002290005", "one digit off": "330424190001010017", "small x": "11010519491231002x",
    "month 13": "330424194913310026", "day 0": "330424194912000026", "too short": "33042419000101001",
    "too long": "3304241900010100160",
    "born tomorrow": with_check(f"330424{TODAY + dt.timedelta(days=1):%Y%m%d}001"),
    "a letter inside": "3304241900O1010016",
    "full-width digits": "３３０４２４１９０００１０１００１６", "empty": "", "a line break": "330424190001010016\n",
    "X in the middle": "3304241900X1010016", "year 0": "330424000001010016",
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD_IDS.values(), ids=GOOD_IDS)
def test_good_id_numbers(text: str) -> None:
    """The first three are the vectors of domain.md §5."""
    assert is_id_number(text, TODAY)


@pytest.mark.parametrize("text", BAD_IDS.values(), ids=BAD_IDS)
def test_bad_id_numbers(text: str) -> None:
    assert not is_id_number(text, TODAY)


@given(st.from_regex("[1-8][0-9]{5}", fullmatch=True), DAYS, st.integers(0, 999))
def test_every_single_digit_error_is_found(place: str, born: dt.date, number: int) -> None:
    first17 = f"{place}{born:%Y%m%d}{number:03}"
    whole = first17 + id_number_check(first17)
    assert is_id_number(whole, TODAY)
    for position, digit in itertools.product(range(17), "0123456789"):
        if whole[position] != digit:
            assert not is_id_number(whole[:position] + digit + whole[position + 1 :], TODAY)


@given(st.integers(0, 253_370_764_800_000), st.binary(min_size=10, max_size=10))
def test_a_uuid7_is_one_and_keeps_its_time(unix_ms: int, chance: bytes) -> None:
    value = UUID(bytes=uuid7(unix_ms, chance))
    assert (value.version, value.variant) == (7, "specified in RFC 4122")
    assert uuid7_unix_ms(value) == unix_ms


def test_the_example_of_rfc_9562() -> None:
    """Appendix A.6: 017F22E2-79B0-7CC3-98C4-DC0C0C07398F."""
    rand_a, rand_b = 0xCC3, 0x18C4DC0C0C07398F
    chance = (rand_a << 68 | rand_b).to_bytes(10, "big")
    assert str(UUID(bytes=uuid7(0x017F22E279B0, chance))) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.lists(st.binary(min_size=10, max_size=10), min_size=2, unique=True), st.integers(0, 1 << 40))
def test_later_uuid7s_sort_later(chances: list[bytes], unix_ms: int) -> None:
    values = [uuid7(unix_ms + number, chance) for number, chance in enumerate(chances)]
    assert values == sorted(values) and len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("name", "masked"),
    [
        ("张三", "*三"), ("王小明", "**明"), ("欧阳小明", "**小明"), ("买买提·吐尔逊", "*****尔逊"), ("张", "*"),
        ("", "*"), ("㐀𠀀", "*𠀀"),
    ],
)  # fmt: skip
def test_names_are_masked(name: str, masked: str) -> None:
    assert mask_name(name) == masked


@given(st.text(min_size=1, max_size=30))
def test_the_surname_is_never_shown(name: str) -> None:
    masked, length = mask_name(name), len(name)
    assert masked in {"*" * (length - shown) + name[length - shown :] for shown in (0, 1, 2) if shown < length}


@pytest.mark.parametrize(
    ("birth", "today", "age"),
    [
        ("1960-11-23", "2026-11-22", 65), ("1960-11-23", "2026-11-23", 66), ("2004-02-29", "2025-02-28", 20),
        ("2004-02-29", "2025-03-01", 21), ("2004-02-29", "2028-02-29", 24), ("2026-11-23", "2026-11-23", 0),
    ],
)  # fmt: skip
def test_a_person_is_a_year_older_on_the_birthday(birth: str, today: str, age: int) -> None:
    assert age_on(dt.date.fromisoformat(birth), dt.date.fromisoformat(today)) == age


@pytest.mark.parametrize(
    ("age", "band"),
    [(0, "0-9"), (9, "0-9"), (10, "10-19"), (59, "50-59"), (60, "60-69"), (69, "60-69"), (70, "70-79"), (89, "80-89"),
     (90, "90+"), (120, "90+")],
)  # fmt: skip
def test_age_bands(age: int, band: str) -> None:
    assert age_band(age) == band


def test_a_birth_date_in_the_future_is_no_failure() -> None:
    assert age_band(age_on(TODAY + dt.timedelta(days=400), TODAY)) == "0-9"


@given(DAYS, DAYS)
def test_the_band_holds_the_age(one: dt.date, other: dt.date) -> None:
    birth, today = sorted((one, other))
    age = age_on(birth, today)
    low, _, high = age_band(age).replace("+", "-999").partition("-")
    assert int(low) <= age <= int(high)


@given(st.text(min_size=3).filter(lambda text: text not in "Secret(***)"))
def test_a_secret_does_not_show_itself(text: str) -> None:
    secret = Secret(text)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret:>30}", f"{[secret]}", "%s" % secret]  # noqa: UP031
    assert not any(text in each for each in shown) and secret.reveal() == text


def test_a_secret_is_not_json() -> None:
    for encode in (json.dumps, msgspec.json.encode):
        with pytest.raises(TypeError):
            encode(Secret("x"))


VERDICTS = {
    Verdict.VALID: {"ok"},
    Verdict.REFUSED: {
        "unrecognised", "not_activated", "locked", "lost_temporary", "lost_formal", "void", "cancelled", "expired",
        "proof_failed", "code_expired", "code_replayed", "code_invalid", "scene_not_allowed",
    },
    Verdict.UNKNOWN: {"status_stale", "platform_unavailable"},
}  # fmt: skip


def test_every_reason_has_the_verdict_of_the_contract() -> None:
    """api.md's table, written down again."""
    assert {reason: verdict for verdict, reasons in VERDICTS.items() for reason in reasons} == VERDICT_OF
    assert set(VERDICT_OF) == set(Reason)


def test_every_card_status_has_a_reason_and_only_the_normal_one_is_ok() -> None:
    assert set(STATUS_REASON) == set(CardStatus)
    assert [status for status, reason in STATUS_REASON.items() if reason is Reason.OK] == [CardStatus.NORMAL]
    assert len(set(STATUS_REASON.values())) == len(CardStatus)


@pytest.mark.parametrize(
    ("media", "bits"),
    [
        (tuple(Medium), 0b1110),
        ((Medium.SECOND_GEN,), 0b0100),
        ((Medium.THIRD_GEN,), 0b1000),
        ((Medium.ECARD,), 0b0010),
        ((), 0),
    ],
)
def test_a_scene_takes_its_media_from_its_kinds_of_caller(media: tuple[Medium, ...], bits: int) -> None:
    scene = Scene("x", "y", (CallerKind.KIOSK,), media)
    taken = {kind: scene.media_bits(kind) for kind in CallerKind}
    assert taken.pop(CallerKind.KIOSK) == bits and set(taken.values()) == {0}
    assert set(Scene("x", "y", ()).media) == set(Medium), "all of them unless it says otherwise"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"type": "chip_card", "card_number": "AB1234567", "card_identifier": "0" * 32}, ChipCard),
        ({"type": "ecard_code", "code": "1" * 20}, EcardCode), ({"type": "transit_qr", "qr": "gQEC"}, TransitQr),
        ({"type": "card_ref", "card_ref": "k" + "0" * 32}, CardRef),
    ],
)  # fmt: skip
def test_a_presentation_is_what_its_type_says(body: dict[str, str], kind: type) -> None:
    assert type(msgspec.convert(body, Presentation)) is kind


def test_every_problem_has_a_status_and_a_title_and_is_raised_somewhere() -> None:
    raised = "".join(path.read_text() for path in (ROOT / "gateway").rglob("*.py"))
    for code, (status, title) in PROBLEMS.items():
        assert 400 <= status <= 503 and title
        assert raised.count(f'"{code}"') > 1, f"{code} is never used"
    assert {overloaded("x").status, unavailable("x").status} == {503}


def test_a_problem_of_no_known_code_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        Problem("no_such_code")


def test_a_time_beyond_the_calendar_is_its_last_year() -> None:
    """A caller may have made the reference up."""
    latest = uuid7_unix_ms(UUID("ffffffff-ffff-7fff-8fff-ffffffffffff"))
    assert dt.datetime.fromtimestamp(latest / 1000, dt.UTC).year == 9999
    assert created_at(UUID("ffffffff-ffff-7fff-8fff-ffffffffffff")).year == 9999
