"""A gateway that tests may reconfigure."""

import shutil
from collections.abc import AsyncIterator

import pytest

from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import drop_database, make_database, start_gateway
from tests.running import ROOT, Running


@pytest.fixture(scope="module")
async def operated(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """A gateway of two workers whose configuration is a copy, so that it may be changed."""
    folder = tmp_path_factory.mktemp("operated")
    shutil.copytree(ROOT / "config", folder / "config")
    database = await make_database(postgres, template)
    running = await start_gateway(folder / "data", database, WORKERS="2", CONFIG_DIR=str(folder / "config"))
    yield running
    await running.stop()
    await drop_database(postgres, database)
