"""Deleting what is old: all of it goes, none of the rest, and nobody waits for it."""

import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.journal.journal import Journal
from receiver.journal.retention import Retention, RetentionWalk
from receiver.journal.tables import rejected
from tests.support.grown import put_finished
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until
from tests.support.witness import Record, Witness

_OLD = 20_000
RETENTION = timedelta(hours=1)
(_ALERT,) = parse_notification(notification(alert())).alerts

# What the alerts of a run are called -> how many such runs must stay.
KEPT = {"young": 500, "long firing": 500}


def fill(url: str) -> Journal:
    """Open a journal with much that is old, and some that must stay."""
    journal = Journal(url)
    long_ago, lately = datetime.now(UTC) - 2 * RETENTION, datetime.now(UTC) - RETENTION / 10
    put_finished(journal, "old", _OLD, long_ago)
    put_finished(journal, "young", KEPT["young"], lately)
    put_finished(journal, "long firing", KEPT["long firing"], long_ago, open_seen_at=lately)
    with journal.writing() as connection:
        connection.execute(
            sa.insert(rejected),
            [
                {
                    "source": "",
                    "fingerprint": f"{kind} {number}",
                    "name": "no_such_action",
                    "rule": "label action_plugin",
                    "starts_at": at,
                    "alert_name": _ALERT.name,
                    "alert": _ALERT.to_json(),
                    "receiver": "",
                    "external_url": "",
                    "reason": "there is no such action",
                    "times": 1,
                    "first_seen_at": at,
                    "seen_at": at,
                }
                for kind, at in (("old", long_ago), ("young", lately))
                for number in range(500)
            ],
        )
    return journal


def kinds(record: Record, table: str) -> dict[str, int]:
    """Return how many rows there are of each kind of alert, those of the traffic left out."""
    of_run = "(SELECT fingerprint FROM runs WHERE runs.id = run_id)"
    column = of_run if table == "attempts" else "fingerprint"
    kind = f"rtrim({column}, '0123456789 ')"
    query = f"SELECT {kind} AS kind, count(*) AS number FROM {table} GROUP BY 1"
    found = {one["kind"]: one["number"] for one in record.rows(query)}
    found.pop("traffic", None)
    return found


def check_kept(record: Record) -> None:
    for table in ("runs", "attempts", "episodes"):
        assert kinds(record, table) == KEPT
    assert kinds(record, "rejected") == {"young": 500}


def test_batch_of_deletions_works_for_less_than_50_ms(tmp_path: Path) -> None:
    journal = fill(f"sqlite:///{tmp_path / 'journal.db'}")
    seconds: list[float] = []
    walk, is_over = RetentionWalk(journal, Retention(RETENTION, RETENTION, RETENTION)), False
    while not is_over:
        began = time.thread_time()
        _, is_over = walk.step()
        seconds.append(time.thread_time() - began)
    journal.close()
    # Its own work, and not each of them: whatever else the machine does can make any one slow, its
    # disk above all, for which every commit waits. Of the size of a batch that would say nothing.
    assert len(seconds) > 50
    assert statistics.median(seconds) < 0.05
    check_kept(Record(tmp_path))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Receiver]]:
    """Starts programs on a journal that holds much that is old; ends them."""
    data = tmp_path / "data"
    data.mkdir()
    fill(f"sqlite:///{data / 'journal.db'}").close()
    environment = {"RECEIVER_DATA_DIR": str(data), "RECEIVER_RETENTION": "1h"}
    environment["RECEIVER_EPISODE_RETENTION"] = "1h"
    environment |= Witness(tmp_path).environment
    started: list[Receiver] = []

    def start(command: str) -> Receiver:
        started.append(Receiver(command, environment, tmp_path / f"{command}.log"))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def test_worker_deletes_all_that_is_old_and_no_notification_waits_for_it(
    start: Callable[[str], Receiver], tmp_path: Path
) -> None:
    record = Record(tmp_path / "data")
    web = start("web").wait_ready()
    with Traffic(web, pause_seconds=0.005) as traffic:
        wait_until(lambda: len(traffic.accepted) >= 50)
        # It deletes as soon as it has started.
        worker = start("worker")
        # Its last words of it, which come after the last commit: an episode goes a batch later than
        # the last of its runs.
        wait_until(lambda: rows_deleted(worker) >= 2 * _OLD + 500, 60, "all that is old gone")
    check_kept(record)
    assert rows_deleted(worker) == 2 * _OLD + 500
    deleted = worker.lines("old rows deleted")
    first, last = moment(deleted[0]), moment(deleted[-1])
    before: list[float] = []
    meanwhile: list[float] = []
    for line in web.lines("notification recorded"):
        ended, seconds = moment(line), line["seconds"]
        if ended < first:
            before.append(seconds)
        elif ended - seconds < last:  # Those that waited until the very end, too.
            meanwhile.append(seconds)
    # Nine of ten, for the machine can delay any one; what it always takes is in both of them.
    assert tenth_slowest(meanwhile) < tenth_slowest(before) + 0.05
    traffic.check(within_seconds=1)


def rows_deleted(worker: Receiver) -> int:
    """Return how many rows the worker says to have deleted."""
    return sum(line["rows"] for line in worker.lines("old rows deleted"))


def moment(line: dict[str, Any]) -> float:
    """Return when a line was logged, in seconds."""
    return datetime.fromisoformat(line["time"]).timestamp()


def tenth_slowest(seconds: list[float]) -> float:
    """Return what nine of ten stay below."""
    return sorted(seconds)[len(seconds) * 9 // 10]
