"""The fork server: a process of one thread that has loaded the plugins and forks executors.

The worker forks the fork server before the worker has threads, a journal or anything else of its
own. The fork server imports plugins and never touches the journal. It is the reaper of everything
below it. When the worker ends, however that happens, the fork server kills everything that is left
of the attempts, and only then gives up the lock that shows that the worker's instance lives.
"""

import gc
import logging
import os
import pickle
import select
import signal
import socket
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import TextIO

from receiver import logs
from receiver.errors import PluginError, SettingsError
from receiver.metrics.sharing import count_alone
from receiver.plugin_hooks import has_wrappers
from receiver.plugins import Actions, load_actions, rules_of
from receiver.plugins import rules_as_far_as_loaded as loaded_rules
from receiver.policies import Rules
from receiver.processes import (
    DRAIN_SIGNALS,
    IGNORED_SIGNALS,
    become_subreaper,
    descendants,
    end_descendants,
    ending,
    ignore_signals,
    kill_tree,
    show_as,
)
from receiver.settings import Settings
from receiver.worker.executor_main import ExecutorMain
from receiver.worker.leases import hold_with
from receiver.worker.messages import Exited, Fork, HoldLock, Kill, Loaded

MESSAGE_BYTES = 64 * 1024
_KILL_SECONDS = 2.0

_log = logging.getLogger(__name__)


def main(
    settings: Settings, control: socket.socket, report: Connection, fresh: frozenset[str]
) -> None:
    """Load the plugins, report them, and fork executors until the worker closes `control`.

    `fresh` names plugins that are left out here: each of their executors loads them anew. The
    report is a Loaded, or the SettingsError or PluginError for which the worker cannot start.
    """
    show_as("fork server")
    os.setsid()
    # What an executor has started becomes a child of this process when the executor ends.
    become_subreaper()
    # The worker stops in good order, and the fork server with it.
    ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
    count_alone()
    gc.disable()  # Until all is loaded: a collection writes into memory that is to be shared.
    try:
        actions, left = _load(settings, fresh)
        rules = loaded_rules(settings, actions) if fresh else rules_of(settings, actions)
    except (SettingsError, PluginError) as error:
        _report(report, error)
        return
    # A plugin may have set handlers of its own.
    logs.configure(settings.log_level, settings.log_format)
    ignore_signals(*IGNORED_SIGNALS, *DRAIN_SIGNALS)
    wraps = any(has_wrappers(actions.plugins[name].implementation) for name in left)
    _report(report, Loaded(actions.loaded, rules, left, wraps))
    if left and not fresh:
        # A process with threads or connections of a plugin is not forked: the worker starts
        # another fork server without these plugins.
        return
    gc.collect()
    gc.freeze()
    gc.enable()
    _ForkServer(settings, actions, rules, control).serve()


def _report(report: Connection, message: Loaded | Exception) -> None:
    """Tell the worker how the loading ended, and nothing else after that."""
    with report, suppress(OSError):  # A worker that was stopped meanwhile reads no report.
        report.send(message)


def _load(settings: Settings, fresh: frozenset[str]) -> tuple[Actions, dict[str, str]]:
    """Return the actions, and the plugins that started threads or connections while loading."""
    left: dict[str, str] = {}
    before = _activity()

    def note(name: str) -> None:
        nonlocal before
        threads, sockets, children = now = _activity()
        if threads > before[0]:
            left[name] = "it starts threads while it is loaded"
        elif sockets > before[1]:
            left[name] = "it opens connections while it is loaded"
        elif children > before[2]:
            left[name] = "it starts processes while it is loaded"
        before = now

    return load_actions(settings, left_out=fresh, on_load=note), left


def _activity() -> tuple[int, int, int]:
    """Return how many threads, sockets and children this process has."""
    sockets = 0
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # The directory itself is closed by now.
            # Event queues (`anon_inode`) are as little to be shared as connections.
            sockets += str(entry.readlink()).startswith(("socket:", "anon_inode:"))
    threads = len(list(Path("/proc/self/task").iterdir()))
    return threads, sockets, len(descendants(os.getpid()))


class _ForkServer:
    def __init__(
        self, settings: Settings, actions: Actions, rules: Rules, control: socket.socket
    ) -> None:
        self._settings = settings
        self._actions = actions
        self._rules = rules
        self._control = control
        self._executors: dict[int, int] = {}  # Process id -> number of the executor.
        self._has_warned = False
        self._lock: TextIO | None = None
        self._awake, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _ignore)  # Handled, so that it ends the wait in `serve`.

    def serve(self) -> None:
        """Do what the worker asks for, until it closes the connection or ends."""
        while True:
            ready, _, _ = select.select([self._control.fileno(), self._awake], [], [])
            if self._awake in ready:
                os.read(self._awake, 4096)
            self._reap()
            if self._control.fileno() in ready:
                try:
                    data, descriptors, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 2)
                except OSError:
                    break  # The worker has ended with messages unread.
                if not data:
                    break
                for descriptor in descriptors:
                    # A program that a plugin starts must not answer for the attempt.
                    os.set_inheritable(descriptor, False)
                self._handle(pickle.loads(data), descriptors)  # noqa: S301 - from our own worker
        end_descendants()

    def _handle(self, message: object, descriptors: list[int]) -> None:
        match message:
            case Fork():
                self._fork(message, *descriptors)
            case Kill():
                for pid, executor in self._executors.items():
                    if executor == message.executor:
                        kill_tree(pid)
            case HoldLock():
                self._lock = hold_with(message.path)
                self._control.send(pickle.dumps(message))

    def _fork(self, message: Fork, connection: int, output: int) -> None:
        if not self._has_warned and len(list(Path("/proc/self/task").iterdir())) > 1:
            self._has_warned = True
            _log.error("plugin has started threads after it was loaded, so executors may hang")
        try:
            pid = os.fork()
        except OSError as error:
            how = f"could not be started: {error.strerror}"
            self._send(Exited(message.executor, how, has_begun=False))
        else:
            if pid == 0:
                self._become_executor(message.action, connection, output)
            self._executors[pid] = message.executor
        os.close(connection)
        os.close(output)

    def _become_executor(self, action: str, connection: int, output: int) -> None:
        """Be an executor from here on; never return."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._control.close()
            if self._lock is not None:
                self._lock.close()
            os.close(self._awake)
            os.close(self._wake)
            if action not in self._actions:  # It must not be loaded before a fork.
                self._actions = load_actions(self._settings)
                self._rules = loaded_rules(self._settings, self._actions)
            policy = self._rules.policy(action)
            ExecutorMain(self._settings, self._actions, policy, action, connection, output).run()
            os._exit(0)
        except BaseException:  # noqa: BLE001 - the outermost of the process
            _log.exception("executor ended by an exception", extra={"action": action})
        finally:
            os._exit(1)

    def _reap(self) -> None:
        """Take note of executors that have ended; what they have started ends with them."""
        exited: list[Exited] = []
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if (executor := self._executors.pop(pid, None)) is not None:
                    how = ending(os.waitstatus_to_exitcode(status))
                    exited.append(Exited(executor, how))
        if exited:
            # What they have left are children of this process since their end.
            end_descendants(spared=self._executors, seconds=_KILL_SECONDS)
        for message in exited:
            self._send(message)

    def _send(self, message: object) -> None:
        with suppress(OSError):  # The worker has ended, which the next wait finds.
            self._control.send(pickle.dumps(message))


def _ignore(signum: int, frame: FrameType | None) -> None:
    del signum, frame
