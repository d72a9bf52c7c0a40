"""Every wait has an end: for a report of the alert, and for a worker with the action."""

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.intake import intake_of
from receiver.journal import claims, outcomes, reading, requests
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.tables import runs
from receiver.journal.waits import EndedWait, end_waits
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.elsewhere import Elsewhere
from tests.support.notifications import alert, notification

ANN = Person("ann", "test")
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
POLICY = Policy(max_staleness=5 * HOUR, max_delay=24 * HOUR)
RULES = Rules(policies={"a": POLICY})
LOADED = frozenset({"a"})
CATALOG = Catalog(frozenset({"a", "gone", "page"}))
STALE = "skipped: its alert was not reported for 5h (max_staleness), and for 1d more (max_delay)"


def accept(journal: Journal, *names: str, by: Rules = RULES, to: str = "a") -> None:
    body = parse_notification(notification(*map(alert, names)))
    record(journal, [intake_of(body, "", to, (), CATALOG)], by)


def end(
    journal: Journal, by: Rules = RULES, loaded: Collection[str] = LOADED, **sizes: int
) -> list[EndedWait]:
    return [ended for step in end_waits(journal, loaded, by, **sizes) for ended in step]


def the_run(journal: Journal, **equal: object) -> dict[str, Any]:
    (run,) = reading.list_runs(journal, **equal)
    return run


def test_run_whose_alert_is_not_reported_waits_and_then_is_skipped(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, "f")
    clock.now += 29 * HOUR - MINUTE
    assert end(journal) == []
    assert the_run(journal)["state"] == "queued"
    clock.now += 2 * MINUTE
    (ended,) = end(journal)
    assert (ended.verdict.kind, ended.verdict.guardrail) == ("skip", "max_staleness")
    run = the_run(journal)
    assert (run["state"], run["outcome"], run["reason"]) == ("finished", "skipped", STALE)
    assert run["finished_at"] == clock.now
    assert end(journal) == []


def test_run_that_a_clock_created_that_was_ahead_is_not_skipped_at_once(
    journal: Journal, clock: Clock
) -> None:
    clock.now += HOUR
    accept(journal, "f")
    clock.now -= HOUR
    assert end(journal) == []
    clock.now += 30 * HOUR
    assert len(end(journal)) == 1


def test_report_or_a_persons_retry_begins_the_wait_anew(journal: Journal, clock: Clock) -> None:
    accept(journal, "f")
    clock.now += 20 * HOUR
    accept(journal, "f")
    clock.now += 20 * HOUR
    assert end(journal) == []
    clock.now += 10 * HOUR
    assert len(end(journal)) == 1
    requests.retry(journal, ANN, 1)
    assert end(journal) == []
    clock.now += 30 * HOUR
    assert len(end(journal)) == 1


def test_wait_begins_when_the_run_is_due(journal: Journal, clock: Clock) -> None:
    by = Rules(policies={"a": Policy(repeat_after=100 * HOUR)})
    accept(journal, "f", by=by)
    (run,) = claims.claim_due_runs(journal, "w1", ["a"], 1, by).claimed
    ended = [Ended(run.id, 1, AttemptEnd(AttemptOutcome.SUCCEEDED))]
    outcomes.record_ends(journal, "w1", ended, by, lambda: 0.5)
    clock.now += 100 * HOUR + 23 * HOUR
    assert end(journal, by) == []
    clock.now += 2 * HOUR
    assert len(end(journal, by)) == 1
    assert the_run(journal, kind="repeat")["outcome"] == "skipped"


def test_resolved_run_waits_for_no_report(journal: Journal, clock: Clock) -> None:
    accept(journal, "f")
    with journal.writing() as connection:
        connection.execute(sa.update(runs).values(kind="resolved"))
    clock.now += 1000 * HOUR
    assert end(journal) == []


def test_skipped_run_escalates_and_the_escalation_gets_its_time(
    journal: Journal, clock: Clock
) -> None:
    by = Rules(policies={"a": Policy(escalate_to="page"), "page": POLICY})
    accept(journal, "f", by=by)
    clock.now += 30 * HOUR
    assert len(end(journal, by, {"a", "page"})) == 1
    assert the_run(journal, kind="escalation")["state"] == "queued"
    # Nobody is paged about an alert that may be gone, unless it is reported again.
    assert claims.claim_due_runs(journal, "w1", ["page"], 1, by).claimed == []
    clock.now += 23 * HOUR
    assert end(journal, by, {"a", "page"}) == []
    accept(journal, "f", by=by)
    assert len(claims.claim_due_runs(journal, "w1", ["page"], 1, by).claimed) == 1


def test_run_of_an_action_that_no_worker_has_loaded_is_skipped(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, "f", to="gone")
    clock.now += 100 * HOUR
    accept(journal, "f", to="gone")
    # However long it has waited: perhaps for a worker that is being replaced now.
    (found,) = end(journal)
    assert (found.verdict.kind, found.verdict.guardrail) == ("delay", "not loaded")
    assert the_run(journal)["state"] == "queued"
    clock.now += 23 * HOUR
    assert end(journal) == []
    clock.now += 2 * HOUR
    assert len(end(journal)) == 1
    run = the_run(journal)
    assert run["outcome"] == "skipped"
    assert run["reason"] == "skipped: no worker has loaded the action gone for 1d (max_delay)"


def test_action_that_is_loaded_again_begins_anew(journal: Journal, clock: Clock) -> None:
    accept(journal, "f", to="gone")
    end(journal)
    assert the_run(journal)["held_by"] == "not loaded"
    clock.now += 23 * HOUR
    accept(journal, "f", to="gone")
    assert end(journal, loaded={"gone"}) == []
    assert (the_run(journal)["held_by"], the_run(journal)["held_since"]) == (None, None)
    clock.now += 2 * HOUR
    (found,) = end(journal)
    assert found.verdict.kind == "delay"


def test_run_of_an_action_that_another_worker_has_loaded_is_left_to_it(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, "f", to="gone")
    clock.now += 100 * HOUR
    elsewhere = Elsewhere()
    try:
        other = elsewhere.enter(journal, "gone")
        assert end(journal) == []
        elsewhere.leave(other)
        assert len(end(journal)) == 1
    finally:
        elsewhere.kill()


def test_approval_for_an_action_that_no_worker_has_loaded_expires(
    journal: Journal, clock: Clock
) -> None:
    by = Rules(policies={name: Policy(approval="required") for name in ("a", "gone")})
    accept(journal, "f", by=by, to="gone")
    accept(journal, "f", by=by)
    clock.now += 2 * HOUR
    (ended,) = end(journal, by)
    assert (ended.verdict.kind, ended.verdict.guardrail) == ("skip", "approval")
    assert the_run(journal, action="gone")["outcome"] == "skipped"
    # Its worker ends it by itself.
    assert the_run(journal, action="a")["state"] == "awaiting_approval"


@pytest.mark.parametrize("sizes", [{"examined": 7, "written": 2}, {"examined": 50, "written": 50}])
def test_walk_over_a_long_queue_ends_all_and_writes_little_at_a_time(
    journal: Journal, clock: Clock, sizes: dict[str, int]
) -> None:
    accept(journal, *(f"old {number}" for number in range(30)))
    clock.now += 25 * HOUR
    accept(journal, *(f"new {number}" for number in range(30)))
    clock.now += 5 * HOUR
    steps = list(end_waits(journal, LOADED, RULES, **sizes))
    assert len(steps) >= 60 // sizes["examined"]
    assert sum(map(len, steps)) == 30
    assert max(map(len, steps)) <= sizes["examined"]
    assert {run["alert_name"] for run in reading.list_runs(journal, state="finished")} == {
        run["alert_name"] for run in reading.list_runs(journal, outcome="skipped")
    }
    assert len(reading.list_runs(journal, state="queued")) == 30


def test_run_that_is_reported_meanwhile_is_not_ended(
    open_journal: Callable[..., Journal], clock: Clock
) -> None:
    journal = open_journal(clock=clock)
    accept(journal, "f1", "f2")
    clock.now += 30 * HOUR
    steps = end_waits(journal, LOADED, RULES, examined=1)
    assert len(next(steps)) == 1
    accept(journal, "f1", "f2")
    assert [ended for step in steps for ended in step] == []
    assert len(reading.list_runs(journal, state="queued")) == 1
