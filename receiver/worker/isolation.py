"""`isolation = "process"`: an attempt in a process of its own, which can be killed.

The process is forked from a small server, so that it starts in milliseconds and inherits none of
the worker's threads or locks. It is its own session and the reaper of all it starts: at the
deadline everything that descends from it is killed.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from receiver import logs, tracing
from receiver.context import Cancellation
from receiver.journal.due import ClaimedRun
from receiver.metrics import SHARED_DIRECTORY
from receiver.plugins import load_actions, rules_of
from receiver.policies import AttemptEnd, AttemptOutcome
from receiver.processes import ending, follow_parent, show_as
from receiver.settings import Settings
from receiver.worker.attempts import Attempt
from receiver.worker.performance import Performance

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_SECONDS = 0.05
# An action that honours its deadline still needs a moment to return.
_LATE_SECONDS = 0.25

# Named as text: the server imports it once, for all of its children.
_SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class _Order:
    """What the child needs to know; all of it can be sent from process to process."""

    settings: Settings
    run: ClaimedRun
    started: float


def prepare() -> None:
    """Let the server import what every child needs; before the first attempt, else it is slow."""
    _SERVER.set_forkserver_preload(["receiver.worker.isolation"])


def perform_in_process(attempt: Attempt, run: ClaimedRun, settings: Settings) -> AttemptEnd:
    """Perform an attempt in a process of its own; never raises, and never outlasts the deadline.

    `run` is that of the attempt, with the span that what the action traces belongs to.
    """
    ours, theirs = _SERVER.Pipe()
    order = _Order(settings, run, attempt.started)
    process = _SERVER.Process(target=_child, args=(theirs,), daemon=False)
    try:
        process.start()
        theirs.close()
        ours.send(order)
        return _await_end(attempt, ours)
    except (EOFError, OSError):
        process.join(1.0)
        text = f"its process {ending(process.exitcode)} before the action returned"
        return AttemptEnd(AttemptOutcome.KILLED, error=text)
    finally:
        # A child that was told nothing else waits to be killed, so the number is still its own.
        if process.pid is not None and process.exitcode is None:
            _kill_all(process.pid)
            process.join(5.0)
        ours.close()


def _await_end(attempt: Attempt, ours: "Connection[object, object]") -> AttemptEnd:
    told = False
    while not ours.poll(_LOOK_SECONDS):
        reason = attempt.cancellation.reason
        if reason is not None and not told:
            ours.send(reason)
            told = True
        if attempt.seconds_left() <= -_LATE_SECONDS:
            seconds = attempt.policy.timeout.total_seconds()
            text = f"killed at its deadline, after {seconds:g} s, with all it had started"
            return AttemptEnd(AttemptOutcome.KILLED, error=text)
    end = ours.recv()
    assert isinstance(end, AttemptEnd)
    return end


def _kill_all(pid: int) -> None:
    """Kill a process and everything that descends from it, session leaders and daemons too."""
    doomed = [pid, *_descendants(pid)]
    for one in doomed:
        _send(one, signal.SIGSTOP)  # So that none has children that are not seen below.
    for one in {*doomed, *_descendants(pid)}:
        _send(one, signal.SIGKILL)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(word) for one in threads for word in (one / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError):
        return found
    for child in children:
        found += [child, *_descendants(child)]
    return found


def _child(theirs: "Connection[object, object]") -> None:
    """The child's whole life; whatever the action has left running is killed with it."""
    os.setsid()
    follow_parent(os.getppid(), signal.SIGKILL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    order = theirs.recv()
    assert isinstance(order, _Order)
    show_as(f"attempt {order.run.attempt} of run {order.run.id}: {order.run.action}")
    # A plugin's own counters would leave a file for every attempt.
    os.environ.pop(SHARED_DIRECTORY, None)
    logs.configure(order.settings.log_level, order.settings.log_format)
    actions = load_actions(order.settings)
    policy = rules_of(order.settings, actions).policy(order.run.action)
    cancellation = Cancellation()
    threading.Thread(target=_listen, args=(theirs, cancellation), daemon=True).start()
    performance = Performance(order.run, policy, actions, order.started, cancellation)
    traces = tracing.start(order.settings, "attempt")
    with traces.within(order.run.traceparent):
        end = performance.perform()
    traces.close()  # Before the end is known, for then this process is killed.
    theirs.send(end)
    threading.Event().wait()


def _listen(theirs: "Connection[object, object]", cancellation: Cancellation) -> None:
    try:
        cancellation.cancel(str(theirs.recv()))
    except (EOFError, OSError):
        return
