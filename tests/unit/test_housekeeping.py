"""The background worker ends with its first loop that fails: the supervisor starts it again."""

import asyncio

import pytest
from structlog.testing import capture_logs

from gateway.domain.errors import LoopFailed, unavailable
from gateway.worker import housekeeping
from gateway.worker.housekeeping import close_all, every, keep


async def for_ever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("mistake", [ZeroDivisionError, None], ids=["raises", "returns"])
async def test_a_loop_that_ends_ends_the_worker_with_a_word(mistake: type[Exception] | None) -> None:
    async def fails() -> None:
        if mistake is not None:
            raise mistake

    loops = [asyncio.create_task(for_ever(), name="good"), asyncio.create_task(fails(), name="bad")]
    with capture_logs() as lines, pytest.raises(LoopFailed):
        await keep(loops, asyncio.Event())
    assert [(line["log_level"], line["loop"]) for line in lines] == [("critical", "bad")]
    assert all(loop.done() for loop in loops)


async def test_told_to_stop_it_ends_without_one() -> None:
    stop, loop = asyncio.Event(), asyncio.create_task(for_ever())
    kept = asyncio.create_task(keep([loop], stop))
    stop.set()
    with capture_logs() as lines:
        await kept
    assert lines == [] and loop.cancelled()


@pytest.mark.parametrize("fails", [True, False], ids=["fails", "ends well"])
async def test_a_turn_that_ends_in_the_moment_of_the_stop_is_the_last(fails: bool) -> None:
    """As a wait does whose answer, or failure, comes together with the cancellation."""
    begun, turns = asyncio.Event(), 0

    async def turn() -> None:
        nonlocal turns
        turns += 1
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if fails:
                raise unavailable("the database is not available") from None

    stop, loop = asyncio.Event(), asyncio.create_task(every(0, "it", turn))
    await begun.wait()
    stop.set()
    async with asyncio.timeout(5):
        await keep([loop], stop)
    assert loop.cancelled() and turns == 1


async def test_what_cannot_be_closed_keeps_nothing_open_and_hides_nothing() -> None:
    closed: list[str] = []

    async def close() -> None:
        closed.append("closed")

    async def fail() -> None:
        raise OSError

    async def end() -> None:
        try:
            raise LoopFailed
        finally:
            await close_all(close, fail, close)

    with capture_logs() as lines, pytest.raises(LoopFailed):
        await end()
    assert len(closed) == 2
    assert [(line["log_level"], type(line["exc_info"])) for line in lines] == [("warning", OSError)]


async def test_what_takes_too_long_to_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a statement does of a database that has stopped."""
    monkeypatch.setattr(housekeeping, "_CLOSE_S", 0.01)
    closed: list[str] = []

    async def close() -> None:
        closed.append("closed")

    with capture_logs() as lines:
        async with asyncio.timeout(5):
            await close_all(for_ever, close)
    assert closed and [type(line["exc_info"]) for line in lines] == [TimeoutError]
