"""The bench's figures of the partner engine: its own cost, and many calls in flight on one ISO 8583 link.

Both need the engine in the measuring process. So they lie with the tests, which may know it, and are started from here.
"""

import json
import subprocess
import sys
from typing import Any

from loadtests.processes import CHECKOUT, StartError

COST = "tests.partners.engine_cost"
IN_FLIGHT = "tests.partners.link_in_flight"
_SECONDS_MAX = 300.0


def engine_cost(calls: int, rounds: int) -> dict[str, Any]:
    """µs of CPU a call by transport: `bare`, `transport`, `call` of each round, `engine_us`. Raises StartError."""
    return _measured(COST, "--calls", str(calls), "--rounds", str(rounds))


def link_in_flight(calls: int) -> dict[str, Any]:
    """500 at a time; the fields of tests/partners/link_in_flight.py. Raises StartError."""
    return _measured(IN_FLIGHT, "--calls", str(calls))


def _measured(module: str, *arguments: str) -> dict[str, Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=CHECKOUT, capture_output=True, text=True, check=True, timeout=_SECONDS_MAX,
        )  # fmt: skip
    except subprocess.CalledProcessError as error:
        raise StartError(f"{module} failed: {error.stderr[-1000:]}") from None
    except subprocess.TimeoutExpired:
        raise StartError(f"{module} did not end within {_SECONDS_MAX:.0f} s") from None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
