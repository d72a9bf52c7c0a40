"""The executors, as the worker has them: started when needed, reused, retired, killed.

An executor serves one action and makes one attempt at a time. The fork server starts and reaps
them; the worker exchanges orders and results with each directly. The worker never waits for an
executor: a connection that does not go on in time is a broken executor, which is killed.
"""

import gc
import itertools
import logging
import multiprocessing
import os
import pickle
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NoReturn

from receiver import logs
from receiver.captured_output import PipeLines
from receiver.errors import ExecutorLostError, SettingsError
from receiver.processes import become_subreaper, ending, ends_within, kill_descendants, reap_adopted
from receiver.settings import Settings
from receiver.worker import fork_server
from receiver.worker.fork_server import MESSAGE_BYTES
from receiver.worker.messages import Exited, Fork, HoldLock, Kill, Loaded, receive, send
from receiver.worker.running import RunningAttempt

# An executor that is idle for this long is retired: it holds memory, and what its plugin left.
_IDLE_SECONDS = 60.0
# What leaks in a plugin's libraries goes with the executor.
_MOST_ATTEMPTS = 1000
# A retired executor sends its last traces, see `tracing`.
_EXIT_SECONDS = 3.0
# Nobody who works takes so long to take or to give the rest of a message.
_STALLED_SECONDS = 5

_log = logging.getLogger(__name__)

_FORK = multiprocessing.get_context("fork")


class Executor:
    """One executor; `attempt` is what it is making, None while it is idle."""

    def __init__(self, number: int, action: str, connection: socket.socket, output: int) -> None:
        """Take over the worker's ends of the connection and of the pipe that the output goes to."""
        timeout = struct.pack("ll", _STALLED_SECONDS, 0)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connection.setsockopt(socket.SOL_SOCKET, option, timeout)
        self.number = number
        self.action = action
        self.attempt: RunningAttempt | None = None
        self.attempts = 0
        self.idle_since = time.monotonic()
        self.retired_at: float | None = None
        # Why it was told to be killed, in words for the attempt.
        self.killed_because: str | None = None
        self.connection: Connection[object, object] | None = Connection(connection.detach())
        self.output = PipeLines(output)

    def send(self, message: object) -> None:
        """Send a message; raise OSError when the executor does not take it."""
        if self.connection is None:
            raise BrokenPipeError
        send(self.connection, message)

    def receive(self) -> object:
        """Receive a message; return None, and close the connection, when no more will come."""
        try:
            return None if self.connection is None else receive(self.connection)
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - a plugin can write to any of its descriptors
            broken = {"action": self.action, "error": f"{type(error).__name__}: {error}"}
            _log.error("executor sent what is no message", extra=broken)
        self.disconnect()
        return None

    def disconnect(self) -> None:
        """Close the connection: an idle executor then exits."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def descriptors(self) -> list[int]:
        """Return what can be read when a message or output has come."""
        ends = [self.output.descriptor] if self.output.descriptor is not None else []
        return ends if self.connection is None else [self.connection.fileno(), *ends]

    def close(self) -> None:
        """Close what is left of an executor that has ended."""
        self.disconnect()
        self.output.close()


class ExecutorPool:
    """All executors of a worker, used by one thread; the process has no other children.

    It ends with the block that has it.
    """

    def __init__(self, settings: Settings) -> None:
        """Fork the fork server, which loads the plugins while its caller does something else."""
        if not Path("/proc/self/task").is_dir():
            raise SettingsError(["/proc is not there, and executors need it; mount it"])
        self._settings = settings
        self._capacity = settings.worker_executors
        self._executors: dict[int, Executor] = {}
        self._numbers = itertools.count(1)
        self._is_lost = False
        # What the attempts have started is found here even if the fork server was killed.
        become_subreaper()
        self._fork_server(frozenset())

    def _fork_server(self, fresh: frozenset[str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._report, report = _FORK.Pipe(duplex=False)
        gc.freeze()  # Memory that no collection touches stays shared.
        self._process = _FORK.Process(
            target=_become_fork_server,
            args=(self._settings, self._control, theirs, report, fresh),
            name="fork server",
        )
        self._process.start()
        theirs.close()
        report.close()
        self._control.settimeout(_STALLED_SECONDS)

    def loaded(self) -> Loaded:
        """Wait for the plugins; raise what `load_actions` and `rules_of` raise."""
        loaded = self._read_report()
        assert isinstance(loaded, Loaded)
        if loaded.fresh:
            # A process that has threads is never forked: the next one does without these plugins.
            self._end_fork_server()
            for plugin, why in loaded.fresh.items():
                _log.warning("plugin is loaded anew by each executor",
                             extra={"plugin": plugin, "reason": why})  # fmt: skip
            fresh = loaded.actions if loaded.wraps else frozenset()
            self._fork_server(fresh.union(loaded.fresh))
            self._read_report()
        self._report.close()
        return loaded

    def _read_report(self) -> object:
        try:
            report = self._report.recv()
        except (EOFError, OSError):
            self._lost()
        if isinstance(report, Exception):
            raise report
        return report

    @property
    def pid(self) -> int:
        """The process id of the fork server."""
        assert self._process.pid is not None
        return self._process.pid

    def hold(self, lock: Path) -> None:
        """Let the fork server hold the worker's lock too: it is free after both have ended."""
        self._tell(HoldLock(lock))
        try:
            self._control.recv(MESSAGE_BYTES)
        except OSError:
            self._lost()

    def take(self, action: str) -> Executor:
        """Return an idle executor of an action: one that has served it before, or a new one.

        The caller keeps to the capacity. Raises OSError when this process has no descriptors for a
        new one. Where it is reached by idle executors of other actions,
        the one that has been idle for longest makes room.
        """
        idle = [one for one in self._active() if one.attempt is None]
        for executor in sorted(idle, key=lambda one: one.idle_since, reverse=True):
            if executor.action == action:
                return executor
        if idle and len(self._active()) >= self._capacity:
            self.retire(min(idle, key=lambda one: one.idle_since))
        return self._start(action)

    def _active(self) -> list[Executor]:
        return [one for one in self._executors.values() if one.retired_at is None]

    def _start(self, action: str) -> Executor:
        with ExitStack() as ours, ExitStack() as theirs:
            near, far = socket.socketpair()
            ours.enter_context(near)
            theirs.enter_context(far)
            read, write = os.pipe2(os.O_CLOEXEC)
            ours.callback(os.close, read)
            theirs.callback(os.close, write)
            executor = Executor(next(self._numbers), action, near, read)
            ours.pop_all()
            self._executors[executor.number] = executor
            self._tell(Fork(executor.number, action), far.fileno(), write)
        return executor

    def _tell(self, message: object, *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [pickle.dumps(message)], descriptors)
        except OSError:
            self._is_lost = True  # `exited` raises it, where all attempts end.

    def release(self, executor: Executor, leftovers: tuple[str, ...]) -> None:
        """Take back an executor whose attempt has ended."""
        executor.attempt = None
        executor.idle_since = time.monotonic()
        executor.attempts += 1
        if leftovers or executor.attempts >= _MOST_ATTEMPTS or executor.killed_because:
            self.retire(executor)

    def retire(self, executor: Executor) -> None:
        """Let an idle executor exit."""
        executor.retired_at = time.monotonic()
        executor.disconnect()
        exiting = [one for one in self._executors.values() if one.retired_at is not None]
        if len(exiting) > self._capacity:  # They still hold memory.
            self.kill(exiting[0], "it did not exit")

    def kill(self, executor: Executor, because: str) -> None:
        """Kill an executor and everything that it started; `exited` tells when that is done."""
        if executor.killed_because is None:
            executor.killed_because = because
            self._tell(Kill(executor.number))

    def keep_up(self) -> None:
        """Retire executors that were idle for long; kill those that do not exit."""
        reap_adopted([self.pid])
        now = time.monotonic()
        for executor in tuple(self._executors.values()):
            if executor.retired_at is not None:
                if now - executor.retired_at > _EXIT_SECONDS:
                    self.kill(executor, "it did not exit")
            elif executor.attempt is None and now - executor.idle_since > _IDLE_SECONDS:
                self.retire(executor)

    def readable(self) -> tuple[list[Executor], list[Executor]]:
        """Return the executors from which a message has come, and those with new output."""
        executors = self._executors.values()
        connections = {one.connection.fileno(): one for one in executors if one.connection}
        outputs = {
            one.output.descriptor: one for one in executors if one.output.descriptor is not None
        }
        ready, _, _ = select.select([*connections, *outputs], [], [], 0)
        return (
            [connections[one] for one in ready if one in connections],
            [outputs[one] for one in ready if one in outputs],
        )

    def exited(self) -> Iterator[tuple[Executor, Exited]]:
        """Yield the executors that have ended; raise ExecutorLostError when the fork server has."""
        while self._is_lost or select.select([self._control], [], [], 0)[0]:
            try:
                data = self._control.recv(MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data or self._is_lost:
                self._lost()
            message = pickle.loads(data)  # noqa: S301 - from our own fork server
            assert isinstance(message, Exited)
            executor = self._executors.pop(message.executor)
            yield executor, message
            executor.close()

    def descriptors(self) -> list[int]:
        """Return what can be read when something has happened."""
        return [
            self._control.fileno(),
            *(one for executor in self._executors.values() for one in executor.descriptors()),
        ]

    def _lost(self) -> NoReturn:
        if not ends_within(self._process, 0.2):
            self._process.kill()
            ends_within(self._process, _EXIT_SECONDS)
        kill_descendants(os.getpid())
        how = ending(self._process.exitcode)
        raise ExecutorLostError(f"the process that forks executors {how}")

    def __enter__(self) -> "ExecutorPool":
        return self

    def __exit__(self, *error: object) -> None:
        """Let the executors exit; what does not is killed with everything that was started."""
        for executor in self._active():
            executor.retired_at = time.monotonic()
            executor.disconnect()
        deadline = time.monotonic() + _EXIT_SECONDS
        with suppress(ExecutorLostError):
            while self._executors and time.monotonic() < deadline:
                for _ in self.exited():
                    pass
                select.select([self._control], [], [], 0.05)
        self._end_fork_server()

    def _end_fork_server(self) -> None:
        """Close the connection: the fork server kills what is left, and exits."""
        self._control.close()
        if not ends_within(self._process, _EXIT_SECONDS):
            self._process.kill()
            ends_within(self._process, _EXIT_SECONDS)
            kill_descendants(os.getpid())


def _become_fork_server(
    settings: Settings,
    near: socket.socket,
    far: socket.socket,
    report: "Connection[object, object]",
    fresh: frozenset[str],
) -> None:
    near.close()
    # A second fork server is forked when the worker has opened its journal.
    kept = {0, 1, 2, *logs.kept_descriptors(), far.fileno(), report.fileno()}
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor not in kept:
            with suppress(OSError):
                os.close(descriptor)
    with logs.logged_end():
        fork_server.main(settings, far, report, fresh)
    os._exit(0)
