"""`kill -9` of the gateway under load: no acknowledged event is lost, none is there twice, nothing stays behind."""

import random
import signal
import time

import pytest

from tests.faults.home import Figure, Home
from tests.faults.load import Findings, check
from tests.faults.waiting import gone, send, tree, until
from tests.running import BUSY

NOTHING_LEFT_S = 2.0 * BUSY
READY_S = 5.0 * BUSY
ACKS_S = 15.0
WORKER_BACK_S = 5.0 * BUSY
KILLS_OF_ONE_GATEWAY = 4  # it gives up when its workers end more often than that within half a minute

_random = random.Random(20261123)


async def kill_under_load(home: Home, prefix: str, everything: bool) -> tuple[Findings, float, float]:
    """One cycle on a running gateway. Returns what was found after the next start, and the seconds of the two waits."""
    acks = _random.randint(50, 500)
    async with home.load(prefix) as load:
        await until(lambda: load.history.acknowledged >= acks, ACKS_S, f"{acks} verdicts")
        processes = tree(home.running.pid)
        send(processes if everything else processes[:1], signal.SIGKILL)
        left = await gone(processes, NOTHING_LEFT_S)
        await home.ended(5)
    began = time.monotonic()
    await home.start()
    ready = time.monotonic() - began
    return await check(home.dsn, load.history, prefix), left, ready


async def test_a_killed_gateway_loses_nothing(home: Home, cycles: int, figure: Figure) -> None:
    """Its supervisor alone (what it started must end by itself), and in turn all of its processes at one blow."""
    await home.start()
    found, lefts, readies = [], [], []
    for cycle in range(cycles):
        findings, left, ready = await kill_under_load(home, f"gk{cycle}", everything=cycle % 2 == 1)
        assert findings.clean, findings
        assert ready <= READY_S
        found.append(findings)
        lefts.append(left)
        readies.append(ready)
    figure(
        kills=cycles, acks=sum(one.acknowledged for one in found), unknown=sum(one.unknown for one in found),
        lost=sum(one.lost for one in found), duplicated=sum(one.duplicated for one in found),
        nothing_left_s=max(lefts), ready_s=max(readies),
    )  # fmt: skip


async def test_control_answers_before_the_commit_are_noticed(home: Home, figure: Figure) -> None:
    await home.start("answer_before_commit")
    for kills in range(1, 11):
        findings, _, _ = await kill_under_load(home, f"gc{kills}", everything=False)
        if findings.lost:
            break
        await home.end()
        await home.start("answer_before_commit")
    assert findings.lost, "the check did not notice a gateway that answers before the commit"
    figure(kills=kills, acks=findings.acknowledged, lost=findings.lost)


async def kill_worker_under_load(home: Home, prefix: str) -> tuple[Findings, float]:
    """One of two. Returns what was found, and the seconds until there was a new one."""
    async with home.load(prefix) as load:
        await until(lambda: load.history.acknowledged >= 200, ACKS_S, "200 verdicts")
        before = home.workers()
        assert len(before) == 2
        send(before[:1], signal.SIGKILL)
        killed = time.monotonic()
        back = await until(lambda: len(set(home.workers()) - set(before)) == 1, WORKER_BACK_S, "a new worker")
        await until(lambda: len(load.history.ok_since(killed)) >= 200, ACKS_S, "verdicts after the kill")
    assert load.history.broken_promises() == []
    return await check(home.dsn, load.history, prefix), back


async def test_a_killed_worker_is_replaced(home: Home, cycles: int, figure: Figure) -> None:
    """The others go on, its own callers see a broken connection, and the gateway starts it again."""
    found, backs = [], []
    for cycle in range(cycles):
        if cycle % KILLS_OF_ONE_GATEWAY == 0:
            await home.end()
            await home.start()
        findings, back = await kill_worker_under_load(home, f"wk{cycle}")
        assert findings.clean, findings
        found.append(findings)
        backs.append(back)
    figure(
        kills=cycles, acks=sum(one.acknowledged for one in found), unknown=sum(one.unknown for one in found),
        lost=sum(one.lost for one in found), duplicated=sum(one.duplicated for one in found), worker_back_s=max(backs),
    )  # fmt: skip


@pytest.mark.parametrize("moment", ["PG_VERSION", "postmaster.pid"])
async def test_killed_while_it_makes_its_database(newcomer: Home, moment: str, figure: Figure) -> None:
    """The next start makes it anew, or goes on with what is there."""
    folder = newcomer.data_dir / "postgres"
    starting = await newcomer.running.launch()
    await until(lambda: any(folder.glob(f"data*/{moment}")), 20, f"{moment} in the first start")
    processes = tree(newcomer.running.pid)
    send(processes[:1], signal.SIGKILL)
    left = await gone(processes, NOTHING_LEFT_S)
    await starting.wait()
    began = time.monotonic()
    await newcomer.start()
    figure(kills=1, nothing_left_s=left, ready_s=time.monotonic() - began)
