"""What operators see of payments: what is stuck, a bank's day beside ours, the proof of a payment."""

import asyncio
import csv
import datetime as dt
import json
import os
import sys
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec
import pytest

from gateway.domain.operations import Operation
from gateway.domain.outcome import Outcome, Unknown
from gateway.domain.times import CHINA
from gateway.flows.reconcile_bank import ReconcileBank
from gateway.flows.settle_payment import Banks
from gateway.metrics import PAYMENTS_OPEN, PAYMENTS_STUCK
from tests.api.test_evidence import show
from tests.bank import banks
from tests.running import ROOT, Running
from tests.tills import Till
from tests.tills import till as till


async def command(gateway: Running, *arguments: str) -> tuple[int, str]:
    environment = os.environ | {"DATA_DIR": str(gateway.data_dir)} | gateway.environment
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway", *arguments, cwd=ROOT, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


def rows(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8", newline="") as stream:
        return {row["reference"]: row["finding"] for row in csv.DictReader(stream)}


def reports(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*.json")]


async def test_what_is_stuck_is_shown_until_it_is_resolved(till: Till) -> None:
    assert await command(till.gateway, "operations", "--stuck") == (0, "nothing is stuck\n")
    config = Path(till.gateway.environment["CONFIG_DIR"]) / "gateway.toml"
    config.write_text(config.read_text().replace("stuck_after_s = 900", "stuck_after_s = 1"))
    till.bank.faults["purchase"].append("drop_after")
    _, answer = await till.pay(await till.card())
    connection = await asyncpg.connect(till.dsn)
    try:
        while not await connection.fetchval("SELECT created_at < now() - interval '1 s' FROM payment"):
            pass
        through = "the-partner-that-it-was-made-through"
        await connection.execute("UPDATE payment SET partner = $1", through)
    finally:
        await connection.close()
    code, said = await command(till.gateway, "operations", "--stuck")
    (line,) = [line.split() for line in said.splitlines() if line.startswith(answer["reference"])]
    assert code == 0 and "unknown" in line and "bank-jiaxing" in line
    assert line[5] == through
    connection = await asyncpg.connect(till.dsn)
    await connection.execute("UPDATE payment SET partner = NULL")
    await connection.close()
    resolve = till.resolver.resolve
    resolve._settings = msgspec.structs.replace(resolve._settings, stuck_after_s=1)
    await resolve.measure()
    assert PAYMENTS_STUCK._value.get() == PAYMENTS_OPEN._value.get() == 1
    await till.resolver.until_nothing_is_left()
    await resolve.measure()
    assert PAYMENTS_STUCK._value.get() == PAYMENTS_OPEN._value.get() == 0
    assert (await command(till.gateway, "operations", "--stuck"))[1] == "nothing is stuck\n"


async def test_what_nobody_can_find_out_is_decided_by_people(till: Till, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refund at a bank that cannot be asked, whose answer was lost."""
    monkeypatch.setattr(till.resolver.settle, "_banks", banks(till.bank.port, can_query=False))
    payment = await till.paid()
    till.bank.faults["refund"].append("drop_after")
    _, answer = await till.undo(payment, "refunds", amount_fen=250)
    reference = answer["reference"]
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    assert await till.status(reference) == "pending"
    for arguments, why in [
        ((reference, "reversed", "--note", "x"), "refund is unknown: it may become approved or declined"),
        ((reference, "unknown", "--note", "x"), "it may become approved or declined"),
        ((reference, "approved", "--note", ""), "a note of 1 to 200 characters"),
        ((reference, "approved", "--note", "\udcd5\udcfd"), "in UTF-8"),
        ((payment, "declined", "--note", "x"), "this payment is approved: it may become nothing by hand"),
        (("01890000-0000-7000-8000-000000000000", "approved", "--note", "x"), "there is no such"),
        (("refund", "approved", "--note", "x"), "a reference is a UUID"),
    ]:
        code, said = await command(till.gateway, "decide", *arguments)
        assert code == 1 and why in said and "Traceback" not in said
    code, said = await command(till.gateway, "decide", reference, "approved", "--note", "the bank's desk, by telephone")
    assert (code, said) == (0, f"refund {reference}: approved, 250 fen\n")
    shown = (await till.operation(reference))[1]
    assert shown["status"] == "approved"
    assert shown["history"][-1]["note"] == "decided by hand: the bank's desk, by telephone"
    assert (await till.operation(payment))[1]["refunded_fen"] == 250
    code, said = await command(till.gateway, "decide", reference, "declined", "--note", "x")
    assert code == 1 and "this refund is approved" in said


async def test_a_reversal_that_is_decided_ends_its_payment(till: Till) -> None:
    payment = await till.paid()
    till.bank.faults["reverse"].extend(["drop_after", "decline:not_allowed"])
    _, answer = await till.undo(payment, "reversals")
    await till.resolver.make_due()
    await till.resolver.resolve.turn()
    assert await till.status(answer["reference"]) == "pending"
    connection = await asyncpg.connect(till.dsn)
    try:  # as if its payment had been unknown
        await connection.execute("ALTER TABLE payment DISABLE TRIGGER payment_moves")
        set_parent = "UPDATE payment SET state = $2, next_try_at = now() + interval '1 h' WHERE reference = $1"
        await connection.execute(set_parent, UUID(payment), "reversing")
        code, said = await command(till.gateway, "decide", answer["reference"], "declined", "--note", "x")
        assert code == 1 and "it may become reversed" in said, "it is being reversed by us"
        await connection.execute(set_parent, UUID(payment), "approved")
        await connection.execute("ALTER TABLE payment ENABLE TRIGGER payment_moves")
    finally:
        await connection.close()
    code, said = await command(till.gateway, "decide", answer["reference"], "reversed", "--note", "its statement")
    assert (code, said) == (0, f"reversal {answer['reference']}: reversed, 1250 fen\n")
    assert await till.status(payment) == "reversed"


async def test_the_proof_of_a_payment_is_replayed(till: Till) -> None:
    reference = await till.paid()
    code, said = await show(till.gateway, reference)
    assert code == 0 and said.count("\ngood ") == 6
    assert f"operation  payment {reference}: begun" in said and "became     approved" in said


async def test_a_day_is_reconciled_and_nothing_is_corrected(till: Till, tmp_path: Path) -> None:
    fits, gone, other = [await till.paid(amount) for amount in (100, 200, 300)]
    day = dt.datetime.now(CHINA).date()
    flow = ReconcileBank(till.resolver.pool, banks(till.bank.port), till.resolver.settle._settings, tmp_path)
    theirs = [line for line in await flow.fetch("bank-jiaxing", day) if line.reference != gone]
    theirs = [line._replace(amount_fen=301) if line.reference == other else line for line in theirs]
    theirs.append(theirs[0]._replace(reference="=unheard-of"))
    report = await flow.run("bank-jiaxing", day, theirs)
    found = rows(report.files[0])
    assert (found[fits], found[gone], found[other]) == ("matched", "missing_there", "different_amount")
    assert found["'=unheard-of"] == "missing_here"
    document = json.loads(report.files[1].read_text())
    assert document["counts"]["missing_there"] == document["counts"]["different_amount"] == 1
    assert {each["reference"] for each in document["differences"]} == {gone, other, "=unheard-of"}
    assert [await till.status(reference) for reference in (fits, gone, other)] == ["approved"] * 3


async def test_reconcile_on_the_command_line_takes_a_file(till: Till, tmp_path: Path) -> None:
    reference = await till.paid(700)
    day = dt.datetime.now(CHINA).date().isoformat()
    file = tmp_path / "check.csv"
    file.write_text(f"reference,amount_fen,state\n{reference},700,approved\n")
    code, said = await command(till.gateway, "reconcile", "bank-jiaxing", day, "--file", str(file))
    assert code == 0, said
    assert rows(till.gateway.data_dir / "reconciliation" / f"bank-jiaxing-{day}.csv")[reference] == "matched"
    for wrong in (
        "reference,amount_fen,state\nx,y,approved\n",
        "reference,amount_fen,state\nx,1,odd\n",
        '{"lines": 1}',
    ):
        file.write_text(wrong)
        code, said = await command(till.gateway, "reconcile", "bank-jiaxing", day, "--file", str(file))
        assert code == 1 and len(said.splitlines()) == 1 and "Traceback" not in said, said
    code, said = await command(till.gateway, "reconcile", "bank-moon", day)
    assert code == 1 and "payments.routes" in said
    code, said = await command(till.gateway, "reconcile", "bank-jiaxing", day)
    assert code == 1 and "no check file" in said, "no partner engine here yet"


async def test_a_bank_without_its_file_keeps_no_other_from_its_report(till: Till, tmp_path: Path) -> None:
    reached = banks(till.bank.port)

    async def ask(name: str, operation: Operation, deadline_s: float) -> Outcome:
        return Unknown("late") if name == "bank-haiyan" else await reached.ask(name, operation, deadline_s)

    flow = ReconcileBank(till.resolver.pool, Banks(ask, reached.can), till.resolver.settle._settings, tmp_path)
    night = dt.datetime.combine(dt.datetime.now(CHINA).date(), dt.time(3), CHINA)
    await flow.turn(night)
    assert reports(tmp_path) == [f"bank-jiaxing-{night.date() - dt.timedelta(days=1)}.json"]
