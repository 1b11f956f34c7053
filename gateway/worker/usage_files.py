"""Takes up the daily files in the senders' folders, one at a time: to `done/` or `held/`, with their reports."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from gateway.configuration import UsageReturn
from gateway.domain.errors import Problem
from gateway.domain.usage_files import Held, HoldReason
from gateway.flows.ingest_usage_file import AnotherIsAtIt, IngestUsageFile
from gateway.flows.report_usage_file import REJECTS, REPORT, report_held, report_taken, shown_name
from gateway.log import describe
from gateway.store.pool import GONE
from gateway.store.usage_return import COLLIDED

if TYPE_CHECKING:
    from gateway.store.pool import Connection

log = structlog.get_logger()

SETTLED_S = 2.0
"""A file that was written to so shortly ago may not be whole yet."""
FILES_MAX = 100
"""Of one folder in one turn."""
_LATER = (Problem, *GONE, *COLLIDED)
"""Not of what is in the file: the file system's word (OSError), the database's, or that of others at the same ids."""
_BY_CONTENTS = ("22", "23")
"""Classes of SQLSTATE that what is in a file can bring about: a value, a constraint. All others are the database's."""
_PASSED_OVER = (".part", ".tmp", REPORT, REJECTS)


class WatchUsageFiles:
    """turn() looks into every folder once."""

    def __init__(
        self,
        ingest: IngestUsageFile,
        connect: "Callable[[], Awaitable[Connection]]",
        settings: UsageReturn,
        data_dir: Path,
    ) -> None:
        self._ingest = ingest
        self._connect = connect
        self._folders = {sender: data_dir / files.folder for sender, files in settings.files.items() if files.folder}

    async def turn(self) -> None:
        """Raises OSError and what else connecting raises while the database is away: the next turn tries again.

        Nothing else of a folder or a file holds up those behind it, nor ends the worker. What cannot be read or moved,
        or met a database in trouble, is told of each turn, and stays.
        """
        for sender, folder in self._folders.items():
            try:
                found = await asyncio.to_thread(_waiting, folder)
            except OSError as error:
                log.error("folder of usage files not read", sender=sender, error=type(error).__name__)
                continue
            for path in found:
                await self._take(sender, path)

    async def _take(self, sender: str, path: Path) -> None:
        connection = await self._connect()
        name = shown_name(path)
        try:
            identity = _identity(path)
            into = await self._taken_or_held(connection, sender, path)
            await asyncio.to_thread(_move, path, identity, into)
        except (AnotherIsAtIt, FileNotFoundError):  # a worker on another machine
            log.info("usage file left to another worker", sender=sender, file=name)
        except (*_LATER, asyncpg.PostgresError) as error:  # of the database? then connecting for the next file says so
            log.error("usage file not taken up", sender=sender, file=name, error=type(error).__name__)
        finally:
            connection.terminate()

    async def _taken_or_held(self, connection: "Connection", sender: str, path: Path) -> str:
        """Where the file goes; its report is written. Raises AnotherIsAtIt, one of _LATER,
        asyncpg.PostgresError."""
        name = shown_name(path)
        try:
            found = await self._ingest.run(connection, path, sender)
            report = await report_taken(connection, path, found)
        except (AnotherIsAtIt, *_LATER):
            raise
        except Held as why:
            held = why
        except Exception as error:
            if isinstance(error, asyncpg.PostgresError) and not _by_contents(error):
                raise
            # ours, by what is in the file: it would come again each turn
            log.error("the gateway failed at a usage file", sender=sender, file=name,
                      exception=describe(type(error), error.__traceback__))  # fmt: skip
            held = Held([HoldReason.FAULT], type(error).__name__)
        else:
            log.info("usage file taken up", sender=sender, file=name, before=found.before, report=shown_name(report),
                     created=found.progress.created, rejected=found.progress.rejected)  # fmt: skip
            return "done"
        report_held(path, held, sender)
        log.error("usage file held", sender=sender, file=name, why=held.reasons, detail=held.detail)
        return "held"


def _by_contents(error: asyncpg.PostgresError) -> bool:
    """A row for which there is no partition is refused by a check too, but by none that has a name."""
    no_partition = isinstance(error, asyncpg.CheckViolationError) and error.constraint_name is None
    return (error.sqlstate or "")[:2] in _BY_CONTENTS and not no_partition


def _waiting(folder: Path) -> list[Path]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    settled = time.time() - SETTLED_S
    found = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and not path.name.endswith(_PASSED_OVER) and not path.is_symlink()
        and path.is_file() and path.stat().st_mtime < settled
    ]  # fmt: skip
    return found[:FILES_MAX]


_Identity = tuple[int, int, int, int]


def _identity(path: Path) -> _Identity:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _move(path: Path, identity: _Identity, into: str) -> None:
    """With its reports, which go first: a file that is still there is taken up again, and leaves them again.

    One that has come in its place meanwhile stays: its turn is the next. What was moved before by this name is kept.
    """
    reports = path.with_name(path.name + REJECTS), path.with_name(path.name + REPORT)
    if _identity(path) != identity:
        for report in reports:  # of the file that is gone; the log has told of it
            report.unlink(missing_ok=True)
        return
    target = path.parent / into
    target.mkdir(mode=0o700, exist_ok=True)
    prefix, times = "", 1
    while (target / (prefix + path.name)).exists():
        times += 1
        prefix = f"{times}-"
    for each in (*reports, path):
        if each.exists():
            each.replace(target / (prefix + each.name))
