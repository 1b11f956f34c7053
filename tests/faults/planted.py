"""Planted bugs: a gateway that breaks one promise, to show that the test of that promise notices.

A plant is a folder with a `sitecustomize.py`, which Python imports before anything else: so it reaches the gateway's
workers as well, and the gateway's own code has no switch for it. A few are no bugs: what is allowed and seldom, or
what takes long, comes at once.
"""

import os
from pathlib import Path

from tests.running import ROOT

_FOLDER = Path(__file__).parent / "plants"


def plant(bug: str) -> dict[str, str]:
    """The environment in which `python -m gateway` has this bug."""
    folder = _FOLDER / bug
    assert (folder / "sitecustomize.py").exists(), f"no plant {bug}"
    folders = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}
