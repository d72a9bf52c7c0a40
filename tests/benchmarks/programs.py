"""Rows of `make bench` beside servers that start a program for each request: see `rows.py`."""

import http.client
import json
import os
import select
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.benchmarks.contenders import Contender, ReceiverWithRuns, wait_until
from tests.benchmarks.load import BenchError, find_program, notification
from tests.benchmarks.results import Figure, figure_of

if TYPE_CHECKING:
    from tests.benchmarks.rows import Stand

_HERE = Path(__file__).parent
_HOOKS = 50
_ALERTS = 1_000
# What an action of the receiver may do at a time unless it is set.
_AT_ONCE = 4
_PROGRAM = "/bin/true"
_STARTED_SECONDS = 30.0
_FINISHED_SECONDS = 300.0


class Noter(ReceiverWithRuns):
    """`receiver serve` with an action that first of all looks at the clock."""

    name = "receiver+noter"
    action = "noter"

    def __init__(self, directory: Path) -> None:
        """Make the pipe into which the action writes what it saw."""
        super().__init__(directory)
        self._notes = self.directory / "notes"
        os.mkfifo(self._notes)
        # For writing too: else the pipe ends with each writer.
        self._pipe = os.open(self._notes, os.O_RDWR)
        self.does = (
            "import pathlib, time; now = time.time_ns(); "
            f"pathlib.Path({str(self._notes)!r}).write_text(str(now))"
        )

    def started_ns(self, answer: bytes) -> int:
        """Return when the action began that was asked for last."""
        if not select.select([self._pipe], [], [], _STARTED_SECONDS)[0]:
            raise BenchError(f"{self.name}: the action does not start; see {self.log}")
        return int(os.read(self._pipe, 100))

    def stop(self) -> None:
        """End it, and the pipe."""
        super().stop()
        os.close(self._pipe)


class Webhook(Contender):
    """Debian's `webhook`, https://github.com/adnanh/webhook: it forks a program per request.

    The program is `date` itself, which begins sooner than a shell that would call it.
    """

    name = "webhook"
    ready_path = "/"

    def __init__(self, directory: Path) -> None:
        """Give it a hook that demands the token."""
        super().__init__(directory)
        self.url = f"http://{self.address}/hooks/notification"
        hook = {
            "id": "notification",
            "execute-command": find_program("date"),
            "pass-arguments-to-command": [{"source": "string", "name": "+%s%N"}],
            "include-command-output-in-response": True,
            "http-methods": ["POST"],
            "trigger-rule-mismatch-http-response-code": 403,
            "trigger-rule": {
                "match": {
                    "type": "value",
                    "value": self.headers["Authorization"],
                    "parameter": {"source": "header", "name": "Authorization"},
                }
            },
        }
        (self.directory / "hooks.json").write_text(json.dumps([hook]))

    def command(self) -> list[str]:
        """Return webhook's, with Debian's options; and on loopback alone."""
        host, _, port = self.address.rpartition(":")
        options = ["-nopanic", "-hooks", "hooks.json", "-ip", host, "-port", port]
        return [find_program("webhook"), *options]

    def started_ns(self, answer: bytes) -> int:
        """Return what the program printed."""
        return int(answer)


def hook(stand: "Stand") -> Iterator[Figure]:
    """From sending a notification until what it starts has begun, beside `webhook`."""
    found = []
    with stand.running(Webhook, Noter) as pair:
        for number in range(1 - stand.warm_ups, stand.rounds + 1):
            limit, one = (_median_until_started(each, number) for each in pair)
            if number > 0:
                found.append(one / limit)
    yield figure_of("POST until the action starts / webhook", "\u2264 2.5", found)


def _median_until_started(one: Webhook | Noter, turn: int) -> float:
    """Return the median nanoseconds of hooks, one after the other on one connection."""
    one.settle()
    found = []
    with closing(http.client.HTTPConnection(one.address, timeout=60)) as connection:
        for number in range(turn * _HOOKS, (turn + 1) * _HOOKS):
            body = notification(1, number)
            sent = time.time_ns()
            connection.request("POST", urlsplit(one.url).path, body, one.headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200 or connection.sock is None:
                raise BenchError(f"{one.name} answers {answer.status}, or ends the connection")
            found.append(one.started_ns(text) - sent)
    return statistics.median(found)


class Programs(ReceiverWithRuns):
    """`receiver serve`: every alert runs a program."""

    name = "receiver+programs"

    def environment(self) -> dict[str, str]:
        """Return the settings: the program, and how many of them at a time."""
        return super().environment() | {
            "ACTION_PLUGIN": "exec_plugin",
            "EXEC_PLUGIN_COMMAND": _PROGRAM,
            "RECEIVER_ACTION_EXEC_PLUGIN_MAX_CONCURRENT": str(_AT_ONCE),
        }

    def finished(self) -> tuple[int, float]:
        """Return how many runs have succeeded, and when the last of them did."""
        succeeded = "FROM runs WHERE outcome = 'succeeded'"
        last = self._count(f"SELECT coalesce(max(finished_at), 0) {succeeded}")
        return self._count(f"SELECT count(*) {succeeded}"), last / 1e6


class BareProcesses(Contender):
    """The least that runs programs, in Python as well: see `command_responder.py`."""

    name = "bare-processes"
    how = "bare"

    def command(self) -> list[str]:
        """Return the stand-in's."""
        file = str(_HERE / "command_responder.py")
        return [sys.executable, file, self.address, _PROGRAM, str(_AT_ONCE), self.how]

    def finished(self) -> tuple[int, float]:
        """Return how many programs have succeeded, and when the last of them did."""
        with closing(http.client.HTTPConnection(self.address, timeout=60)) as connection:
            connection.request("GET", "/")
            number, at = json.loads(connection.getresponse().read())
        return number, at


class CommandResponder(BareProcesses):
    """The same, and it minds each program's output and deadline."""

    name = "command-responder"
    how = "minded"


def alerts_that_run_programs(stand: "Stand") -> Iterator[Figure]:
    """Alerts of one notification that each run a program, beside servers that store nothing."""
    alerts, over_bare, over_minded = min(stand.queued, _ALERTS), [], []
    with stand.running(BareProcesses, CommandResponder, Programs) as contenders:
        for number in range(1 - stand.warm_ups, stand.rounds + 1):
            bare, minded, one = (_per_second(each, alerts, number) for each in contenders)
            if number > 0:
                over_bare.append(one / bare)
                over_minded.append(one / minded)
    yield figure_of(f"{alerts:,} programs/s / bare processes", "\u2265 1", over_bare)
    yield figure_of(f"{alerts:,} programs/s / command-responder", "\u2265 1", over_minded)


def _per_second(one: BareProcesses | Programs, alerts: int, number: int) -> float:
    one.settle()
    wanted = one.finished()[0] + alerts
    began = time.time()
    one.post(notification(alerts, number))
    wait_until(
        lambda: one.finished()[0] >= wanted, _FINISHED_SECONDS, f"{one.name}: programs do not end"
    )
    return alerts / (one.finished()[1] - began)
