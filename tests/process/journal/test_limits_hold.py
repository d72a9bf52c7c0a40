"""The one real test of the limits: two worker processes, 16 threads each, want all they can get."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.alertmanager import parse_notification
from receiver.declarations import Window
from receiver.intake import intake_of
from receiver.journal import reading, requests
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.requests import Person
from receiver.policies import Policy, Rules
from receiver.routing import Catalog
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

HOSTS, RUNS_OF_A_HOST = 10, 20
MOST_AT_A_TIME = 5
HOUR = timedelta(hours=1)
OF_A_HOST = (
    Window(1, timedelta(milliseconds=50)),
    Window(2, timedelta(milliseconds=500)),
    Window(5, HOUR),
)
OF_ALL_HOSTS = (Window(4, timedelta(milliseconds=200)), Window(3, timedelta(milliseconds=100)))
POLICY = {
    "TARGET_LABELS": "host",
    "MAX_CONCURRENT": str(MOST_AT_A_TIME),
    "COOLDOWN": "50ms",
    "RATE_LIMIT": "2/500ms, 5/1h",
    "OVERALL_RATE_LIMIT": "4/200ms",
    "BREAKER": "none",
}
# One line when it begins and one when it ends, in the order in which that happened.
WITNESS = """
import os
import time
from receiver import TemporaryError, hookimpl

@hookimpl
def execute(context):
    file = os.open(os.environ["WITNESSED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    host = context.alert.labels["host"]
    line = f"{os.getppid()} {context.run_id} {context.attempt} {host}"
    os.write(file, f"begins {line}\\n".encode())
    time.sleep(0.02)
    os.write(file, f"ends {line}\\n".encode())
    os.close(file)
    if context.attempt == 1 and context.run_id % 7 == 0:
        raise TemporaryError("once more", retry_after=0.1)
"""


@dataclass(frozen=True)
class Line:
    """One line that the action wrote."""

    word: str
    fork_server: int
    run_id: int
    attempt: int
    host: str


@dataclass(frozen=True)
class Evidence:
    """What was witnessed, and what the journal holds once nothing more may start."""

    lines: Sequence[Line]
    runs: Sequence[dict[str, Any]]

    def starts(self, host: str | None = None) -> list[datetime]:
        """Return when runs were started, in order of time."""
        return sorted(
            one["started_at"]
            for one in self.runs
            if one["started_at"] is not None and host in (None, one["target"])
        )


@pytest.fixture
def journal(open_journal: Callable[..., Journal]) -> Journal:
    return open_journal()


def accept_all(journal: Journal) -> None:
    now = datetime.now(UTC)
    body = notification(
        *[
            alert(f"{number:04}", labels={"host": f"h{number // RUNS_OF_A_HOST}"}, starts_at=now)
            for number in range(HOSTS * RUNS_OF_A_HOST)
        ]
    )
    catalog = Catalog(frozenset({"witness"}))
    intake = intake_of(parse_notification(body), "", "witness", (), catalog)
    rules = Rules(policies={"witness": Policy(target_labels=("host",))})
    (counts,) = record(journal, [intake], rules)
    assert counts.accepted == HOSTS * RUNS_OF_A_HOST


@pytest.fixture
def evidence(
    journal: Journal, start_receiver: Callable[..., Receiver], tmp_path: Path
) -> Iterator[Evidence]:
    """Let two workers at it, and wait until what is left may not start for long."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "witness.py").write_text(WITNESS)
    witnessed = tmp_path / "witnessed"
    url = journal.engine.url
    if journal.dialect.name == "sqlite":
        place = {"RECEIVER_DATA_DIR": str(Path(str(url.database)).parent)}
    else:
        place = {"RECEIVER_DATABASE_URL": url.render_as_string(hide_password=False)}
    environment = {
        "PLUGIN_DIR": str(tmp_path / "plugins"),
        "RECEIVER_WORKER_EXECUTORS": "16",
        "RECEIVER_LIMITS_RATE_LIMIT": "3/100ms",
        "WITNESSED": str(witnessed),
        **place,
        **{f"RECEIVER_ACTION_WITNESS_{key}": value for key, value in POLICY.items()},
    }
    ann = Person("ann", "here")
    requests.pause(journal, ann, None)  # Until both are ready.
    accept_all(journal)
    workers = [start_receiver("worker", **environment) for _ in range(2)]
    for one in workers:
        one.wait_ready()
    requests.resume(journal, ann, None)

    def is_at_rest() -> bool:
        later = datetime.now(UTC) + HOUR / 2
        runs = reading.list_runs(journal, 1000)
        return all(
            one["state"] == "finished" or (one["state"] == "queued" and one["due_at"] > later)
            for one in runs
        )

    wait_until(is_at_rest, 60, "all that may start has ended")
    assert [one.stop() for one in workers] == [0, 0]
    lines = [
        Line(word, int(fork_server), int(run_id), int(attempt), host)
        for word, fork_server, run_id, attempt, host in map(
            str.split, witnessed.read_text().splitlines()
        )
    ]
    yield Evidence(lines, reading.list_runs(journal, 1000))


def assert_never_more(starts: Sequence[datetime], windows: Sequence[Window]) -> None:
    """No window of any length `period`, wherever it begins, holds more than `number` starts."""
    for number, period in windows:
        for first, last in zip(starts, starts[number:], strict=False):
            assert last - first >= period


def test_two_workers_exceed_no_limit_and_start_all_that_is_allowed(evidence: Evidence) -> None:
    # Never more at a time than may be, and never two for one host: as the action itself saw it.
    running: dict[str, Line] = {}
    for line in evidence.lines:
        if line.word == "begins":
            assert line.host not in running
            running[line.host] = line
            assert len(running) <= MOST_AT_A_TIME
        else:
            earlier = running.pop(line.host)
            assert (earlier.run_id, earlier.attempt) == (line.run_id, line.attempt)
    assert running == {}

    # No run was made twice, and the journal knows of every one.
    begun = [line for line in evidence.lines if line.word == "begins"]
    first = [line for line in begun if line.attempt == 1]
    again = [line for line in begun if line.attempt == 2]
    started = {one["id"] for one in evidence.runs if one["started_at"] is not None}
    assert Counter(line.run_id for line in first) == dict.fromkeys(started, 1)
    assert sorted(line.run_id for line in again) == sorted(one for one in started if one % 7 == 0)

    # No window holds more starts than it may; retries, which bypass limits, are none.
    for host in range(HOSTS):
        assert_never_more(evidence.starts(f"host=h{host}"), OF_A_HOST)
    assert_never_more(evidence.starts(), OF_ALL_HOSTS)

    # Everything that was allowed ran, and what is left says why it waits, and until when.
    assert {one["outcome"] for one in evidence.runs if one["id"] in started} == {"succeeded"}
    left = [one for one in evidence.runs if one["id"] not in started]
    assert {(one["state"], one["attempts"], one["held_by"]) for one in left} == {
        ("queued", 0, "rate_limit")
    }
    assert {one["reason"] for one in left} == {
        "delayed: there were 5 runs in 1h for this target already (rate_limit)"
    }
    for host in range(HOSTS):
        starts = evidence.starts(f"host=h{host}")
        assert len(starts) == 5
        due = [one["due_at"] for one in left if one["target"] == f"host=h{host}"]
        assert due == [starts[0] + HOUR] * (RUNS_OF_A_HOST - 5)

    # It was a contest: both processes took part.
    assert len({line.fork_server for line in begun}) == 2
