"""`python -m gateway show-evidence | operations | decide | reconcile`"""

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
def decide(
    reference: Annotated[str, typer.Argument(help="Of a payment, reversal or refund that is stuck.")],
    state: Annotated[str, typer.Argument(help="What the bank says that it came to: approved, declined, reversed.")],
    note: Annotated[str, typer.Option(help="Who said so, and when; its history keeps it, which the caller sees.")],
) -> None:
    """Write what people have learned from the bank of a payment that nobody else can find out."""
    settings = settings_or_exit()
    from uuid import UUID

    from gateway.domain.errors import Problem
    from gateway.domain.payments import PaymentState
    from gateway.flows.decide_payment import NotDecided
    from gateway.operators import decide_payment

    try:
        wanted, after = UUID(reference), PaymentState(state)
    except ValueError:
        give_up("not decided: a reference is a UUID, and it came to approved, declined or reversed")
    if not 1 <= len(note) <= 200 or not note.isprintable():  # what is not text is said so before anything is written
        give_up("not decided: it needs a note of 1 to 200 characters, in UTF-8")
    with refusals("not decided"):
        try:
            line = asyncio.run(decide_payment(settings, wanted, after, note))
        except NotDecided as error:
            give_up(f"not decided: {error}")
        except Problem as problem:
            give_up(f"it is not known whether it was decided, ask again: {problem.detail}")
    typer.echo(line)


@cli.command()
def reconcile(
    bank: Annotated[str, typer.Argument(help="Of payments.routes in gateway.toml, today or then.")],
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
