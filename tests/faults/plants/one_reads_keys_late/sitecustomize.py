"""No bug, but the worst that is allowed: one worker sees a new key file at once, the others up to 5 s later."""

import os
import sys
from pathlib import Path

from gateway.crypto import key_watch

if "serve-worker" in sys.orig_argv:
    try:
        os.close(os.open(Path(os.environ["DATA_DIR"]) / "run" / "early", os.O_CREAT | os.O_EXCL))
        key_watch.POLL_S = 0.05  # type: ignore[assignment]
    except FileExistsError:
        pass
