"""A gateway process whose banks are reached over the test's own port: `BANK_PORT=… python -m tests.served`."""

import asyncio
import os
import shutil
from pathlib import Path

from gateway.api.quota import create_table
from gateway.app import serve
from gateway.domain.masking import Secret
from gateway.log import configure
from gateway.settings import load
from tests.bank import banks
from tests.running import ROOT, Running


class Served(Running):
    """The public listener of one worker; no supervisor, no worker loop, no operators' port."""

    module = "tests.served"


def short_config(folder: Path, deadline_ms: int = 1000) -> Path:
    """The house's configuration with a bank deadline that a test can wait for."""
    shutil.copytree(ROOT / "config", folder / "config")
    file = folder / "config" / "gateway.toml"
    text = file.read_text()
    assert "deadline_ms = 8000" in text
    file.write_text(text.replace("deadline_ms = 8000", f"deadline_ms = {deadline_ms}"))
    return folder / "config"


if __name__ == "__main__":
    settings = load()
    configure("info", "served")
    settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_table(settings.run_dir)
    dsn = Secret(os.environ["DATABASE_URL"])
    asyncio.run(serve(settings, dsn, lambda: print("ready", flush=True), banks(int(os.environ["BANK_PORT"]))))
