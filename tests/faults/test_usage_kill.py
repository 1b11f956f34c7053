"""Usage data returned while processes are killed: each line counts once, whatever was on its way."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import asyncpg
import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.faults.home import Figure, Home
from tests.faults.planted import plant
from tests.faults.waiting import gone, send, tree, until
from tests.ledger import broken_rules
from tests.registry import add_cards
from tests.returns import PATH, day_file, line, ndjson, reversal
from tests.running import ROOT, Client

CHUNK = 20
USES_EACH, BAD = 100, 10
"""So many uses for a cycle, so that there is something left to be killed at; every tenth is reversed."""
ENDS_S = 60.0
_random = random.Random(20261123)

STAND = """
CREATE FUNCTION stand() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_sleep(0.01), pg_advisory_xact_lock_shared(hashtext(TG_TABLE_NAME));
    RETURN NULL;
END $$;
CREATE TRIGGER stand AFTER INSERT ON usage_reversal FOR EACH STATEMENT EXECUTE FUNCTION stand();
CREATE TRIGGER stand AFTER UPDATE ON usage_file FOR EACH STATEMENT EXECUTE FUNCTION stand();
"""
"""Every chunk takes a while, and stands at a table as long as somebody has the lock of its name."""
OURS = "application_name = 'yikatong ingest' AND datname = current_database()"


class Bank(NamedTuple):
    """A bank's file, and where it is taken up by a command of its own."""

    dsn: str
    data_dir: Path
    file: Path
    lines: list[dict[str, Any]]
    owner: "asyncpg.Connection[asyncpg.Record]"

    async def begin(self, bug: str | None = None) -> asyncio.subprocess.Process:
        environment = os.environ | {
            "DATA_DIR": str(self.data_dir), "CONFIG_DIR": str(self.data_dir / "config"), "DATABASE_URL": self.dsn,
        } | (plant(bug) if bug else {})  # fmt: skip
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "ingest", str(self.file), cwd=ROOT, env=environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def at_line(self) -> int:
        return int(await self.owner.fetchval("SELECT coalesce(max(at_line + 100000 * pass), 0) FROM usage_file"))

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        """With SIGKILL; then its transaction is over too."""
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.communicate()
        await self.owner.execute("SELECT pg_advisory_unlock_all()")

        async def let_go() -> bool:
            return not await self.owner.fetchval(f"SELECT count(*) FROM pg_stat_activity WHERE {OURS}")  # noqa: S608

        await until(let_go, ENDS_S, "the server has noticed")

    async def finish(self, bug: str | None = None) -> None:
        process = await self.begin(bug)
        async with asyncio.timeout(ENDS_S):
            _, said = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def faults(self) -> list[str]:
        """What is not as if nobody had been killed."""
        found = []
        events = [row[0] for row in await self.owner.fetch("SELECT caller_event_id FROM usage_event ORDER BY 1")]
        if events != sorted(each["id"] for each in self.lines):
            found.append(f"{len(events)} events of {len(set(events))} lines, not {len(self.lines)}")
        report = json.loads(self.file.with_name(self.file.name + ".report.json").read_text())
        figures = tuple(report[name] for name in ("created", "duplicate", "rejected"))
        if figures != (len(self.lines), 0, BAD):
            found.append(f"created, duplicate, rejected: {figures}")
        reversals = sum("reversal_of" in each for each in self.lines)
        if await self.owner.fetchval("SELECT count(*) FROM usage_reversal") != reversals:
            found.append("reversals")
        if broken := await broken_rules(self.owner):
            found.append(f"ledger: {broken}")
        points = await self.owner.fetchval("SELECT coalesce(sum(points), 0) FROM points_transfer")
        if points != len(self.lines) - 2 * reversals:
            found.append(f"{points} points")
        return found


@pytest.fixture
async def bank(postgres: EmbeddedPostgres, template: str, tmp_path: Path, cycles: int) -> AsyncIterator[Bank]:
    database = await make_database(postgres, template)
    await add_cards(database.dsn, prepare_data_dir(tmp_path, 1))
    shutil.copytree(ROOT / "config", tmp_path / "config")
    settings = tmp_path / "config" / "gateway.toml"
    settings.write_text(settings.read_text().replace("chunk_lines = 2000", f"chunk_lines = {CHUNK}"))
    scenes = tmp_path / "config" / "scenes.toml"  # no limit of a day: every use earns its point
    scenes.write_text(scenes.read_text().replace("daily_max = 200", "daily_max = 100_000"))
    uses = [line(amount_fen=100) for _ in range(USES_EACH * max(cycles, 2))]
    lines = [*uses, *(reversal(use) for use in uses[::10])]
    _random.shuffle(lines)
    mixed: list[dict[str, Any] | bytes] = [*lines]
    for _ in range(BAD):
        mixed.insert(_random.randrange(len(mixed)), b"{")
    signing = json.loads((tmp_path / "sandbox/callers/demo-bank.json").read_text())["signing"]
    (tmp_path / "day.ndjson").write_bytes(day_file(signing, mixed))
    owner = await asyncpg.connect(database.dsn)
    await owner.execute(STAND)
    yield Bank(database.dsn, tmp_path, tmp_path / "day.ndjson", lines, owner)
    await owner.close()
    await drop_database(postgres, database)


async def kill_while_it_stands(bank: Bank, at: str, bug: str | None = None) -> None:
    """Between the writing of a chunk's lines and the commit."""
    await bank.owner.execute("SELECT pg_advisory_lock(hashtext($1))", at)
    process = await bank.begin(bug)

    async def stands() -> bool:
        waiting = f"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory' AND {OURS}"  # noqa: S608
        return bool(await bank.owner.fetchval(waiting))

    await until(stands, ENDS_S, f"it stands at {at}")
    await bank.kill(process)


async def test_a_killed_ingest_goes_on_and_each_line_counts_once(bank: Bank, cycles: int, figure: Figure) -> None:
    """Before the commit of a chunk of uses, at random points, and before the commit of a chunk of reversals."""
    await kill_while_it_stands(bank, "usage_file")
    where = []
    for _ in range(cycles):
        process, until_line = await bank.begin(), await bank.at_line() + _random.randrange(3 * CHUNK)

        async def there(process: asyncio.subprocess.Process = process, until_line: int = until_line) -> bool:
            return process.returncode is not None or await bank.at_line() >= until_line

        await until(there, ENDS_S, f"line {until_line}")
        await bank.kill(process)
        where.append(await bank.at_line())
    await kill_while_it_stands(bank, "usage_reversal")
    await bank.finish()
    figure(kills=2 + cycles, at=str(where), lines=len(bank.lines))
    assert await bank.faults() == []
    await bank.finish()
    assert await bank.faults() == [], "and taken up before, it stays as it is"


async def test_control_a_marker_that_is_committed_apart_is_noticed(bank: Bank, figure: Figure) -> None:
    await kill_while_it_stands(bank, "usage_reversal", "marker_apart")
    await bank.finish("marker_apart")
    found = await bank.faults()
    figure(found=str(found))
    assert any("duplicate" in each for each in found)


class Sender:
    """Sends its bulks again until each is answered 200, as a bank should."""

    def __init__(self, home: Home, bulks: int) -> None:
        self.home = home
        self.bulks = []
        for _ in range(bulks):
            uses = [line(amount_fen=100) for _ in range(50)]
            self.bulks.append([*uses, *(reversal(use) for use in uses[:5])])
        self.answered = 0
        self.tries = 0

    async def run(self) -> None:
        async with Client(self.home.running, "demo-bank") as client:
            headers = await client.authorization() | {"Content-Type": "application/x-ndjson"}
        for bulk in self.bulks:
            await until(lambda bulk=bulk: self._sent(ndjson(bulk), headers), ENDS_S, "a bulk is answered")  # type: ignore[misc]
            self.answered += 1

    async def _sent(self, body: bytes, headers: dict[str, str]) -> bool:
        self.tries += 1
        timeout = aiohttp.ClientTimeout(total=15)
        try:
            async with (
                aiohttp.ClientSession(self.home.running.url, headers=headers, timeout=timeout) as session,
                session.post(PATH, data=body) as answer,
            ):
                found = await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return False
        assert answer.status in (200, 503), found
        assert answer.status == 503 or found["rejected"] == []
        return answer.status == 200


async def test_a_gateway_killed_during_bulks_counts_each_line_once(home: Home, cycles: int, figure: Figure) -> None:
    await home.start()
    sender = Sender(home, 12 * cycles)
    sending = asyncio.create_task(sender.run())
    for cycle in range(cycles):
        wanted = 10 * cycle + _random.randint(2, 8)
        await until(lambda wanted=wanted: sender.answered >= wanted or sending.done(), ENDS_S, f"{wanted} bulks")  # type: ignore[misc]
        processes = tree(home.running.pid)
        send(processes, signal.SIGKILL)
        await gone(processes, 5)
        await home.ended(5)
        await home.start()
    async with asyncio.timeout(ENDS_S * 2):
        await sending
    owner = await asyncpg.connect(home.dsn)
    rows = await owner.fetch("SELECT caller_event_id FROM usage_event WHERE kind = 'usage' ORDER BY 1")
    broken = await broken_rules(owner)
    await owner.close()
    figure(kills=cycles, bulks=len(sender.bulks), tries=sender.tries)
    assert [row[0] for row in rows] == sorted(each["id"] for bulk in sender.bulks for each in bulk)
    assert broken == {}
