"""What the README prints for partners' developers, run as it is printed, beside what it says comes back."""

import asyncio
import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.clients.partner import MODULES, interpreter
from tests.conftest import add_card
from tests.running import ROOT, Running

CHAPTER = re.search(r"(?ms)^## For partner developers$.*?^## ", (ROOT / "README.md").read_text())


def blocks() -> list[tuple[str, str]]:
    """(language, content) of the chapter's blocks."""
    assert CHAPTER is not None
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", CHAPTER[0])


@pytest.fixture
async def folder(gateway: Running, tmp_path: Path) -> Path:
    """A folder like that of a gateway under `make run`, with one card."""
    card = await add_card(gateway)
    (tmp_path / "config").symlink_to(ROOT / "config")
    (tmp_path / "var/sandbox").mkdir(parents=True)
    (tmp_path / "var/sandbox/callers").symlink_to(gateway.data_dir / "sandbox/callers")
    line = f"{card.number},{card.identifier},third_gen,1,2035-01-01,330424,1960-01-01\n"
    (tmp_path / "var/sandbox/cards.csv").write_text(line)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, does in (("python", f'exec {sys.executable} "$@"'), ("npm", "exit 0")):
        (tmp_path / ".venv/bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / ".venv/bin" / name).chmod(0o755)
    return tmp_path


async def run(folder: Path, script: str) -> str:
    """What is printed, of either stream. `npm` has done what it is asked for: the packages are there."""
    environment = os.environ | {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}", "NODE_PATH": str(MODULES)}
    process = await asyncio.create_subprocess_exec(
        "sh", "-e", "-c", script, cwd=folder, env=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    return (await process.communicate())[0].decode()


async def test_the_lines_for_partners_developers_do_what_they_say(folder: Path) -> None:
    (_, printed), (_, expected), *_ = blocks()
    out = await run(folder, printed)
    # this gateway reaches no bank
    expected = expected.replace('"bank":{"status":"accepted"}', '"bank":{"status":"not_connected"}')
    assert re.fullmatch(re.escape(expected).replace("…", ".*"), out), out
    answers = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert answers[1] == answers[2], "one report"


async def test_its_lines_in_javascript_report_a_loss_with_sm2(folder: Path) -> None:
    interpreter("node", "sm2-sm3")
    (_, first), _, (_, printed), *_ = blocks()
    out = await run(folder, first.splitlines()[1] + "\n" + printed)
    assert out.splitlines()[:2] == ["Idempotency-Key: my-report-2", "200"]
    assert json.loads(out.splitlines()[2])["social_security"]["status"] == "accepted", out
