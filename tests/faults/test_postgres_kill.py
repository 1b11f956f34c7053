"""`kill -9` of PostgreSQL under load: nothing acknowledged is lost, and the gateway serves again by itself."""

import random
import signal
import time

from tests.faults.home import Figure, Home
from tests.faults.load import Findings, Load, Outcome, check
from tests.faults.waiting import gone, send, tree, until
from tests.running import BUSY

AGAIN_S = 5.0 * BUSY
ACKS_S = 15.0

_random = random.Random(20261123)


async def kill_postgres(home: Home, load: Load) -> float:
    """The server and all of its processes at one blow; returns the seconds to the first verdict on a later request."""
    acks = load.history.acknowledged + _random.randint(50, 500)
    await until(lambda: load.history.acknowledged >= acks, ACKS_S, f"{acks} verdicts")
    processes = tree(home.postmaster)
    send(processes, signal.SIGKILL)
    killed = time.monotonic()
    await gone(processes, 5)
    ended = time.monotonic()
    await until(lambda: bool(load.history.ok_since(ended)), AGAIN_S, "a verdict after the kill")
    return min(attempt.ended for attempt in load.history.ok_since(ended)) - killed


async def test_a_killed_postgres_loses_nothing(home: Home, cycles: int, figure: Figure) -> None:
    """And while it is away every answer is a 503 with Retry-After within a second; no connection breaks."""
    await home.start()
    gateway = tree(home.running.pid)[0], *home.workers()
    agains, found = [], []
    for cycle in range(cycles):
        prefix = f"pk{cycle}"
        async with home.load(prefix) as load:
            agains.append(await kill_postgres(home, load))
        found.append(await check(home.dsn, load.history, prefix))
        assert found[-1].clean, found[-1]
        assert load.history.broken_promises() == []
        assert not load.history.of(Outcome.UNKNOWN) + load.history.of(Outcome.NOT_SENT)
    assert {process.pid for process in gateway[1:]} == {process.pid for process in home.workers()}, "a worker gave up"
    figure(
        kills=cycles, acks=sum(one.acknowledged for one in found), refused=sum(one.refused for one in found),
        lost=sum(one.lost for one in found), duplicated=sum(one.duplicated for one in found),
        serves_again_s=max(agains),
    )  # fmt: skip


async def test_control_commits_that_do_not_wait_for_the_disk_are_noticed(home: Home, figure: Figure) -> None:
    await home.start("synchronous_commit_off")
    lost: list[Findings] = []
    kills = 0
    while not lost:
        kills += 1
        assert kills <= 10, "the check did not notice a gateway that does not wait for the disk"
        prefix = f"pc{kills}"
        async with home.load(prefix) as load:
            await kill_postgres(home, load)
        lost += [findings for findings in [await check(home.dsn, load.history, prefix)] if findings.lost]
    figure(kills=kills, acks=lost[0].acknowledged, lost=lost[0].lost)
