"""The folders of daily files: each file has its turn, whatever is wrong with those before it."""

import datetime as dt
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest
from structlog.testing import capture_logs

from gateway.directory import Directory
from gateway.flows import return_usage
from gateway.flows.ingest_usage_file import Ingested, IngestUsageFile, ingest_usage_files
from gateway.flows.report_usage_file import report_taken
from gateway.flows.usage_lines import Given
from gateway.store.usage_return import Known, NewEvent
from gateway.worker import usage_files
from gateway.worker.usage_files import WatchUsageFiles
from tests.desk import Desk, Sender

if TYPE_CHECKING:
    from gateway.store.pool import Connection


async def test_a_name_that_is_no_text_does_no_harm(desk: Desk) -> None:
    """A bank that writes its names in GBK."""
    sender, name = Sender(desk), os.fsdecode("流水.day".encode("gbk"))
    sender.drop(name)
    await sender.turn()
    assert sender.lying("done") == [name, f"{name}.report.json"]
    report = sender.ended("done", name)
    assert (report["file"], report["created"]) == ("\ufffd\ufffd\u02ee.day", 1)


@pytest.mark.parametrize("is_good", [True, False], ids=["taken up", "held"])
async def test_a_file_that_cannot_be_reported_holds_up_no_other(desk: Desk, is_good: bool) -> None:
    sender, long = Sender(desk), "0" * 250
    sender.drop(long)
    if not is_good:
        (desk.folder / long).write_bytes(b"{}\n\n")
        os.utime(desk.folder / long, (1_700_000_000, 1_700_000_000))
    other = sender.drop("1.day")
    await sender.turn()
    assert (sender.lying("done"), sender.lying("")) == (["1.day", "1.day.report.json"], [long])
    assert await desk.recorded([other]) == [other["id"]]


async def test_two_files_of_one_name_are_both_kept(desk: Desk) -> None:
    sender = Sender(desk)
    for times in range(1, 4):
        sender.drop("today.day")
        await sender.turn()
        assert len(sender.lying("done")) == 2 * times
    assert sender.lying("done")[:2] == ["2-today.day", "2-today.day.report.json"]


async def test_a_file_that_comes_in_the_place_of_another_has_its_turn(desk: Desk) -> None:
    """Whoever sends a file again while it is taken up is not told that it was done."""
    lines: list[dict[str, Any]] = []

    class Replaced(IngestUsageFile):
        async def run(self, *arguments: Any) -> Ingested:
            found = await super().run(*arguments)
            if len(lines) == 1:
                (desk.folder / "new").write_bytes(b"")
                (desk.folder / "new").rename(desk.folder / "today.day")
                lines.append(sender.drop("today.day"))
            return found

    real = ingest_usage_files(desk.settings, Directory(desk.settings))
    sender = Sender(desk, Replaced(real._directory, real._reader, real._return_usage, real._settings))
    lines.append(sender.drop("today.day"))
    await sender.turn()
    assert sender.lying("") == ["today.day"] and not (desk.folder / "done").exists()
    await sender.turn()
    assert sender.lying("done") == ["today.day", "today.day.report.json"]
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)


FAR = (dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)).astimezone(dt.timezone(dt.timedelta(hours=16))).isoformat()


def write_with_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the database refuses of FAR: a fault of ours that the contents of a file bring about."""
    event = return_usage._event

    def planted(event_id: str, given: Given, known: Known) -> NewEvent:
        return msgspec.structs.replace(event(event_id, given, known), occurred_at=given.line.occurred_at.isoformat())

    monkeypatch.setattr(return_usage, "_event", planted)


async def test_what_the_gateway_fails_at_is_held_and_the_next_is_taken_up(desk: Desk) -> None:
    sender = Sender(desk)
    with pytest.MonkeyPatch.context() as monkeypatch:
        write_with_its_offset(monkeypatch)
        lines = [sender.drop("1.day", occurred_at=FAR, terminal_id="secret"), sender.drop("2.day")]
        with capture_logs() as logged:
            await sender.turn()
    assert (sender.lying("held"), sender.lying("")) == (["1.day", "1.day.report.json"], [])
    report = sender.ended("held", "1.day")
    assert (report["held"], report["detail"]) == (["gateway_fault"], "InvalidTimeZoneDisplacementValueError")
    (told,) = [each["exception"] for each in logged if "exception" in each]
    assert told.startswith("InvalidTimeZoneDisplacementValueError at ") and "usage_return.py" in told
    assert FAR not in str(logged) and "secret" not in str(logged)
    assert await desk.recorded(lines) == [lines[1]["id"]]
    (desk.folder / "held" / "1.day").rename(desk.folder / "1.day")  # mended, and put back
    await sender.turn()
    assert sender.ended("done", "1.day")["created"] == 1


@pytest.mark.parametrize("classes", [("22", "23"), ("22", "23", "42")], ids=["as it is", "control"])
async def test_a_database_that_is_not_as_it_should_be_leaves_the_files_where_they_are(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...]
) -> None:
    """As under a worker of the version before a migration."""
    monkeypatch.setattr(usage_files, "_BY_CONTENTS", classes)
    sender = Sender(desk)
    lines = [sender.drop("1.day"), sender.drop("2.day")]
    owner = await asyncpg.connect(desk.dsn)
    try:
        await owner.execute("ALTER TABLE usage_file RENAME COLUMN at_line TO at_another")
        await sender.turn()
        await owner.execute("ALTER TABLE usage_file RENAME COLUMN at_another TO at_line")
    finally:
        await owner.close()
    assert sender.lying("") == (["1.day", "2.day"] if "42" not in classes else [])
    await sender.turn()
    assert await desk.recorded(lines) == (sorted(each["id"] for each in lines) if "42" not in classes else [])


async def test_a_month_without_its_partition_holds_no_file(desk: Desk) -> None:
    sender, owner = Sender(desk), await asyncpg.connect(desk.dsn)
    lines = [sender.drop("1.day"), sender.drop("2.day")]
    month = await owner.fetchrow(
        "SELECT relname, pg_get_expr(relpartbound, oid) FROM pg_class"
        " WHERE relname = to_char(now() AT TIME ZONE 'UTC', '\"usage_event_\"YYYYMM')"
    )
    assert month is not None
    name, bounds = month
    try:
        await owner.execute(f"ALTER TABLE usage_event DETACH PARTITION {name}")
        await sender.turn()
        assert sender.lying("") == ["1.day", "2.day"]
    finally:
        await owner.execute(f"ALTER TABLE usage_event ATTACH PARTITION {name} {bounds}")
        await owner.close()
    await sender.turn()
    assert await desk.recorded(lines) == sorted(each["id"] for each in lines)


async def test_a_row_that_a_check_refuses_holds_its_file(desk: Desk) -> None:
    """By the same SQLSTATE as one without a partition; the next file is taken up."""
    sender, owner = Sender(desk), await asyncpg.connect(desk.dsn)
    lines = [sender.drop("1.day", terminal_id="odd"), sender.drop("2.day")]
    try:
        await owner.execute("ALTER TABLE usage_event ADD CONSTRAINT odd CHECK (terminal_id <> 'odd') NOT VALID")
        await sender.turn()
    finally:
        await owner.execute("ALTER TABLE usage_event DROP CONSTRAINT odd")
        await owner.close()
    assert (sender.lying("held"), sender.lying("")) == (["1.day", "1.day.report.json"], [])
    assert await desk.recorded(lines) == [lines[1]["id"]]


async def test_control_a_fault_that_is_not_held_comes_again_each_turn(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def believing(self: WatchUsageFiles, connection: "Connection", sender: str, path: Path) -> str:
        await report_taken(connection, path, await self._ingest.run(connection, path, sender))
        return "done"

    monkeypatch.setattr(WatchUsageFiles, "_taken_or_held", believing)
    write_with_its_offset(monkeypatch)
    sender = Sender(desk)
    lines = [sender.drop("1.day", occurred_at=FAR), sender.drop("2.day")]
    for _ in range(2):
        with capture_logs() as logged:
            await sender.turn()
        assert [each["file"] for each in logged if each["event"] == "usage file not taken up"] == ["1.day"]
    assert sender.lying("") == ["1.day"] and await desk.recorded(lines) == [lines[1]["id"]]


class Meeting(IngestUsageFile):
    """At its first file this happens before."""

    def __init__(self, desk: Desk, happens: "Callable[[Connection], Awaitable[None]]") -> None:
        real = ingest_usage_files(desk.settings, Directory(desk.settings))
        super().__init__(real._directory, real._reader, real._return_usage, real._settings)
        self._happens = [happens]

    async def run(self, connection: "Connection", *arguments: Any) -> Ingested:
        if self._happens:
            await self._happens.pop()(connection)
        return await super().run(connection, *arguments)


@pytest.mark.parametrize("error", [AssertionError, RecursionError, MemoryError, KeyError])
async def test_a_fault_of_any_kind_is_one_files(desk: Desk, error: type[Exception]) -> None:
    async def fail(_: "Connection") -> None:
        raise error

    sender = Sender(desk, Meeting(desk, fail))
    sender.drop("1.day")
    sender.drop("2.day")
    await sender.turn()
    assert (sender.lying("done"), sender.lying("")) == (["2.day", "2.day.report.json"], [])
    assert sender.ended("held", "1.day")["detail"] == error.__name__


async def test_a_file_whose_connection_ends_has_its_turn_again(desk: Desk) -> None:
    async def end(connection: "Connection") -> None:
        owner = await asyncpg.connect(desk.dsn)
        await owner.execute("SELECT pg_terminate_backend($1, 10000)", connection.get_server_pid())
        await owner.close()

    sender = Sender(desk, Meeting(desk, end))
    lines = [sender.drop("1.day"), sender.drop("2.day")]
    await sender.turn()
    assert (sender.lying("done"), sender.lying("")) == (["2.day", "2.day.report.json"], ["1.day"])
    await sender.turn()
    assert sender.lying("") == [] and await desk.recorded(lines) == sorted(each["id"] for each in lines)


async def test_while_the_database_is_away_all_files_wait(desk: Desk) -> None:
    sender = Sender(desk._replace(dsn="postgresql://localhost:1/nobody"))
    sender.drop("1.day")
    sender.drop("2.day")
    with pytest.raises(OSError):
        await sender.turn()
    assert sender.lying("") == ["1.day", "2.day"]
