"""The background worker ends with its first loop that fails: the supervisor starts it again."""

import asyncio

from structlog.testing import capture_logs

from gateway.worker.housekeeping import keep


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_a_loop_that_fails_ends_the_worker_with_a_word() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    loops = [asyncio.create_task(for_ever(), name="good"), asyncio.create_task(fails(), name="bad")]
    with capture_logs() as lines:
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
