"""No bug of ours: the process is killed when a claim is committed and its answer has not left, if a file says so."""

import os
import signal
from pathlib import Path
from typing import Any

from gateway.store import benefits

real = benefits.claim_batch


async def claim_batch(*arguments: Any) -> Any:
    refused = await real(*arguments)
    flag = Path(os.environ["DATA_DIR"]) / "die"
    if flag.exists():
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return refused


setattr(benefits, "claim_batch", claim_batch)  # noqa: B010
