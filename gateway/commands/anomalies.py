"""`python -m gateway anomalies`"""

import asyncio
import datetime as dt
import re
from typing import Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit
from gateway.domain.times import CHINA

cli = typer.Typer()
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@cli.command()
def anomalies(
    since: Annotated[str, typer.Option(help="90m, 24h or 7d ago, or a day such as 2026-11-26, in China.")] = "24h",
    rehearse: Annotated[bool, typer.Option("--rehearse", help="How well the rules do on the sandbox county.")] = False,
) -> None:
    """What usage monitoring has found odd. Nobody was blocked: people decide."""
    settings = settings_or_exit()
    moment = read_since(since, dt.datetime.now(CHINA))
    if moment is None:
        give_up("--since: 90m, 24h or 7d, or a day such as 2026-11-26")
    if rehearse:
        from gateway.sandbox import rehearsal

        for line in rehearsal.lines(rehearsal.rehearse(settings.anomalies)):
            typer.echo(line)
        return
    from gateway.operators import anomalies_table

    with refusals():
        for line in asyncio.run(anomalies_table(settings, moment)):
            typer.echo(line)


def read_since(text: str, now: dt.datetime) -> dt.datetime | None:
    """None: not understood."""
    if found := re.fullmatch(r"([0-9]{1,5})([mhd])", text):
        return now - dt.timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        return dt.datetime.combine(dt.date.fromisoformat(text), dt.time(), CHINA)
    except ValueError:
        return None
