"""The bench's row `usage-file`: a daily file of a million lines, its ingest's time and the most memory it had."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.client import CallError
from loadtests.processes import CHECKOUT

WANTED_MIB = 200
SECONDS_MAX = 1800.0
_LOOK_S = 0.2
_CREATED = re.compile(r"created +([0-9,]+)")


@dataclass(frozen=True)
class FileRun:
    """`peak_mib` is of the process that takes the file up."""

    lines: int
    packed_mib: float
    seconds: float
    peak_mib: float

    def __str__(self) -> str:
        return (
            f"daily file of {self.lines:,} lines, {self.packed_mib:.0f} MiB gzipped: "
            f"{self.lines / self.seconds:,.0f} lines/s, at most {self.peak_mib:.0f} MiB (wanted: at most {WANTED_MIB})"
        )


def ingest_file(folder: Path, environment: dict[str, str], lines: int) -> FileRun:
    """Written by the sandbox's bank, taken up by the command; every line must be new. Raises CallError."""
    file = folder / "day.ndjson.gz"
    command = [sys.executable, "-m", "gateway"]
    everything = os.environ | environment
    subprocess.run(
        [*command, "usage-file", str(file), "--lines", str(lines)], cwd=CHECKOUT, env=everything, check=True,
        timeout=SECONDS_MAX,
    )  # fmt: skip
    began, peak = time.monotonic(), 0.0
    with subprocess.Popen(
        [*command, "ingest", str(file)], cwd=CHECKOUT, env=everything, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, watched.memory_info().rss / 2**20)
            if time.monotonic() - began > SECONDS_MAX:
                process.kill()
            time.sleep(_LOOK_S)
        said = process.stdout.read() if process.stdout else ""
    created = _CREATED.search(said)
    if process.returncode or created is None or int(created[1].replace(",", "")) != lines:
        raise CallError(f"ingest: exit code {process.returncode}: {said}")
    found = FileRun(lines, file.stat().st_size / 2**20, time.monotonic() - began, peak)
    for left in folder.glob("day.ndjson.gz*"):
        left.unlink()
    return found
