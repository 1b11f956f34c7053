"""Processes that end with their parent, and leave no memory behind."""

import ctypes
import os
import resource
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Ask the kernel to signal this process when its parent ends, however it ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:  # it ended before we could ask
        raise SystemExit(1)


def leave_no_core() -> None:
    """No core dumps of this process and those it starts: they would hold keys and personal data."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
