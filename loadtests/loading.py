"""The bench's row `load`: a county from nothing, encrypted, in a fresh data folder."""

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadtests.processes import started

READY_S = 1800.0
_PROGRESS = re.compile(r"([0-9]+)/([0-9]+) +([0-9]+):([0-9]{2}):([0-9]{2})")


@dataclass(frozen=True)
class Loading:
    """Seconds."""

    cards: int
    ready_s: float
    """From the command to its ready line: keys, a new database, its schema, the county, workers."""
    shown_s: float
    """What the progress bar says at its end, in whole seconds: sealing and copying, without the indexes."""
    again_s: float
    """From the command to its ready line when the county is there."""

    @property
    def load_s(self) -> float:
        """What the first start takes longer."""
        return self.ready_s - self.again_s

    def __str__(self) -> str:
        return (
            f"{self.cards:,} cards: ready after {self.ready_s:.1f} s; a start with the county there "
            f"{self.again_s:.1f} s, so the load alone {self.load_s:.1f} s, "
            f"of which sealing and copying {self.shown_s:.0f} s"
        )


def load_anew(folder: Path, cards: int, free_port: Callable[[], int]) -> Loading:
    """Load a county into an empty folder, start it once more, and remove it. Raises StartError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    log = folder / "gateway.log"
    try:
        ready_s = _start(folder, cards, log, free_port)
        shown = [found for found in _PROGRESS.findall(log.read_text()) if found[0] == found[1]]
        shown_s = int(shown[-1][2]) * 3600 + int(shown[-1][3]) * 60 + int(shown[-1][4]) if shown else float("nan")
        return Loading(cards, ready_s, shown_s, _start(folder, cards, log, free_port))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path, cards: int, log: Path, free_port: Callable[[], int]) -> float:
    environment = {
        "DATA_DIR": str(folder), "CARDS": str(cards), "DATABASE_URL": "", "PORT": str(free_port()),
        "OPS_PORT": str(free_port()), "WORKERS": "1", "HOST": "127.0.0.1", "ISSUER": "", "TRAFFIC": "off",
        "COLUMNS": "200",  # room for the whole progress bar
    }  # fmt: skip
    began = time.monotonic()
    with started(["gateway", "sandbox"], environment, "serve-worker", READY_S, log):
        return time.monotonic() - began
