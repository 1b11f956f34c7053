"""Our payments of a day beside the bank's lines: what fits, and what does not. Nothing is corrected here or after.

An operation is of the day in its reference, which is the one that the bank is told. So is a caller's reversal: of a
payment of another day it is a line `reversed` of its own day, under the payment's reference.
"""

import datetime as dt
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import NamedTuple


class Finding(StrEnum):
    MATCHED = "matched"
    MISSING_HERE = "missing_here"
    """The bank has a line that is no payment of ours."""
    MISSING_THERE = "missing_there"
    """We say approved, or do not know yet, and the bank has no line."""
    DIFFERENT_AMOUNT = "different_amount"
    DIFFERENT_STATE = "different_state"
    TWICE_THERE = "twice_there"
    """The bank has more than one line of a reference."""
    NOT_COMPARED = "not_compared"
    """We have it, made through a partner that has no check file, and no other file of that bank has it."""


class Line(NamedTuple):
    """`state` in our callers' words: approved, declined, reversed, pending, not_sent; of the bank the first four.

    Ours has two more, see state_on().
    """

    reference: str
    amount_fen: int
    state: str


class Compared(NamedTuple):
    finding: Finding
    reference: str
    our_amount_fen: int | None = None
    our_state: str = ""
    their_amount_fen: int | None = None
    their_state: str = ""


_FITS: Mapping[str, frozenset[str]] = {
    "approved": frozenset({"approved"}),
    "reversed": frozenset({"reversed", "declined", ""}),  # it may never have come to them
    "reversed_later": frozenset({"approved", "reversed"}),  # some files say how it was, some how it is
    "reversal": frozenset({"reversed"}),  # they had approved it: without a line they still have the money
    "declined": frozenset({"declined", ""}),
    "not_sent": frozenset({""}),
    "pending": frozenset(),
}
"""Our state, and theirs that fit; empty: no line."""


def state_on(
    day: tuple[dt.datetime, dt.datetime], state: str, created_at: dt.datetime, reversed_at: dt.datetime | None
) -> str:
    """A payment's state as that of a day (from, until). `reversed_at`: when an approved one's reversal was asked for.

    `reversed_later`: approved then, and reversed on a later day. `reversal`: approved on another day, reversed on this.
    """
    since, until = day
    if reversed_at is None:
        return state
    if reversed_at >= until:
        return "reversed_later"
    return "reversal" if created_at < since <= reversed_at else state


def compare(ours: Iterable[Line], theirs: Iterable[Line]) -> list[Compared]:
    """Every line of either side in exactly one finding, in the order of the references."""
    here = {line.reference: line for line in ours}
    there: dict[str, Line] = {}
    found: list[Compared] = []
    for line in theirs:
        if line.reference in there:
            found.append(_compared(Finding.TWICE_THERE, here.get(line.reference), line))
        else:
            there[line.reference] = line
    for reference in here.keys() | there.keys():
        our, their = here.get(reference), there.get(reference)
        found.append(_compared(_finding(our, their), our, their))
    return sorted(found, key=lambda each: (each.reference, each.finding))


def file_of_each(files: Mapping[str, Iterable[Line]], ours: Mapping[str, str | None]) -> dict[str, str]:
    """Which partner's file has the lines of a reference: that of the partner it was made through (`ours`, by reference)
    if it has any, else the first that has. A bank may give all of its day to each that it is asked as."""
    found: dict[str, str] = {}
    for name, lines in files.items():
        for line in lines:
            if line.reference not in found or ours.get(line.reference) == name:
                found[line.reference] = name
    return found


def not_compared(ours: Iterable[Line]) -> list[Compared]:
    """Lines that nobody has a file for: not matched, since nobody knows."""
    return [_compared(Finding.NOT_COMPARED, line, None) for line in ours]


def _finding(our: Line | None, their: Line | None) -> Finding:
    if our is None:
        return Finding.MISSING_HERE
    if their is None:
        return Finding.MATCHED if "" in _FITS[our.state] else Finding.MISSING_THERE
    if our.amount_fen != their.amount_fen:
        return Finding.DIFFERENT_AMOUNT
    return Finding.MATCHED if their.state in _FITS[our.state] else Finding.DIFFERENT_STATE


def _compared(finding: Finding, our: Line | None, their: Line | None) -> Compared:
    line = our or their
    assert line is not None
    return Compared(
        finding, line.reference, our and our.amount_fen, our.state if our else "", their and their.amount_fen,
        their.state if their else "",
    )  # fmt: skip


def count(compared: Iterable[Compared]) -> dict[Finding, int]:
    """How many of each finding; those that do not occur are 0."""
    counts = dict.fromkeys(Finding, 0)
    for each in compared:
        counts[each.finding] += 1
    return counts
