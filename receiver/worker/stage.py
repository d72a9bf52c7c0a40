"""The performer from inside: a process whose threads carry out what its worker says."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import FrameType

from receiver import tracing
from receiver.context import Cancellation
from receiver.errors import PluginError, SettingsError
from receiver.journal.due import ClaimedRun
from receiver.metrics.sharing import count_as
from receiver.plugins import Actions, load_actions, rules_of
from receiver.policies import AttemptEnd, Rules
from receiver.processes import follow_parent, show_as
from receiver.settings import Settings
from receiver.worker.attempts import fields_of
from receiver.worker.leases import hold_with
from receiver.worker.line import Cancel, Line, Loaded, Performed
from receiver.worker.performance import Performance, traced
from receiver.worker.threads import Threads

_log = logging.getLogger(__name__)


def live(
    settings: Settings,
    near: socket.socket,
    far: socket.socket,
    taken: "memoryview[float]",
    worker: int,
) -> None:
    """Live a performer's whole life, which ends with its worker's at the latest.

    `near` is the worker's end of the line; see `Performer` for `taken`.
    """
    near.close()
    follow_parent(worker, signal.SIGKILL)
    show_as("performer")
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker stops in good order, and this with it. What an action starts inherits none.
        signal.signal(number, _nothing)
    mouth = _Mouth(Line(far))
    # A child that an action leaves behind must not speak, nor keep the line open.
    os.register_at_fork(after_in_child=mouth.shut)
    count_as("performer")
    try:
        actions = load_actions(settings)
        rules = rules_of(settings, actions)
    except (SettingsError, PluginError) as error:
        mouth.say(error)
        os._exit(1)
    mouth.say(Loaded(actions.loaded, rules))
    traces = tracing.start(settings, "performer")
    _Stage(mouth, actions, rules, traces, taken).serve()
    traces.close()
    logging.shutdown()
    sys.stdout.flush()
    # Threads of actions that never returned must not keep the process.
    os._exit(0)


class _Mouth:
    """Speaks for every thread, one after the other."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._speaking = threading.Lock()

    def shut(self) -> None:
        """Be silent from now on, in a process where no other thread may be speaking."""
        self.line.close()
        self._speaking = threading.Lock()

    def say(self, message: object) -> None:
        """Say something to the worker; who can do that no more ends."""
        try:
            with self._speaking:
                self.line.send(message)
                self.line.wait_until_sent()
        except (OSError, ValueError):
            # The worker has ended, a plugin has closed the line, or this is a fork of its making.
            os._exit(1)


class _Stage:
    """Where attempts are performed."""

    def __init__(
        self,
        mouth: _Mouth,
        actions: Actions,
        rules: Rules,
        traces: tracing.Tracing,
        taken: "memoryview[float]",
    ) -> None:
        self._mouth = mouth
        self._actions = actions
        self._rules = rules
        self._traces = traces
        self._taken = taken
        self._threads = Threads()
        self._under_way: dict[tuple[int, int], Cancellation] = {}

    def serve(self) -> None:
        """Do what the worker says, until it says no more."""
        line = self._mouth.line
        while True:
            try:
                line.wait()
                for message in line.received():
                    # First: what is told to have begun may not have, but never the reverse.
                    self._taken[1] = time.monotonic()
                    self._taken[0] += 1
                    self._heed(message)
            except (EOFError, OSError, ValueError):
                return

    def _heed(self, message: object) -> None:
        match message:
            case Path():
                self._lock = hold_with(message)
                self._mouth.say(message)
            case Cancel():
                if under_way := self._under_way.get((message.run_id, message.attempt)):
                    under_way.cancel(message.reason)
            case list():
                for run in message:
                    self._begin(run)

    def _begin(self, run: ClaimedRun) -> None:
        began, cancellation = time.monotonic(), Cancellation()
        self._under_way[run.id, run.attempt] = cancellation
        self._threads.start(partial(self._perform, run, began, cancellation))

    def _perform(self, run: ClaimedRun, began: float, cancellation: Cancellation) -> None:
        def perform(run: ClaimedRun) -> AttemptEnd:
            policy = self._rules.policy(run.action)
            return Performance(run, policy, self._actions, began, cancellation).perform()

        try:
            end, trace_id = traced(self._traces, run, perform)
            self._under_way.pop((run.id, run.attempt), None)
            self._mouth.say(Performed(run.id, run.attempt, end, trace_id))
        except BaseException:  # noqa: BLE001 - the thread's outermost
            # Unheard, it would seem to go on for ever.
            _log.exception("attempt cannot be told", extra=fields_of(run, ""))
            os._exit(1)


def _nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame
