"""Rows of `make bench` about PostgreSQL, and about what grows: see `rows.py`."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from receiver.alertmanager import parse_notification
from receiver.intake import intake_of
from receiver.journal import claims, outcomes
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.policies import AttemptEnd, AttemptOutcome, Rules
from receiver.routing import Catalog
from tests.benchmarks.contenders import Receiver
from tests.benchmarks.results import Figure, figure_of
from tests.support.grown import multiply
from tests.support.notifications import alert, notification
from tests.support.servers import Server

if TYPE_CHECKING:
    from tests.benchmarks.rows import Stand

_RULES = Rules()
_CALLS = 300
_APART = timedelta(seconds=1)


def _replica_of(server: Server) -> type[Receiver]:
    class Replica(Receiver):
        """`receiver web` on the server."""

        def environment(self) -> dict[str, str]:
            """Return the settings of `receiver`, and where the journal is."""
            return super().environment() | {"RECEIVER_DATABASE_URL": server.url()}

    return Replica


def two_replicas(stand: "Stand") -> Iterator[Figure]:
    """Two replicas on one PostgreSQL, each with half of the connections, beside one with all."""
    all_of_them, halves = stand.load(), [stand.load(connections=8) for _ in range(2)]
    directory = stand.directory / "server"
    directory.mkdir()
    found = []
    with closing(Server(directory)) as server:
        replica = _replica_of(server)
        with stand.running(replica, replica) as pair:
            for _ in range(stand.rounds):
                alone = stand.drive(all_of_them, pair[0])
                rates: list[float] = []

                def drive(number: int, rates: list[float] = rates) -> None:
                    answers = stand.drive(halves[number], pair[number])
                    rates.append(answers.answers / answers.seconds)

                threads = [threading.Thread(target=drive, args=(number,)) for number in range(2)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                found.append(sum(rates) / (alone.answers / alone.seconds))
    yield figure_of("two replicas / one, notifications/s", "\u2265 1.5", found)


def grown(stand: "Stand") -> Iterator[Figure]:
    """Duplicates and claims in a journal that holds many runs, over an empty one."""
    directory = stand.directory / "grown"
    directory.mkdir()
    with closing(Server(directory)) as server:
        for name in ("bench_empty", "bench_full"):
            server.execute(f"CREATE DATABASE {name}")
        urls = {
            "SQLite": [f"sqlite:///{directory / name / 'journal.db'}" for name in ("a", "b")],
            "PostgreSQL": [server.url(name) for name in ("bench_empty", "bench_full")],
        }
        for database, pair in urls.items():
            empty, full = (Journal(url) for url in pair)
            for one in (empty, full):
                finish_one(one)
            multiply_without_limits(full, stand.journal_runs)
            for what, calls in (("duplicates", _duplicates), ("claims", _claims)):
                found = [calls(empty) / calls(full) for _ in range(stand.rounds)]
                runs = f"{stand.journal_runs:,} runs"
                yield figure_of(f"{what}/s with {runs} / empty, {database}", "\u2265 0.9", found)
            empty.close()
            full.close()


def multiply_without_limits(
    journal: Journal, runs: int, apart: timedelta = _APART, varied: Mapping[str, str] | None = None
) -> None:
    """Make many of the one finished run, however long that takes."""
    if journal.dialect.name == "postgresql":
        # A million rows take longer than a statement of the receiver may.
        _lift_limits(journal)
    multiply(journal, runs, apart, varied)


def _lift_limits(journal: Journal) -> None:
    from sqlalchemy import event

    @event.listens_for(journal.engine, "begin")
    def lift(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")


def finish_one(journal: Journal) -> None:
    """Accept an alert, and finish its run."""
    _accept(journal, "first")
    _finish(journal)


def _accept(journal: Journal, fingerprint: str) -> None:
    body = parse_notification(notification(alert(fingerprint)))
    record(journal, [intake_of(body, "", "a", (), Catalog(frozenset({"a"})))], _RULES)


def _finish(journal: Journal) -> None:
    found = claims.claim_due_runs(journal, "bench", ["a"], 1, _RULES).claimed
    ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED)) for run in found]
    outcomes.record_ends(journal, "bench", ended, _RULES, lambda: 0.5)


def _duplicates(journal: Journal) -> float:
    """Return the seconds that a number of duplicates take, one by one."""
    began = time.perf_counter()
    for _ in range(_CALLS):
        _accept(journal, "first")
    return time.perf_counter() - began


def _claims(journal: Journal) -> float:
    """Return the seconds that a number of claims take, with their outcomes."""
    for number in range(_CALLS):
        _accept(journal, f"{time.time_ns()} {number}")
    began = time.perf_counter()
    for _ in range(_CALLS):
        _finish(journal)
    return time.perf_counter() - began
