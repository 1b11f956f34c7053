"""The slow lane: off the loop's thread, bounded, each wait with a deadline, no harm to who waits beside it."""

import asyncio
import contextlib
import gc
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
from blockbuster import BlockingError, blockbuster_ctx

from gateway.crypto import lane as crypto_lane
from gateway.crypto.lane import NICENESS, SlowLane
from gateway.crypto.sm2 import Chosen
from gateway.crypto.sm2_gmssl import GmsslFast
from gateway.crypto.sm2_libcrypto import LibCrypto
from gateway.domain.errors import Problem

Make = Callable[..., SlowLane]


@pytest.fixture
async def lane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(crypto_lane, "NICENESS", 0)  # what else runs on the machine is no reason to be late
    made: list[SlowLane] = []

    def make(
        threads: int = 1, waiting_max: int = 2, deadline_s: float = 5.0, pace: int = 10_000, together: int = 1
    ) -> SlowLane:
        made.append(SlowLane(threads, waiting_max, deadline_s, pace, together))
        return made[-1]

    yield make
    for one in made:
        one.close()


async def emptied(lane: SlowLane) -> None:
    async with asyncio.timeout(5):
        while len(lane):  # noqa: ASYNC110 - it tells nobody when it is empty
            await asyncio.sleep(0.001)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.parametrize("backend", [LibCrypto, GmsslFast])
async def test_its_threads_give_way_unless_the_library_keeps_the_interpreter(
    lane: Make, backend: type[LibCrypto | GmsslFast], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto_lane, "NICENESS", NICENESS)
    monkeypatch.setattr(crypto_lane, "chosen", lambda: Chosen(backend(), ""))
    slow, before = lane(), niceness()
    assert await slow.run("", niceness) == min(before + (NICENESS if backend is LibCrypto else 0), 19)
    assert niceness() == before


async def test_where_its_threads_may_not_give_way_they_check_all_the_same(
    lane: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[int] = []

    def nice(more: int) -> int:
        refused.append(more)
        raise PermissionError

    monkeypatch.setattr(crypto_lane, "NICENESS", NICENESS)
    monkeypatch.setattr(crypto_lane, "chosen", lambda: Chosen(LibCrypto(), ""))
    monkeypatch.setattr(os, "nice", nice)
    assert await lane().run("", max, 3, 7) == 7
    assert refused == [NICENESS]


async def test_it_runs_in_threads_of_its_own_and_gives_what_the_function_gave(lane: Make) -> None:
    slow = lane(threads=2)
    names = await asyncio.gather(*(slow.run(str(number), threading.get_ident) for number in range(4)))
    assert threading.get_ident() not in names
    assert await slow.run("one", max, 3, 7) == 7
    with pytest.raises(ZeroDivisionError):
        await slow.run("one", divmod, 1, 0)
    assert len(slow) == 0


async def test_what_blocks_does_not_block_the_loop(lane: Make) -> None:
    slow = lane()
    with blockbuster_ctx():
        await slow.run("one", time.sleep, 0.01)
        with pytest.raises(BlockingError):
            time.sleep(0.01)  # noqa: ASYNC251 - the control: on the loop it would be seen


async def test_one_caller_has_at_most_half_of_the_places(lane: Make) -> None:
    slow, gate = lane(threads=1, waiting_max=5), threading.Event()
    waiting = [asyncio.create_task(slow.run("greedy", gate.wait)) for _ in range(10)]
    await asyncio.sleep(0)
    assert len(slow) == 3
    other = asyncio.create_task(slow.run("other", max, 3, 7))
    gate.set()
    assert await other == 7
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(end, Problem) for end in ended] == [False] * 3 + [True] * 7
    assert await slow.run("greedy", max, 3, 7) == 7, "its places are free again"


async def test_no_more_are_begun_than_its_pace_allows(lane: Make) -> None:
    """Twenty at twenty a second take a second; without a pace they take no time."""
    for pace, least, most in ((20, 0.95, 5.0), (10_000, 0.0, 0.9)):
        slow = lane(threads=2, waiting_max=50, pace=pace)
        began = time.monotonic()
        await asyncio.gather(*(slow.run(str(number), time.monotonic) for number in range(20)))
        assert least <= time.monotonic() - began <= most


async def turns_of(slow: SlowLane, count: int) -> int:
    """In how many turns of the loop so many were answered that are handed in at once."""
    turns: list[int] = []

    async def one(who: str) -> None:
        await slow.run(who, min, 3, 7)
        turns.append(turn)

    turn, waiting = 0, [asyncio.create_task(one(str(number))) for number in range(count)]
    async with asyncio.timeout(5):
        while len(turns) < count:
            await asyncio.sleep(0)
            turn += 1
    await asyncio.gather(*waiting)
    return len(set(turns))


async def test_those_that_wait_are_answered_together(lane: Make) -> None:
    """The first may have been alone (a loop that stands still answers several apart at once); in the same pace."""
    assert await turns_of(lane(waiting_max=20, pace=50), 8) > 3
    began = time.monotonic()
    assert await turns_of(lane(waiting_max=20, pace=50, together=4), 8) <= 3
    assert time.monotonic() - began >= 7 / 50


async def test_the_first_of_them_waits_a_tenth_of_its_time_at_most(lane: Make) -> None:
    slow = lane(waiting_max=20, deadline_s=1.0, pace=20, together=8)
    assert await turns_of(slow, 6) >= 3


async def test_threads_that_share_the_pace_share_that_tenth(lane: Make) -> None:
    slow = lane(threads=2, waiting_max=20, deadline_s=1.0, pace=40, together=8)
    assert await turns_of(slow, 8) >= 4


async def test_one_that_is_alone_waits_for_nobody(lane: Make) -> None:
    slow = lane(pace=1, deadline_s=80.0, together=8)
    began = time.monotonic()
    assert await slow.run("one", max, 3, 7) == 7
    assert time.monotonic() - began < 0.5


async def test_when_it_is_full_it_refuses_at_once(lane: Make) -> None:
    slow, gate = lane(threads=1, waiting_max=2), threading.Event()
    waiting = [asyncio.create_task(slow.run(str(number), gate.wait)) for number in range(3)]
    await asyncio.sleep(0)
    assert len(slow) == 3
    began = time.monotonic()
    with pytest.raises(Problem) as refused:
        await slow.run("one", max, 3, 7)
    assert time.monotonic() - began < 0.05
    assert refused.value.code == "overloaded"
    gate.set()
    assert await asyncio.gather(*waiting) == [True, True, True]
    assert await slow.run("one", max, 3, 7) == 7, "a place is free again"


async def test_past_its_deadline_it_answers_and_what_still_waits_is_skipped(lane: Make) -> None:
    slow, gate, ran = lane(waiting_max=1, deadline_s=0.4), threading.Event(), list[int]()
    results = await asyncio.gather(slow.run("one", gate.wait), slow.run("two", ran.append, 1), return_exceptions=True)
    assert [getattr(result, "code", result) for result in results] == ["overloaded", "overloaded"]
    assert len(slow) == 2, "the places are given back by the thread, not by who stopped waiting"
    with pytest.raises(Problem):
        await slow.run("one", max, 3, 7)
    gate.set()
    await emptied(slow)
    assert ran == []


async def checked_for(slow: SlowLane, clients: int) -> int:
    """How many are answered in a second and a half to so many that ask again as soon as they are answered."""
    checked, end = 0, time.monotonic() + 1.5

    async def client(who: str) -> None:
        nonlocal checked
        while time.monotonic() < end:
            with contextlib.suppress(Problem):
                await slow.run(who, max, 3, 7)
                checked += 1

    await asyncio.gather(*(client(str(number)) for number in range(clients)))
    return checked


async def test_where_more_come_than_can_be_checked_its_pace_is_kept(lane: Make) -> None:
    """Eighty cannot all be checked in time: were the oldest checked at the end of their time, hardly any but the forty
    of the beginning would be answered in it. As many are as of twenty, who all can be."""
    some, many = [await checked_for(lane(waiting_max=100, deadline_s=0.4, pace=100), clients) for clients in (20, 80)]
    assert many > some / 2, (many, some)


async def test_those_that_would_be_late_are_skipped_at_one_go(lane: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told one at a time they took four milliseconds each on a busy machine, and made all that followed late too."""
    loop, told = asyncio.get_running_loop(), list[str]()
    wakes = loop.call_soon_threadsafe

    def call_soon_threadsafe(callback: Callable[..., object], *args: object, **kwargs: Any) -> asyncio.Handle:
        told.append(callback.__name__)
        return wakes(callback, *args, **kwargs)

    monkeypatch.setattr(loop, "call_soon_threadsafe", call_soon_threadsafe)
    slow, gate, ran = lane(waiting_max=50, deadline_s=0.4), threading.Event(), list[int]()
    first = asyncio.create_task(slow.run("one", gate.wait))
    others = [asyncio.create_task(slow.run(str(number), ran.append, number)) for number in range(40)]
    loop.call_later(0.35, gate.set)
    _, *ended = await asyncio.gather(first, *others, return_exceptions=True)
    await emptied(slow)
    assert ([getattr(each, "code", each) for each in ended], ran) == (["overloaded"] * 40, [])
    assert 1 <= told.count("_deliver") <= 2, told


async def test_while_it_is_full_it_keeps_nothing_of_what_was_answered(lane: Make) -> None:
    slow, left, kept = lane(waiting_max=50, together=8), 2000, -1

    async def client(who: str) -> None:
        nonlocal left, kept
        while left > 0:
            left -= 1
            await slow.run(who, max, 3, 7)
        if kept < 0:
            kept = sum(type(each) is Future for each in gc.get_objects())

    await asyncio.gather(*(client(str(number)) for number in range(40)))
    assert 0 < kept < 10, "turns of its threads"


class Name(str):
    """One to which there can be a weak reference."""


async def test_it_keeps_no_caller(lane: Make) -> None:
    slow, caller = lane(), Name("one")
    kept = weakref.ref(caller)
    assert await slow.run(caller, max, 3, 7) == 7
    del caller
    gc.collect()
    assert kept() is None


async def test_what_comes_while_its_thread_goes_to_rest_is_checked(lane: Make) -> None:
    slow = lane(deadline_s=1.0)
    first = asyncio.create_task(slow.run("one", max, 3, 7))
    await asyncio.sleep(0)
    second = asyncio.create_task(slow.run("two", max, 4, 8))
    time.sleep(0.1)  # noqa: ASYNC251 - the thread has ended by then; the loop hears of it after the second has come
    assert (await first, await second) == (7, 8)


class Panic(BaseException):
    """As of a library in Rust."""


@pytest.mark.parametrize("kind", [Panic, StopIteration])
async def test_what_no_coroutine_can_raise_is_a_failure_of_one_check(lane: Make, kind: type[BaseException]) -> None:
    def fails() -> bool:
        raise kind

    slow, gate = lane(waiting_max=5, deadline_s=1.0, together=3), threading.Event()
    checks: list[Callable[[], bool]] = [gate.wait, fails, bool]
    waiting = [asyncio.create_task(slow.run(str(number), check)) for number, check in enumerate(checks)]
    await asyncio.sleep(0)
    gate.set()
    before, failed, after = await asyncio.gather(*waiting, return_exceptions=True)
    assert (before, type(failed), after) == (True, RuntimeError, False)
    assert len(slow) == 0
    assert await slow.run("one", max, 3, 7) == 7


async def test_who_hangs_up_leaves_nothing_behind_and_harms_nobody(lane: Make) -> None:
    slow, gate, ran = lane(waiting_max=3, together=3), threading.Event(), list[int]()
    checks: list[Callable[[], object]] = [gate.wait, partial(ran.append, 1), int]
    running, waiting, other = [asyncio.create_task(slow.run(str(number), check)) for number, check in enumerate(checks)]
    await asyncio.sleep(0.01)
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gate.set()
    assert await other == 0
    assert (len(slow), ran) == (0, [])
    assert await slow.run("one", max, 3, 7) == 7


async def test_a_timeout_of_the_function_is_its_own(lane: Make) -> None:
    def too_late() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        await lane().run("one", too_late)


async def test_closed_it_takes_nothing_more(lane: Make) -> None:
    slow = lane()
    slow.close()
    with pytest.raises(Problem) as refused:
        await slow.run("one", max, 3, 7)
    assert refused.value.code == "unavailable"


async def test_closed_it_ends_what_runs_and_begins_nothing_more(lane: Make) -> None:
    slow, ran, failed = lane(deadline_s=2.0, together=3), list[int](), list[object]()
    began, gate = threading.Event(), threading.Event()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    def runs() -> bool:
        began.set()
        return gate.wait(5)

    first = asyncio.create_task(slow.run("one", runs))
    others = [asyncio.create_task(slow.run(str(number), ran.append, number)) for number in range(2)]
    await asyncio.sleep(0)
    assert began.wait(5), "on a busy machine it takes its time; closed before, it would not begin"
    slow.close()
    gate.set()
    assert await first is True
    ended = await asyncio.gather(*others, return_exceptions=True)
    assert ([getattr(each, "code", each) for each in ended], ran) == (["overloaded"] * 2, [])
    assert failed == []
