"""`python -m gateway keys …`"""

import asyncio
import datetime as dt
from typing import Annotated

import typer

from gateway.commands.frame import give_up, refusals, settings_or_exit

cli = typer.Typer(help="The gateway's own keys: look at them, rotate them while it runs.", no_args_is_help=True)


@cli.command("status")
def keys_status() -> None:
    """Every key: next, current, accepted or retired, since and until when."""
    settings = settings_or_exit()
    from gateway.operators import keys_table

    with refusals():
        for line in asyncio.run(keys_table(settings, dt.datetime.now(dt.UTC))):
            typer.echo(line)


@cli.command("rotate")
def keys_rotate(
    use: Annotated[str, typer.Argument(help="sign: access tokens; kek: what wraps the data keys.")] = "sign",
) -> None:
    """Make a new key; the running gateway takes it up without a failed request."""
    settings = settings_or_exit()
    from gateway.crypto.key_files import create_next
    from gateway.crypto.key_store import KeyUse
    from gateway.domain.times import CHINA
    from gateway.flows.rotate_own_keys import STAY, rotate_kek
    from gateway.operators import database_of

    now = dt.datetime.now(dt.UTC)
    with refusals("not rotated"):
        if use == KeyUse.SIGN:
            kid, takes_over = create_next(settings.keys_dir, KeyUse.SIGN, now, settings.gateway.tokens.key_overlap_s)
            typer.echo(f"made {kid}: published now, signs from {takes_over.astimezone(CHINA).isoformat(' ')}")
        elif use == KeyUse.KEK:
            kid, count = asyncio.run(rotate_kek(settings.keys_dir, database_of(settings), now))
            typer.echo(f"made {kid}: it wraps all {count} data keys now; keep the old file as long as its backups")
        else:
            give_up(f"not rotated: {STAY.get(use, f'no such use {use!r}: sign or kek')}")
