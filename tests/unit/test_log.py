"""What a process says: never the text of an exception, never what was formatted into a library's line."""

import subprocess
import sys

import pytest

from tests.running import ROOT

CANARY = "张金丝雀"

SAID = {
    "an exception logged": "try: raise ValueError(V)\nexcept ValueError: structlog.get_logger().exception('oops')",
    "a library's line": "logging.getLogger('aiohttp').error('bad header %s', V)",
    "a library's line with its text made": "logging.getLogger('aiohttp').error(f'bad header: {V}')",
    "a library's exception": "try: raise ValueError(V)\nexcept ValueError: logging.exception('oops')",
    "a library's stack": "logging.getLogger('asyncio').error('oops', stack_info=True)  # " + CANARY,
    "an exception not caught": "raise ValueError(V)",
    "one in a thread": "import threading\ndef f(): raise ValueError(V)\n"
    "t=threading.Thread(target=f); t.start(); t.join()",
    "one in a destructor": "class D:\n def __del__(self): raise ValueError(V)\nD()",
    "a warning": "import warnings; warnings.simplefilter('always'); warnings.warn(V)",
    "one that nobody awaits": "async def f(): raise ValueError(V)\nasync def m():\n asyncio.create_task(f())\n"
    " await asyncio.sleep(0)\n import gc; gc.collect()\n_run(m())",
    "one in a callback": "def f(v): raise ValueError(v)\nasync def m():\n"
    " asyncio.get_running_loop().call_soon(f, V); await asyncio.sleep(0); await asyncio.sleep(0)\n_run(m())",
    "a coroutine never awaited": "async def f(v): pass\nf(V)",
    "numbers in a list": "structlog.get_logger().error('oops', all=['330499194912310021', {'n': ['AB1234567']}])",
}


def said_by(way: str, configured: bool = True) -> str:
    """All that a process says that logs or fails in this way."""
    script = (
        "import asyncio, logging, structlog\n"
        "from gateway.commands.frame import run_loop\nfrom gateway.log import configure\n"
        "V = chr(24352) + chr(37329) + chr(19997) + chr(38592)\n"
        f"{'configure' if configured else 'repr'}(*('info', 'test'){'' if configured else '[:1]'})\n{SAID[way]}\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stderr + done.stdout


@pytest.mark.parametrize("way", SAID)
def test_what_is_said_has_no_value(way: str) -> None:
    """And something is said: an event that goes under would be a leak's opposite, and as bad."""
    said = said_by(way)
    assert said.strip(), "nothing was said"
    for planted in (CANARY, CANARY.encode("unicode_escape").decode(), "330499", "AB1234567", "Traceback"):
        assert planted not in said, said


@pytest.mark.parametrize("way", ["an exception logged", "an exception not caught", "a warning", "a library's line"])
def test_control_a_process_with_the_ordinary_log_shows_the_value(way: str) -> None:
    assert CANARY in said_by(way, configured=False)
