"""Days beside the check files of a simulated bank: reversals on later days, and days whose file comes late."""

import datetime as dt
import json
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.domain.operations import Purchase, Reverse
from gateway.domain.outcome import Approved, Unknown
from gateway.domain.payments import PaymentKind, PaymentState
from gateway.domain.reconciliation import Finding, Line
from gateway.flows.reconcile_bank import ReconcileBank
from gateway.metrics import RECONCILIATION
from tests.reconciliation_desk import Desk, at, day, whole
from tests.reconciliation_desk import at_bank as at_bank
from tests.reconciliation_desk import desk as desk
from tests.simulated_banks import JIAXING

_K, _S = PaymentKind, PaymentState


class Deaf(ReconcileBank):
    """The planted bug, as it was: of another day's payments only those are looked at that the bank has in this one."""

    async def _ours(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> list[tuple[str | None, Line]]:
        named = {line.reference for line in theirs}
        ours = await super()._ours(bank, day, theirs)
        return [each for each in ours if each[1].state != "reversal" or each[1].reference in named]


class Strict(ReconcileBank):
    """The planted bug: what is reversed is always a line of the bank's."""

    async def _ours(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> list[tuple[str | None, Line]]:
        return [
            (partner, line._replace(state="reversal") if line.state.startswith("reversed") else line)
            for partner, line in await super()._ours(bank, day, theirs)
        ]


class Forgetful(ReconcileBank):
    """The planted bug, as it was: a day is asked for on the next one only."""

    async def _missing(self, bank: str, today: dt.date) -> list[dt.date]:
        return [day for day in await super()._missing(bank, today) if day == today - dt.timedelta(days=1)]


class Trusting(ReconcileBank):
    """The planted bug, as it was: whatever is called like a report is a whole one of this version."""

    def _reports(self, bank: str) -> dict[dt.date, Path]:
        files = (self._data_dir / "reconciliation").glob(f"{bank}-[0-9][0-9][0-9][0-9]-[01][0-9]-[0-3][0-9].json")
        return {dt.date.fromisoformat(file.stem.removeprefix(f"{bank}-")): file for file in files}

    def _counts(self, bank: str, since: float) -> Counter[str]:
        counts: Counter[str] = Counter()
        for file in self._reports(bank).values():
            counts.update({Finding(name): number for name, number in json.loads(file.read_bytes())["counts"].items()})
        return counts


@pytest.mark.parametrize("kind", [ReconcileBank, Deaf], ids=["as it is", "control"])
async def test_a_reversal_that_the_bank_did_not_do_is_found_on_its_day(desk: Desk, kind: type[ReconcileBank]) -> None:
    done, not_done = [await desk.settled(at(0)) for _ in range(2)]
    assert (await desk.settled(at(1), done)).state is _S.REVERSED
    desk.lies = {Reverse: Approved()}
    assert (await desk.settled(at(1), not_done)).state is (await desk.now(not_done)).state is _S.REVERSED
    first, second, third = [await desk.findings(day(number), kind) for number in range(3)]
    assert {first[str(each.reference)] for each in (done, not_done)} == {"matched"}, "it was approved on that day"
    assert second[str(done.reference)] == "matched"
    assert second.get(str(not_done.reference)) == ("missing_there" if kind is ReconcileBank else None)
    assert not third.keys() & {str(done.reference), str(not_done.reference)}


@pytest.mark.parametrize("kind", [ReconcileBank, Strict], ids=["as it is", "control"])
async def test_other_reversals_are_no_difference(desk: Desk, kind: type[ReconcileBank]) -> None:
    """Nor are they one in the file of a bank that tells of a payment's day how it stands now."""
    of_the_day, later = [await desk.settled(at(-11)) for _ in range(2)]
    await desk.settled(at(-11, 13), of_the_day)
    await desk.settled(at(-10), later)
    await desk.begin(at(-9), later, _S.REVERSED)  # it was so already
    arrived, never_arrived, unwanted = [await desk.begin(at(-11)) for _ in range(3)]
    desk.loses = {Purchase}
    assert (await desk.settle.first(arrived)).status == 202
    for lost in (never_arrived, unwanted):
        await desk.move(lost, _S.INTENT, _S.UNKNOWN)
    for unknown in (arrived, never_arrived):
        await desk.settle.again(await desk.now(unknown))
    await desk.move(unwanted, _S.UNKNOWN, _S.REVERSING)
    await desk.settled(at(-10), unwanted)  # its merchant's wish, on the next day
    everything = [of_the_day, later, arrived, never_arrived, unwanted]
    assert {(await desk.now(payment)).state for payment in everything} == {_S.REVERSED}
    found = [set((await desk.findings(day(number), kind)).values()) for number in (-11, -10, -9)]
    assert (found == [{"matched"}] * 3) == (kind is ReconcileBank), found
    as_it_is_now = [Line(str(payment.reference), 100, "reversed") for payment in (of_the_day, later, arrived)]
    report = await desk.flow().run(JIAXING, day(-11), as_it_is_now)
    assert report.counts[Finding.MATCHED] == len(report.compared) == len(everything)


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_reversal_that_is_open_when_its_day_is_compared_is_a_difference(desk: Desk, arrives: bool) -> None:
    """It will not be looked at on any other day."""
    early, late = await desk.settled(at(20)), await desk.settled(at(21))
    desk.loses, desk.lies = ({Reverse}, {}) if arrives else (set(), {Reverse: Unknown("silent")})
    for payment in (early, late):
        assert (await desk.settled(at(21, 23), payment)).state is _S.UNKNOWN
    found = await desk.findings(day(21))
    assert found[str(late.reference)] == "different_state"
    assert found[str(early.reference)] == ("different_state" if arrives else "missing_there")
    assert (await desk.findings(day(20)))[str(early.reference)] == "matched"


@pytest.mark.parametrize("kind", [ReconcileBank, Forgetful], ids=["as it is", "control"])
async def test_files_that_come_after_a_weekend_are_all_compared(desk: Desk, kind: type[ReconcileBank]) -> None:
    desk.lies = {Purchase: Approved()}
    await desk.settled(at(0))
    flow, seen = desk.flow(kind), []
    desk.closed = [day(0), day(1), day(2)]
    for number in (1, 2, 3):
        await flow.turn(at(number, 3))
        seen.append(whole())
    desk.closed, desk.asked = (), []
    flow = desk.flow(kind)  # of a worker that was started meanwhile
    await flow.turn(at(3, 4))
    seen.append(whole())
    if kind is Forgetful:
        assert desk.reports() == [day(2)] and seen[-1] == day(2), "and nobody hears of the others"
        return
    assert desk.asked == desk.reports() == [day(0), day(1), day(2)]
    assert seen == [day(-1)] * 3 + [day(2)]
    # the report of an older day is seen, though those after it are clean
    assert RECONCILIATION.labels(JIAXING, Finding.MISSING_THERE)._value.get() == 1
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in desk.folder.rglob("*.*")}
    await flow.turn(at(3, 5))
    assert len(desk.asked) == 3, "what there is a report of is not asked for again"
    await desk.findings(day(0))
    assert {file: content for file, (content, _) in before.items()} == {file: file.read_bytes() for file in before}


async def test_a_bank_that_was_connected_today_has_no_gap_before(desk: Desk) -> None:
    flow = desk.flow()
    desk.closed = [day(0)]
    await flow.turn(at(1, 3))
    assert (desk.asked, whole()) == ([day(0)], day(-1))
    await desk.settled(at(1))
    await flow.turn(at(2, 0))
    assert len(desk.asked) == 1, "the first hour is left to the bank"
    await flow.turn(at(2, 1))
    assert (desk.asked[1:], desk.reports(), whole()) == ([day(1)], [day(1)], day(1))


async def test_a_file_that_never_comes_keeps_no_other_back_and_is_told_of_until_its_gap_is_closed(
    desk: Desk,
) -> None:
    await desk.settled(at(0))
    desk.closed = [day(0)]
    for number in range(1, 5):
        await desk.flow().turn(at(number, 3))
    assert (desk.reports(), whole()) == ([day(1), day(2), day(3)], day(-1))
    desk.asked = []
    for number in range(5, 31):
        await desk.flow().turn(at(number, 3))
    assert desk.asked.count(day(0)) == 10, "up to fourteen days after it"
    assert (desk.reports(), whole()) == ([day(number) for number in range(1, 30)], day(-1))
    await desk.flow().run(JIAXING, day(0), [])
    await desk.flow().turn(at(30, 4))
    assert whole() == day(29)


async def test_a_turn_asks_for_a_few_days_the_oldest_of_those_that_were_asked_for_least(desk: Desk) -> None:
    await desk.settled(at(0))
    desk.closed = [day(number) for number in range(20)]
    flow = desk.flow()
    for _ in range(3):
        await flow.turn(at(12, 3))
    asked = [day(number) for number in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2)]
    assert desk.asked == [*asked[:10], day(10), day(11), *asked[12:]]
    await flow.turn(at(13, 3))
    assert day(12) in desk.asked[15:], "the newest waits for no older one"


ODD = {
    f"{JIAXING}-2026-02-30.json": b"{}",
    f"{JIAXING}-{day(-2)}.json": b'{"counts": {"matched": 1, "missing_there',
    f"{JIAXING}-{day(-3)}.json": b'{"counts": {"missing_there": 2, "of_another_version": 1}}',
    f"{JIAXING}-{day(-4)}.json": b'{"counts": {"\xff": 1}}',
    f"{JIAXING}-{day(-5)}.json": None, f"{JIAXING}-{day(-7)}.json": b'{"x":' + b"[" * 100_000,
    f"{JIAXING}-old.json": b"", f"{JIAXING}-{day(-6)}.json.new": b"",
}  # fmt: skip
"""Names and contents in the folder of the reports; None: a folder."""


def lay(folder: Path, names: Collection[str]) -> None:
    (folder / "reconciliation").mkdir(parents=True)
    for name in names:
        content, file = ODD[name], folder / "reconciliation" / name
        file.mkdir() if content is None else file.write_bytes(content)


async def test_what_is_no_whole_report_is_passed_over_and_told_of_once(desk: Desk) -> None:
    lay(desk.folder, ODD)
    with capture_logs() as lines:
        await desk.flow().turn(at(1, 3))
    assert desk.asked == [day(0)] and (desk.folder / "reconciliation" / f"{JIAXING}-{day(0)}.json").is_file()
    assert RECONCILIATION.labels(JIAXING, Finding.MISSING_THERE)._value.get() == 2, "of the one that can be read"
    told = [line for line in lines if line["event"] == "reports not read"]
    assert [line["errors"] for line in told] == [
        ["DecodeError", "IsADirectoryError", "RecursionError", "UnicodeDecodeError"]
    ]


@pytest.mark.parametrize("name", list(ODD)[:4])
async def test_one_odd_report_ended_the_worker(desk: Desk, name: str) -> None:
    """The control."""
    lay(desk.folder, [name])
    with pytest.raises(ValueError):  # which housekeeping's every() lets through
        await desk.flow(Trusting).turn(at(1, 3))


@pytest.mark.parametrize("is_whole", [True, False], ids=["the folder", "one day"])
async def test_what_cannot_be_written_leaves_a_gap_and_the_other_days(desk: Desk, is_whole: bool) -> None:
    await desk.settled(at(0))
    taken = desk.folder / "reconciliation"
    if is_whole:
        desk.folder.mkdir()
        taken.write_bytes(b"no folder")
    else:
        (taken / f"{JIAXING}-{day(0)}.csv").mkdir(parents=True)
    with capture_logs() as lines:
        await desk.flow().turn(at(2, 3))
    assert desk.asked == [day(0), day(1)] and whole() == day(-1)
    assert [path.name for path in taken.glob("*.json")] == ([] if is_whole else [f"{JIAXING}-{day(1)}.json"])
    assert {"not reconciled"} <= {line["event"] for line in lines}
    assert ("reports not read" in {line["event"] for line in lines}) == is_whole
