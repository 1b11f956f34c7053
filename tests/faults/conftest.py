"""Fixtures of the fault tests: gateways that may be killed, figures that are kept."""

import datetime as dt
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gateway.store.embedded import EmbeddedPostgres
from gateway.store.migrate import migrate
from tests.conftest import Database
from tests.faults.home import Figure, Home
from tests.running import ROOT

RESULTS = ROOT / "loadtests" / "results" / "faults.ndjson"


@pytest.fixture
def cycles() -> int:
    """How often a fault is repeated: a handful by default, many with `make faults`."""
    return int(os.environ.get("FAULT_CYCLES", "2"))


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Figure:
    """Keep what a test has measured: printed, in the JUnit report, and with FAULT_LOG in loadtests/results."""

    def keep(**values: float | str) -> None:
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}
        for name, value in rounded.items():
            record_property(name, value)
        line = {"test": request.node.name} | rounded
        print("\n" + "  ".join(f"{name}={value}" for name, value in line.items()))
        if os.environ.get("FAULT_LOG"):
            RESULTS.parent.mkdir(parents=True, exist_ok=True)
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            with RESULTS.open("a") as stream:
                stream.write(json.dumps({"at": now} | line) + "\n")

    return keep


@pytest.fixture
async def newcomer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A gateway that has yet to make its own PostgreSQL. Its folder has a short name, as a unix socket's path must."""
    made = Home(tmp_path_factory.mktemp("home"), WORKERS="2")
    yield made
    await made.end()


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a PostgreSQL that has ended, with the migrated database: copied, as making one takes long."""
    folder = tmp_path_factory.mktemp("cluster")
    server = EmbeddedPostgres(folder)
    server.start()
    await migrate(server.dsn)
    server.stop()
    return folder / "postgres" / "data"


@pytest.fixture
def home(newcomer: Home, cluster: Path) -> Home:
    """A gateway with its own PostgreSQL, not started yet."""
    (folder := newcomer.data_dir / "postgres").mkdir()
    subprocess.run(["cp", "-a", str(cluster), str(folder)], check=True)  # with its owner
    return newcomer


@pytest.fixture
async def tenant(database: Database, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A gateway of one worker on a database of its own in the tests' PostgreSQL, not started yet."""
    made = Home(tmp_path_factory.mktemp("home"), database, WORKERS="1")
    yield made
    await made.end()
