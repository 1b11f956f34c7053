"""`python -m gateway show-evidence | operations | reconcile`"""

import asyncio
import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit

cli = typer.Typer()


@cli.command()
def show_evidence(
    reference: Annotated[str, typer.Argument(help="Of an operation: what its answer said.")],
    body: Annotated[bool, typer.Option(help="Print the request's body too: it may hold personal data.")] = False,
) -> None:
    """Show what proves that an operation was asked for, and check it again. Exit code 1 if a check fails."""
    settings = settings_or_exit()
    from uuid import UUID

    from gateway.operators import evidence

    try:
        wanted = UUID(reference)
    except ValueError:
        give_up("a reference is a UUID, as the answer to the operation said it")
    with refusals():
        lines, good = asyncio.run(evidence(settings, wanted, body))
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if good else 1)


@cli.command()
def operations(
    stuck: Annotated[
        bool, typer.Option("--stuck", help="Those at banks and merchants that are undecided for too long.")
    ] = False,
) -> None:
    """Operations that need an operator's eye."""
    settings = settings_or_exit()
    from gateway.operators import stuck_operations

    if not stuck:
        give_up("say which: operations --stuck")
    with refusals():
        for line in asyncio.run(stuck_operations(settings)):
            typer.echo(line)


@cli.command()
def reconcile(
    bank: Annotated[str, typer.Argument(help="Of payments.routes in gateway.toml.")],
    day: Annotated[dt.datetime, typer.Argument(formats=["%Y-%m-%d"], help="The settlement day, in China.")],
    file: Annotated[Path | None, typer.Option(help="The bank's check file, if it came another way.")] = None,
) -> None:
    """Compare our payments of a day with the bank's check file. Nothing is corrected."""
    settings = settings_or_exit()
    from gateway.domain.errors import Problem
    from gateway.operators import reconcile as run_reconciliation

    with refusals("not reconciled"):
        try:
            lines = asyncio.run(run_reconciliation(settings, bank, day.date(), file))
        except Problem as problem:
            give_up(f"not reconciled: {problem.detail}")
    for line in lines:
        typer.echo(line)
