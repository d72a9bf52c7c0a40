"""The performer: the process in which a worker's actions run, in threads.

It holds the plugins and never touches the journal; the worker speaks to the journal and imports no
plugin. So an action that keeps the interpreter lock never stops a process in the midst of a write
transaction, for which all who write to the same SQLite file would wait. It is forked from the
worker before that has threads, a journal or anything else of its own, and they live and die
together.
"""

import gc
import logging
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from receiver import tracing
from receiver.context import Cancellation
from receiver.errors import PerformerLostError, PluginError, SettingsError
from receiver.journal.due import ClaimedRun
from receiver.metrics.sharing import count_as
from receiver.plugins import Actions, load_actions, rules_of
from receiver.policies import AttemptEnd, Rules
from receiver.processes import ending, ends_within, follow_parent, show_as
from receiver.settings import Settings
from receiver.worker.attempts import fields_of
from receiver.worker.leases import hold_with
from receiver.worker.performance import Performance, describe_error, traced
from receiver.worker.threads import Threads

# One that takes nothing for so long never will.
_TAKES_SECONDS = 10
# Traces that are still to be sent.
_LAST_WORDS_SECONDS = 3.0

_FORK = multiprocessing.get_context("fork")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the plugins are to those who do not run them."""

    actions: frozenset[str]
    rules: Rules


@dataclass(frozen=True, slots=True)
class Order:
    """An attempt to perform; `started` is the claim, on the machine's monotonic clock."""

    run: ClaimedRun
    started: float


@dataclass(frozen=True, slots=True)
class Performed:
    """How an attempt ended; `trace_id` is empty when nothing is traced."""

    run_id: int
    attempt: int
    end: AttemptEnd
    trace_id: str


@dataclass(frozen=True, slots=True)
class _Cancel:
    run_id: int
    attempt: int
    reason: str


class Performer:
    """The worker's end of the line to its performer."""

    def __init__(self, settings: Settings) -> None:
        """Fork it; it loads the plugins while its caller does something else."""
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _TAKES_SECONDS, 0))
        self._line: Connection[object, object] = Connection(ours.detach())
        far: Connection[object, object] = Connection(theirs.detach())
        gc.freeze()  # What is never looked at again stays shared.
        target = partial(_live, settings, self._line, far, os.getpid())
        self._process = _FORK.Process(target=target, name="performer")
        self._process.start()
        far.close()
        self._readable = select.poll()
        self._readable.register(self._line.fileno(), select.POLLIN)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def fileno(self) -> int:
        """What becomes readable when an attempt has ended, or the performer has."""
        return self._line.fileno()

    def loaded(self) -> Loaded:
        """Wait for the plugins; raises what `load_actions` and `rules_of` raise."""
        answer = self._receive()
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Loaded)
        return answer

    def hold(self, lock: Path) -> None:
        """Let it hold the worker's lock too: the instance is not dead before both of them are."""
        self._send(lock)
        self._receive()

    def perform(self, orders: Sequence[Order]) -> None:
        """Start attempts, each at once in a thread."""
        self._send(orders)

    def cancel(self, run_id: int, attempt: int, reason: str) -> None:
        """Ask an action to stop."""
        self._send(_Cancel(run_id, attempt, reason))

    def performed(self) -> Iterator[Performed]:
        """Yield what has ended by now; raises PerformerLostError when the performer has."""
        # Looked at first: the line stays open while a child of an action holds it, too.
        has_ended = self._process.exitcode is not None
        while self._readable.poll(0):
            one = self._receive()
            assert isinstance(one, Performed)
            yield one
        if has_ended:
            raise self._loss()

    def _send(self, message: object) -> None:
        try:
            self._line.send(message)
        except OSError:
            # It has ended, or is as good as dead; either is found when it is heard next.
            self._process.kill()

    def _receive(self) -> object:
        try:
            return self._line.recv()
        except (EOFError, OSError):
            ends_within(self._process, _LAST_WORDS_SECONDS)
            raise self._loss() from None

    def _loss(self) -> PerformerLostError:
        return PerformerLostError(f"the process of the actions {ending(self._process.exitcode)}")

    def __enter__(self) -> "Performer":
        return self

    def __exit__(self, *error: object) -> None:
        """Let it end, with the threads of actions that never returned."""
        self._line.close()
        if not ends_within(self._process, _LAST_WORDS_SECONDS):
            self._process.kill()


def _live(
    settings: Settings,
    near: "Connection[object, object]",
    line: "Connection[object, object]",
    worker: int,
) -> None:
    """The performer's whole life."""
    near.close()
    follow_parent(worker, signal.SIGKILL)
    show_as("performer")
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker stops in good order, and this with it. What an action starts inherits none.
        signal.signal(number, _nothing)
    count_as("performer")
    try:
        actions = load_actions(settings)
        rules = rules_of(settings, actions)
    except (SettingsError, PluginError) as error:
        _tell(line, error)
        os._exit(1)
    _tell(line, Loaded(actions.loaded, rules))
    traces = tracing.start(settings, "performer")
    _Stage(line, actions, rules, traces).serve()
    traces.close()
    logging.shutdown()
    sys.stdout.flush()
    # Threads of actions that never returned must not keep the process.
    os._exit(0)


class _Stage:
    """The performer's end of the line."""

    def __init__(
        self,
        line: "Connection[object, object]",
        actions: Actions,
        rules: Rules,
        traces: tracing.Tracing,
    ) -> None:
        self._line = line
        self._sending = threading.Lock()
        self._actions = actions
        self._rules = rules
        self._traces = traces
        self._threads = Threads()
        self._under_way: dict[tuple[int, int], Cancellation] = {}

    def serve(self) -> None:
        """Do what the worker says, until it says no more."""
        while True:
            try:
                message = self._line.recv()
            except (EOFError, OSError):
                return
            match message:
                case Path():
                    self._lock = hold_with(message)
                    self._send(None)
                case _Cancel():
                    if under_way := self._under_way.get((message.run_id, message.attempt)):
                        under_way.cancel(message.reason)
                case list():
                    for order in message:
                        self._begin(order)

    def _begin(self, order: Order) -> None:
        cancellation = Cancellation()
        self._under_way[order.run.id, order.run.attempt] = cancellation
        self._threads.start(partial(self._perform, order, cancellation))

    def _perform(self, order: Order, cancellation: Cancellation) -> None:
        run, trace_id = order.run, ""

        def perform(run: ClaimedRun, span: tracing.Span) -> AttemptEnd:
            del span
            policy = self._rules.policy(run.action)
            return Performance(run, policy, self._actions, order.started, cancellation).perform()

        try:
            end, trace_id = traced(self._traces, run, perform)
        except Exception as error:  # noqa: BLE001 - the thread's outermost loop
            _log.exception("attempt could not be made", extra=fields_of(run, ""))
            end = AttemptEnd("failed", error=describe_error(error))
        del self._under_way[run.id, run.attempt]
        self._send(Performed(run.id, run.attempt, end, trace_id))

    def _send(self, message: object) -> None:
        with self._sending:
            _tell(self._line, message)


def _tell(line: "Connection[object, object]", message: object) -> None:
    with suppress(OSError):  # Who hears no more has ended, and so will this process.
        line.send(message)


def _nothing(signum: int, frame: FrameType | None) -> None:
    del signum, frame
