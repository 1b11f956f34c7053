"""What takes up daily files of returned usage, with a database of its own for each file of tests."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.settings import load
from gateway.store.embedded import EmbeddedPostgres
from tests.conftest import drop_database, make_database, prepare_data_dir
from tests.desk import Desk
from tests.registry import add_cards


@pytest.fixture(scope="module")
async def office(
    postgres: EmbeddedPostgres, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Desk]:
    database, data_dir = await make_database(postgres, template), tmp_path_factory.mktemp("office")
    await add_cards(database.dsn, prepare_data_dir(data_dir, 1))
    caller = json.loads((data_dir / "sandbox/callers/demo-bank.json").read_text())
    yield Desk(load({"DATA_DIR": str(data_dir)}), database.dsn, data_dir, caller["signing"])
    await drop_database(postgres, database)


@pytest.fixture
def desk(office: Desk, tmp_path: Path) -> Desk:
    """With a folder of its own."""
    return office._replace(folder=tmp_path)
