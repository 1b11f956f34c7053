"""The simulated bank in a process of its own: what it answered survives `kill -9`, and it ends with its parent."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import aiohttp
import psutil
import pytest

from gateway.domain.outcome import Approved, Declined, NotSent, Unknown
from gateway.sandbox.peers.control import HOST, Book, BookLine
from gateway.sandbox.peers.open_bank_host import OPENING_FEN
from tests.faults.planted import plant
from tests.faults.waiting import gone, tree, until
from tests.partners.hosts import Host
from tests.partners.open_bank import SETTLED_S, Caller, balance_fen, gateway_keys, purchase, transfer
from tests.running import ROOT

MODULE = "open_bank_host"
READY_S = 10
CALLERS = 8
ACKS = 60


class Peer(Host):
    """A process of the bank, and who calls it."""

    caller: Caller

    async def serve(self, session: aiohttp.ClientSession) -> None:
        await self.start()
        keys = gateway_keys(self.folder / "keys")
        self.caller = Caller(f"http://{HOST}:{self.port}", self.control, keys, session)


def arguments(folder: Path) -> list[str]:
    return ["--port", "0", "--control-port", "0", "--book", str(folder / "book.ndjson"), "--keys", str(folder / "keys")]


@asynccontextmanager
async def peer(folder: Path, bug: str = "") -> AsyncIterator[tuple[Peer, aiohttp.ClientSession]]:
    running = Peer(folder, MODULE, "--keys", str(folder / "keys"), environment=plant(bug) if bug else None)
    async with aiohttp.ClientSession() as session:
        await running.serve(session)
        try:
            yield running, session
        finally:
            await running.kill()


class Load:
    """Transfers of one fen each, all at once, until the bank is gone."""

    def __init__(self) -> None:
        self.acknowledged: list[UUID] = []
        self.unknown: list[UUID] = []

    async def run(self, caller: Caller) -> None:
        while True:
            op = transfer(1)
            outcome = await caller.call(op)
            if isinstance(outcome, NotSent):
                return
            (self.acknowledged if isinstance(outcome, Approved) else self.unknown).append(op.reference)


async def kill_under_load(running: Peer, session: aiohttp.ClientSession) -> Load:
    """... and start it again."""
    load = Load()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(CALLERS):
            tasks.create_task(load.run(running.caller))
        await until(lambda: len(load.acknowledged) >= ACKS, 20, f"{ACKS} transfers")
        await running.kill()
    await running.serve(session)
    return load


async def lost(running: Peer, load: Load) -> int:
    """Acknowledged transfers that the bank knows nothing of. Its balances are always those of its book."""
    items = await running.caller.book()
    references = [UUID(item["reference"]) for item in items]
    assert len(set(references)) == len(references)
    assert set(references) <= {*load.acknowledged, *load.unknown}
    assert await balance_fen(running.caller) == OPENING_FEN - len(references)
    return len(set(load.acknowledged) - set(references))


async def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    async with peer(tmp_path) as (running, session):
        for _ in range(3):
            load = await kill_under_load(running, session)
            assert await lost(running, load) == 0
            assert await running.stop() == 0
            (tmp_path / "book.ndjson").unlink()
            await running.serve(session)


async def test_control_a_book_written_after_the_answer_is_noticed(tmp_path: Path) -> None:
    async with peer(tmp_path, "book_after_answer") as (running, session):
        load = await kill_under_load(running, session)
        assert await lost(running, load) > 0


async def test_what_a_kill_left_unknown_is_settled_by_asking(tmp_path: Path) -> None:
    """Nothing is paid twice, and nothing stays open."""
    async with peer(tmp_path) as (running, session):
        op = purchase(500)
        await running.caller.faults({"kind": "late", "ms": 60_000})
        waiting = asyncio.create_task(running.caller.call(op))
        await until(lambda: (tmp_path / "book.ndjson").stat().st_size > 0, 5, "the line in the book")
        await running.kill()
        assert isinstance(await waiting, Unknown)
        await running.serve(session)
        assert isinstance(await running.caller.ask(op, later_s=SETTLED_S), Approved)
        assert isinstance(await running.caller.call(op), Approved)
        assert isinstance(await running.caller.ask(purchase(), later_s=SETTLED_S), Declined)
        assert await balance_fen(running.caller) == OPENING_FEN - 500


async def test_a_line_that_was_cut_short_is_taken_off(tmp_path: Path) -> None:
    file = tmp_path / "book.ndjson"
    whole = BookLine("r-1", "transfer", 1, "approved")
    for torn in (b"", b'{"reference":"r-2","ki'):
        file.unlink(missing_ok=True)
        book = Book(file)
        book.write(whole)
        book.close()
        with file.open("ab") as stream:
            stream.write(torn)
        again = Book(file)
        again.write(BookLine("r-3", "transfer", 1, "approved"))
        again.close()
        read = Book(file)
        assert [line.reference for line in read.lines()] == ["r-1", "r-3"]
        read.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_ends_with_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    module = f"gateway.sandbox.peers.{MODULE}"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-m', '{module}', *sys.argv[1:]])"
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", starts, *arguments(tmp_path), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    assert (await asyncio.wait_for(parent.stdout.readline(), READY_S)).startswith(b"ready ")
    children = tree(parent.pid)[1:]
    assert len(children) == 1
    psutil.Process(parent.pid).send_signal(number)
    await parent.wait()
    await gone(children, 3)
