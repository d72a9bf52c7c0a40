"""An executor: a process that makes one attempt at a time, all for one action.

The process has one thread, in which the plugin runs. A cancel of the worker is received when the
plugin asks whether it should stop. Whatever an attempt does to its process (it crashes, prints,
closes descriptors, changes the directory) has consequences for this attempt alone.
"""

import _signal  # type: ignore[import-not-found]
import logging
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from receiver import logs, tracing
from receiver.captured_output import open_streams
from receiver.context import Cancellation
from receiver.errors import TemporaryError
from receiver.plugins import Actions
from receiver.policies import MAX_STATE_BYTES, Policy
from receiver.processes import (
    DRAIN_SIGNALS,
    IGNORED_SIGNALS,
    become_subreaper,
    descendants,
    end_descendants,
    follow_parent,
    ignore_signals,
    restore_umask,
    show_as,
)
from receiver.settings import Settings
from receiver.worker.execution import execute_attempt
from receiver.worker.messages import (
    Cancel,
    Finished,
    Order,
    SaveState,
    StateStored,
    receive,
    send,
)

DESCRIPTORS = "open descriptors"
# The kernel ends executors first when memory is short: from -1000 (never) to 1000.
_OOM_SCORE_ADJUSTMENT = 1000
_KILL_SECONDS = 2.0

_log = logging.getLogger(__name__)


class ExecutorMain:
    """The life of an executor, from the fork to the exit."""

    def __init__(
        self,
        settings: Settings,
        actions: Actions,
        policy: Policy,
        action: str,
        connection: int,
        output: int,
    ) -> None:
        """Take over the process that was just forked.

        `connection` leads to the worker. What the plugin and its programs write to standard output
        and standard error goes to the pipe `output`.
        """
        self._settings = settings
        self._actions = actions
        self._policy = policy
        self._action = action
        self._pid = os.getpid()
        self._connection: Connection[object, object] = Connection(connection)
        self._inode = os.fstat(connection).st_ino
        # A plugin may save a state and ask for a cancel from threads of its own.
        self._exchanging = threading.Lock()
        self._cancellation = _Cancellation(self._connection, self._exchanging)
        self._redirect(output)

    def _redirect(self, output: int) -> None:
        # Logs keep the receiver's own standard output, under a number that no plugin knows.
        logs.keep_output()
        logs.configure(self._settings.log_level, self._settings.log_format)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        sys.stdin = os.fdopen(os.dup(0))
        open_streams()

    def run(self) -> None:
        """Make attempts until the worker closes the connection; return when the process may end."""
        self._isolate()
        # A child that a plugin forks must not answer for the attempt.
        os.register_at_fork(after_in_child=self._connection.close)
        traces = tracing.start(self._settings, "executor")
        clean = _State(self._policy.max_memory)
        while (order := self._next_order()) is not None:
            self._cancellation = _Cancellation(self._connection, self._exchanging)
            with traces.within(order.run.traceparent):
                end = execute_attempt(
                    order.run,
                    self._policy,
                    self._actions,
                    order.deadline,
                    self._cancellation,
                    self._save,
                )
            if os.getpid() != self._pid:
                os._exit(0)  # A child that the plugin has forked returned where its parent does.
            for stream in (sys.stdout, sys.stderr):
                with suppress(Exception):  # The plugin may have closed or replaced it.
                    stream.flush()
            leftovers = (*_end_children(), *clean.differences())
            self._send(Finished(end, leftovers))
            if leftovers:
                break
        traces.close()
        logging.shutdown()

    def _isolate(self) -> None:
        """Bound what this process can do to others."""
        os.setsid()
        follow_parent(os.getppid(), signal.SIGKILL)
        become_subreaper()
        show_as(f"executor {self._action}")
        # The worker stops in good order. What the plugin starts inherits no handler.
        ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
        restore_umask()
        with suppress(OSError):  # No /proc, or none that can be written.
            Path("/proc/self/oom_score_adj").write_text(f"{_OOM_SCORE_ADJUSTMENT}\n")
        # What the fork server has loaded is shared, and does not count.
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if used := _data_bytes():
            bound = used + self._policy.max_memory
            if most != resource.RLIM_INFINITY:
                bound = min(bound, most)
            with suppress(OSError, ValueError):  # Where it is not allowed, there is no bound.
                # Only the soft one: a program may raise its own.
                resource.setrlimit(resource.RLIMIT_DATA, (bound, most))

    def _next_order(self) -> Order | None:
        """Wait for an order; return None when the worker has closed the connection."""
        try:
            # A cancel of the attempt before may still arrive.
            while not isinstance(message := receive(self._connection), Order):
                pass
        except (EOFError, OSError):
            return None
        return message

    def _save(self, state: str) -> None:
        """Let the worker store a state; return once the journal has it."""
        if not isinstance(state, str) or len(state.encode(errors="replace")) > MAX_STATE_BYTES:
            raise ValueError(f"a state is JSON of at most {MAX_STATE_BYTES} bytes; use save()")
        with self._exchanging:
            self._write(SaveState(state))
            while not isinstance(answer := self._cancellation.receive(), StateStored):
                if answer is None:
                    raise TemporaryError("the state was not stored: the worker has ended")
        if answer.error is not None:
            raise TemporaryError(f"the state was not stored: {answer.error}")

    def _send(self, message: object) -> None:
        with self._exchanging:
            self._write(message)

    def _write(self, message: object) -> None:
        try:
            # A plugin may have closed the connection, and opened something else under its number.
            if os.fstat(self._connection.fileno()).st_ino != self._inode:
                os._exit(1)
            send(self._connection, message)
        except OSError:
            os._exit(1)


class _Cancellation(Cancellation):
    """The cancellation of one attempt, as messages of the worker tell."""

    def __init__(
        self, connection: "Connection[object, object]", exchanging: threading.Lock
    ) -> None:
        super().__init__()
        self._connection = connection
        self._exchanging = exchanging

    def receive(self) -> object:
        """Wait for a message and return it, None at their end; the caller holds the lock."""
        try:
            message = receive(self._connection)
        except (EOFError, OSError):
            self.cancel("the worker has ended")
            return None
        if isinstance(message, Cancel):
            self.cancel(message.reason)
        return message

    @property
    def reason(self) -> str | None:
        """See Cancellation."""
        with self._exchanging:
            if super().reason is None and self._is_readable(0.0):
                self.receive()
        return super().reason

    def wait(self, seconds: float) -> bool:
        """See Cancellation."""
        if self.reason is None:
            self._is_readable(seconds)
        return self.reason is not None

    def _is_readable(self, seconds: float) -> bool:
        # As `Event.wait` does, for which a negative time and NaN have passed.
        seconds = seconds if seconds > 0 else 0.0
        try:
            return bool(select.select([self._connection.fileno()], [], [], seconds)[0])
        except (OSError, ValueError):  # The plugin has closed it.
            self.cancel("the connection to the worker is closed")
            return False


class _State:
    """What an attempt must leave as it was, so that its executor can be used again."""

    def __init__(self, most_bytes: int) -> None:
        """Note the present state of the process; an attempt may use so much memory."""
        self._most_bytes = most_bytes
        self._began_with = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._threads = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY)
        self._descriptors = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
        self._noted = self._read()

    def _read(self) -> dict[str, object]:
        return {
            "threads": os.fstat(self._threads).st_nlink,
            DESCRIPTORS: _count_descriptors(self._descriptors),
            "another directory": _directory(),
            "another umask": _umask(),
            "another environment": _environment(),
            "other signal handlers": [_handler_of(number) for number in _SIGNALS],
            "changed functions of time": [getattr(time, name) for name in _TIME],
            "another output": _outputs(),
            "a timer": signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0),
            "another bound of memory": resource.getrlimit(resource.RLIMIT_DATA),
            "much memory": self._has_grown(),
        }

    def _has_grown(self) -> bool:
        """Whether attempts have used so much memory that the next may find too little."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return peak - self._began_with > self._most_bytes // 2

    def differences(self) -> tuple[str, ...]:
        """Return in words what has changed."""
        with suppress(OSError):
            now = self._read()
            return tuple(name for name, value in now.items() if value != self._noted[name])
        return ("a process whose state cannot be read",)


# Those that programs handle; to ask for all would cost more than all other questions.
_SIGNALS = tuple(
    int(number)
    for number in (
        *IGNORED_SIGNALS, *DRAIN_SIGNALS, signal.SIGALRM, signal.SIGCHLD, signal.SIGPIPE
    )
)  # fmt: skip
# Without the search for an enum member, which takes forty times as long.
_handler_of: Callable[[int], object] = _signal.getsignal
_HERE = Path()
_TIME = ("time", "monotonic", "sleep", "perf_counter")


def _count_descriptors(directory: int) -> int:
    """Return how many descriptors are open; Linux before 6.2 wants them listed."""
    return os.fstat(directory).st_size or len(list(Path("/proc/self/fd").iterdir()))


def _environment() -> object:
    """Return a copy of the environment as bytes; `os.environ` would decode each variable."""
    return dict(getattr(os.environ, "_data", os.environ))


def _data_bytes() -> int:
    """Return what RLIMIT_DATA counts of this process: its private memory that can be written."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0


def _directory() -> tuple[int, int]:
    here = _HERE.stat()
    return here.st_dev, here.st_ino


def _outputs() -> list[object]:
    """Return what the standard streams are, and where they lead."""
    found: list[object] = []
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        try:
            there = os.fstat(number)
        except OSError:
            found.append(None)
        else:
            found.append((id(stream), getattr(stream, "closed", True), there.st_dev, there.st_ino))
    return found


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _end_children() -> tuple[str, ...]:
    """Kill everything that this process started; return what was still running, in words."""
    try:
        # Every descendant has an ancestor among the children, because orphans are adopted.
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return ()
    number = len(descendants(os.getpid()))
    if end_descendants(seconds=_KILL_SECONDS):
        return ("processes that cannot be killed",)
    return (f"{number} running processes",)
