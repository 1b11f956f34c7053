"""The clients of config/clients, run as a partner would run them."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.running import ROOT

LANGUAGES = ("python", "node")
COVERED = ("@method", "@authority", "@path", "@query", "content-digest", "authorization", "idempotency-key")
TAG = "yikatong-v1"

_FOLDER = ROOT / "config" / "clients"
MODULES = ROOT / "tests" / "clients" / "node_modules"
_CALL = {  # a method of the library, with arguments in JSON; prints the status
    "python": "import json, sys, yikatong as y\n"
    "caller, method, arguments = map(json.loads, sys.argv[1:])\n"
    "print(getattr(y.Client(caller), method)(*arguments).status)",
    "node": 'import { Client } from "./yikatong.mjs";\n'
    "const [caller, method, arguments_] = process.argv.slice(1).map((text) => JSON.parse(text));\n"
    "console.log((await new Client(caller)[method](...arguments_)).status);",
}


_METHODS = {  # of the library, one a line, as Python would write them
    "python": "import yikatong as y\nprint(*(name for name in vars(y.Client) if name[0] != '_'), sep='\\n')",
    "node": 'import { Client } from "./yikatong.mjs";\n'
    'const names = Object.getOwnPropertyNames(Client.prototype).filter((name) => name !== "constructor");\n'
    'console.log(names.map((name) => name.replace(/[A-Z]/g, (one) => "_" + one.toLowerCase())).join("\\n"));',
}


class Ended(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def interpreter(language: str, algorithm: str) -> list[str]:
    """How to start it; skips where a developer's machine lacks what it takes. The gate has everything."""
    if language == "python":
        return [sys.executable]
    node = shutil.which("node")
    if "CI" not in os.environ:
        if node is None:
            pytest.skip("no node on this machine (apt-get install nodejs npm)")
        if algorithm == "sm2-sm3" and not (MODULES / "sm-crypto").exists():
            pytest.skip("no sm-crypto for the JavaScript client (`make test` installs it where npm is)")
    assert node is not None, "the gate has node"
    return [node]


def _inline(language: str, algorithm: str) -> list[str]:
    """How to start it with a program as the next argument."""
    inline = ["-c"] if language == "python" else ["--input-type=module", "-e"]
    return [*interpreter(language, algorithm), *inline]


def _signs_with(caller_file: Path) -> str:
    caller = json.loads(caller_file.read_text())
    return str(caller.get("signing", {}).get("alg", ""))


async def _run(*command: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=_FOLDER, env=os.environ | {"NODE_PATH": str(MODULES), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def command(language: str, caller_file: Path, *arguments: str) -> Ended:
    """`yikatong CALLER_FILE …`."""
    script = {"python": "yikatong.py", "node": "yikatong.mjs"}[language]
    return await _run(*interpreter(language, _signs_with(caller_file)), script, str(caller_file), *arguments)


async def methods(language: str) -> set[str]:
    """What its library can do."""
    ended = await _run(*_inline(language, ""), _METHODS[language])
    assert ended.code == 0, ended.err
    return set(ended.out.split())


async def call(language: str, caller: dict[str, Any], method: str, *arguments: Any) -> int:
    """The status of the answer to a method of the library."""
    start = _inline(language, caller.get("signing", {}).get("alg", ""))
    ended = await _run(*start, _CALL[language], json.dumps(caller), json.dumps(method), json.dumps(arguments))
    assert ended.code == 0, ended.err
    return int(ended.out)
