"""Where daily files of returned usage are taken up in a test: by hand, or in a folder that is looked into."""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import msgspec

from gateway.directory import Directory
from gateway.domain.masking import Secret
from gateway.flows.ingest_usage_file import Ingested, IngestUsageFile, Silent, ingest_usage_files
from gateway.flows.report_usage_file import report_taken
from gateway.settings import Settings
from gateway.store.pool import FOR_RETURNS, connect
from gateway.worker.usage_files import WatchUsageFiles
from tests.returns import day_file, line

if TYPE_CHECKING:
    from gateway.store.pool import Connection

TABLES = ("usage_event", "usage_return", "usage_reversal", "usage_file", "usage_file_reject", "points_transfer")


class Desk(NamedTuple):
    """What takes files up, with a connection and the bank's key of its own."""

    settings: Settings
    dsn: str
    folder: Path
    signing: dict[str, str]

    def having(self, encoding: str = "utf-8", folder: str = "", **changes: Any) -> "Desk":
        returns = self.settings.gateway.usage_return
        files = {"demo-bank": msgspec.structs.replace(returns.files["demo-bank"], encoding=encoding, folder=folder)}
        returns = msgspec.structs.replace(returns, files=files, **changes)
        gateway = msgspec.structs.replace(self.settings.gateway, usage_return=returns)
        return self._replace(settings=msgspec.structs.replace(self.settings, gateway=gateway))

    async def connect(self) -> "Connection":
        return await connect(Secret(self.dsn), self.settings.gateway.database, "yikatong test", FOR_RETURNS)

    async def take(self, content: bytes, on_progress: Silent | None = None, sender: str | None = None) -> Ingested:
        """Written to a new file, taken up, reported."""
        path = self.folder / f"{secrets.token_hex(4)}.day"
        path.write_bytes(content)
        connection = await self.connect()
        try:
            ingest = ingest_usage_files(self.settings, Directory(self.settings))
            found = await ingest.run(connection, path, sender, on_progress)
            await report_taken(connection, path, found)
        finally:
            await connection.close()
        return found

    async def recorded(self, lines: Sequence[dict[str, Any]]) -> list[str]:
        """The events of these lines, by the callers' ids."""
        connection = await asyncpg.connect(self.dsn)
        rows = await connection.fetch(
            "SELECT caller_event_id FROM usage_event WHERE caller_event_id = ANY($1) ORDER BY 1",
            [each["id"] for each in lines],
        )
        await connection.close()
        return [row[0] for row in rows]

    async def counts(self) -> list[int]:
        """Of all rows that a file may leave."""
        connection = await asyncpg.connect(self.dsn)
        found = [await connection.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES]  # noqa: S608
        await connection.close()
        return found

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(each.read_text()) for each in self.folder.glob("*.report.json")]


def figures(found: Ingested) -> tuple[int, int, int]:
    return found.progress.created, found.progress.duplicate, found.progress.rejected


class Sender:
    """A folder that is looked into, and what lies in it."""

    def __init__(self, desk: Desk, ingest: IngestUsageFile | None = None) -> None:
        self.folder, self._signing = desk.folder, desk.signing
        settings = desk.having(folder=str(desk.folder)).settings
        ingest = ingest or ingest_usage_files(settings, Directory(settings))
        self.turn = WatchUsageFiles(ingest, desk.connect, settings.gateway.usage_return, settings.data_dir).turn

    def drop(self, name: str, **changes: Any) -> dict[str, Any]:
        """A file of one line, with these changes, written some time ago."""
        one = line(**changes)
        (self.folder / name).write_bytes(day_file(self._signing, [one]))
        os.utime(self.folder / name, (1_700_000_000, 1_700_000_000))
        return one

    def ended(self, where: str, name: str) -> dict[str, Any]:
        """The report of a file that was moved."""
        return dict(json.loads((self.folder / where / f"{name}.report.json").read_bytes()))

    def lying(self, where: str) -> list[str]:
        return sorted(each.name for each in (self.folder / where).iterdir() if each.is_file())
