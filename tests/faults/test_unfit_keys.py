"""Keys that are missing, loose, malformed or not this database's: the gateway does not start, and one line says why."""

import asyncio
import base64
import json
import os
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from gateway.crypto.key_files import write_private
from gateway.crypto.key_store import KeyUse
from tests.conftest import Database, prepare_data_dir
from tests.registry import add_cards
from tests.running import Running

START_S = 30.0


def replaced(folder: Path) -> None:
    """Another key under the old name, as after a restore of the wrong backup."""
    key = {"kid": "kek-1", "use": "kek", "key": base64.b64encode(os.urandom(32)).decode()}
    write_private(folder / "kek-1.json", json.dumps(key))


def renamed(folder: Path) -> None:
    key = {"kid": "kek-2", "use": "kek", "key": base64.b64encode(os.urandom(32)).decode()}
    write_private(folder / "kek-2.json", json.dumps(key))
    (folder / "kek-1.json").unlink()


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: f.rename(f.with_name("gone")), "no such folder: run `python -m gateway init-keys`"),
    "an open folder": (lambda f: f.chmod(0o755), "others may read it: chmod 700"),
    "an open file": (lambda f: (f / "sign-1.json").chmod(0o640), "sign-1.json: others may read it: chmod 600"),
    "a malformed file": (lambda f: (f / "sign-1.json").write_text("{"), "sign-1.json: not a key file of this gateway"),
    "no signing key": (lambda f: (f / "sign-1.json").unlink(), "no key for sign: run `python -m gateway init-keys`"),
    "a KEK that was removed": (renamed, "no kek key 'kek-1' in the key folder"),
    "a KEK that is another": (replaced, "was wrapped by another kek-1"),
}
if os.geteuid() == 0:
    UNFIT["a file of another user"] = (lambda f: os.chown(f / "sign-1.json", 65534, 65534), "belongs to another user")


@pytest.mark.parametrize("how", UNFIT)
async def test_unfit_keys_stop_the_start_with_one_line(how: str, database: Database, tmp_path: Path) -> None:
    running = Running(tmp_path / "data", "serve", DATABASE_URL=database.dsn)
    await add_cards(database.dsn, prepare_data_dir(tmp_path / "data", running.port))
    spoil, said = UNFIT[how]
    spoil(tmp_path / "data" / "keys")
    process = await running.launch()
    assert process.stdout is not None
    async with asyncio.timeout(START_S):
        assert await process.stdout.readline() == b"", "no ready line"
        assert await process.wait() == 1
    assert running.log.startswith("cannot start: ") and said in running.log and running.log.count("\n") == 1
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", running.port)


async def test_every_use_is_asked_for_and_nothing_else_is_missing(database: Database, tmp_path: Path) -> None:
    """The control: with its keys as they were made, the same gateway starts."""
    running = Running(tmp_path / "data", "serve", DATABASE_URL=database.dsn)
    await add_cards(database.dsn, prepare_data_dir(tmp_path / "data", running.port))
    assert {file.stem.rpartition("-")[0] for file in (tmp_path / "data" / "keys").iterdir()} == set(KeyUse)
    await running.start()
    owner = await asyncpg.connect(database.dsn)
    assert await owner.fetchval("SELECT count(*) FROM data_key WHERE kek_id = 'kek-1'") > 0
    await owner.close()
    await running.stop()
