"""Compare a settlement day with the bank's check file, and leave a report. Nothing is corrected: people decide.

The reports are the memory of what was done: a day is asked for until there is one, and a gap is told of until it is
closed, also by hand.
"""

import csv
import datetime as dt
import io
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
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
from gateway.domain.reconciliation import Compared, Finding, Line, compare, count, file_of_each, not_compared, state_on
from gateway.domain.times import CHINA
from gateway.flows.settle_payment import Banks
from gateway.metrics import RECONCILED_DAY, RECONCILIATION
from gateway.store import payment_days
from gateway.store.pool import Pool

log = structlog.get_logger()

_FILE_MAX = 64 * 1024 * 1024
_CALL_S = 60.0
_FOLDER = "reconciliation"
_DAY = dt.timedelta(days=1)
_ASK_DAYS = 14
"""So long a bank is asked for a day's file: past the longest row of holidays on which none comes (8 days)."""
_GAP_DAYS = 92
"""So long a day without a report is told of: until people have closed it with a file that came another way."""
_ASKED_MAX = 5
"""Days of one bank in a turn: a partner that does not answer takes 5 of the 10 minutes until the next."""
_SHOWN_S = 86_400
"""The figures are those of the reports made within this: a day's own turn, and what was made up for in it."""


class NotReconciled(CannotStart):
    """Why there is no report, in words for an operator."""


class NobodyToAsk(NotReconciled):
    """No partner of the day has a check file: it has to come another way."""


class Report(NamedTuple):
    compared: list[Compared]
    counts: dict[Finding, int]
    files: tuple[Path, ...]


class _Line(msgspec.Struct, frozen=True):
    reference: str
    amount_fen: int
    state: str


class _Counted(msgspec.Struct, frozen=True):
    counts: dict[str, int]
    """Also of findings that this version does not know."""


def paths(data_dir: Path, bank: str, day: dt.date) -> tuple[Path, Path]:
    """(CSV, JSON) of a report."""
    return data_dir / _FOLDER / f"{bank}-{day}.csv", data_dir / _FOLDER / f"{bank}-{day}.json"


class ReconcileBank:
    """ask() for one bank and day, run() with a file of other origin; turn() for all that have no report."""

    def __init__(self, pool: Pool, banks: Banks, settings: Payments, data_dir: Path) -> None:
        self._pool = pool
        self._banks = banks
        self._settings = settings
        self._data_dir = data_dir
        self._random = RandomBytes(10)
        self._asked: Counter[tuple[str, dt.date]] = Counter()
        """How often for each day: a few a day and bank are added, and all forgotten with the process."""
        self._seen = set(settings.routes)
        """Banks that have a gauge: it is kept up until the process ends, or it would stand still, and be an alert."""
        self._unread: set[str] = set()
        """What kept this turn from reading reports, by type."""

    async def turn(self, now: dt.datetime) -> None:
        """The days without a report, the oldest first, of every bank; the first hour of a day is left to the bank.

        Each day and bank by itself: one without its file is asked for again next time, after those that were asked for
        less often, and keeps no other from its report. Nor does what is in the folder besides whole reports: it is
        logged by type, once a turn. Raises Problem 503, OSError.
        """
        local = now.astimezone(CHINA)
        if local.hour < 1:
            return
        today = local.date()
        for bank in await self._all_banks(today):
            missing = await self._missing(bank, today)
            wanted = [day for day in missing if day >= today - _ASK_DAYS * _DAY]
            for day in sorted(wanted, key=lambda day: (self._asked[bank, day], day))[:_ASKED_MAX]:
                self._asked[bank, day] += 1
                try:
                    await self.ask(bank, day)
                except NobodyToAsk as error:
                    if self._asked[bank, day] == 1:  # it stays so
                        log.warning("not reconciled", why=str(error))
                except NotReconciled as error:
                    log.warning("not reconciled", why=str(error))
                except OSError as error:
                    log.warning("not reconciled", bank=bank, day=str(day), error=type(error).__name__)
            there = self._reports(bank)
            self._measure(bank, [day for day in missing if day not in there], today)
        if self._unread:
            log.warning("reports not read", errors=sorted(self._unread))
            self._unread.clear()

    async def _all_banks(self, today: dt.date) -> list[str]:
        """Those with a gauge: routed, or with operations of the time in which a gap is told of."""
        async with self._pool.acquire() as connection:
            self._seen |= await payment_days.banks_since(connection, _midnight(today - _GAP_DAYS * _DAY))
        return sorted(self._seen)

    async def _missing(self, bank: str, today: dt.date) -> list[dt.date]:
        """The days before today without a report, the oldest first.

        Before its first operation a bank has none; and one that is not routed none without operations, as nobody could
        be asked for it.
        """
        since, yesterday = today - _GAP_DAYS * _DAY, today - _DAY
        there = self._reports(bank)
        async with self._pool.acquire() as connection:
            first = await payment_days.first_at(connection, bank, _midnight(since))
            begin = min(first.astimezone(CHINA).date(), yesterday) if first else yesterday
            days = [day for number in range((today - begin).days) if (day := begin + number * _DAY) not in there]
            if bank in self._settings.routes:
                return days
            firsts = [(day, await payment_days.first_at(connection, bank, _midnight(day))) for day in days]
        return [day for day, first in firsts if first is not None and first < _midnight(day + _DAY)]

    def _measure(self, bank: str, missing: Collection[dt.date], today: dt.date) -> None:
        whole = min(missing, default=today) - _DAY
        RECONCILED_DAY.labels(bank).set(_midnight(whole).timestamp())
        counts = self._counts(bank, time.time() - _SHOWN_S)
        for finding in Finding:
            RECONCILIATION.labels(bank, finding).set(counts[finding])

    def _reports(self, bank: str) -> dict[dt.date, Path]:
        """Of a bank, by day; none if the folder cannot be read, so that it is told of like days without."""
        try:
            return _reports(self._data_dir / _FOLDER, bank)
        except OSError as error:
            self._unread.add(type(error).__name__)
            return {}

    def _counts(self, bank: str, since: float) -> Counter[str]:
        """Of the reports that were made since a time (seconds since 1970); what is no whole one counts as nothing."""
        counts: Counter[str] = Counter()
        for file in self._reports(bank).values():
            try:
                if file.stat().st_mtime >= since:
                    counts.update(msgspec.json.decode(file.read_bytes(), type=_Counted).counts)
            except (OSError, UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
                self._unread.add(type(error).__name__)
        return counts

    async def ask(self, bank: str, day: dt.date) -> Report:
        """Compare with the files of the partners that the day's operations were made through, each with its own.

        What was made through a partner that has no check file, or is no longer configured, is compared if another's has
        it, else `not_compared`: a late reversal there keeps no other partner's lines from the report. It is a
        difference, so that it is seen. Raises NotReconciled when one of them does not give its file, or none has one;
        Problem 503, OSError.
        """
        through = await self._through(bank, day)
        asked = sorted(name for name in through if name is not None and self._banks.can(name, CheckFile))
        if not asked:
            names = ", ".join(sorted(name or "no partner" for name in through))
            raise NobodyToAsk(f"{bank} has no check file of {day} that can be asked for: {names}")
        files = {name: await self.fetch(name, day) for name in asked}
        ours = await self._ours(bank, day, [line for lines in files.values() for line in lines])
        file_of = file_of_each(files, {line.reference: partner for partner, line in ours})
        by_file: dict[str | None, list[Line]] = {}
        for partner, line in ours:
            by_file.setdefault(partner if partner in files else file_of.get(line.reference), []).append(line)
        compared = not_compared(by_file.get(None, []))
        for name, lines in files.items():
            theirs = [line for line in lines if file_of[line.reference] == name]
            compared += compare(by_file.get(name, []), theirs)
        return self._leave(bank, day, sorted(compared, key=lambda each: (each.reference, each.finding)))

    async def run(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> Report:
        """Compare all of the day with a file that came another way. Raises Problem 503, OSError."""
        ours = [line for _, line in await self._ours(bank, day, theirs)]
        return self._leave(bank, day, compare(ours, theirs))

    async def fetch(self, partner: str, day: dt.date) -> list[Line]:
        """The partner's lines. Raises NotReconciled."""
        reference = UUID(bytes=uuid7(time.time_ns() // 1_000_000, self._random.take()))
        operation = CheckFile(reference=reference, at=dt.datetime.now(dt.UTC), day=day)
        outcome = await self._banks.ask(partner, operation, _CALL_S)
        if not isinstance(outcome, Approved):
            raise NotReconciled(f"{partner} gave no check file of {day}: {type(outcome).__name__}")
        return _lines(outcome.facts.get("lines"))

    def _leave(self, bank: str, day: dt.date, compared: list[Compared]) -> Report:
        """The report in DATA_DIR/reconciliation. Raises OSError."""
        counts = count(compared)
        files = paths(self._data_dir, bank, day)
        _write(files[0], _csv(compared))
        _write(files[1], _json(bank, day, compared, counts))  # last: it says that the report is whole
        return Report(compared, counts, files)

    async def _through(self, bank: str, day: dt.date) -> set[str | None]:
        """The partners of a day; without operations today's. None: of operations that nobody reaches."""
        route = self._settings.routes.get(bank)
        async with self._pool.acquire(30) as connection:
            partners = await payment_days.partners_of(connection, bank, *_span(day))
        if not partners and route is None:
            raise NobodyToAsk(f"{bank} is not in gateway.toml: payments.routes")
        return {partner or route for partner in partners} or {route}

    async def _ours(self, bank: str, day: dt.date, theirs: Sequence[Line]) -> list[tuple[str | None, Line]]:
        """Of this day, with those of other days that were reversed in it, or that the bank has in it (midnight); each
        with the partner that it was made through."""
        since, until = _span(day)
        async with (
            self._pool.acquire(30) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),  # payments and reversals of one moment
        ):
            rows = await payment_days.of_day(connection, bank, since, until)
            reversals = await payment_days.reversals_of_day(connection, bank, since, until)
            named = {UUID(line.reference) for line in theirs if _may_be_ours(line.reference)} | reversals.keys()
            rows += await payment_days.of_bank(connection, bank, list(named - {row.reference for row in rows}))
        route = self._settings.routes.get(bank)
        lines = []
        for row in rows:
            state = PaymentState.UNKNOWN if reversals.get(row.reference) else row.state
            state_then = state_on((since, until), public(state), row.created_at, row.reversed_at)
            lines.append((row.partner or route, Line(str(row.reference), row.amount_fen, state_then)))
        return lines


def _midnight(day: dt.date) -> dt.datetime:
    return dt.datetime.combine(day, dt.time(), CHINA)


def _span(day: dt.date) -> tuple[dt.datetime, dt.datetime]:
    return _midnight(day), _midnight(day) + _DAY


def _reports(folder: Path, bank: str) -> dict[dt.date, Path]:
    """By day; other names are passed over. Raises OSError."""
    found = {}
    for file in folder.iterdir() if folder.exists() else ():
        day = _day(file.stem.removeprefix(f"{bank}-"))
        if day is not None and file.name == f"{bank}-{day}.json":
            found[day] = file
    return found


def _day(text: str) -> dt.date | None:
    try:
        return dt.date.fromisoformat(text)
    except ValueError:
        return None


def read_file(file: Path) -> list[Line]:
    """A check file that came otherwise: CSV with `reference,amount_fen,state`, or a JSON list. Raises NotReconciled."""
    try:
        if file.stat().st_size > _FILE_MAX:
            raise NotReconciled(f"{file} is larger than {_FILE_MAX} bytes")
        text = file.read_text("utf-8-sig")
        raw = msgspec.json.decode(text) if text.lstrip()[:1] in ("[", "{") else list(csv.DictReader(io.StringIO(text)))
    except (OSError, UnicodeDecodeError, msgspec.DecodeError, csv.Error, RecursionError) as error:
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
