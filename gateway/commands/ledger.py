"""`python -m gateway ledger …`"""

import asyncio
from typing import Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit

cli = typer.Typer(help="The points ledger: prove that it is whole, correct it.", no_args_is_help=True)


@cli.command()
def check() -> None:
    """Prove that no points were made or lost, in one snapshot; the gateway may run. Exit code 1 if a rule is broken."""
    settings = settings_or_exit()
    from gateway.operators import check_ledger

    with refusals("not checked"):
        lines, good = asyncio.run(check_ledger(settings))
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if good else 1)


@cli.command()
def correct(
    transfer: Annotated[str, typer.Argument(help="The id of the transfer that was wrong.")],
    points: Annotated[int, typer.Argument(help="More for its person; less, if negative (after --).")],
    note: Annotated[str, typer.Option(help="Why; it is kept with the new transfer.")],
    transfer_id: Annotated[
        str | None, typer.Option(help="Of the new transfer, as a try said it whose end is not known.")
    ] = None,
) -> None:
    """Make a new transfer that names the old one. Nothing is ever changed or deleted."""
    settings = settings_or_exit()
    from uuid import UUID

    from gateway.flows.correct_points import NotCorrected, NotKnown
    from gateway.operators import correct_points

    try:
        wanted = UUID(transfer)
        new_id = UUID(transfer_id) if transfer_id is not None else None
    except ValueError:
        give_up("a transfer's id is a UUID")
    if new_id is not None and new_id.version != 7:
        give_up("not corrected: --transfer-id is what an earlier try has said")
    if not points or abs(points) > 10_000_000 or not 1 <= len(note) <= 200:
        give_up("not corrected: some points, at most 10 000 000, and a note of 1 to 200 characters")
    with refusals("not corrected"):
        try:
            line = asyncio.run(correct_points(settings, wanted, points, note, new_id))
        except NotCorrected as error:
            give_up(f"not corrected: {error}")
        except NotKnown as error:
            give_up(
                f"it is not known whether transfer {error.transfer_id} exists, as the database was lost:",
                f"repeat the command with --transfer-id {error.transfer_id}, which makes it once",
            )
    typer.echo(line)
