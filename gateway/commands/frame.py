"""What all commands share: the settings, the loop, and refusals in one clear line."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
import uvloop

from gateway.settings import Settings, SettingsError, load


def settings_or_exit() -> Settings:
    """The checked configuration; every mistake is a line, and ends the command."""
    if not __debug__:  # what counts the rows that were written is an assert, too: a lost one would be told as done
        give_up("cannot start: python -O (PYTHONOPTIMIZE) takes checks away that the gateway needs")
    try:
        return load()
    except SettingsError as error:
        give_up(f"the configuration has {len(error.mistakes)} mistake(s):", *error.mistakes)


def give_up(*lines: str) -> NoReturn:
    for line in lines:
        typer.echo(line, err=True)
    raise typer.Exit(1)


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    from gateway.log import watch_loop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        watch_loop(runner.get_loop())
        runner.run(main)


@contextmanager
def refusals(what: str = "cannot start") -> Iterator[None]:
    """What keeps a process from its work, as one clear line instead of a traceback."""
    import asyncpg

    from gateway.domain.errors import CannotStart, LoopFailed

    try:
        yield
    except CannotStart as error:
        give_up(f"{what}: {error}")
    except LoopFailed:
        raise typer.Exit(1) from None
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        give_up(f"{what}: the database: {_in_our_words(error)}")


def _in_our_words(error: Exception) -> str:
    """A refusal of the database without the driver's text, which quotes values and pieces of the DSN."""
    if isinstance(error, OSError):
        return f"{type(error).__name__}: {error.strerror or 'not reached'}"
    state = getattr(error, "sqlstate", None)
    return f"{type(error).__name__}, SQLSTATE {state}" if state else f"{type(error).__name__}: is DATABASE_URL right?"
