"""A clock that was ahead for a moment, or steps back: on every database."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from receiver.alertmanager import parse_notification
from receiver.declarations import Breaker, Window
from receiver.intake import intake_of
from receiver.journal import activity, approvals, claims, outcomes, reading, requests, retention
from receiver.journal.acceptance import record
from receiver.journal.clock import correct_schedules
from receiver.journal.due import ClaimedRun
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.journal.retention import Retention
from receiver.policies import AttemptEnd, AttemptOutcome, Limits, Policy, Rules
from receiver.routing import Catalog
from tests.support.notifications import T0, alert, notification

LOADED = frozenset({"a", "b"})
ANN = Person("ann", "cli on desk")
NONE = timedelta(0)
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
DAY, YEAR = timedelta(days=1), timedelta(days=365)
KEPT = Retention(30 * DAY, 400 * DAY, 30 * DAY)
SUCCEEDED = AttemptEnd(AttemptOutcome.SUCCEEDED)
FAILED = AttemptEnd(AttemptOutcome.FAILED, error="no")


class Clock:
    """A clock that a test moves, ahead for a moment too."""

    def __init__(self) -> None:
        self.now = T0 + MINUTE

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(open_journal: Callable[..., Journal], clock: Clock) -> Journal:
    return open_journal(clock=clock)


def rules(limits: Limits | None = None, **policy: Any) -> Rules:
    return Rules(policies={"a": Policy(**policy)}, limits=limits or Limits())


def accept(journal: Journal, by: Rules, *alerts: dict[str, Any]) -> None:
    body = parse_notification(notification(*alerts or [alert()]))
    record(journal, [intake_of(body, "", "a", (), Catalog(LOADED))], by)


def claim(journal: Journal, by: Rules) -> list[ClaimedRun]:
    return claims.claim_due_runs(journal, "w1", sorted(LOADED), 16, by).claimed


def end(journal: Journal, by: Rules, run: ClaimedRun, how: AttemptEnd = SUCCEEDED) -> None:
    outcomes.record_ends(
        journal, "w1", [Ended(run.id, run.attempt, how)], by, lambda: 1.0 - 2.0**-53
    )


def run_one(journal: Journal, by: Rules, name: str, how: AttemptEnd = SUCCEEDED) -> ClaimedRun:
    accept(journal, by, alert(name, labels={"host": "h1"}))
    (run,) = claim(journal, by)
    end(journal, by, run, how)
    return run


def find(journal: Journal, run_id: int = 1) -> dict[str, Any]:
    return reading.find_run(journal, run_id)


GUARDED = [
    pytest.param(rules(cooldown=HOUR, target_labels=("host",)), SUCCEEDED, id="cooldown"),
    pytest.param(
        rules(rate_limit=(Window(1, HOUR),), target_labels=("host",)), SUCCEEDED, id="rate_limit"
    ),
    pytest.param(rules(overall_rate_limit=(Window(1, HOUR),)), SUCCEEDED, id="overall_rate_limit"),
    pytest.param(rules(Limits(rate_limit=(Window(1, HOUR),))), SUCCEEDED, id="limits"),
    pytest.param(rules(breaker=Breaker(1, HOUR), max_attempts=1), FAILED, id="breaker"),
]


@pytest.mark.parametrize(("by", "how"), GUARDED)
def test_what_ran_while_the_clock_was_a_year_ahead_holds_nothing_back(
    journal: Journal, clock: Clock, by: Rules, how: AttemptEnd
) -> None:
    clock.now += YEAR
    run_one(journal, by, "ahead", how)
    clock.now -= YEAR
    accept(journal, by, alert("today", labels={"host": "h1"}))
    assert [run.fingerprint for run in claim(journal, by)] == ["today"]


@pytest.mark.parametrize(("by", "how"), GUARDED)
@pytest.mark.parametrize("back", [2 * SECOND, MINUTE], ids=["2s", "1m"])
def test_step_back_of_the_clock_opens_no_limit(
    journal: Journal, clock: Clock, by: Rules, how: AttemptEnd, back: timedelta
) -> None:
    run_one(journal, by, "before", how)
    clock.now -= back
    accept(journal, by, alert("after", labels={"host": "h1"}))
    assert claim(journal, by) == []


def test_retry_computed_by_a_clock_that_was_ahead_keeps_its_pause_only(
    journal: Journal, clock: Clock
) -> None:
    by = rules(backoff=(5 * MINUTE, 5 * MINUTE))
    clock.now += YEAR
    run_one(journal, by, "ahead", FAILED)
    clock.now -= YEAR
    assert correct_schedules(journal, patience=NONE) == 1
    assert clock.now < find(journal)["due_at"] <= clock.now + 5 * MINUTE
    assert correct_schedules(journal, patience=NONE) == 0
    # Its alert was last reported by the clock that was ahead: a new report lets it run.
    clock.now += 5 * MINUTE
    assert claim(journal, by) == []
    accept(journal, by, alert("ahead", labels={"host": "h1"}))
    assert [run.attempt for run in claim(journal, by)] == [2]


def test_short_jump_ahead_is_corrected_too(journal: Journal, clock: Clock) -> None:
    by = rules(backoff=(MINUTE, MINUTE))
    clock.now += 2 * HOUR
    run_one(journal, by, "ahead", FAILED)
    clock.now -= 2 * HOUR
    correct_schedules(journal, patience=NONE)
    assert find(journal)["due_at"] <= clock.now + MINUTE


def test_wait_is_corrected_only_after_it_lay_ahead_for_a_while(
    journal: Journal, clock: Clock
) -> None:
    """At start a clock can be far behind for a moment: then all that is recorded lies ahead."""
    by = rules(backoff=(5 * MINUTE, 5 * MINUTE))
    run_one(journal, by, "f1", FAILED)
    due_at = find(journal)["due_at"]
    clock.now -= YEAR
    assert correct_schedules(journal) == 0
    clock.now += YEAR
    assert correct_schedules(journal) == 0
    assert find(journal)["due_at"] == due_at


def test_delay_by_a_limit_is_corrected(journal: Journal, clock: Clock) -> None:
    by = rules(overall_rate_limit=(Window(1, HOUR),), max_delay=3 * HOUR)
    clock.now += YEAR
    run_one(journal, by, "ahead")
    accept(journal, by, alert("held"))
    assert claim(journal, by) == []
    assert find(journal, 2)["held_since"] == clock.now
    clock.now -= YEAR
    correct_schedules(journal, patience=NONE)
    held = find(journal, 2)
    assert (held["held_since"], held["due_at"]) == (clock.now, clock.now + HOUR)


def test_repeat_is_corrected(journal: Journal, clock: Clock) -> None:
    by = rules(repeat_after=HOUR)
    clock.now += YEAR
    run_one(journal, by, "ahead")
    clock.now -= YEAR
    correct_schedules(journal, patience=NONE)
    assert (find(journal, 2)["kind"], find(journal, 2)["due_at"]) == ("repeat", clock.now + HOUR)


def test_approval_expires_in_time(journal: Journal, clock: Clock) -> None:
    by = rules(approval="required", approval_timeout=HOUR)
    clock.now += YEAR
    accept(journal, by)
    clock.now -= YEAR
    correct_schedules(journal, patience=NONE)
    clock.now += HOUR
    assert approvals.expire_approvals(journal, ["a"], by) == [1]


def test_effect_is_looked_at_in_time(journal: Journal, clock: Clock) -> None:
    by = rules(verify_after=10 * MINUTE)
    clock.now += YEAR
    run_one(journal, by, "ahead")
    clock.now -= YEAR
    correct_schedules(journal, patience=NONE)
    clock.now += 10 * MINUTE
    assert outcomes.verify_due(journal, ["a"], by) == [(1, "unverified")]


def test_pause_for_a_time_lasts_as_long_as_the_person_said(journal: Journal, clock: Clock) -> None:
    by = rules()
    clock.now += YEAR
    requests.pause(journal, ANN, "a", lasting=HOUR)
    clock.now -= YEAR
    accept(journal, by)
    correct_schedules(journal, patience=NONE)
    assert claim(journal, by) == []
    clock.now += HOUR
    assert len(claim(journal, by)) == 1


def test_pause_without_an_end_holds_whatever_the_clock_says(journal: Journal, clock: Clock) -> None:
    by = rules()
    clock.now += YEAR
    requests.pause(journal, ANN, "a")
    clock.now -= YEAR
    accept(journal, by)
    assert correct_schedules(journal, patience=NONE) == 0
    assert claim(journal, by) == []


def test_report_from_a_clock_ahead_keeps_no_alert_fresh(journal: Journal, clock: Clock) -> None:
    by = rules()
    clock.now += YEAR
    accept(journal, by)
    clock.now -= YEAR
    assert claim(journal, by) == []
    accept(journal, by, alert())
    assert len(claim(journal, by)) == 1


def test_report_from_before_a_step_back_counts(journal: Journal, clock: Clock) -> None:
    by = rules()
    accept(journal, by)
    clock.now -= 2 * SECOND
    assert len(claim(journal, by)) == 1


def test_reset_of_a_breaker_by_a_clock_ahead_hides_no_later_failures(
    journal: Journal, clock: Clock
) -> None:
    by = rules(breaker=Breaker(1, HOUR), max_attempts=1)
    clock.now += YEAR
    run_one(journal, by, "ahead", FAILED)
    requests.resume(journal, ANN, "a")
    clock.now -= YEAR
    run_one(journal, by, "today", FAILED)
    accept(journal, by, alert("next"))
    assert claim(journal, by) == []


def test_row_of_a_clock_ahead_is_deleted_with_what_was_created_after_it(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    began = clock.now
    for name, ahead in (("ahead", YEAR), ("after", NONE)):
        clock.now = began + ahead
        run_one(journal, by, name)
        accept(journal, by, alert(name, "resolved", ends_at=clock.now))
    clock.now = began + 29 * DAY
    assert retention.delete_all_old(journal, KEPT) == 0
    clock.now = began + 31 * DAY
    retention.delete_all_old(journal, KEPT)
    assert reading.list_runs(journal) == []


def test_what_finished_just_ahead_counts_as_finished_now_on_the_page(
    journal: Journal, clock: Clock
) -> None:
    run_one(journal, rules(), "f1")
    clock.now -= 2 * SECOND
    assert activity.look(journal).ended == {"a": {activity.HOURS - 1: {"succeeded": 1}}}
