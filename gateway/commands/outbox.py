"""`python -m gateway outbox …`"""

import asyncio
import datetime as dt
from typing import Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit

cli = typer.Typer(help="The outward feed: how far it is, what was given up, send that again.", no_args_is_help=True)

_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]
_Name = Annotated[str, typer.Option("--subscriber", help="Of outbox.subscribers in gateway.toml, or nats.")]
_From = Annotated[dt.datetime, typer.Option("--from", formats=_FORMATS, help="Events recorded from then on, in China.")]
_To = Annotated[dt.datetime, typer.Option("--to", formats=_FORMATS, help="… and before then.")]


@cli.command()
def status() -> None:
    """Each subscriber: how far behind, what waits aside, what was given up, when it is tried again."""
    settings = settings_or_exit()
    from gateway.operators_outbox import outbox_status

    with refusals():
        for line in asyncio.run(outbox_status(settings)):
            typer.echo(line)


@cli.command()
def dead_letters(
    subscriber: _Name,
    since: Annotated[
        dt.datetime | None, typer.Option("--from", formats=_FORMATS, help="Events recorded from then on, in China.")
    ] = None,
    until: Annotated[dt.datetime | None, typer.Option("--to", formats=_FORMATS, help="… and before then.")] = None,
) -> None:
    """Events that were given up after twelve tries over 72 hours, and not sent again."""
    settings = settings_or_exit()
    from gateway.operators_outbox import dead_letters as letters

    with refusals():
        for line in asyncio.run(letters(settings, subscriber, since, until)):
            typer.echo(line)


@cli.command()
def replay(subscriber: _Name, since: _From, until: _To) -> None:
    """Send the dead letters of a time again, in order, with twelve tries each; a running gateway does it."""
    settings = settings_or_exit()
    from gateway.operators_outbox import replay as send_again

    if since >= until:
        give_up("not replayed: --from must be before --to")
    with refusals("not replayed"):
        sent_again, left = asyncio.run(send_again(settings, subscriber, since, until))
    typer.echo(
        f"{sent_again} dead letters of {subscriber} are on their way again: `outbox status` shows them under aside"
    )
    if left:
        typer.echo(f"{left} are left: more may not wait aside at once. Repeat this when fewer are there")
