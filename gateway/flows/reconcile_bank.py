"""Compare a settlement day with the bank's check file, and leave a report. Nothing is corrected: people decide."""

import csv
import datetime as dt
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import structlog

from gateway.configuration import Payments
from gateway.crypto.randomness import RandomBytes
from gateway.domain.errors import CannotStart
from gateway.domain.ids import uuid7
from gateway.domain.operations import CheckFile
from gateway.domain.outcome import Approved
from gateway.domain.payments import PaymentState, public
from gateway.domain.reconciliation import Compared, Finding, Line, compare, count
from gateway.domain.times import CHINA
from gateway.flows.settle_payment import Banks
from gateway.metrics import RECONCILED_DAY, RECONCILIATION
from gateway.store import payments
from gateway.store.pool import Pool

log = structlog.get_logger()

_FILE_MAX = 64 * 1024 * 1024
_CALL_S = 60.0
_FOLDER = "reconciliation"


class NotReconciled(CannotStart):
    """Why there is no report, in words for an operator."""


class Report(NamedTuple):
    compared: list[Compared]
    counts: dict[Finding, int]
    files: tuple[Path, ...]


class _Line(msgspec.Struct, frozen=True):
    reference: str
    amount_fen: int
    state: str


def paths(data_dir: Path, bank: str, day: dt.date) -> tuple[Path, Path]:
    """(CSV, JSON) of a report."""
    return data_dir / _FOLDER / f"{bank}-{day}.csv", data_dir / _FOLDER / f"{bank}-{day}.json"


class ReconcileBank:
    """run() for one bank and day."""

    def __init__(self, pool: Pool, banks: Banks, settings: Payments, data_dir: Path) -> None:
        self._pool = pool
        self._banks = banks
        self._settings = settings
        self._data_dir = data_dir
        self._random = RandomBytes()

    async def turn(self, now: dt.datetime) -> None:
        """Yesterday, for every bank that has no report of it yet; the first hour is left to the bank.

        Each bank by itself: one that gives no file is asked again next time, and keeps no other from its report.
        Raises Problem 503, OSError.
        """
        local = now.astimezone(CHINA)
        day = local.date() - dt.timedelta(days=1)
        if local.hour < 1:
            return
        for bank in self._settings.routes:
            if paths(self._data_dir, bank, day)[1].exists() or not self._banks.can(self._partner(bank), CheckFile):
                continue
            try:
                await self.run(bank, day, await self.fetch(bank, day))
            except NotReconciled as error:
                log.warning("not reconciled", why=str(error))

    async def fetch(self, bank: str, day: dt.date) -> list[Line]:
        """The bank's lines. Raises NotReconciled."""
        reference = UUID(bytes=uuid7(time.time_ns() // 1_000_000, self._random.take(10)))
        operation = CheckFile(reference=reference, at=dt.datetime.now(dt.UTC), day=day)
        outcome = await self._banks.ask(self._partner(bank), operation, _CALL_S)
        if not isinstance(outcome, Approved):
            raise NotReconciled(f"{bank} gave no check file of {day}: {type(outcome).__name__}")
        return _lines(outcome.facts.get("lines"))

    async def run(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> Report:
        """Compare and leave the report in DATA_DIR/reconciliation. Raises Problem 503, OSError."""
        ours = await self._ours(bank, day, theirs)
        compared = compare(ours, theirs)
        counts = count(compared)
        files = paths(self._data_dir, bank, day)
        _write(files[0], _csv(compared))
        _write(files[1], _json(bank, day, compared, counts))  # last: it says that the report is whole
        for finding, number in counts.items():
            RECONCILIATION.labels(bank, finding).set(number)
        RECONCILED_DAY.labels(bank).set(dt.datetime.combine(day, dt.time(), CHINA).timestamp())
        return Report(compared, counts, files)

    async def _ours(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> list[Line]:
        """Of this day, and those of other days that the bank has in this one (about midnight)."""
        since = dt.datetime.combine(day, dt.time(), CHINA)
        async with self._pool.acquire(30) as connection:
            rows = await payments.of_day(connection, bank, since, since + dt.timedelta(days=1))
            known = {str(row.reference) for row in rows}
            others = {line.reference for line in theirs} - known
            rows += await payments.of_bank(connection, bank, [UUID(each) for each in others if _may_be_ours(each)])
        return [Line(str(row.reference), row.amount_fen, public(PaymentState(row.state))) for row in rows]

    def _partner(self, bank: str) -> str:
        if bank not in self._settings.routes:
            raise NotReconciled(f"{bank} is not in gateway.toml: payments.routes")
        return self._settings.routes[bank]


def read_file(file: Path) -> list[Line]:
    """A check file that came otherwise: CSV with `reference,amount_fen,state`, or a JSON list. Raises NotReconciled."""
    try:
        if file.stat().st_size > _FILE_MAX:
            raise NotReconciled(f"{file} is larger than {_FILE_MAX} bytes")
        text = file.read_text("utf-8-sig")
        raw = msgspec.json.decode(text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise NotReconciled(f"{file} cannot be read: {type(error).__name__}") from None
    return _lines(raw.get("lines") if isinstance(raw, dict) else raw)


def _lines(raw: Any) -> list[Line]:
    try:
        lines = msgspec.convert(raw, list[_Line], strict=False)
    except msgspec.ValidationError:
        raise NotReconciled("the check file is not a list of reference, amount_fen and state") from None
    wrong = {line.state for line in lines} - {"approved", "declined", "reversed", "pending"}
    if wrong:
        raise NotReconciled("the check file has a state that is none of approved, declined, reversed, pending")
    return [Line(line.reference, line.amount_fen, line.state) for line in lines]


def _may_be_ours(reference: str) -> bool:
    try:
        return str(UUID(reference)) == reference and UUID(reference).version == 7
    except ValueError:
        return False


def _csv(compared: Sequence[Compared]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(Compared._fields)
    # a reference comes from the bank: it must not become a formula in somebody's spreadsheet
    writer.writerows(each._replace(reference=_harmless(each.reference)) for each in compared)
    return stream.getvalue().encode()


def _harmless(text: str) -> str:
    return "'" + text if text[:1] in tuple("=+-@\t\r") else text


def _json(bank: str, day: dt.date, compared: Sequence[Compared], counts: dict[Finding, int]) -> bytes:
    differences = [each._asdict() for each in compared if each.finding is not Finding.MATCHED]
    document = {"bank": bank, "day": day.isoformat(), "counts": counts, "differences": differences}
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = file.with_name(file.name + ".new")
    with new.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(file)
