"""Take up a daily file of returned usage: held whole if it is not what was signed, else line by line, restartable.

A chunk of lines is one transaction, and how far the file has come is moved in it: after a crash the next run goes on
where the last commit was, so every line counts once. The place is the number of a line, not a byte: the same data may
come again behind a head whose lines end otherwise. Two runs on one file: who finds it moved by another gives up.
"""

import asyncio
import base64
import binascii
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from gateway.configuration import UsageReturn
from gateway.crypto.key_files import open_folder
from gateway.crypto.signatures import VerifyKey, verify
from gateway.directory import Directory
from gateway.domain.errors import CannotStart
from gateway.domain.usage import Reject
from gateway.domain.usage_files import Header, Held, HoldReason, differences
from gateway.flows.earn_points import EarnPoints
from gateway.flows.read_usage_file import FIRST_LINE, Chunk, Head, UsageFile
from gateway.flows.return_usage import ReturnUsage, Taken, in_transaction
from gateway.flows.usage_lines import LineReader, line_reader
from gateway.metrics import USAGE_LINES
from gateway.settings import Settings
from gateway.store import usage_files
from gateway.store.usage_files import Pass, Progress, RejectedLine

if TYPE_CHECKING:
    from gateway.store.pool import Connection

_encode = msgspec.json.Encoder().encode


class AnotherIsAtIt(CannotStart):
    """Another process takes up the same file."""


class Ingested(NamedTuple):
    """A file that is taken up. `before`: it was already. `rejected_by_code` is empty if some of the lines are swept."""

    header: Header
    file_id: bytes
    progress: Progress
    rejected_by_code: dict[str, int]
    before: bool


class OnProgress(Protocol):
    """Told while a file is examined, then while its lines are recorded."""

    def examined(self, lines: int) -> None: ...
    def found(self, lines: int, done: int) -> None: ...
    def recorded(self, lines: int) -> None: ...


class Silent:
    """Tells nobody."""

    def examined(self, lines: int) -> None: ...
    def found(self, lines: int, done: int) -> None: ...
    def recorded(self, lines: int) -> None: ...


class IngestUsageFile:
    """run() for one file at a time."""

    def __init__(
        self, directory: Directory, reader: LineReader, return_usage: ReturnUsage, settings: UsageReturn
    ) -> None:
        self._directory = directory
        self._reader = reader
        self._return_usage = return_usage
        self._settings = settings

    async def run(
        self, connection: "Connection", path: Path, sender: str | None = None, on_progress: OnProgress | None = None
    ) -> Ingested:
        """`sender`: the only one whose files may come this way. The connection is the run's own.

        Raises Held, AnotherIsAtIt, Problem 503, OSError, asyncpg.PostgresError.
        """
        on_progress = on_progress or Silent()
        file, head = await asyncio.to_thread(self._open, path, sender)
        try:
            await self._examine(file, head, on_progress)
            header = head.header
            first = Progress(Pass.USES, FIRST_LINE)
            progress = await usage_files.begin(
                connection, head.file_id, header.caller, header.batch_no, header.count, header.sum_fen, first
            )
            if progress is None:
                raise Held([HoldReason.BATCH])
            before = progress.at is Pass.DONE
            on_progress.found(header.count, progress.created + progress.duplicate + progress.rejected)
            while progress.at is not Pass.DONE:
                progress = await self._next_chunk(connection, file, head, progress, on_progress)
            recorded = progress.created + progress.duplicate + progress.rejected
            if recorded != header.count:
                raise Held([HoldReason.MISCOUNTED], f"recorded {recorded} of {header.count} lines")
            by_code = await usage_files.rejected_by_code(connection, head.file_id)
            if sum(by_code.values()) != progress.rejected:  # they are swept line by line
                by_code = {}
            return Ingested(header, head.file_id, progress, by_code, before)
        finally:
            file.close()

    def _open(self, path: Path, sender: str | None) -> tuple[UsageFile, Head]:
        file = UsageFile(path, self._settings.file_max_bytes)
        try:
            head = file.head()
            caller = head.header.caller
            if caller not in self._settings.files or sender not in (None, caller):
                raise Held([HoldReason.CALLER])
            file.encoding = self._settings.files[caller].encoding
        except BaseException:
            file.close()
            raise
        return file, head

    async def _examine(self, file: UsageFile, head: Head, on_progress: OnProgress) -> None:
        """Everything that the header promises, before anything is taken up. Raises Held."""
        key = await self._directory.find_signing_key(head.header.caller, head.header.key_id)
        if key is None:
            raise Held([HoldReason.KEY])
        # SM2 and a digest of the whole file: not on the event loop
        if not await asyncio.to_thread(_is_signed, key, head):
            raise Held([HoldReason.SIGNATURE])
        totals = await asyncio.to_thread(file.totals, head, on_progress.examined)
        if wrong := differences(head.header, totals):
            raise Held(wrong, f"found {totals.lines} lines, {totals.sum_fen} fen")

    async def _next_chunk(
        self, connection: "Connection", file: UsageFile, head: Head, progress: Progress, on_progress: OnProgress
    ) -> Progress:
        """The progress after one more chunk, committed."""
        caller, lines_max = head.header.caller, self._settings.chunk_lines
        chunk = await asyncio.to_thread(file.chunk, head, progress.at_line, lines_max)
        if progress.at is Pass.USES:
            read = await asyncio.to_thread(self._reader.read, caller, chunk.lines, self._directory.scenes)
            given, malformed = [each for each in read.given if each.line.reversal_of is None], read.rejected
            left = len(read.given) - len(given)
        else:
            skip = await usage_files.rejected_among(connection, head.file_id, progress.at_line, chunk.next_line)
            lines = [line for line in chunk.lines if line[0] not in skip]
            read = await asyncio.to_thread(self._reader.read, caller, lines, None)
            given, malformed = [each for each in read.given if each.line.reversal_of is not None], []
            left = 0

        async def work() -> tuple[Progress, Taken]:
            # first: who waits here for another run finds the file moved
            if await usage_files.hold_still(connection, head.file_id) != progress:
                raise AnotherIsAtIt(f"another process takes up batch {head.header.batch_no}")
            taken = await self._return_usage.take(connection, caller, given)
            rejected = [*malformed, *taken.rejected]
            moved = _moved(progress, chunk, taken, len(rejected), left)
            await usage_files.advance(connection, head.file_id, moved, [_row(each) for each in rejected])
            return moved, taken

        moved, taken = await in_transaction(connection, work)
        taken.points.tell()
        self._count(caller, taken, malformed)
        on_progress.recorded(moved.created + moved.duplicate + moved.rejected)
        return moved

    def _count(self, caller: str, taken: Taken, malformed: Sequence[Reject]) -> None:
        USAGE_LINES.add(("file", "created", caller), taken.created)
        USAGE_LINES.add(("file", "duplicate", caller), taken.duplicate)
        for result, count in Counter(each.code.value for each in (*malformed, *taken.rejected)).items():
            USAGE_LINES.add(("file", result, caller), count)


def ingest_usage_files(settings: Settings, directory: Directory) -> IngestUsageFile:
    """As the configuration and our keys have it. Raises KeyStoreError."""
    config = settings.gateway.usage_return
    return IngestUsageFile(
        directory,
        line_reader(open_folder(settings.keys_dir), config.days_back),
        ReturnUsage(EarnPoints(lambda: directory.earn_rules)),
        config,
    )


def _is_signed(key: VerifyKey, head: Head) -> bool:
    try:
        signature = base64.b64decode(head.signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    return verify(key, head.signed, signature)


def _moved(before: Progress, chunk: Chunk, taken: Taken, rejected: int, left: int) -> Progress:
    reversals = before.reversals + left
    at, at_line = before.at, chunk.next_line
    if chunk.is_last and at is Pass.USES and reversals:
        at, at_line = Pass.REVERSALS, FIRST_LINE
    elif chunk.is_last:
        at = Pass.DONE
    return Progress(
        at, at_line, before.created + taken.created, before.duplicate + taken.duplicate,
        before.rejected + rejected, reversals,
    )  # fmt: skip


def _row(reject: Reject) -> RejectedLine:
    errors = [{"field": field, "message": message} for field, message in reject.errors]
    return RejectedLine(reject.number, reject.id, reject.code, _encode(errors).decode())
