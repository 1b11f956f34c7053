"""What became of a daily file, left beside it: FILE.report.json, and FILE.rejects.ndjson if lines were not accepted."""

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gateway.domain.times import CHINA
from gateway.domain.usage_files import Held, HoldReason
from gateway.flows.ingest_usage_file import Ingested
from gateway.metrics import USAGE_FILES
from gateway.store import usage_files

if TYPE_CHECKING:
    from gateway.store.pool import Connection

REPORT, REJECTS = ".report.json", ".rejects.ndjson"
_encode = msgspec.json.Encoder().encode


class HeldReport(msgspec.Struct, frozen=True):
    """Nothing of it was taken up, or nothing more."""

    file: str
    held: list[HoldReason]
    detail: str
    at: dt.datetime
    state: str = "held"


class TakenReport(msgspec.Struct, frozen=True):
    """count = created + duplicate + rejected. `rejects` names the file that lists what was not accepted.

    It is null, and `rejected_by_code` empty, if none was rejected or some are swept (rejects_days): an old list stays.
    """

    file: str
    file_id: str
    caller: str
    batch_no: str
    count: int
    sum_fen: int
    created: int
    duplicate: int
    rejected: int
    rejected_by_code: dict[str, int]
    rejects: str | None
    at: dt.datetime
    state: str = "taken"


def report_held(path: Path, held: Held, sender: str) -> Path:
    """`sender`: of the folder or the header, if it is one; it is counted. Raises OSError."""
    for reason in held.reasons:
        USAGE_FILES.labels(sender, reason).inc()
    return _write(path, HeldReport(shown_name(path), held.reasons, held.detail, _now()))


async def report_taken(connection: "Connection", path: Path, found: Ingested) -> Path:
    """Raises OSError, asyncpg.PostgresError."""
    header, progress = found.header, found.progress
    rejects = await _list_rejects(connection, path, found) if found.rejected_by_code else None
    USAGE_FILES.labels(header.caller, "taken_before" if found.before else "taken").inc()
    return _write(path, TakenReport(
        shown_name(path), found.file_id.hex(), header.caller, header.batch_no, header.count, header.sum_fen,
        progress.created, progress.duplicate, progress.rejected, found.rejected_by_code if rejects else {},
        shown_name(rejects) if rejects else None, _now(),
    ))  # fmt: skip


async def _list_rejects(connection: "Connection", path: Path, found: Ingested) -> Path | None:
    """None: some of the lines were swept meanwhile."""
    rejects, lines = path.with_name(path.name + REJECTS), 0
    part = rejects.with_name(rejects.name + ".part")
    with part.open("wb") as stream:
        async for each in usage_files.rejected_lines(connection, found.file_id):
            errors = msgspec.Raw(each.errors.encode())
            stream.write(_encode({"line": each.line, "id": each.id, "code": each.code, "errors": errors}) + b"\n")
            lines += 1
        stream.flush()
        os.fsync(stream.fileno())
    if lines != found.progress.rejected:
        part.unlink()
        return None
    return part.replace(rejects)


def shown_name(path: Path) -> str:
    """As text: a sender may name a file in GBK, which no report and no log could repeat."""
    return os.fsencode(path.name).decode(errors="replace")


def _now() -> dt.datetime:
    return dt.datetime.now(CHINA).replace(microsecond=0)


def _write(path: Path, report: HeldReport | TakenReport) -> Path:
    """Whole or not at all."""
    file = path.with_name(path.name + REPORT)
    part = file.with_name(file.name + ".part")
    with part.open("wb") as stream:
        stream.write(msgspec.json.format(_encode(report), indent=1) + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(file)
    return file
