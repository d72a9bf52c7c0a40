"""Rows of `make bench` about what people look at, in a journal with many runs of one day."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web.app import create_app
from tests.benchmarks.contenders import cpu_seconds_of_tree
from tests.benchmarks.load import BenchError
from tests.benchmarks.results import Figure, figure_of
from tests.benchmarks.shared_journal import finish_one, multiply_without_limits
from tests.support.grown import VARIED
from tests.support.servers import Server

if TYPE_CHECKING:
    from tests.benchmarks.rows import Stand

# The times of a process are counted in hundredths of a second.
_CALLS = 20
_PAGE = "/"
_RUNS = "/api/v1/runs?"
_FILTERS = (
    "alert=NoSuch", "alert=Alert7", "outcome=failed", "outcome=unknown", "outcome=succeeded",
    "action=file_action", "action=a", "fingerprint=g777", "source=x", "kind=escalation",
    "kind=fired", "state=queued", "state=running", "state=awaiting_approval", "state=finished",
    "action=a&outcome=failed", "action=a&outcome=skipped", "alert=Alert8&outcome=skipped",
    "since=2001-01-01", "until=2001-01-01", "source=&kind=fired&state=finished",
)  # fmt: skip
_OTHERS = ("/runs", "/actions", "/rejected", "/audit", "/metrics", "/api/v1/episodes",
           "/api/v1/rejected", "/api/v1/audit", "/api/v1/actions")  # fmt: skip


def looks(stand: "Stand") -> Iterator[Figure]:
    """The processor time of the first page, and of the dearest other look, on both databases."""
    directory = stand.directory / "looks"
    directory.mkdir()
    sqlite = _Database("SQLite", f"sqlite:///{directory / 'journal.db'}")
    yield from _looks_at(sqlite, stand)
    with closing(Server(directory)) as server:
        name = "bench_looks"
        server.execute(f"CREATE DATABASE {name}")
        postgresql = _Database(
            "PostgreSQL",
            server.url(name),
            lambda: cpu_seconds_of_tree(server.pid),
            # At once what the server does by itself later, so that it is not counted.
            lambda: server.execute("VACUUM", name),
        )
        yield from _looks_at(postgresql, stand)


@dataclass(frozen=True)
class _Database:
    """A journal to look at; `cpu_seconds` is what a server has used, `settle` its housekeeping."""

    name: str
    url: str
    cpu_seconds: Callable[[], float] = lambda: 0.0
    settle: Callable[[], object] = lambda: None


def _looks_at(database: _Database, stand: "Stand") -> Iterator[Figure]:
    runs = stand.day_runs
    settings = load({"RECEIVER_DATABASE_URL": database.url, "RECEIVER_ACTIONS": "log_action"}, {})
    with closing(Journal(database.url)) as journal:
        finish_one(journal)
        multiply_without_limits(journal, runs, timedelta(days=1) / runs, VARIED)
        database.settle()
        client = create_app(settings, load_actions(settings), journal).test_client()

        def seconds(path: str) -> float:
            began = time.process_time() + database.cpu_seconds()
            for _ in range(_CALLS):
                status = client.get(path, base_url="http://127.0.0.1:8080").status_code
                if status != 200:
                    raise BenchError(f"{path} is answered {status}")
            return (time.process_time() + database.cpu_seconds() - began) / _CALLS

        paths = [*(_RUNS + one for one in _FILTERS), *_OTHERS]
        page = [seconds(_PAGE) for _ in range(stand.rounds)]
        dearest = [max(map(seconds, paths)) for _ in range(stand.rounds)]
    yield _figure("first page", runs, database.name, page)
    yield _figure("dearest filter or list", runs, database.name, dearest)


def _figure(what: str, runs: int, database: str, found: Sequence[float]) -> Figure:
    name = f"{what} with {runs:,} runs a day, processor s, {database}"
    return figure_of(name, "\u2264 0.2", found)
