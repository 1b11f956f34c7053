"""Days of a bank that was routed from one partner to another, or is not routed any more."""

import csv
import datetime as dt

import pytest

from gateway.domain.operations import CheckFile
from gateway.domain.reconciliation import Finding, Line
from gateway.flows.reconcile_bank import ReconcileBank, Report
from gateway.metrics import RECONCILED_DAY, RECONCILIATION
from gateway.store.payments import Payment
from tests.reconciliation_desk import NEW, Desk, at, day, whole
from tests.reconciliation_desk import at_bank as at_bank
from tests.reconciliation_desk import desk as desk
from tests.simulated_banks import JIAXING


class OneFile(ReconcileBank):
    """The planted bug, as it was: all of a day is compared with the file of today's partner."""

    async def ask(self, bank: str, day: dt.date) -> Report:
        return await self.run(bank, day, await self.fetch(self._settings.routes[bank], day))


class Unseen(ReconcileBank):
    """The planted bug, as it was: who cannot be asked today has no gauge."""

    async def _all_banks(self, today: dt.date) -> list[str]:
        return [bank for bank, name in self._settings.routes.items() if self._banks.can(name, CheckFile)]


async def routed_anew(desk: Desk) -> tuple[Payment, Payment]:
    """A payment of day 0 through the old partner, and one of that day and bank through the new one."""
    desk.through = JIAXING
    old = await desk.settled(at(0, 9))
    desk.routes, desk.through = {JIAXING: NEW}, NEW
    return old, await desk.settled(at(0, 15))


@pytest.mark.parametrize("kind", [ReconcileBank, OneFile], ids=["as it is", "control"])
async def test_each_partner_of_a_bank_that_was_routed_anew_is_compared(desk: Desk, kind: type[ReconcileBank]) -> None:
    old, new = await routed_anew(desk)
    await desk.settled(at(1), old)
    await desk.settled(at(1))
    first, second = [await desk.findings(day(number), kind) for number in range(2)]
    assert first[str(new.reference)] == "matched"
    expected = "matched" if kind is ReconcileBank else "missing_there"
    assert (first[str(old.reference)], second[str(old.reference)]) == (expected, expected)
    assert len(first) == len(second) == 2


async def test_a_line_of_the_wrong_partner_is_a_difference(desk: Desk) -> None:
    old, _ = await routed_anew(desk)
    desk.by_new.add(str(old.reference))
    with (await desk.flow().ask(JIAXING, day(0))).files[0].open(encoding="utf-8", newline="") as stream:
        found = [row["finding"] for row in csv.DictReader(stream) if row["reference"] == str(old.reference)]
    assert found == ["missing_here", "missing_there"]


@pytest.mark.parametrize("kind", [ReconcileBank, OneFile], ids=["as it is", "control"])
async def test_what_a_partner_without_a_file_has_done_is_said_not_to_be_compared(
    desk: Desk, kind: type[ReconcileBank]
) -> None:
    old, new = await routed_anew(desk)
    desk.fileless = {JIAXING}
    await desk.flow(kind).turn(at(1, 3))
    told = RECONCILIATION.labels(JIAXING, Finding.NOT_COMPARED)._value.get()
    assert (told, whole()) == (1 if kind is ReconcileBank else 0, day(0))
    found = await desk.findings(day(0), kind)
    assert found[str(new.reference)] == "matched"
    assert (found[str(old.reference)] == "not_compared") == (kind is ReconcileBank)
    by_hand = await desk.flow().run(
        JIAXING, day(0), [Line(str(each.reference), 100, "approved") for each in (old, new)]
    )
    assert by_hand.counts[Finding.MATCHED] == len(by_hand.compared) == 2


@pytest.mark.parametrize("fileless", [True, False], ids=["the old one has no file", "both have it"])
async def test_a_bank_that_gives_all_of_its_day_to_each_of_its_partners_is_compared_once(
    desk: Desk, fileless: bool
) -> None:
    """As under a block that was renamed."""
    both = await routed_anew(desk)
    desk.one_file, desk.fileless = True, {JIAXING} if fileless else set()
    report = await desk.flow().ask(JIAXING, day(0))
    found = sorted((each.reference, each.finding) for each in report.compared if each.reference in desk.begun)
    assert found == sorted((str(each.reference), Finding.MATCHED) for each in both)


@pytest.mark.parametrize("kind", [ReconcileBank, Unseen], ids=["as it is", "control"])
@pytest.mark.parametrize("routes", [{}, {JIAXING: NEW}], ids=["taken out", "no file"])
async def test_who_cannot_be_asked_has_its_gaps_told_of(
    desk: Desk, routes: dict[str, str], kind: type[ReconcileBank]
) -> None:
    await desk.settled(at(0))
    desk.routes, desk.fileless = routes, {NEW}
    RECONCILED_DAY.labels(JIAXING).set(0)  # a worker that was started since
    await desk.flow(kind).turn(at(5, 3))
    assert (desk.asked, desk.reports()) == ([], [])
    assert (whole() == day(-1)) == (kind is ReconcileBank)
    await desk.flow().run(JIAXING, day(0), [])
    await desk.flow().turn(at(5, 4))
    assert whole() == (day(0) if routes else day(4)), "who is not routed has nothing on a day without operations"


async def test_a_bank_that_was_taken_out_is_asked_for_what_was_made_before(desk: Desk) -> None:
    desk.through = JIAXING
    await desk.settled(at(0))
    desk.routes = {}
    await desk.flow().turn(at(5, 3))
    assert (desk.asked, desk.reports(), whole()) == ([day(0)], [day(0)], day(4))
