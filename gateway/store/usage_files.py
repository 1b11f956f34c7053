"""How far daily files of usage data have been taken up, and which of their lines were not accepted."""

from collections.abc import AsyncIterator, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.store.pool import AnyConnection, Connection

_PAGE = 1000


class Pass(IntEnum):
    """A file is read for its uses, then, if it has any, for the lines that take uses back."""

    USES = 1
    REVERSALS = 2
    DONE = 3


class Progress(NamedTuple):
    """Moved in the transaction that records the lines up to here, so it says what is done, after any crash."""

    at: Pass
    at_line: int
    """The next one, by its number in the file (the header is 1)."""
    created: int = 0
    duplicate: int = 0
    rejected: int = 0
    reversals: int = 0
    """Lines left to the second pass."""


class RejectedLine(NamedTuple):
    """`errors` is JSON."""

    line: int
    id: str | None
    code: str
    errors: str


_COLUMNS = "pass, at_line, created, duplicate, rejected, reversals"


async def begin(
    connection: "AnyConnection",
    file_id: bytes,
    caller: str,
    batch_no: str,
    lines: int,
    amount_fen: int,
    first: Progress,
) -> Progress | None:
    """Where to go on with a file, at its beginning if it is new; None if its batch_no belongs to another file."""
    await connection.execute(
        "INSERT INTO usage_file (file_id, caller, batch_no, lines, amount_fen, pass, at_line)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
        file_id, caller, batch_no, lines, amount_fen, first.at.value, first.at_line,
    )  # fmt: skip
    return await _progress(connection, file_id, "")


async def hold_still(connection: "AnyConnection", file_id: bytes) -> Progress | None:
    """The progress, locked until the end of the transaction."""
    return await _progress(connection, file_id, " FOR UPDATE")


async def _progress(connection: "AnyConnection", file_id: bytes, lock: str) -> Progress | None:
    row = await connection.fetchrow(f"SELECT {_COLUMNS} FROM usage_file WHERE file_id = $1{lock}", file_id)  # noqa: S608
    return None if row is None else Progress(Pass(row[0]), *tuple(row)[1:])


async def advance(
    connection: "AnyConnection", file_id: bytes, progress: Progress, rejected: Sequence[RejectedLine]
) -> None:
    """Move a file that is held still, and keep the lines that were not accepted."""
    if rejected:
        await connection.copy_records_to_table(
            "usage_file_reject", records=[(file_id, *each) for each in rejected],
            columns=["file_id", "line", "id", "code", "errors"],
        )  # fmt: skip
    await connection.execute(
        f"UPDATE usage_file SET ({_COLUMNS}, moved_at) = ($2, $3, $4, $5, $6, $7, now()) WHERE file_id = $1",  # noqa: S608
        file_id, progress.at.value, *progress[1:],
    )  # fmt: skip


async def rejected_lines(connection: "Connection", file_id: bytes) -> AsyncIterator[RejectedLine]:
    """All of them, in the order of the file, a page at a time."""
    line = 0
    while rows := await connection.fetch(
        "SELECT line, id, code, errors::text FROM usage_file_reject WHERE file_id = $1 AND line > $2"
        " ORDER BY line LIMIT $3",
        file_id, line, _PAGE,
    ):  # fmt: skip
        for row in rows:
            yield RejectedLine(*row)
        line = rows[-1][0]


async def rejected_among(connection: "AnyConnection", file_id: bytes, first: int, behind: int) -> set[int]:
    """Which of these lines were not accepted."""
    rows = await connection.fetch(
        "SELECT line FROM usage_file_reject WHERE file_id = $1 AND line >= $2 AND line < $3", file_id, first, behind
    )
    return {row[0] for row in rows}


async def sweep_rejected(connection: "AnyConnection", limit: int, days: int) -> int:
    """Delete up to `limit` lines that are older; returns how many. A file that is not done still goes by its own."""
    done = await connection.fetch(
        "DELETE FROM usage_file_reject WHERE (file_id, line) IN (SELECT file_id, line FROM usage_file_reject"
        " JOIN usage_file USING (file_id) WHERE at < now() - make_interval(days => $1) AND pass = $3"
        " ORDER BY at LIMIT $2) RETURNING true",
        days, limit, Pass.DONE.value,
    )  # fmt: skip
    return len(done)


async def rejected_by_code(connection: "AnyConnection", file_id: bytes) -> dict[str, int]:
    rows = await connection.fetch(
        "SELECT code, count(*) FROM usage_file_reject WHERE file_id = $1 GROUP BY code ORDER BY code", file_id
    )
    return {row[0]: row[1] for row in rows}
