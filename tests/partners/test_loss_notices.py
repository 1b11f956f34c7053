"""The bank's half of a loss report, against the real open bank: gateway, its worker, bank and database on sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.sandbox.peers.open_bank_host import OpenBank, _reference
from gateway.sandbox.peers.open_bank_ledger import REUSED, Refused
from gateway.store.embedded import EmbeddedPostgres
from tests.api.test_evidence import show
from tests.api.test_payment_operators import command
from tests.losses import ENDS_S, PATH, Desk, body_of, desk_at, new_account
from tests.running import eventually, labelled


@pytest.fixture(scope="module")
async def desk(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    async with desk_at(tmp_path_factory.mktemp("desk"), postgres, "looks_often", stuck_after_s=1) as made:
        yield made


@pytest.fixture(autouse=True)
async def healed(desk: Desk) -> AsyncIterator[None]:
    await desk.breaker_is_closed()
    yield
    await desk.bank.heal()


async def reason(desk: Desk, number: str, identifier: str) -> str:
    return str((await desk.kiosk.verify(number, identifier, "kiosk.service"))["reason"])


@pytest.mark.parametrize(("kind", "verb"), [("temporary", "2"), ("formal", "3")])
async def test_the_bank_is_told_of_a_loss_and_of_its_release(desk: Desk, kind: str, verb: str) -> None:
    card = await desk.card()
    status, raw, _ = await desk.kiosk.effect(PATH, body_of(card, kind), key=f"told-{kind}")
    report = json.loads(raw)
    assert status == 200 and report == {
        "reference": report["reference"],
        "social_security": {"status": "accepted", "card_status": f"lost_{kind}"},
        "bank": {"status": "accepted"},
    }
    status, again, headers = await desk.kiosk.effect(PATH, body_of(card, kind), key=f"told-{kind}")
    assert (status, again, headers["Idempotency-Replayed"]) == (200, raw, "true")
    release = await desk.kiosk.release_loss(report["reference"])
    assert release["social_security"] == {"status": "released", "card_status": "normal"}
    assert release["bank"] == {"status": "accepted"}
    assert await desk.told(report["reference"], release["reference"]) == [verb, "4"]
    for answer in (report, release):
        shown = await desk.operation(answer["reference"])
        assert shown["status"] == "released"
        assert answer["social_security"]["status"] == shown["history"][0]["status"]
        assert [step["status"] for step in shown["bank"].pop("history")] == ["intent", "accepted"]
        assert shown["bank"] == answer["bank"]


async def test_a_temporary_report_does_not_weaken_a_formal_loss_at_the_bank(desk: Desk) -> None:
    card = await desk.card()
    references = [(await desk.kiosk.report_loss(card, kind))["reference"] for kind in ("formal", "temporary")]
    assert await desk.told(*references) == ["3", "3"]


async def test_an_account_stays_frozen_while_a_loss_stands(desk: Desk) -> None:
    card = await desk.card()
    first, raised = [(await desk.kiosk.report_loss(card, kind))["reference"] for kind in ("temporary", "formal")]
    lowered = await desk.kiosk.release_loss(raised)
    assert lowered["social_security"] == {"status": "released", "card_status": "lost_temporary"}
    assert lowered["bank"] == {"status": "refused", "reason": "other_report"}
    released = await desk.kiosk.release_loss(first)
    assert released["social_security"] == {"status": "released", "card_status": "normal"}
    assert released["bank"] == {"status": "accepted"}
    assert await desk.told(first, raised, lowered["reference"], released["reference"]) == ["2", "3", "4"]
    assert await desk.shown(lowered) == lowered["bank"] and await desk.steps(lowered["reference"]) == ["refused"]


async def test_two_releases_at_once_say_later_what_they_said_at_once(desk: Desk) -> None:
    for _ in range(10):
        card = await desk.card()
        reports = [(await desk.kiosk.report_loss(card, kind))["reference"] for kind in ("temporary", "formal")]
        released = await asyncio.gather(*(desk.kiosk.release_loss(report) for report in reversed(reports)))
        assert [await desk.shown(each) for each in released] == [each["bank"] for each in released]


async def test_what_the_bank_has_freed_is_not_freed_again(desk: Desk) -> None:
    """The holder may have had the account frozen there since, for a reason of their own."""
    card = await desk.card()
    lost, theirs = await desk.kiosk.report_loss(card), await desk.kiosk.report_loss(card)
    found = await desk.kiosk.release_loss(lost["reference"])
    repeated = [await desk.kiosk.release_loss(report["reference"]) for report in (lost, theirs, lost)]
    for again in repeated:
        assert again["social_security"] == {"status": "released", "card_status": "normal"}
        assert again["bank"] == {"status": "accepted"} == await desk.shown(again)
    lost_again = await desk.kiosk.report_loss(card, "formal")
    late = await desk.kiosk.release_loss(lost["reference"])
    assert late["social_security"] == {"status": "refused", "reason": "other_report"}
    found_again = await desk.kiosk.release_loss(lost_again["reference"])
    told = [lost, theirs, found, *repeated, lost_again, late, found_again]
    assert await desk.told(*(answer["reference"] for answer in told)) == ["2", "2", "4", "3", "4"]


async def test_a_release_that_the_bank_refused_may_be_asked_for_again(desk: Desk) -> None:
    """Whatever the bank took of earlier losses, and whether it took this one."""
    card, references = await desk.card(), list[str]()
    for refused in ([], ["release"], ["report", "release"]):
        answers: list[dict[str, Any]] = []
        for step in ("report", "release", "again"):
            await desk.bank.heal()
            if step in refused:
                await desk.bank.faults({"kind": "decline", "code": "100007"})
            lost = answers[0]["reference"] if answers else ""
            answers.append(await (desk.kiosk.release_loss(lost) if lost else desk.kiosk.report_loss(card)))
            declined = {"status": "refused", "reason": "not_allowed"}
            assert answers[-1]["bank"] == (declined if step in refused else {"status": "accepted"}), (refused, step)
        references += [answer["reference"] for answer in answers]
    assert await desk.told(*references) == ["2", "4", "2", "4", "4", "2", "4", "4"]


async def test_a_loss_that_the_bank_never_heard_of_frees_nothing_when_it_is_released_again(desk: Desk) -> None:
    card = await desk.card(bank="bank-haiyan")  # without a route
    lost = await desk.kiosk.report_loss(card)
    found = await desk.kiosk.release_loss(lost["reference"])
    await desk.fetch("UPDATE card SET bank = 'bank-jiaxing' WHERE bank = 'bank-haiyan'")
    again = await desk.kiosk.release_loss(lost["reference"])
    for answer in (lost, found, again):
        assert answer["bank"] == {"status": "not_connected"} == await desk.shown(answer)


async def test_an_old_report_frees_nothing_that_a_newer_one_froze(desk: Desk) -> None:
    """Also where the registry has opened the card meanwhile."""
    card = await desk.card()
    old = await desk.kiosk.report_loss(card)
    found = await desk.kiosk.release_loss(old["reference"])
    newer = await desk.kiosk.report_loss(card, "formal")
    await desk.fetch("UPDATE card SET status = 1, lost_at = NULL, raised_at = NULL WHERE status = 2")
    again = await desk.kiosk.release_loss(old["reference"])
    assert again["social_security"] == {"status": "released", "card_status": "normal"}
    assert again["bank"] == {"status": "refused", "reason": "other_report"} == await desk.shown(again)
    released = await desk.kiosk.release_loss(newer["reference"])
    assert released["bank"] == {"status": "accepted"}
    told = [old, found, newer, again, released]
    assert await desk.told(*(answer["reference"] for answer in told)) == ["2", "4", "3", "4"]


async def test_nothing_is_frozen_at_a_bank_that_refused_the_loss(desk: Desk) -> None:
    card = await desk.card(account=new_account()[:-5] + "0000")  # nobody's
    _, raised = [(await desk.kiosk.report_loss(card, kind))["reference"] for kind in ("temporary", "formal")]
    lowered = await desk.kiosk.release_loss(raised)
    assert lowered["social_security"] == {"status": "released", "card_status": "lost_temporary"}
    assert lowered["bank"] == {"status": "not_connected"} == await desk.shown(lowered)


async def test_a_release_is_asked_for_again_while_the_first_is_open(desk: Desk) -> None:
    card = await desk.card()
    lost = await desk.kiosk.report_loss(card)
    await desk.bank.faults({"kind": "drop_before"})
    answers = [await desk.kiosk.release_loss(lost["reference"]) for _ in range(2)]
    assert [answer["bank"] for answer in answers] == [{"status": "pending"}] * 2
    await desk.bank.heal()
    for answer in answers:
        assert await desk.came_to(answer["reference"]) == {"status": "accepted"}


async def test_a_refusal_of_the_bank_is_final_and_leaves_the_card_lost(desk: Desk) -> None:
    card = await desk.card(account=new_account()[:-5] + "0000")  # nobody's
    report = await desk.kiosk.report_loss(card)
    assert report["social_security"]["status"] == "accepted"
    assert report["bank"] == {"status": "refused", "reason": "invalid_card"}
    assert await reason(desk, card.number, card.identifier) == "lost_temporary"
    shown = await desk.operation(report["reference"])
    assert [step["status"] for step in shown["bank"].pop("history")] == ["intent", "refused"]
    assert shown["bank"] == report["bank"] and shown["status"] == "accepted"
    left = await desk.fetch("SELECT count(*) FROM loss_notice WHERE reference = $1 AND next_try_at IS NOT NULL",
                            report["reference"])  # fmt: skip
    assert left == 0, "nothing is tried again"
    code, said = await show(desk.running, report["reference"])
    assert code == 0 and "bank       refused (invalid_card)" in said and said.count("\ngood ") == 6


@pytest.mark.parametrize("how", ["no account", "no route", "refused here"])
async def test_a_bank_that_is_not_told_is_not_connected(desk: Desk, how: str) -> None:
    card = await desk.card(None if how == "no account" else "", "bank-haiyan" if how == "no route" else "bank-jiaxing")
    if how == "refused here":
        card = card._replace(id_number=(await desk.card()).id_number)  # of somebody else
    before = len(await desk.bank.book())
    report = await desk.kiosk.report_loss(card)
    assert report["bank"] == {"status": "not_connected"}
    assert (await desk.operation(report["reference"]))["bank"] == {"status": "not_connected", "history": []}
    assert len(await desk.bank.book()) == before


FAULTS: list[dict[str, Any]] = [
    {"kind": "drop_before"}, {"kind": "drop_after"}, {"kind": "half_close"}, {"kind": "garbage"},
    {"kind": "bad_signature"}, {"kind": "delay", "ms": 2000}, {"kind": "late", "ms": 2000},
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault["kind"])
async def test_an_unclear_answer_is_pending_and_told_again_until_it_is_clear(desk: Desk, fault: dict[str, Any]) -> None:
    card = await desk.card()
    await desk.bank.faults(fault)
    status, raw, _ = await desk.kiosk.effect(PATH, body_of(card), key=f"pending-{fault['kind']}")
    report = json.loads(raw)
    assert (status, report["bank"]) == (200, {"status": "pending"})
    assert report["social_security"] == {"status": "accepted", "card_status": "lost_temporary"}
    assert await reason(desk, card.number, card.identifier) == "lost_temporary", "nobody waits for the bank"
    shown = await desk.operation(report["reference"])
    assert shown["bank"]["status"] == "pending" and await desk.steps(report["reference"]) == ["intent", "unknown"]
    await desk.bank.heal()
    assert await desk.came_to(report["reference"]) == {"status": "accepted"}
    assert await desk.steps(report["reference"]) == ["intent", "unknown", "accepted"]
    assert await desk.told(report["reference"]) == ["2"], "once, however often it was told"
    again = await desk.kiosk.effect(PATH, body_of(card), key=f"pending-{fault['kind']}")
    assert again[:2] == (200, raw), "what was answered first is answered again"


async def test_a_pending_notice_may_be_refused_in_the_end(desk: Desk) -> None:
    report = await desk.pending(await desk.card(), {"kind": "drop_before"})
    await desk.bank.faults({"kind": "decline", "code": "100007"})
    assert await desk.came_to(report["reference"]) == {"status": "refused", "reason": "not_allowed"}
    assert await desk.steps(report["reference"]) == ["intent", "unknown", "refused"]


async def test_an_answer_that_comes_twice_is_one(desk: Desk) -> None:
    await desk.bank.faults({"kind": "duplicate"})
    report = await desk.kiosk.report_loss(await desk.card())
    assert report["bank"] == {"status": "accepted"} and await desk.told(report["reference"]) == ["2"]


async def test_a_bank_that_is_closed_is_told_when_it_opens_in_the_order_of_the_card(desk: Desk) -> None:
    cards = [await desk.card() for _ in range(3)]
    await desk.close_bank()
    told: list[list[str]] = []
    for card in cards:
        lost = await desk.kiosk.report_loss(card)
        found = await desk.kiosk.release_loss(lost["reference"])
        lost_again = await desk.kiosk.report_loss(card, "formal")
        assert [answer["bank"] for answer in (lost, found, lost_again)] == [{"status": "pending"}] * 3
        assert found["social_security"] == {"status": "released", "card_status": "normal"}
        told.append([answer["reference"] for answer in (lost, found, lost_again)])
        assert await desk.steps(told[-1][0]) == ["intent"], "nothing has reached the bank"
    await desk.open_bank()
    for references in told:
        for reference in references:
            assert await desk.came_to(reference) == {"status": "accepted"}
        assert await desk.told(*references) == ["2", "4", "3"]


async def test_a_bank_that_is_taken_out_for_a_while_is_told_all_in_order(desk: Desk) -> None:
    """Else it would lock an account for good whose card was found meanwhile, or open that of a card lost again."""
    card = await desk.card()
    await desk.close_bank()
    lost = await desk.kiosk.report_loss(card)
    partners = Path(desk.running.environment["CONFIG_DIR"]) / "partners.toml"
    block = partners.read_text()
    partners.write_text(block.replace("adapter =", "enabled = false\nadapter ="))

    async def is_out() -> bool:
        return bool((await desk.kiosk.report_loss(await desk.card()))["bank"]["status"] == "not_connected")

    await eventually(is_out, ENDS_S, "the bank is taken out")
    found = await desk.kiosk.release_loss(lost["reference"])
    lost_again = await desk.kiosk.report_loss(card, "formal")
    assert [answer["bank"] for answer in (lost, found, lost_again)] == [{"status": "pending"}] * 3
    await desk.open_bank()
    partners.write_text(block)
    references = [answer["reference"] for answer in (lost, found, lost_again)]
    for reference in references:
        assert await desk.came_to(reference) == {"status": "accepted"}
    assert await desk.told(*references) == ["2", "4", "3"]


class Curt(OpenBank):
    """It says of what it has seen no more than that, unless it is asked."""

    def _loss(self, content: dict[str, Any], decline: str) -> dict[str, Any]:
        if self._ledger._book.find(_reference(content["mesgId"]), "loss") is not None:
            raise Refused(REUSED)
        return super()._loss(content, decline)


async def test_a_bank_that_only_says_that_it_has_seen_it_is_asked(desk: Desk) -> None:
    report = await desk.pending(await desk.card(), {"kind": "drop_after"})
    await desk.close_bank()
    desk.kind = Curt
    await desk.open_bank()
    assert await desk.came_to(report["reference"]) == {"status": "accepted"}
    await desk.close_bank()
    desk.kind = OpenBank
    await desk.open_bank()


async def test_what_is_stuck_is_shown_until_the_bank_has_answered(desk: Desk) -> None:
    report = await desk.pending(await desk.card(), {"kind": "drop_before"})
    release = await desk.kiosk.release_loss(report["reference"])  # waits for its loss

    async def stuck(count: int) -> bool:
        found = await desk.running.metrics()
        gauges = [labelled(found, f"yikatong_loss_notices_{name}") for name in ("open", "stuck")]
        return gauges == [{(): count}] * 2

    await eventually(lambda: stuck(2), ENDS_S, "both notices are counted")
    code, said = await command(desk.running, "operations", "--stuck")
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert code == 0 and lines[report["reference"]].split()[1:3] == ["loss_report", "unknown"]
    assert lines[release["reference"]].split()[1:3] == ["loss_release", "intent"]
    assert all("bank-jiaxing" in lines[one["reference"]] for one in (report, release))
    await desk.bank.heal()
    for one in (report, release):
        assert await desk.came_to(one["reference"]) == {"status": "accepted"}
    assert await desk.told(report["reference"], release["reference"]) == ["2", "4"]
    await eventually(lambda: stuck(0), ENDS_S, "nothing is counted any more")
    assert await command(desk.running, "operations", "--stuck") == (0, "nothing is stuck\n")
