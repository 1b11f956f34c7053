"""The command line: `python -m gateway --help`."""

import asyncio
import datetime as dt
import os
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop

from gateway.settings import Settings, SettingsError, load

cli = typer.Typer(
    help="The 一卡通 gateway: social security cards linked to banks, transit, merchants and the 人才码.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip

keys = typer.Typer(help="The gateway's own keys: look at them, rotate them while it runs.", no_args_is_help=True)
cli.add_typer(keys, name="keys")


def _settings() -> Settings:
    try:
        return load()
    except SettingsError as error:
        _give_up(f"the configuration has {len(error.mistakes)} mistake(s):", *error.mistakes)


def _give_up(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1)


def _run(main: Coroutine[Any, Any, None]) -> None:
    from gateway.log import watch_loop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        watch_loop(runner.get_loop())
        runner.run(main)


@contextmanager
def _refusals(what: str = "cannot start") -> Iterator[None]:
    """What keeps a process from its work, as one clear line instead of a traceback."""
    import asyncpg

    from gateway.domain.errors import CannotStart

    try:
        yield
    except CannotStart as error:
        _give_up(f"{what}: {error}")
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        _give_up(f"{what}: the database: {_in_our_words(error)}")


def _in_our_words(error: Exception) -> str:
    """A refusal of the database without the driver's text, which quotes values and pieces of the DSN."""
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'not reached'}"
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}, SQLSTATE {state}" if state else f"{type(error).__name__}: is DATABASE_URL right?"


def _supervise(settings: Settings, prepare: Any) -> None:
    from gateway.log import configure
    from gateway.processes import leave_no_core
    from gateway.supervisor import Supervisor

    configure(settings.gateway.log_level, "supervisor")
    leave_no_core()
    with _refusals():
        _run(Supervisor(settings, prepare, lambda line: print(line, flush=True)).run())  # noqa: T201


@cli.command()
def sandbox(
    cards: Annotated[
        int, typer.Option(envvar="CARDS", min=2_000, max=10_000_000, help="Cards of the county.")
    ] = 415_000,
    seed: Annotated[int, typer.Option(envvar="SEED", min=0, max=2**63 - 1, help="The county's seed.")] = 330424,
) -> None:
    """Run everything on loopback with a synthetic county. `make run` is this."""
    settings = _settings()
    from gateway.sandbox.prepare import prepare

    _supervise(settings, prepare(cards, seed))


@cli.command()
def serve(
    workers: Annotated[int | None, typer.Option(envvar="WORKERS", min=1, max=64, help="Worker processes.")] = None,
) -> None:
    """Run the gateway with the configured callers and database."""
    if workers is not None:
        os.environ["WORKERS"] = str(workers)
    _supervise(_settings(), None)


@cli.command(hidden=True)
def serve_worker() -> None:
    """One worker; started by serve."""
    settings = _settings()
    from gateway.app import serve as serve_requests
    from gateway.log import configure
    from gateway.processes import end_with_parent

    configure(settings.gateway.log_level, "serve")
    end_with_parent(int(os.environ["PARENT_PID"]))
    with _refusals():
        _run(serve_requests(settings, settings.gateway.database.url, _say_ready))


@cli.command()
def worker() -> None:
    """The background loops (partitions, sweeping); serve runs one too, and several do no harm."""
    settings = _settings()
    from gateway.log import configure
    from gateway.processes import end_with_parent
    from gateway.worker.housekeeping import run

    configure(settings.gateway.log_level, "worker")
    if "PARENT_PID" in os.environ:
        end_with_parent(int(os.environ["PARENT_PID"]))
    with _refusals():
        _run(run(settings, settings.gateway.database.url, _say_ready))


def _say_ready() -> None:
    print("ready", flush=True)  # noqa: T201 - the supervisor reads it


@cli.command()
def migrate() -> None:
    """Bring the schema of DATABASE_URL up to date."""
    settings = _settings()
    from gateway.store.migrate import migrate as run_migrations

    if not settings.gateway.database.url:
        _give_up("set DATABASE_URL=postgresql://…: the embedded database is migrated by serve itself")
    with _refusals():
        applied = asyncio.run(run_migrations(settings.gateway.database.url.reveal()))
    for name in applied:
        typer.echo(f"applied {name}")
    typer.echo("the schema is up to date")


@cli.command()
def check_config() -> None:
    """Check the configuration; every mistake is named by its path."""
    settings = _settings()
    from gateway import directory
    from gateway.partners import registry

    mistakes: list[str] = []
    for read in (directory.read, registry.read):
        try:
            read(settings)
        except SettingsError as error:
            mistakes += error.mistakes
    if mistakes:
        _give_up(f"the configuration has {len(mistakes)} mistake(s):", *mistakes)
    counts = (len(settings.callers), len(settings.scenes), len(settings.partners))
    typer.echo("the configuration is good: {} callers, {} scenes, {} partners".format(*counts))


@cli.command()
def new_adapter(
    name: Annotated[str, typer.Argument(help="Of the dialect: small letters, digits and _, such as bank_xml.")],
) -> None:
    """Lay out a new dialect in a checkout: its file, its contract case, its block in partners.toml."""
    import re
    from pathlib import Path

    from gateway.partners.new_adapter import lay_out

    if not re.fullmatch(r"[a-z][a-z0-9_]{1,38}", name):
        _give_up("not laid out: a name has small letters, digits and _, and begins with a letter")
    with _refusals("not laid out"):
        for file in lay_out(Path.cwd(), Path(os.environ.get("CONFIG_DIR", "config")).absolute(), name):
            typer.echo(f"wrote {file}")
    typer.echo(f"next: adapters/README.md, and `pytest tests/contract -k {name}`")


@cli.command()
def init_keys() -> None:
    """Make the gateway's own keys that are missing; never replaces one."""
    settings = _settings()
    from gateway.crypto.key_files import create_missing

    made = create_missing(settings.keys_dir)
    typer.echo(f"made {', '.join(made)} in {settings.keys_dir}" if made else "nothing is missing")


@keys.command("status")
def keys_status() -> None:
    """Every key: next, current, accepted or retired, since and until when."""
    settings = _settings()
    from gateway.operators import keys_table

    with _refusals():
        for line in asyncio.run(keys_table(settings, dt.datetime.now(dt.UTC))):
            typer.echo(line)


@keys.command("rotate")
def keys_rotate(
    use: Annotated[str, typer.Argument(help="sign: access tokens; kek: what wraps the data keys.")] = "sign",
) -> None:
    """Make a new key; the running gateway takes it up without a failed request."""
    settings = _settings()
    from gateway.crypto.key_files import create_next
    from gateway.crypto.key_store import KeyUse
    from gateway.domain.times import CHINA
    from gateway.flows.rotate_own_keys import STAY, rotate_kek
    from gateway.operators import database_of

    now = dt.datetime.now(dt.UTC)
    with _refusals("not rotated"):
        if use == KeyUse.SIGN:
            kid, takes_over = create_next(settings.keys_dir, KeyUse.SIGN, now, settings.gateway.tokens.key_overlap_s)
            typer.echo(f"made {kid}: published now, signs from {takes_over.astimezone(CHINA).isoformat(' ')}")
        elif use == KeyUse.KEK:
            kid, count = asyncio.run(rotate_kek(settings.keys_dir, database_of(settings), now))
            typer.echo(f"made {kid}: it wraps all {count} data keys now; keep the old file as long as its backups")
        else:
            _give_up(f"not rotated: {STAY.get(use, f'no such use {use!r}: sign or kek')}")


@cli.command()
def show_evidence(
    reference: Annotated[str, typer.Argument(help="Of an operation: what its answer said.")],
    body: Annotated[bool, typer.Option(help="Print the request's body too: it may hold personal data.")] = False,
) -> None:
    """Show what proves that an operation was asked for, and check it again. Exit code 1 if a check fails."""
    settings = _settings()
    from uuid import UUID

    from gateway.operators import evidence

    try:
        wanted = UUID(reference)
    except ValueError:
        _give_up("a reference is a UUID, as the answer to the operation said it")
    with _refusals():
        lines, good = asyncio.run(evidence(settings, wanted, body))
    for line in lines:
        typer.echo(line)
    raise typer.Exit(0 if good else 1)


@cli.command()
def operations(
    stuck: Annotated[bool, typer.Option("--stuck", help="Those at banks that are undecided for too long.")] = False,
) -> None:
    """Operations that need an operator's eye."""
    settings = _settings()
    from gateway.operators import stuck_operations

    if not stuck:
        _give_up("say which: operations --stuck")
    with _refusals():
        for line in asyncio.run(stuck_operations(settings)):
            typer.echo(line)


@cli.command()
def reconcile(
    bank: Annotated[str, typer.Argument(help="Of payments.routes in gateway.toml.")],
    day: Annotated[dt.datetime, typer.Argument(formats=["%Y-%m-%d"], help="The settlement day, in China.")],
    file: Annotated[Path | None, typer.Option(help="The bank's check file, if it came another way.")] = None,
) -> None:
    """Compare our payments of a day with the bank's check file. Nothing is corrected."""
    settings = _settings()
    from gateway.domain.errors import Problem
    from gateway.operators import reconcile as run_reconciliation

    with _refusals("not reconciled"):
        try:
            lines = asyncio.run(run_reconciliation(settings, bank, day.date(), file))
        except Problem as problem:
            _give_up(f"not reconciled: {problem.detail}")
    for line in lines:
        typer.echo(line)


@cli.command()
def token(caller: Annotated[str, typer.Argument(help="A sandbox caller, such as demo-merchant.")]) -> None:
    """Print an access token of a sandbox caller, from the running gateway."""
    settings = _settings()
    from gateway.sandbox.client import TokenNotIssued, fetch_token

    try:
        typer.echo(fetch_token(settings.data_dir / "sandbox" / "callers", caller))
    except TokenNotIssued as error:
        _give_up(str(error))


@cli.command()
def sample_cards(
    count: Annotated[int, typer.Option(min=1, max=1_000_000)] = 10,
) -> None:
    """Print normal cards from all over the sandbox county, one JSON line each."""
    settings = _settings()
    from gateway.sandbox.prepare import sample

    try:
        sys.stdout.writelines(line + "\n" for line in sample(settings, count))
    except FileNotFoundError as error:
        _give_up(f"{error.filename}: there is no county yet: run `make run` first")


@cli.command()
def openapi() -> None:
    """Print the contract (OpenAPI 3.1)."""
    _settings()
    import msgspec

    from gateway.api.openapi import build

    typer.echo(msgspec.json.format(msgspec.json.encode(build()), indent=1).decode())


if __name__ == "__main__":
    cli()
