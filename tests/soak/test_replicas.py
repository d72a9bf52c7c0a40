"""Replicas on one PostgreSQL: killed, frozen and cut off; and what each promise rests on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from receiver.journal import claims, outcomes
from receiver.journal.journal import Journal
from receiver.policies import Rules
from receiver.worker.leases import Instance
from tests.support.databases import Databases
from tests.support.documents import ROOT
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until
from tests.support.witness import Witness


@pytest.fixture
def campaign(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [sys.executable, "-m", "tests.soak.replicas", "--seconds", "25", "--seed", "1",
         "--directory", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
    )  # fmt: skip
    yield started
    started.terminate()  # It ends what it started; without effect when it has ended.
    started.communicate(timeout=60)


def test_three_replicas_lose_no_episode_and_repeat_only_what_was_interrupted(
    campaign: subprocess.Popen[str],
) -> None:
    printed, _ = campaign.communicate(timeout=400)
    assert campaign.returncode == 0, printed
    last = printed.splitlines()[-1]
    # Had nobody been killed, frozen or interrupted, nothing of interest was tested.
    assert last.startswith("passed: ")
    assert not any(
        f" {none}" in last
        for none in ("0 kills", "0 freezes", "0 restarts", "0 attempts interrupted")
    ), last
    assert "PostgreSQL is restarted" in printed


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(tmp_path)


def worker_that_runs(
    start_receiver: Callable[..., Receiver],
    witness: Witness,
    seconds: str,
    settings: dict[str, str],
) -> Receiver:
    """Start a web and a worker, and return the worker once it runs what the web has accepted."""
    web = start_receiver("web", **settings).wait_ready()
    worker = start_receiver("worker", **settings).wait_ready()
    body = notification(alert(annotations={"value": "1", "seconds": seconds}))
    assert web.post(body, "/webhook/witness").status_code == 200
    wait_until(lambda: witness.seen("begins"), 60)
    return worker


def test_frozen_worker_that_wakes_cannot_record_over_the_new_owner(
    databases: Databases, witness: Witness, start_receiver: Callable[..., Receiver]
) -> None:
    url = databases.new("postgresql")
    settings = {"RECEIVER_DATABASE_URL": url, "RECEIVER_LEASE": "3s", **witness.environment}
    first = worker_that_runs(start_receiver, witness, "2", settings)
    assert first.process is not None
    os.kill(first.process.pid, signal.SIGSTOP)
    try:
        start_receiver("worker", **settings)
        wait_until(lambda: [one.attempt for one in witness.seen("begins")] == [1, 2], 60)
    finally:
        # It wakes while the second attempt runs: the run is running, and not its own.
        os.kill(first.process.pid, signal.SIGCONT)
    wait_until(lambda: "the run had another owner by then" in first.text(), 60)
    wait_until(lambda: len(witness.seen("ends")) == 2, 60)
    with psycopg.connect(url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        wait_until(
            lambda: connection.execute("SELECT state FROM runs").fetchall()
            == [{"state": "finished"}], 60,
        )  # fmt: skip
        (run,) = connection.execute("SELECT * FROM runs").fetchall()
        made = connection.execute("SELECT * FROM attempts ORDER BY number").fetchall()
    assert (run["outcome"], run["attempts"]) == ("succeeded", 2)
    assert [one["outcome"] for one in made] == ["interrupted", "succeeded"]
    # It has come back to stay: what it claims now is its own.
    assert first.stop() == 0


def test_worker_that_wakes_may_claim_what_was_taken_from_it_while_that_goes_on(
    databases: Databases, witness: Witness, start_receiver: Callable[..., Receiver]
) -> None:
    url = databases.new("postgresql")
    backoff = {"RECEIVER_ACTION_WITNESS_BACKOFF": "10ms..20ms"}
    settings = {"RECEIVER_DATABASE_URL": url, **backoff, **witness.environment}
    worker = worker_that_runs(start_receiver, witness, "5", settings)
    assert worker.process is not None
    os.kill(worker.process.pid, signal.SIGSTOP)
    journal = Journal(url)
    try:
        (owner,) = claims.owners_of_running(journal)
        outcomes.recover_from(journal, owner, ["witness"], Rules(), lambda: 0.0)
    finally:
        os.kill(worker.process.pid, signal.SIGCONT)
    query = "SELECT state, outcome, attempts FROM runs"

    def runs() -> list[tuple[object, ...]]:
        with journal.reading() as connection:
            return [tuple(found) for found in connection.exec_driver_sql(query)]

    wait_until(lambda: runs() == [("finished", "succeeded", 2)], 60)
    journal.close()
    events = [(one.event, one.attempt) for one in witness.seen()]
    assert events == [("begins", 1), ("begins", 2), ("ends", 1), ("ends", 2)]
    assert worker.stop() == 0


def test_worker_that_drains_keeps_its_lease(
    databases: Databases, witness: Witness, start_receiver: Callable[..., Receiver]
) -> None:
    url = databases.new("postgresql")
    settings = {"RECEIVER_DATABASE_URL": url, "RECEIVER_LEASE": "2s", **witness.environment}
    first = worker_that_runs(start_receiver, witness, "8", settings)
    start_receiver("worker", **settings).wait_ready()
    # Its attempt takes much longer than the lease, and less than the grace period.
    assert first.stop(60) == 0
    assert [(one.event, one.attempt) for one in witness.seen()] == [("begins", 1), ("ends", 1)]
    with psycopg.connect(url.replace("+psycopg", ""), row_factory=dict_row) as connection:
        (run,) = connection.execute("SELECT * FROM runs").fetchall()
    assert (run["outcome"], run["attempts"]) == ("succeeded", 1)


@pytest.fixture
def journal(databases: Databases) -> Iterator[Journal]:
    made = Journal(databases.new("postgresql"))
    yield made
    made.close()


_LEASE = timedelta(milliseconds=300)


def look_until_dead(observer: Instance, other: Instance) -> None:
    wait_until(lambda: observer.is_dead(other.id), 60)


def test_lease_counts_only_the_time_that_was_watched(journal: Journal) -> None:
    observer, other = (Instance(journal, "worker", ["a"], _LEASE) for _ in range(2))
    assert not observer.is_dead(other.id)
    # As after an outage of the server, in which nobody could beat: one look, however much later.
    time.sleep(_LEASE.total_seconds() * 2)
    assert not observer.is_dead(other.id)
    look_until_dead(observer, other)


def test_worker_that_beats_is_not_dead(journal: Journal) -> None:
    observer, other = (Instance(journal, "worker", ["a"], timedelta(seconds=3)) for _ in range(2))
    until = time.monotonic() + 6
    while time.monotonic() < until:
        assert other.beat()
        assert not observer.is_dead(other.id)
        time.sleep(0.05)


def test_worker_that_was_buried_enters_anew_and_is_told(journal: Journal) -> None:
    observer = Instance(journal, "worker", ["a"], _LEASE)
    # It keeps its own lease for longer: what it is told next is about its burial alone.
    other = Instance(journal, "worker", ["a"], timedelta(seconds=10))
    look_until_dead(observer, other)
    observer.bury_dead()
    wait_until(lambda: not other.beat(), 60, "it beats, and is told")
    assert other.beat()
    assert not observer.is_dead(other.id)


def test_who_comes_back_before_the_burial_is_neither_buried_nor_robbed(journal: Journal) -> None:
    observer, other = (Instance(journal, "worker", ["a"], _LEASE) for _ in range(2))
    look_until_dead(observer, other)
    with journal.writing() as connection:
        assert observer.is_still_dead(connection, other.id)
        other.beat_in(connection)
    with journal.writing() as connection:
        assert not observer.is_still_dead(connection, other.id)
    observer.bury_dead()
    with journal.reading() as connection:
        ids = connection.exec_driver_sql("SELECT id FROM instances").scalars().all()
    assert other.id in ids


def test_frozen_transaction_frees_its_locks_before_a_lease_is_over(journal: Journal) -> None:
    def claims() -> bool:
        with journal.writing() as connection:
            found = connection.exec_driver_sql("SELECT pg_try_advisory_xact_lock(7246135109)")
            return bool(found.scalar())

    # What a process that was stopped in the midst of a claim looks like to the server.
    frozen = journal.engine.connect()
    frozen.begin()
    journal.dialect.lock_claims(frozen)
    assert not claims()
    wait_until(claims, 15)
    frozen.invalidate()
    frozen.close()
