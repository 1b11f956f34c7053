"""Quota per caller over all workers: a GCRA (leaky bucket as a meter) in one shared memory table.

A slot holds the caller's theoretical arrival time. Workers read and write it without a lock: a collision lets one
request too many through, and no request waits for another process.
"""

import mmap
import struct
import time
from pathlib import Path

from gateway.directory import QUOTA_SLOTS

_SLOT = struct.Struct("=d")
TABLE_NAME = "quota"
BURST_S = 1.0


def create_table(run_dir: Path) -> None:
    (run_dir / TABLE_NAME).write_bytes(bytes(QUOTA_SLOTS * _SLOT.size))


class Quota:
    """take() costs about a microsecond."""

    def __init__(self, run_dir: Path) -> None:
        with (run_dir / TABLE_NAME).open("r+b") as stream:
            self._table = mmap.mmap(stream.fileno(), QUOTA_SLOTS * _SLOT.size)

    def take(self, slot: int, per_second: int) -> float:
        """0.0 if the request is within the quota, else the seconds until one would be."""
        now = time.monotonic()  # of the machine: the same for all workers
        offset = slot * _SLOT.size
        (arrival,) = _SLOT.unpack_from(self._table, offset)
        arrival = max(arrival, now) + 1.0 / per_second
        if arrival - now > BURST_S + 1e-9:
            return float(arrival - now - BURST_S)
        _SLOT.pack_into(self._table, offset, arrival)
        return 0.0
