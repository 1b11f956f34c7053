"""What operators ask on the command line of a gateway's database, while it runs."""

import asyncio
import datetime as dt
import os
import time
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from gateway.crypto.key_files import open_folder
from gateway.crypto.key_watch import KeyWatch
from gateway.domain.ids import uuid7
from gateway.domain.masking import Secret
from gateway.domain.payments import PaymentState
from gateway.domain.times import CHINA
from gateway.flows.correct_points import correct_once
from gateway.flows.data_keys import DataKeys
from gateway.flows.decide_payment import decide
from gateway.flows.reconcile_bank import ReconcileBank, read_file
from gateway.flows.replay_evidence import replay
from gateway.flows.rotate_own_keys import status, wrapped_by
from gateway.flows.settle_payment import banks_of
from gateway.flows.show_operation import BankOutcome, show
from gateway.flows.write_outcomes import WriteOutcomes
from gateway.partners.call import Partners
from gateway.settings import Settings
from gateway.store import anomalies, ledger_check, loss_notices, payments, visits
from gateway.store.embedded import EmbeddedPostgres
from gateway.store.pool import FOR_EFFECTS, Pool, connect

STUCK_SHOWN_MAX = 1000
ANOMALIES_SHOWN_MAX = 500
EVENTS_SHOWN = 3
_CHECK_TIMEOUT_MS = 600_000


def database_of(settings: Settings) -> Secret[str]:
    """DATABASE_URL, or the embedded server of the data folder (which a running gateway has started)."""
    url = settings.gateway.database.url
    return url or Secret(EmbeddedPostgres(settings.data_dir).dsn)


async def evidence(settings: Settings, reference: UUID, with_body: bool) -> tuple[list[str], bool]:
    """(lines to print, whether every check holds). Raises KeyStoreError, SealError, OSError, asyncpg.PostgresError."""
    keys = open_folder(settings.keys_dir)
    connection = await connect(database_of(settings), settings.gateway.database, "yikatong operator")
    try:
        recorded, replayed = await replay(connection, keys, reference)
        shown = await show(connection, recorded.operation.caller, reference) if recorded is not None else None
    finally:
        await connection.close()
    if recorded is None or shown is None:
        return ["there is no such operation"], False
    operation = recorded.operation
    lines = [
        f"operation  {operation.kind} {operation.reference}: {operation.result}"
        + (f" ({operation.reason})" if operation.reason else ""),
        *([f"became     {shown.status}"] if shown.status != operation.result else []),
        *_bank_line(shown.bank),
        f"caller     {operation.caller}",
        f"recorded   {recorded.recorded_at.astimezone(CHINA).isoformat(timespec='milliseconds')}",
    ]
    if operation.card_status_before is not None:
        lines.append(f"card       AAZ502 {operation.card_status_before} -> {operation.card_status_after}")
    if operation.parent is not None:
        lines.append(f"undoes     {operation.parent}")
    if replayed is None:
        return [*lines, "signed     no: this caller may leave its signature out"], True
    assert operation.signed_at is not None
    signed_at = operation.signed_at.astimezone(CHINA).isoformat()
    lines += [
        f"signed     {signed_at} with {operation.key_id} ({operation.algorithm})",
        f"key        {operation.public_jwk}",
    ]
    lines += [f"{'good' if good else 'WRONG':<10} {what}" for what, good in replayed.checks.items()]
    if replayed.body is None:
        lines += [f"body       not kept for this kind of operation; signed was its digest {replayed.digest}"]
    elif with_body:
        lines += ["body       " + replayed.body.decode(errors="backslashreplace")]
    return lines, all(replayed.checks.values())


async def stuck_operations(settings: Settings) -> list[str]:
    """A line for each operation at a bank that is undecided for too long, and for each visit of the last day of which
    nobody knows what the merchant did. Raises OSError, asyncpg.PostgresError."""
    config = settings.gateway
    connection = await connect(database_of(settings), config.database, "yikatong operator")
    try:
        older_than = dt.timedelta(seconds=config.payments.stuck_after_s)
        paid = await payments.stuck(connection, older_than, STUCK_SHOWN_MAX)
        older_than = dt.timedelta(seconds=config.losses.stuck_after_s)
        told = await loss_notices.stuck(connection, older_than, STUCK_SHOWN_MAX)
        visited = await visits.unknown(connection, STUCK_SHOWN_MAX)
    finally:
        await connection.close()
    if not paid and not told and not visited:
        return ["nothing is stuck"]
    return _table(
        ("reference", "kind", "state", "fen", "bank", "partner", "caller", "tries", "since"),
        *(_stuck_cells(row, str(row.amount_fen), row.bank, row.partner or "-") for row in paid),
        *(_stuck_cells(row, "-", row.bank, "-") for row in told),
        *(_stuck_cells(row, "-", "-", row.partner) for row in visited),
    )


async def reconcile(settings: Settings, bank: str, day: dt.date, file: Path | None) -> list[str]:
    """The lines to print; the report is left in the data folder. Raises NotReconciled, Problem, OSError."""
    pool = Pool(database_of(settings), settings.gateway.database, "yikatong operator")
    await pool.open()
    partners = Partners(settings)
    await partners.open()
    try:
        flow = ReconcileBank(pool, banks_of(partners), settings.gateway.payments, settings.data_dir)
        report = await flow.ask(bank, day) if file is None else await flow.run(bank, day, read_file(file))
    finally:
        await partners.close()
        await pool.close()
    lines = [f"{finding.value:<18}{number:>8}" for finding, number in report.counts.items()]
    return [*lines, *(f"report            {path}" for path in report.files)]


async def decide_payment(settings: Settings, reference: UUID, state: PaymentState, note: str) -> str:
    """The line to print. Raises NotDecided, Problem, KeyStoreError, OSError, asyncpg.PostgresError."""
    dsn, config = database_of(settings), settings.gateway
    pool = Pool(dsn, config.database, "yikatong operator")
    await pool.open()
    keys = DataKeys(pool, KeyWatch(settings.keys_dir, lambda _: None), config.sealing.algorithm)
    outcomes = WriteOutcomes(partial(connect, dsn, config.database, "yikatong operator", FOR_EFFECTS), keys)
    serving = asyncio.create_task(outcomes.serve())
    try:
        decided = await decide(pool, outcomes, reference, state, note)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await pool.close()
    return f"{decided.kind} {decided.reference}: {decided.state}, {decided.amount_fen} fen"


async def check_ledger(settings: Settings) -> tuple[list[str], bool]:
    """(lines to print, whether every rule holds). Raises OSError, asyncpg.PostgresError."""
    # it reads everything: it may take longer than a statement of the gateway
    patient = msgspec.structs.replace(settings.gateway.database, statement_timeout_ms=_CHECK_TIMEOUT_MS)
    connection = await connect(database_of(settings), patient, "yikatong operator")
    try:
        sums, findings = await ledger_check.check(connection)
    finally:
        await connection.close()
    broken = {finding.rule: finding for finding in findings}
    lines = [f"{sums.accounts} accounts, {sums.transfers} transfers, {sums.entries} entries, {sums.held} points held"]
    for rule in ledger_check.RULES:
        finding = broken.get(rule)
        lines.append(f"{'good' if finding is None else 'BROKEN':<8}{rule}")
        if finding is not None:
            lines += [f"        {each}" for each in finding.ids]
            lines += ["        …"] if finding.broken > len(finding.ids) else []
    return lines, not findings


async def correct_points(settings: Settings, transfer: UUID, amount: int, note: str, transfer_id: UUID | None) -> str:
    """The line to print; `transfer_id`: of an earlier try. Raises as correct_once() does."""
    new_id = transfer_id or UUID(bytes=uuid7(time.time_ns() // 1_000_000, os.urandom(10)))
    dial = partial(connect, database_of(settings), settings.gateway.database, "yikatong operator")
    made, was_there = await correct_once(dial, new_id, transfer, amount, note, settings.points.valid_months)
    said = f"transfer {made.transfer_id}: {made.points:+} points, corrects {made.corrects}"
    return f"{said}: it was corrected already" if was_there else said


async def anomalies_table(settings: Settings, moment: dt.datetime) -> list[str]:
    """What usage monitoring has found since, each by its last word. Raises OSError, asyncpg.PostgresError."""
    connection = await connect(database_of(settings), settings.gateway.database, "yikatong operator")
    try:
        rows = await anomalies.since(connection, moment, ANOMALIES_SHOWN_MAX)
    finally:
        await connection.close()
    if not rows:
        return ["nothing odd was found"]
    lines = []
    for row in rows:
        subject = " ".join(str(part) for part in (row.outlet, row.caller, row.terminal_id, row.card_id) if part)
        figures = ", ".join(f"{name} {value:g}" for name, value in row.figures.items())
        lines += [
            f"{_shown(row.at)}  {row.rule:<16}{subject}" + ("" if row.stands else "  (does not stand: reversed)"),
            f"    from {_shown(row.from_at)} to {_shown(row.until_at)}: {figures}",
            f"    events {' '.join(str(event_id) for event_id in row.event_ids[-EVENTS_SHOWN:])}",
        ]
    return lines


async def keys_table(settings: Settings, now: dt.datetime) -> list[str]:
    """The lines of `keys status`; without a database it is unknown which KEKs are needed. Raises KeyStoreError."""
    keys = open_folder(settings.keys_dir)
    try:
        wrapped = await wrapped_by(database_of(settings))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        wrapped = None
    lines = [f"{'use':<11}{'kid':<14}{'state':<10}{'since':<27}{'until':<27}note"]
    for line in status(keys, now, settings.gateway.tokens.lifetime_s, wrapped):
        since, until = _shown(line.since), _shown(line.until)
        text = f"{line.use:<11}{line.kid:<14}{line.state:<10}{since:<27}{until:<27}{line.note}"
        lines.append(text.rstrip())
    return lines


def _stuck_cells(
    row: payments.Stuck | loss_notices.Stuck | visits.Unknown, fen: str, bank: str, partner: str
) -> tuple[str, ...]:  # fmt: skip
    return (
        str(row.reference), row.kind, row.state, fen, bank, partner, row.caller, str(row.tries),
        _shown(row.created_at),
    )  # fmt: skip


def _table(*rows: tuple[str, ...]) -> list[str]:
    """Lines with each column as wide as it needs."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _bank_line(bank: BankOutcome | msgspec.UnsetType) -> list[str]:
    """What became of the bank's half of a loss report."""
    if isinstance(bank, msgspec.UnsetType):
        return []
    return [f"bank       {bank.status}" + (f" ({bank.reason})" if bank.reason else "")]


def _shown(time: dt.datetime | None) -> str:
    return "-" if time is None else time.astimezone(CHINA).isoformat(" ", "seconds")
