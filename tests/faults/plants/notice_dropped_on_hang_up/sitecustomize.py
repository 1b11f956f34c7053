"""Planted bug: when a client hangs up, telling the bank is given up for it."""

import asyncio
from types import SimpleNamespace

from gateway.flows import effects
from tests.faults.hanging_up import cancels_what_was_begun

cancels_what_was_begun()
setattr(effects, "asyncio", SimpleNamespace(**{**vars(asyncio), "shield": lambda task: task}))  # noqa: B010
