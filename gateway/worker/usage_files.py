"""Takes up the daily files in the senders' folders, one at a time: to `done/` or `held/`, with their reports."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from gateway.configuration import UsageReturn
from gateway.domain.usage_files import Held
from gateway.flows.ingest_usage_file import AnotherIsAtIt, IngestUsageFile
from gateway.flows.report_usage_file import REJECTS, REPORT, report_held, report_taken

if TYPE_CHECKING:
    from gateway.store.pool import Connection

log = structlog.get_logger()

SETTLED_S = 2.0
"""A file that was written to so shortly ago may not be whole yet."""
FILES_MAX = 100
"""Of one folder in one turn."""
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
        """Raises Problem 503, OSError, asyncpg.PostgresError: then it is tried again with the next turn."""
        for sender, folder in self._folders.items():
            for path in await asyncio.to_thread(_waiting, folder):
                await self._take(sender, path)

    async def _take(self, sender: str, path: Path) -> None:
        connection = await self._connect()
        try:
            found = await self._ingest.run(connection, path, sender)
            report = await report_taken(connection, path, found)
            await asyncio.to_thread(_move, path, "done")
            log.info("usage file taken up", sender=sender, file=path.name, before=found.before, report=report.name,
                     created=found.progress.created, rejected=found.progress.rejected)  # fmt: skip
        except Held as held:
            report_held(path, held, sender)
            await asyncio.to_thread(_move, path, "held")
            log.error("usage file held", sender=sender, file=path.name, why=held.reasons, detail=held.detail)
        except (AnotherIsAtIt, FileNotFoundError):  # a worker on another machine
            log.info("usage file left to another worker", sender=sender, file=path.name)
        finally:
            connection.terminate()


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


def _move(path: Path, into: str) -> None:
    """With its reports, which go first: a file that is still there is taken up again, and leaves them again."""
    target = path.parent / into
    target.mkdir(mode=0o700, exist_ok=True)
    for each in (path.with_name(path.name + REJECTS), path.with_name(path.name + REPORT), path):
        if each.exists():
            each.replace(target / each.name)
