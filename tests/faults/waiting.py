"""Bounded waiting for something to become true, and processes remembered by what cannot be confused."""

import asyncio
import contextlib
import inspect
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable

import psutil

_LOOK_S, _LOOK_MAX_S = 0.005, 0.05
"""Between two looks; longer after one that took long itself, such as a new connection to a database."""


async def until(condition: Callable[[], bool | Awaitable[bool]], within_s: float, what: str) -> float:
    """Look until the condition holds; returns the seconds that took. Fails with `what` past `within_s`."""
    began = time.monotonic()
    while True:
        looked = time.monotonic()
        held = condition()
        if inspect.isawaitable(held):
            held = await held
        seconds, took = time.monotonic() - began, time.monotonic() - looked
        if held:
            return seconds
        assert seconds < within_s, f"not within {within_s} s: {what}"
        await asyncio.sleep(min(max(_LOOK_S, 2 * took), _LOOK_MAX_S))


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it. psutil remembers when each began, so a reused number is another process."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def named(processes: Iterable[psutil.Process], word: str) -> list[psutil.Process]:
    """Those whose command line has a word: serve-worker, worker."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if word in process.cmdline():
                found.append(process)
    return found


def alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. One that has ended and waits for its parent to notice does not."""
    found = []
    for process in processes:
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """One signal to all of them, as close together as it goes. Only for processes that a test has started."""
    for process in processes:
        try:
            os.kill(process.pid, number)
        except ProcessLookupError:
            continue


async def gone(processes: Iterable[psutil.Process], within_s: float) -> float:
    """Wait for the end of processes; returns the seconds. Fails with those that still run."""
    remembered = list(processes)
    began = time.monotonic()
    while left := alive(remembered):
        seconds = time.monotonic() - began
        assert seconds < within_s, f"not ended within {within_s} s: {_described(left)}"
        await asyncio.sleep(_LOOK_S)
    return time.monotonic() - began


def _described(processes: Iterable[psutil.Process]) -> list[str]:
    lines = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            lines.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[:60]}")
    return lines
