"""The watched folder of a bank's daily files, and the command that takes one up."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.returns import day_file, line
from tests.running import ROOT, Client, Running, eventually, labelled


@pytest.fixture
def folder(gateway: Running) -> Path:
    made = gateway.data_dir / "usage-files" / "demo-bank"
    made.mkdir(parents=True, exist_ok=True)
    return made


def drop(folder: Path, name: str, content: bytes) -> None:
    """As a bank should: it appears when it is whole, and here it has been there for a while."""
    part = folder / f"{name}.part"
    part.write_bytes(content)
    os.utime(part, (1_700_000_000, 1_700_000_000))
    part.rename(folder / name)


async def moved(folder: Path, into: str, name: str) -> dict[str, Any]:
    """The report, when the file has been moved."""

    async def there() -> bool:
        return (folder / into / name).exists()

    await eventually(there, 30, f"{name} is in {into}/")
    assert not (folder / name).exists() and not (folder / f"{name}.report.json").exists()
    return dict(json.loads((folder / into / f"{name}.report.json").read_text()))


async def test_files_are_taken_up_or_held_with_their_reports(
    gateway: Running, bank: Client, merchant: Client, bureau: Client, folder: Path
) -> None:
    signing, terminal = bank.file["signing"], "T-folder"
    use = line(terminal_id=terminal)
    content = day_file(signing, [use, b"{"])
    drop(folder, "good.ndjson", content)
    drop(folder, "wrong.ndjson", day_file(signing, [line(terminal_id=terminal)], count=2))
    drop(folder, "not-yet.ndjson.tmp", content)
    report = await moved(folder, "done", "good.ndjson")
    assert (report["state"], report["created"], report["rejected_by_code"]) == ("taken", 1, {"malformed_json": 1})
    (reject,) = (folder / "done" / report["rejects"]).read_text().splitlines()
    assert json.loads(reject) == {"line": 4, "id": None, "code": "malformed_json", "errors": []}
    assert (await moved(folder, "held", "wrong.ndjson"))["held"] == ["wrong_count"]
    assert (folder / "not-yet.ndjson.tmp").exists()
    (event,) = await bureau.events_at(terminal, merchant)
    assert event["caller_event_id"] == use["id"]

    async def counted() -> bool:
        found = labelled(await gateway.metrics(), "yikatong_usage_files_total")
        return bool(found.get(("demo-bank", "taken")) and found.get(("demo-bank", "wrong_count")))

    await eventually(counted, 5, "files are counted")


def command(gateway: Running, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | gateway.environment | {"DATA_DIR": str(gateway.data_dir)}
    command = [sys.executable, "-m", "gateway", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


async def test_the_command_says_what_became_of_a_file(gateway: Running, bank: Client, tmp_path: Path) -> None:
    path = tmp_path / "day.ndjson"
    content = day_file(bank.file["signing"], [line(), line(scene="no.where")])
    path.write_bytes(content)
    done = await asyncio.to_thread(command, gateway, "ingest", str(path))
    assert done.returncode == 0, done.stderr
    assert [words.split() for words in done.stdout.splitlines()] == [
        ["created", "1"], ["duplicate", "0"], ["rejected", "1"], ["unknown_scene", "1"],
        ["report", f"{path}.report.json"],
    ]  # fmt: skip
    again = await asyncio.to_thread(command, gateway, "ingest", str(path))
    assert (again.returncode, again.stdout.splitlines()[0]) == (0, "taken up before")
    path.write_bytes(content.replace(b"1250", b"1251"))
    held = await asyncio.to_thread(command, gateway, "ingest", str(path))
    assert (held.returncode, held.stdout.splitlines()[0]) == (
        1, "held: wrong_digest, wrong_sum (found 2 lines, 2502 fen)",
    )  # fmt: skip
