"""A simulated partner of the sandbox as a process of its own, with its control port."""

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp

from tests.running import ROOT

_READY_S = 20.0


class Host:
    """start() it, set its faults, look into its book, kill() or stop() it. Started again, it has the same ports."""

    def __init__(self, folder: Path, module: str, *options: str, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._module = module
        self._options = options
        self._environment = environment or {}
        self._process: asyncio.subprocess.Process | None = None
        self.port = self.control_port = 0

    @property
    def control(self) -> str:
        return f"http://127.0.0.1:{self.control_port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", f"gateway.sandbox.peers.{self._module}", "--port", str(self.port),
            "--control-port", str(self.control_port), "--book", str(self.folder / "book.ndjson"), *self._options,
            cwd=ROOT, env={**os.environ, "PARENT_PID": str(os.getpid()), **self._environment},
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        _, port, control_port = (await asyncio.wait_for(self._process.stdout.readline(), _READY_S)).split()
        self.port, self.control_port = int(port), int(control_port)
        return self

    async def kill(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def stop(self) -> int:
        """The exit code."""
        assert self._process is not None
        self._process.terminate()
        return await self._process.wait()

    async def faults(self, *faults: dict[str, Any]) -> None:
        """None: all is well again."""
        async with aiohttp.ClientSession() as session, session.post(f"{self.control}/faults", json=faults) as answer:
            assert answer.status == 200, await answer.text()

    async def lines(self) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.control}/book") as answer:
            items: list[dict[str, Any]] = (await answer.json())["items"]
            return items
