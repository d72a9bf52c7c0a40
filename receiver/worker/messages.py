"""The messages between worker, fork server and executors.

Worker and fork server exchange one packet for each message. Worker and executor exchange pickled
objects over a connection. Both ends are this program: nothing else can connect.
"""

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from receiver.journal.due import ClaimedRun
from receiver.packing import Packed
from receiver.policies import AttemptEnd, Rules


def send(connection: "Connection[object, object]", message: object) -> None:
    """Send a message to the other end, or raise OSError.

    `Connection.send` would look up how to pickle each object in Python.
    """
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: "Connection[object, object]") -> object:
    """Wait for a message; raise EOFError or OSError when no more will come."""
    return pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own process


@dataclass(frozen=True, slots=True)
class Loaded:
    """From the fork server, once: what the plugins are to those who do not execute them.

    `fresh` maps each plugin that must not be loaded before a fork to the reason. `wraps` is true
    when one of those wraps every action.
    """

    actions: frozenset[str]
    rules: Rules
    fresh: dict[str, str]
    wraps: bool


# Worker to fork server.


@dataclass(frozen=True, slots=True)
class HoldLock:
    """Hold the lock of the worker's instance too, until everything below has ended."""

    path: Path


@dataclass(frozen=True, slots=True)
class Fork:
    """Fork an executor for an action; its connection and its output come with the message."""

    executor: int
    action: str


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill an executor and everything that it started."""

    executor: int


# Fork server to worker.


@dataclass(frozen=True, slots=True)
class Exited:
    """An executor has ended, with everything that it started.

    `how` says in words how its process ended. It was never started if `has_begun` is false.
    """

    executor: int
    how: str
    has_begun: bool = True


# Worker to executor.


@dataclass(frozen=True, slots=True)
class Order(Packed):
    """Make one attempt. `deadline` is on the monotonic clock, which all processes share."""

    run: ClaimedRun
    deadline: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the attempt under way to stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class StateStored:
    """Answer to SaveState: the journal has it, or could not take it because of `error`."""

    error: str | None = None


# Executor to worker.


@dataclass(frozen=True, slots=True)
class SaveState:
    """Store this JSON text with the run; the attempt waits for the answer."""

    state: str


@dataclass(frozen=True, slots=True)
class Finished(Packed):
    """How the attempt ended. The executor exits if it left something behind (`leftovers`)."""

    end: AttemptEnd
    leftovers: tuple[str, ...] = ()
