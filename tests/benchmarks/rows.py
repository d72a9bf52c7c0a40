"""The further questions that `make bench` answers, each with figures of one run; see README.md.

A new one is a function that yields figures, and a line in `ROWS`.
"""

import itertools
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks import looks, programs, shared_journal
from tests.benchmarks.contenders import (
    Bare,
    Busy,
    Contender,
    Json,
    OneByOne,
    Receiver,
    ReceiverWithRuns,
    Sleepers,
    wait_until,
)
from tests.benchmarks.load import Answers, BenchError, Load, body_template, notification
from tests.benchmarks.results import Figure, figure_of

_LARGE = 1_000
_FINISHED_SECONDS = 300.0


@dataclass
class Stand:
    """What a question may use: a directory, how long and how often to drive, and sizes."""

    directory: Path
    rounds: int
    seconds: int
    warm_ups: int = 1
    journal_runs: int = 1_000_000
    queued: int = 10_000
    day_runs: int = 300_000
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def load(self, alerts: int = 1, connections: int = 16) -> Load:
        """Return a load of notifications with so many alerts."""
        template = self.directory / f"notification-{alerts}.json"
        template.write_text(body_template(alerts), encoding="utf-8")
        return Load(template, connections)

    @contextmanager
    def running(self, *kinds: type[Any]) -> Iterator[list[Any]]:
        """Start contenders, and stop them when the block ends."""
        started = [kind(self.directory / str(next(self._numbers))) for kind in kinds]
        try:
            for one in started:
                one.start()
            for one in started:
                one.wait_ready()
            yield started
        finally:
            for one in started:
                one.stop()

    def drive(self, load: Load, contender: Contender, again: bool = False) -> Answers:
        """Drive one; raise BenchError unless all was answered 200."""
        answers = load.drive(contender.url, contender.headers, self.seconds, again)
        if answers.refused or answers.broken or not answers.answers:
            raise BenchError(f"{contender.name}: {answers}")
        return answers


def _rate(answers: Answers) -> float:
    return answers.answers / answers.seconds


def _compared(
    stand: Stand, load: Load, one: Contender, limit: Contender
) -> Iterator[tuple[Answers, Answers]]:
    """Drive two in turn, a round to warm up first."""
    for number in range(1 - stand.warm_ups, stand.rounds + 1):
        limit_answers, answers = stand.drive(load, limit), stand.drive(load, one)
        limit.settle()
        one.settle()
        if number:
            yield answers, limit_answers


def large_notifications(stand: Stand) -> Iterator[Figure]:
    """Notifications of 1,000 alerts, beside Flask with json.loads."""
    with stand.running(Json, Receiver) as (limit, one):
        pairs = list(_compared(stand, stand.load(_LARGE, connections=4), one, limit))
        yield figure_of("1,000-alert notifications/s / json", "≥ 0.60",
                        [_rate(a) / _rate(b) for a, b in pairs])  # fmt: skip


def beside_large(stand: Stand) -> Iterator[Figure]:
    """What the small ones suffer from large ones."""
    small, large = stand.load(connections=4), stand.load(_LARGE, connections=1)
    found = []
    with stand.running(Receiver) as (one,):
        for _ in range(stand.rounds):
            alone = stand.drive(small, one)
            thread = threading.Thread(target=stand.drive, args=(large, one))
            thread.start()
            found.append(stand.drive(small, one).p99_ms / alone.p99_ms)
            thread.join()
    yield figure_of("1-alert p99 beside 1,000-alert notifications / alone", "≤ 5", found)


def largest_notification(stand: Stand) -> Iterator[Figure]:
    """One notification of 10,000 alerts: time and memory."""
    found = []
    with stand.running(Json, Receiver) as (limit, one):
        for number in range(stand.rounds):
            body = notification(10_000, number)
            seconds = [each.post(body) for each in (limit, one)]
            found.append(seconds[1] / seconds[0])
        peak = one.peak_bytes() / 1e6
    yield figure_of("10,000-alert notification, time / json", "≤ 2.5", found)
    yield figure_of("10,000-alert notification, peak MB", "≤ 200", [peak])


def sent_again(stand: Stand) -> Iterator[Figure]:
    """The same notifications a second time: all duplicates."""
    load, found = stand.load(), []
    with stand.running(Receiver) as (one,):
        stand.drive(load, one)
        for _ in range(stand.rounds):
            first = stand.drive(load, one)
            found.append(_rate(stand.drive(load, one, again=True)) / _rate(first))
    yield figure_of("re-sends/s / first sends/s", "≥ 1.3", found)


def runs_of_nothing(stand: Stand) -> Iterator[Figure]:
    """How fast a worker gets through runs that do nothing: claim, attempt, outcome, durable."""
    found, over_single = [], []
    for _ in range(stand.rounds):
        with stand.running(Busy) as (one,):
            one.settle()  # It must not hold a lock when it is halted.
            one.signal_worker(signal.SIGSTOP)
            _queue(stand, one)
            one.signal_worker(signal.SIGCONT)
            wait_until(lambda: not one.waiting(), _FINISHED_SECONDS, "the runs do not end")
            found.append(one.finished_per_second())
        with stand.running(OneByOne) as (single,):
            _queue(stand, single)
            single.work_off(min(stand.queued, _LARGE))
            over_single.append(found[-1] / single.finished_per_second())
    yield figure_of(f"no-op runs/s, {stand.queued:,} queued", "≥ 1500", found)
    yield figure_of("no-op runs/s / with a commit per step", "≥ 5", over_single)


def _queue(stand: Stand, one: Contender) -> None:
    size = min(stand.queued, _LARGE)
    for number in range(stand.queued // size):
        one.post(notification(size, number))


def full_journal(stand: Stand) -> Iterator[Figure]:
    """Accepting into a journal that holds many runs already."""
    load = stand.load()
    with stand.running(Receiver, Receiver) as (empty, full):
        stand.drive(load, full)
        _fill(full.journal, stand.journal_runs)
        found = [_rate(a) / _rate(b) for a, b in _compared(stand, load, full, empty)]
    yield figure_of(f"acceptance with {stand.journal_runs:,} runs / empty", "≥ 0.95", found)


def _fill(journal: Path, runs: int) -> None:
    """Multiply a finished run, with its episode."""
    with closing(sqlite3.connect(journal, timeout=60)) as opened, opened:
        for table in ("runs", "episodes"):
            columns = [row[1] for row in opened.execute(f"PRAGMA table_info({table})")][1:]
            values = ["printf('%016x', value * 2654435761 % 4294967296) || value"
                      if one == "fingerprint" else "'finished'" if one == "state" else one
                      for one in columns]  # fmt: skip
            opened.execute(
                "WITH RECURSIVE numbers(value) AS "
                f"(SELECT 1 UNION ALL SELECT value + 1 FROM numbers WHERE value < {runs}) "
                f"INSERT INTO {table} ({', '.join(columns)}) "
                f"SELECT {', '.join(values)} FROM numbers, "
                f"(SELECT * FROM {table} ORDER BY id LIMIT 1)"
            )
        opened.execute("UPDATE runs SET state = 'finished', finished_at = created_at")


def beside_actions(stand: Stand) -> Iterator[Figure]:
    """Accepting while eight actions run, and sleep; what is accepted is paused beside both."""
    with stand.running(Sleepers, Sleepers) as (idle, busy):
        busy.post(notification(8, 0))
        wait_until(lambda: busy.running() == 8, 60, "eight actions do not run")
        for one in (idle, busy):
            one.pause("log_action")
            one.url = one.url.replace("/webhook", "/webhook/log_action")
            one.settle = lambda: None
        pairs = list(_compared(stand, stand.load(), busy, idle))
        yield figure_of("acceptance while 8 actions sleep / idle", "≥ 0.9",
                        [_rate(a) / _rate(b) for a, b in pairs])  # fmt: skip


def at_rest(stand: Stand) -> Iterator[Figure]:
    """Memory of all processes, and the time until they are ready."""
    memory, seconds = [], []
    for _ in range(stand.rounds):
        found: dict[type[Contender], tuple[float, float]] = {}
        for kind in (Bare, ReceiverWithRuns):
            began = time.perf_counter()
            with stand.running(kind) as (one,):
                ready = time.perf_counter() - began
                one.settle()
                found[kind] = one.memory_bytes(), ready
        memory.append(found[ReceiverWithRuns][0] / found[Bare][0])
        seconds.append(found[ReceiverWithRuns][1] / found[Bare][1])
    yield figure_of("idle memory, all processes / bare", "≤ 3.5", memory)
    yield figure_of("start to ready / bare", "≤ 4", seconds)


ROWS: dict[str, Callable[[Stand], Iterator[Figure]]] = {
    "large": large_notifications,
    "beside-large": beside_large,
    "largest": largest_notification,
    "again": sent_again,
    "runs": runs_of_nothing,
    "full-journal": full_journal,
    "beside-actions": beside_actions,
    "at-rest": at_rest,
    "replicas": shared_journal.two_replicas,
    "grown": shared_journal.grown,
    "looks": looks.looks,
    "hook": programs.hook,
    "exec": programs.alerts_that_run_programs,
}


def measure(stand: Stand, wanted: Sequence[str], show: Callable[[str], object]) -> list[Figure]:
    """Answer the wanted questions one after the other, each line shown as it is known."""
    stand.directory.mkdir()
    found = []
    for name in wanted:
        for figure in ROWS[name](stand):
            found.append(figure)
            show(figure.line())
    return found
