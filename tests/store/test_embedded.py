"""The embedded PostgreSQL after it was killed: what it left does not keep the next one waiting."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gateway.store import embedded
from gateway.store.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.running import BUSY

SOON_S = 5.0 * BUSY


@pytest.fixture
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that was killed, one of its processes hanging."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    server.start()
    assert server.pid is not None
    postmaster = psutil.Process(server.pid)
    hanging = next(child for child in postmaster.children() if "checkpointer" in " ".join(child.cmdline()))
    hanging.suspend()
    postmaster.kill()
    assert server._process is not None
    server._process.wait(SOON_S)
    yield server
    server.stop()
    if hanging.is_running():
        hanging.kill()


def started_s(server: EmbeddedPostgres) -> float:
    began = time.monotonic()
    server.start()
    return time.monotonic() - began


def test_a_hanging_process_of_a_killed_server_is_ended(killed: EmbeddedPostgres) -> None:
    """And somebody who only stands in the folder is not."""
    with subprocess.Popen(["sleep", "60"], cwd=killed._data) as bystander:
        try:
            assert started_s(killed) < SOON_S
            assert bystander.poll() is None
        finally:
            bystander.kill()


def test_a_killed_server_is_started_again_by_its_supervisor(killed: EmbeddedPostgres) -> None:
    deadline = time.monotonic() + SOON_S
    while not killed.restart_if_dead():
        assert time.monotonic() < deadline
    assert killed._wait_until_it_answers(deadline)


@pytest.fixture
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A data folder whose lock names a process that has ended and was not collected."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    server.start()
    lock = (server._data / "postmaster.pid").read_text()
    pid = server.pid
    server.stop()
    zombie = subprocess.Popen(["true"], user=server._as_user.pw_uid if server._as_user else None)
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    (server._data / "postmaster.pid").write_text(lock.replace(str(pid), str(zombie.pid), 1))
    yield server
    zombie.wait()
    server.stop()


def test_the_lock_of_a_dead_process_does_not_hold(locked: EmbeddedPostgres) -> None:
    assert started_s(locked) < SOON_S


def test_control_postgresql_itself_takes_it_for_a_living_one(
    locked: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EmbeddedPostgres, "_clear_remains", lambda _: True)
    monkeypatch.setattr(embedded, "_START_S", 3.0)
    with pytest.raises(EmbeddedPostgresError, match="did not start"):
        locked.start()


def test_a_running_server_is_left_alone(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = EmbeddedPostgres(tmp_path_factory.mktemp("pg"))
    first.start()
    monkeypatch.setattr(embedded, "_STOP_S", 0.5)
    with pytest.raises(EmbeddedPostgresError, match="still runs"):
        EmbeddedPostgres(first._home.parent).start()
    assert first._isready()
    first.stop()


def test_the_servers_pages_are_a_share_of_what_its_container_may_take(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    machine = embedded.memory_bytes(limit)
    assert machine > 2**30, "there is no such file"
    limit.write_text("max\n")
    assert embedded.memory_bytes(limit) == machine
    limit.write_text(f"{2**30}\n")
    assert embedded.shared_buffers(embedded.memory_bytes(limit)) == "256MB"
    assert (embedded.shared_buffers(2**37), embedded.shared_buffers(2**20)) == ("1024MB", "64MB")
