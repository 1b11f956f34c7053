"""`python -m gateway ingest | usage-file`"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit

if TYPE_CHECKING:
    from gateway.settings import Settings

cli = typer.Typer()


@cli.command()
def ingest(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="Plain or gzipped.")],
) -> None:
    """Take up a daily file of usage data; run again after a crash, it goes on where it stopped. Exit code 1 if held."""
    settings = settings_or_exit()
    from gateway.domain.errors import Problem

    with refusals("not taken up; run it again"):
        try:
            lines, good = asyncio.run(_ingest(settings, file))
        except Problem as problem:
            give_up(f"not taken up; run it again: {problem.detail}")
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if good else 1)


@cli.command()
def usage_file(
    file: Annotated[Path, typer.Argument(help="Gzipped if it ends with .gz.")],
    lines: Annotated[int, typer.Option(min=1, max=10_000_000)] = 1000,
) -> None:
    """Write a daily file as the sandbox's bank would send it, of made-up uses of the county's cards."""
    settings = settings_or_exit()
    from gateway.sandbox.usage_file import SENDER, write_usage_file

    if SENDER not in settings.gateway.usage_return.files:
        give_up(f"gateway.toml: usage_return.files.{SENDER}: missing: this gateway would hold the file")
    try:
        write_usage_file(settings, file, lines, settings.gateway.usage_return.files[SENDER].encoding)
    except FileNotFoundError as error:
        give_up(f"{error.filename}: not there: run `make run` first")


async def _ingest(settings: "Settings", file: Path) -> tuple[list[str], bool]:
    """(lines to print, whether the file was taken up)."""
    from functools import partial

    from gateway.directory import Directory
    from gateway.domain.usage_files import Held
    from gateway.flows.ingest_usage_file import ingest_usage_files
    from gateway.flows.report_usage_file import report_held, report_taken, shown_name
    from gateway.operators import database_of
    from gateway.store import caller_keys
    from gateway.store.pool import FOR_RETURNS, connect

    connection = await connect(database_of(settings), settings.gateway.database, "yikatong ingest", FOR_RETURNS)
    try:
        directory = Directory(settings, partial(caller_keys.relevant, connection))
        await directory.look()
        with Shown() as shown:
            found = await ingest_usage_files(settings, directory).run(connection, file, on_progress=shown)
        report = await report_taken(connection, file, found)
    except Held as held:
        report = report_held(file, held, "none")
        return [
            f"held: {held}" + (f" ({held.detail})" if held.detail else ""),
            f"report     {report.with_name(shown_name(report))}",
        ], False
    finally:
        await connection.close()
    progress = found.progress
    lines = ["taken up before"] if found.before else []
    lines += [f"{name:<11}{getattr(progress, name):>10,}" for name in ("created", "duplicate", "rejected")]
    lines += [f"  {code:<20}{count:>10,}" for code, count in found.rejected_by_code.items()]
    return [*lines, f"report     {report.with_name(shown_name(report))}"], True


class Shown:
    """A progress bar on stderr: the file is examined, then its lines are recorded."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("examining", total=None)

    def __enter__(self) -> "Shown":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def examined(self, lines: int) -> None:
        self._progress.update(self._task, advance=lines)

    def found(self, lines: int, done: int) -> None:
        self._progress.update(self._task, description="recording", total=lines, completed=done)

    def recorded(self, lines: int) -> None:
        self._progress.update(self._task, completed=lines)
