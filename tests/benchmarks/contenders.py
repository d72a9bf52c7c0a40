"""The programs that are compared, each started as its users start it, on loopback.

A new contender is a subclass of Contender that says how it is started; what it stores, if
anything, it counts in `recorded`. `CONTENDERS` lists all, the bare route first.
"""

import http.client
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks.load import BenchError

_HERE = Path(__file__).parent
_READY_SECONDS = 30.0
_STOP_SECONDS = 15.0
_SETTLE_SECONDS = 120.0
# Idle: so small a share of a processor, over so long. A worker looks around now and then.
_IDLE_SHARE = 0.05
_IDLE_SECONDS = 0.3
_THREADS = "8"
_TICKS = os.sysconf("SC_CLK_TCK")


class Contender(ABC):
    """A program that answers notifications over HTTP; all that it writes is in its directory."""

    name: str
    ready_path = "/-/ready"

    def __init__(self, directory: Path) -> None:
        """Choose a free port and make the directory; nothing runs yet."""
        self.directory = directory / self.name
        self.directory.mkdir(parents=True)
        self.log = self.directory / "log"
        self.address = f"127.0.0.1:{_free_port()}"
        self.url = f"http://{self.address}/webhook"
        self.headers = {
            "Authorization": f"Bearer {secrets.token_hex(16)}",
            "Content-Type": "application/json",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line; standard output and error go to `log`."""

    def environment(self) -> dict[str, str]:
        """Return what the program finds in its environment; of ours it sees only PATH."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory)}

    def settle(self) -> None:
        """Return when the program is idle again: what it does later would burden others.

        wrk leaves requests behind: they are still answered after it has ended.
        """
        wait_until(self._is_idle, _SETTLE_SECONDS, f"{self.name} does not come to rest")

    def recorded(self) -> int | None:
        """Return how many alerts it has stored; None when it stores none."""
        return None

    def start(self) -> None:
        """Start the program; `wait_ready` waits for it."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches the benchmark alone, which stops its contenders in good order.
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Return once it answers; raise BenchError when it ends, or does not in time."""
        wait_until(self._is_ready, _READY_SECONDS, f"{self.name} does not answer; see {self.log}")

    def _is_ready(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise BenchError(f"{self.name} ended: {self.log.read_text(errors='replace')[-2000:]}")
        with closing(http.client.HTTPConnection(self.address, timeout=2)) as connection:
            try:
                connection.request("GET", self.ready_path)
                return connection.getresponse().status == 200
            except OSError:
                return False

    def post(self, body: bytes) -> float:
        """Send it one notification; return the seconds until the answer, which must be 200."""
        began = time.perf_counter()
        with closing(http.client.HTTPConnection(self.address, timeout=60)) as connection:
            connection.request("POST", urlsplit(self.url).path, body, self.headers)
            if connection.getresponse().status != 200:
                raise BenchError(f"{self.name} refuses a notification")
        return time.perf_counter() - began

    def cpu_seconds(self) -> float:
        """Return the processor time that its processes have used so far."""
        return sum(_cpu_seconds(pid) for pid in self._pids())

    def memory_bytes(self) -> float:
        """Return the memory of its processes; what several share counts once."""
        return 1024.0 * sum(_kilobytes(pid, "smaps_rollup", "Pss:") for pid in self._pids())

    def peak_bytes(self) -> float:
        """Return the most memory that one of its processes ever had."""
        return 1024.0 * max(_kilobytes(pid, "status", "VmHWM:") for pid in self._pids())

    def stop(self) -> None:
        """End it: told to, then killed; only processes that it started, by their numbers."""
        if self._process is None:
            return
        pids = list(self._pids())
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _is_idle(self) -> bool:
        before = self.cpu_seconds()
        time.sleep(_IDLE_SECONDS)
        return self.cpu_seconds() - before <= _IDLE_SHARE * _IDLE_SECONDS

    def _pids(self) -> Iterator[int]:
        if self._process is not None and self._process.poll() is None:
            yield from _with_descendants(self._process.pid)


class _FlaskRoute(Contender):
    """A Flask route under gunicorn, which is set up as it is for the receiver."""

    app: str

    def command(self) -> list[str]:
        """Return gunicorn's; see receiver/web/server.py for the same options."""
        return [
            *(sys.executable, "-m", "gunicorn"),
            *("--bind", self.address, "--chdir", str(_HERE)),
            *("--worker-class", "gthread", "--workers", "1", "--threads", _THREADS),
            *("--keep-alive", "330", "--worker-tmp-dir", "/dev/shm", "--no-control-socket"),
            f"flask_routes:{self.app}",
        ]


class Bare(_FlaskRoute):
    """Reads the body and answers: the limit for a Flask program."""

    name = "bare"
    app = "bare"


class Json(_FlaskRoute):
    """The same, and parses the body as JSON."""

    name = "json"
    app = "parsed"


class Receiver(Contender):
    """`receiver web`: accepts into the journal, everything on; nothing runs the actions."""

    name = "receiver"
    role = "web"
    action = "log_action"

    @property
    def journal(self) -> Path:
        """The file."""
        return self.directory / "data" / "journal.db"

    def command(self) -> list[str]:
        """Return `receiver web`."""
        return [sys.executable, "-m", "receiver", self.role]

    def environment(self) -> dict[str, str]:
        """Return the settings: a bearer token, JSON logs, SQLite, one action for every alert."""
        return super().environment() | {
            "RECEIVER_BIND": self.address,
            "RECEIVER_DATA_DIR": str(self.journal.parent),
            "RECEIVER_SUBMIT_TOKEN": self.headers["Authorization"].removeprefix("Bearer "),
            "ACTION_PLUGIN": self.action,
        }

    def recorded(self) -> int:
        """Return the number of runs in the journal, one per alert that was new."""
        return self._count("SELECT count(*) FROM runs")

    def _count(self, query: str) -> int:
        with closing(sqlite3.connect(f"file:{self.journal}?mode=ro", uri=True)) as journal:
            return int(journal.execute(query).fetchone()[0])


class ReceiverWithRuns(Receiver):
    """`receiver serve`: accepts, and at the same time runs an action that does nothing."""

    name = "receiver+runs"
    role = "serve"
    action = "no_op"
    does = "pass"

    def environment(self) -> dict[str, str]:
        """Return the settings of `receiver`, and the directory of the action, made here."""
        plugins = self.directory / "plugins"
        plugins.mkdir(exist_ok=True)
        (plugins / f"{self.action}.py").write_text(
            f"from receiver import hookimpl\n\n\n@hookimpl\ndef execute():\n    {self.does}\n"
        )
        return super().environment() | {"PLUGIN_DIR": str(plugins)}

    def _is_idle(self) -> bool:
        return super()._is_idle() and not self.waiting()

    def waiting(self) -> int:
        """Return how many runs have not finished."""
        return self._count("SELECT count(*) FROM runs WHERE state = 'queued'") + self.running()

    def running(self) -> int:
        """Return how many runs are running."""
        return self._count("SELECT count(*) FROM runs WHERE state = 'running'")

    def finished_per_second(self) -> float:
        """Return how fast runs finished, between the first and the last that did."""
        span = "(max(finished_at) - min(finished_at) + 1)"
        return float(self._count(f"SELECT count(finished_at) * 1000000 / {span} FROM runs"))

    def signal_worker(self, number: signal.Signals) -> None:
        """Halt its worker, or let it go on."""
        for pid in self._pids():
            if b"receiver worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)


class Busy(ReceiverWithRuns):
    """The same, and 64 of its runs at a time: what ends meanwhile is one transaction."""

    name = "busy"

    def environment(self) -> dict[str, str]:
        """Return the settings that let 64 of them run."""
        return super().environment() | {
            "RECEIVER_ACTION_NO_OP_MAX_CONCURRENT": "64",
            "RECEIVER_WORKER_EXECUTORS": "64",
        }


class Sleepers(ReceiverWithRuns):
    """The same with an action that sleeps for an hour, eight at a time."""

    name = "sleepers"
    action = "sleeper"
    does = "import time; time.sleep(3600)"

    def environment(self) -> dict[str, str]:
        """Return the settings that let eight of them run."""
        return super().environment() | {
            "RECEIVER_ACTION_SLEEPER_MAX_CONCURRENT": "8",
            "RECEIVER_ACTION_SLEEPER_TIMEOUT": "2h",
            "RECEIVER_GRACE_PERIOD": "1s",
        }

    def pause(self, action: str) -> None:
        """Start no run of an action from now on."""
        subprocess.run(
            [sys.executable, "-m", "receiver", "pause", action],
            env=self.environment(), cwd=self.directory, capture_output=True, check=True,
        )  # fmt: skip


class OneByOne(ReceiverWithRuns):
    """`receiver web`, and no worker: what it has queued is worked off with a commit per step."""

    name = "one-by-one"
    role = "web"

    def work_off(self, runs: int) -> None:
        """Carry out so many queued runs by `one_by_one.py`, a process of its own, to its end."""
        ended = subprocess.run(
            [sys.executable, _HERE / "one_by_one.py", str(runs)],
            env=self.environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ended.returncode != 0:
            raise BenchError(f"{self.name} failed: {ended.stderr[-2000:]}")


CONTENDERS: tuple[type[Contender], ...] = (Bare, Json, Receiver, ReceiverWithRuns)


def wait_until(look: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Return as soon as `look` says yes; raise BenchError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not look():
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:g} s: {otherwise}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _with_descendants(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        for child in children.split():
            yield from _with_descendants(int(child))


def _kilobytes(pid: int, file: str, name: str) -> int:
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def cpu_seconds_of_tree(pid: int) -> float:
    """Return the processor time that a process and those below it have used so far."""
    return sum(_cpu_seconds(one) for one in _with_descendants(pid))


def _cpu_seconds(pid: int) -> float:
    """Return the time in user and system mode of a process, and of children that it outlived."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The name, in parentheses, may hold anything; the times are the 14th to 17th field.
    fields = stat.rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS
