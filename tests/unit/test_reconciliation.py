"""A day of ours beside the bank's: every line is in one finding, and planted differences are found."""

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.reconciliation import Finding, Line, compare, count, file_of_each, state_on
from gateway.domain.times import CHINA

REFERENCES = [f"r{number}" for number in range(8)]
OURS = ["approved", "declined", "reversed", "pending", "not_sent", "reversed_later", "reversal"]
THEIRS = ["approved", "declined", "reversed", "pending"]


def lines(states: list[str]) -> st.SearchStrategy[list[Line]]:
    line = st.builds(Line, st.sampled_from(REFERENCES), st.integers(1, 3), st.sampled_from(states))
    return st.lists(line, max_size=12)


@given(lines(OURS), lines(THEIRS))
def test_every_line_is_in_one_finding(ours: list[Line], theirs: list[Line]) -> None:
    ours = list({line.reference: line for line in ours}.values())
    found = compare(ours, theirs)
    assert sum(count(found).values()) == len(found)
    single = [each.reference for each in found if each.finding is not Finding.TWICE_THERE]
    assert sorted(single) == sorted({line.reference for line in [*ours, *theirs]})
    assert len(found) - len(single) == len(theirs) - len({line.reference for line in theirs})


@given(lines(["approved", "reversed", "declined"]))
def test_the_same_day_on_both_sides_matches(day: list[Line]) -> None:
    day = list({line.reference: line for line in day}.values())
    assert {each.finding for each in compare(day, day)} <= {Finding.MATCHED}


def test_a_reference_is_looked_for_in_one_file() -> None:
    files = {
        "a": [Line("both", 1, "approved"), Line("strange", 1, "approved")],
        "b": [Line(name, 1, "approved") for name in ("both", "strange", "of-c", "wrong")],
    }
    ours = {"both": "b", "of-c": "c", "wrong": "a", "nowhere": "a"}
    assert file_of_each(files, ours) == {"both": "b", "strange": "a", "of-c": "b", "wrong": "b"}


def test_each_planted_difference_is_found() -> None:
    ours = [
        Line("fits", 1, "approved"), Line("ours-alone", 1, "approved"), Line("declined", 1, "declined"),
        Line("amount", 1, "approved"), Line("charged-though-reversed", 1, "reversed"), Line("open", 1, "pending"),
        Line("never-arrived", 1, "reversed"), Line("twice", 1, "approved"),
        Line("later", 1, "reversed_later"), Line("later-still", 1, "reversed_later"), Line("lost", 1, "reversed_later"),
        Line("given-back", 1, "reversal"), Line("kept", 1, "reversal"), Line("refused", 1, "reversal"),
    ]  # fmt: skip
    theirs = [
        Line("fits", 1, "approved"), Line("theirs-alone", 1, "approved"), Line("amount", 2, "approved"),
        Line("charged-though-reversed", 1, "approved"), Line("twice", 1, "approved"), Line("twice", 1, "approved"),
        Line("later", 1, "approved"), Line("later-still", 1, "reversed"), Line("given-back", 1, "reversed"),
        Line("refused", 1, "declined"),
    ]  # fmt: skip
    found = {(each.reference, each.finding.value) for each in compare(ours, theirs)}
    assert found == {
        ("fits", "matched"), ("ours-alone", "missing_there"), ("declined", "matched"), ("amount", "different_amount"),
        ("charged-though-reversed", "different_state"), ("open", "missing_there"), ("never-arrived", "matched"),
        ("theirs-alone", "missing_here"), ("twice", "matched"), ("twice", "twice_there"),
        ("later", "matched"), ("later-still", "matched"), ("lost", "missing_there"),
        ("given-back", "matched"), ("kept", "missing_there"), ("refused", "different_state"),
    }  # fmt: skip


def test_a_reversal_is_of_the_day_on_which_it_was_asked_for() -> None:
    midnight = dt.datetime(2026, 11, 23, tzinfo=CHINA)
    day, hour = dt.timedelta(days=1), dt.timedelta(hours=1)
    span = (midnight, midnight + day)

    def of(created: dt.timedelta, reversed_after: dt.timedelta | None) -> str:
        at = midnight + created
        return state_on(span, "reversed", at, None if reversed_after is None else at + reversed_after)

    assert of(hour, None) == "reversed", "never approved"
    assert of(hour, hour) == of(day - 2 * hour, hour) == "reversed"
    assert of(day - hour, hour) == of(hour, 5 * day) == "reversed_later"
    assert of(-hour, hour) == of(-5 * day, 5 * day + hour) == "reversal"
    assert of(-hour, 5 * day) == "reversed_later"
    assert of(-day, hour) == "reversed", "on neither day"
    assert state_on(span, "approved", midnight, None) == "approved"
