"""The command line: `python -m gateway --help`."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands import anomalies, keys, ledger, operations, outbox, usage
from gateway.commands.frame import give_up, refusals, run_loop, settings_or_exit
from gateway.settings import Settings, SettingsError

cli = typer.Typer(
    help="The 一卡通 gateway: social security cards linked to banks, transit, merchants and the 人才码.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

cli.add_typer(keys.cli, name="keys")
cli.add_typer(outbox.cli, name="outbox")
cli.add_typer(ledger.cli, name="ledger")
cli.add_typer(usage.cli)
cli.add_typer(anomalies.cli)
cli.add_typer(operations.cli)  # without a name: its commands stand beside those below


def _supervise(settings: Settings, prepare: Any) -> None:
    from gateway.log import configure
    from gateway.processes import leave_no_core
    from gateway.supervisor import Supervisor

    configure(settings.gateway.log_level, "supervisor")
    leave_no_core()
    with refusals():
        run_loop(Supervisor(settings, prepare, lambda line: print(line, flush=True)).run())  # noqa: T201


@cli.command()
def sandbox(
    cards: Annotated[
        int, typer.Option(envvar="CARDS", min=2_000, max=10_000_000, help="Cards of the county.")
    ] = 415_000,
    seed: Annotated[int, typer.Option(envvar="SEED", min=0, max=2**63 - 1, help="The county's seed.")] = 330424,
    traffic: Annotated[
        str, typer.Option(envvar="TRAFFIC", help="off, or how many times faster than ours the county's day passes.")
    ] = "1",
) -> None:
    """Run everything on loopback with a synthetic county. `make run` is this."""
    settings = settings_or_exit()
    from gateway.sandbox.prepare import prepare
    from gateway.sandbox.traffic import read_speed

    with refusals():
        speed = read_speed(traffic)
    _supervise(settings, prepare(cards, seed, speed))


@cli.command()
def serve(
    workers: Annotated[int | None, typer.Option(envvar="WORKERS", min=1, max=64, help="Worker processes.")] = None,
) -> None:
    """Run the gateway with the configured callers and database."""
    if workers is not None:
        os.environ["WORKERS"] = str(workers)
    _supervise(settings_or_exit(), None)


@cli.command(hidden=True)
def serve_worker() -> None:
    """One worker; started by serve."""
    settings = settings_or_exit()
    from gateway.app import serve as serve_requests
    from gateway.log import configure
    from gateway.processes import end_with_parent

    configure(settings.gateway.log_level, "serve")
    end_with_parent(int(os.environ["PARENT_PID"]))
    with refusals():
        run_loop(serve_requests(settings, settings.gateway.database.url, _say_ready))


@cli.command()
def worker() -> None:
    """The background loops (partitions, sweeping); serve runs one too, and several do no harm."""
    settings = settings_or_exit()
    from gateway.log import configure
    from gateway.processes import end_with_parent
    from gateway.worker.housekeeping import run

    configure(settings.gateway.log_level, "worker")
    if "PARENT_PID" in os.environ:
        end_with_parent(int(os.environ["PARENT_PID"]))
    with refusals():
        run_loop(run(settings, settings.gateway.database.url, _say_ready))


def _say_ready() -> None:
    print("ready", flush=True)  # noqa: T201 - the supervisor reads it


@cli.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL up to date."""
    settings = settings_or_exit()
    from gateway.store.migrate import migrate as run_migrations

    if not settings.gateway.database.url:
        give_up("set DATABASE_URL=postgresql://…: the embedded database is migrated by serve itself")
    with refusals():
        applied = asyncio.run(run_migrations(settings.gateway.database.url.reveal()))
    for name in applied:
        typer.echo(f"applied {name}")
    typer.echo("the schema is up to date")


@cli.command()
def check_config() -> None:
    """Check the configuration; every mistake is named by its path."""
    settings = settings_or_exit()
    from gateway import directory
    from gateway.partners import registry

    mistakes: list[str] = []
    for read in (directory.read, registry.read):
        try:
            read(settings)
        except SettingsError as error:
            mistakes += error.mistakes
    if mistakes:
        give_up(f"the configuration has {len(mistakes)} mistake(s):", *mistakes)
    counts = (len(settings.callers), len(settings.scenes), len(settings.benefits), len(settings.partners))
    typer.echo("the configuration is good: {} callers, {} scenes, {} benefits, {} partners".format(*counts))


@cli.command()
def new_adapter(
    name: Annotated[str, typer.Argument(help="Of the dialect: small letters, digits and _, such as bank_xml.")],
) -> None:
    """Lay out a new dialect in a checkout: its file, its contract case, its block in partners.toml."""
    import keyword
    import re

    from gateway.partners.new_adapter import lay_out

    if not re.fullmatch(r"[a-z][a-z0-9_]{1,38}", name) or keyword.iskeyword(name):
        give_up("not laid out: a name has small letters, digits and _, begins with a letter, and is no word of Python")
    with refusals("not laid out"):
        for file in lay_out(Path.cwd(), Path(os.environ.get("CONFIG_DIR", "config")).absolute(), name):
            typer.echo(f"wrote {file}")
    typer.echo(f"next: adapters/README.md, and `pytest tests/contract -k {name}`")


@cli.command()
def init_keys() -> None:
    """Make the gateway's own keys that are missing; never replaces one."""
    settings = settings_or_exit()
    from gateway.crypto.key_files import create_missing

    made = create_missing(settings.keys_dir)
    typer.echo(f"made {', '.join(made)} in {settings.keys_dir}" if made else "nothing is missing")


@cli.command()
def token(caller: Annotated[str, typer.Argument(help="A sandbox caller, such as demo-merchant.")]) -> None:
    """Print an access token of a sandbox caller, from the running gateway."""
    settings = settings_or_exit()
    from gateway.sandbox.client import TokenNotIssued, fetch_token

    try:
        typer.echo(fetch_token(settings.data_dir / "sandbox" / "callers", caller))
    except TokenNotIssued as error:
        give_up(str(error))


@cli.command()
def sample_cards(
    count: Annotated[int, typer.Option(min=1, max=1_000_000)] = 10,
    bank: Annotated[str | None, typer.Option(help="only cards with an account there")] = None,
    ecard: Annotated[bool, typer.Option("--ecard", help="only cards that have an e-card")] = False,
    points: Annotated[bool, typer.Option("--points", help="only cards of people who have points")] = False,
) -> None:
    """Print normal cards from all over the sandbox county, one JSON line each."""
    settings = settings_or_exit()
    from gateway.sandbox.county import BANKS
    from gateway.sandbox.prepare import sample

    if bank is not None and bank not in BANKS:
        give_up(f"--bank: one of {', '.join(BANKS)}")
    try:
        sys.stdout.writelines(line + "\n" for line in sample(settings, count, bank, ecard, points))
    except FileNotFoundError as error:
        give_up(f"{error.filename}: there is no county yet: run `make run` first")


@cli.command()
def openapi() -> None:
    """Print the contract (OpenAPI 3.1)."""
    settings_or_exit()
    import msgspec

    from gateway.api.openapi import build

    typer.echo(msgspec.json.format(msgspec.json.encode(build()), indent=1).decode())


if __name__ == "__main__":
    cli()
