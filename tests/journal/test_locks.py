"""What two processes do to the same runs at the same moment, on a database that lets them."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from threading import Barrier, BrokenBarrierError, local
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.episodes import PutBack
from receiver.intake import intake_of
from receiver.journal import approvals, changes, claims, due, outcomes, reading, requests
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.tables import runs
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.databases import Databases
from tests.support.notifications import T0, alert, notification
from tests.support.waiting import wait_until

ANN = Person("ann", "cli on desk")
_WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
def now() -> list[datetime]:
    """The time, to be moved."""
    return [T0]


@pytest.fixture
def journal(databases: Databases, now: list[datetime]) -> Iterator[Journal]:
    made = Journal(databases.new("postgresql"), clock=lambda: now[0])
    yield made
    made.close()


def accept(journal: Journal, by: Rules) -> None:
    body = parse_notification(notification(alert()))
    record(journal, [intake_of(body, "", "a", (), Catalog(frozenset({"a"})))], by)


def meanwhile(journal: Journal, work: Callable[[], object]) -> Future[object]:
    """Begin something that another transaction must hold up; return once it waits."""
    pool = ThreadPoolExecutor(1)
    begun = pool.submit(work)
    pool.shutdown(wait=False)

    def waits() -> bool:
        with journal.engine.connect() as connection:
            return bool(connection.exec_driver_sql(_WAITING).scalar_one())

    wait_until(lambda: waits() or begun.done())
    assert not begun.done()
    return begun


def test_worker_that_waits_for_the_claim_lock_holds_no_run_in_its_hands(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    (run,) = claims.claim_due_runs(journal, "w1", ["a"], 1, by).claimed
    ended = [Ended(run.id, run.attempt, AttemptEnd(AttemptOutcome.SUCCEEDED))]

    def turn() -> None:
        with journal.writing() as connection:
            outcomes.record_in(journal, connection, "w1", ended, by, lambda: 0.5)
            claims.claim_in(journal, connection, "w1", ["a"], 1, by)

    with journal.writing() as connection:
        journal.dialect.lock_claims(connection)
        waiting = meanwhile(journal, turn)
        # Were the run locked by now, each would wait for the other.
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(error="seen"))
    waiting.result(timeout=30)
    assert reading.find_run(journal, run.id)["outcome"] == "succeeded"


def test_pause_is_not_overtaken_by_a_claim_under_way(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    with journal.writing() as connection:
        found = claims.claim_in(journal, connection, "w1", ["a"], 1, by)
        waiting = meanwhile(journal, lambda: requests.pause(journal, ANN, None))
    assert waiting.result(timeout=30) == "all actions paused"
    assert [run.id for run in found.claimed] == [1]


def test_judging_anew_leaves_what_somebody_else_has_in_hand(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(held_since=T0, due_at=T0 + timedelta(hours=1)))
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(error="in hand"))
        with journal.writing() as other:
            due.judge_anew(journal, other, ["a"])
    assert reading.find_run(journal, 1)["due_at"] == T0 + timedelta(hours=1)


def test_approval_that_comes_as_the_time_runs_out_is_not_overwritten(
    journal: Journal, now: list[datetime]
) -> None:
    by = Rules(policies={"a": Policy(approval="required")})
    accept(journal, by)
    now[0] += timedelta(hours=2)
    with journal.writing() as connection:
        connection.execute(
            sa.update(runs).values(state="queued", approval="approved", reason="approved by ann")
        )
        # What an approval under way has locked is left for the next look.
        assert approvals.expire_approvals(journal, ["a"], by) == []
    assert approvals.expire_approvals(journal, ["a"], by) == []
    assert reading.find_run(journal, 1)["state"] == "queued"


def test_expiry_that_comes_first_makes_the_approval_fail_in_words(
    journal: Journal, now: list[datetime]
) -> None:
    by = Rules(policies={"a": Policy(approval="required")})
    accept(journal, by)
    now[0] += timedelta(hours=2)
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(state="finished", outcome="skipped"))
        waiting = meanwhile(journal, lambda: requests.approve(journal, ANN, 1))
    assert "waits for no approval: it is skipped" in str(waiting.exception(timeout=30))


def test_resuming_leaves_what_somebody_else_has_in_hand(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(held_since=T0, due_at=T0 + timedelta(hours=1)))
    requests.pause(journal, ANN, None)
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(error="in hand"))
        # Who waited would hold other runs that the one with this in hand may want next.
        assert requests.resume(journal, ANN, None) == "all actions resumed"


def test_claim_under_way_is_not_told_of_a_resume_in_its_midst(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    requests.pause(journal, ANN, "b")
    with journal.writing() as connection:
        claims.claim_in(journal, connection, "w1", ["a"], 1, by)
        waiting = meanwhile(journal, lambda: requests.resume(journal, ANN, "b"))
    assert waiting.result(timeout=30) == "b resumed"


def test_run_that_is_deleted_before_it_is_put_back_is_left_out(journal: Journal) -> None:
    by = Rules()
    accept(journal, by)
    with journal.writing() as connection:
        connection.execute(sa.delete(runs))
        changes.apply(journal, connection, by, [PutBack(1, "it fires again")], T0)
    assert reading.list_runs(journal) == []


def escalating(journal: Journal, now: list[datetime]) -> tuple[Rules, list[Ended]]:
    """Let two actions of the same two alerts escalate to one: `a` unapproved, `b` failed."""
    a = Policy(approval="required", escalate_to="page")
    by = Rules(policies={"a": a, "b": Policy(max_attempts=1, escalate_to="page")})
    catalog = Catalog(frozenset({"a", "b"}))
    for name in ("f1", "f2"):
        body = parse_notification(notification(alert(name)))
        record(journal, [intake_of(body, "", "a", (), catalog)], by)
        record(journal, [intake_of(body, "", "b", (), catalog)], by)
    claimed = claims.claim_due_runs(journal, "w1", ["b"], 2, by).claimed
    assert len(claimed) == 2
    now[0] += timedelta(hours=2)
    # The other way round than by key.
    with journal.writing() as connection:
        of_first = sa.update(runs).where(runs.c.action == "a", runs.c.fingerprint == "f1")
        connection.execute(of_first.values(expires_at=now[0] - timedelta(minutes=1)))
    failed = AttemptEnd(AttemptOutcome.FAILED, error="no")
    return by, [Ended(run.id, run.attempt, failed) for run in claimed]


def in_step(journal: Journal, *work: Callable[[], object]) -> list[Future[object]]:
    """Do some work at a time, each held after its first new run until the others are there too.

    Locks keep them apart, so each goes on after a second.
    """
    barrier, mine = Barrier(len(work)), local()

    def hold(conn: Any, cursor: Any, statement: str, *rest: object) -> None:
        del conn, cursor, rest
        if statement.startswith("INSERT INTO runs") and not hasattr(mine, "held"):
            mine.held = True
            with suppress(BrokenBarrierError):
                barrier.wait(1.0)

    sa.event.listen(journal.engine, "after_cursor_execute", hold)
    with ThreadPoolExecutor(len(work)) as pool:
        begun = [pool.submit(one) for one in work]
    sa.event.remove(journal.engine, "after_cursor_execute", hold)
    return begun


def test_expired_approvals_and_failed_runs_escalate_at_once_without_a_deadlock(
    journal: Journal, now: list[datetime]
) -> None:
    by, ended = escalating(journal, now)
    expired, recorded = in_step(
        journal,
        lambda: approvals.expire_approvals(journal, ["a", "b"], by),
        lambda: outcomes.record_ends(journal, "w1", ended, by, lambda: 0.5),
    )
    assert len(expired.result(timeout=30)) == 2  # type: ignore[arg-type]
    assert len(recorded.result(timeout=30)) == 2  # type: ignore[arg-type]
    assert len(reading.list_runs(journal, kind="escalation")) == 2
