"""What attempts say about their action, jobs elsewhere, and runs alone: on every database."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.declarations import Breaker, Window
from receiver.intake import intake_of
from receiver.journal import claims, outcomes, reading, requests, tables
from receiver.journal.acceptance import record
from receiver.journal.due import ClaimedRun
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended, Recorded
from receiver.journal.requests import Person
from receiver.journal.saved_state import save_state
from receiver.policies import AttemptEnd, AttemptOutcome, Policy, Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.notifications import alert, notification

LOADED = frozenset({"a", "b", "page"})
ANN = Person("ann", "cli on desk")
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
SUCCEEDED = AttemptEnd(AttemptOutcome.SUCCEEDED)
FAILED = AttemptEnd(AttemptOutcome.FAILED, error="no")
CRASHED = AttemptEnd(AttemptOutcome.CRASHED, error="its process was ended by SIGSEGV")
STOPPED = AttemptEnd(AttemptOutcome.STOPPED, error="the worker stopped")
STILL_RUNNING = AttemptEnd(AttemptOutcome.STILL_RUNNING, check_after=MINUTE)


def rules(**policy: Any) -> Rules:
    return Rules(policies={"a": Policy(**policy)})


def accept(journal: Journal, by: Rules, *alerts: dict[str, Any], action: str = "a") -> None:
    body = parse_notification(notification(*alerts or [alert()]))
    record(journal, [intake_of(body, "", action, (), Catalog(LOADED))], by)


def claim(
    journal: Journal, by: Rules, owner: str = "w1", slots: int = 16, under_way: int = 0
) -> list[ClaimedRun]:
    found = claims.claim_due_runs(journal, owner, sorted(LOADED), slots, by, under_way=under_way)
    return found.claimed


def end(
    journal: Journal, by: Rules, run: ClaimedRun, how: AttemptEnd, owner: str = "w1"
) -> Recorded:
    ended = [Ended(run.id, run.attempt, how)]
    (recorded,) = outcomes.record_ends(journal, owner, ended, by, lambda: 0.5)
    return recorded


def worker_dies(journal: Journal, by: Rules, owner: str = "w1") -> list[Recorded]:
    return outcomes.recover_from(journal, owner, sorted(LOADED), by, lambda: 0.5)


def claim_next(journal: Journal, by: Rules, clock: Clock) -> ClaimedRun:
    """Claim the only run, once its pause is over."""
    clock.now = max(clock.now, find(journal)["due_at"])
    (run,) = claim(journal, by)
    return run


def find(journal: Journal, run_id: int = 1) -> dict[str, Any]:
    return reading.find_run(journal, run_id)


def made(journal: Journal, run_id: int = 1) -> list[tuple[int, str | None]]:
    return [(one["number"], one["outcome"]) for one in reading.attempts_of(journal, run_id)]


# Deaths of the worker


def test_deaths_of_the_worker_use_up_no_attempts_and_the_third_is_the_runs_own_crash(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_attempts=2, breaker=None)
    accept(journal, by)
    for interruptions in range(4):
        run = claim_next(journal, by, clock)
        assert (run.interruptions, run.runs_alone) == (interruptions, interruptions >= 2)
        (recorded,) = worker_dies(journal, by)
        alone = interruptions >= 2
        assert recorded.ended.end.outcome == ("crashed" if alone else "interrupted")
    assert [outcome for _, outcome in made(journal)] == [
        "interrupted", "interrupted", "crashed", "crashed",
    ]  # fmt: skip
    run_row = find(journal)
    assert (run_row["outcome"], run_row["reason"]) == ("failed", "attempt 2 of 2 was the last")
    assert "ran alone after 3 deaths of its worker, so it is the cause" in run_row["error"]


def test_eleventh_death_of_the_worker_ends_the_run_unknown_and_escalates(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_attempts=100, breaker=None, escalate_to="page")
    accept(journal, by)
    for _ in range(11):
        claim_next(journal, by, clock)
        worker_dies(journal, by)
    assert find(journal)["outcome"] == "unknown"
    assert "the worker died 11 times" in find(journal)["reason"]
    escalated = find(journal, 2)
    assert (escalated["kind"], escalated["action"]) == ("escalation", "page")


def test_retry_by_a_person_forgets_the_deaths_of_workers(journal: Journal, clock: Clock) -> None:
    by = rules(on_interrupt="retry", max_attempts=1)
    accept(journal, by)
    for _ in range(2):
        claim_next(journal, by, clock)
        worker_dies(journal, by)
    assert claim_next(journal, by, clock).runs_alone
    worker_dies(journal, by)
    assert find(journal)["outcome"] == "failed"
    requests.retry(journal, ANN, 1)
    run = claim_next(journal, by, clock)
    assert (run.interruptions, run.runs_alone) == (0, False)


@pytest.mark.parametrize("how", ["crashed", "killed", "interrupted", "stopped"])
def test_hold_ends_a_run_that_was_cut_off_as_unknown(journal: Journal, how: str) -> None:
    by = rules(on_interrupt="hold", escalate_to="page")
    accept(journal, by)
    (run,) = claim(journal, by)
    end(journal, by, run, AttemptEnd(AttemptOutcome(how), error="cut off"))
    assert find(journal)["outcome"] == "unknown"
    assert find(journal, 2)["kind"] == "escalation"


def test_three_stops_in_good_order_cost_a_run_nothing(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=1)
    accept(journal, by)
    for _ in range(3):
        (run,) = claim(journal, by)
        assert end(journal, by, run, STOPPED).next.due_at == clock.now
    (run,) = claim(journal, by)
    end(journal, by, run, SUCCEEDED)
    assert find(journal)["outcome"] == "succeeded"
    assert find(journal)["interruptions"] == 0


def test_limits_count_a_run_once_however_often_its_worker_died(
    journal: Journal, clock: Clock
) -> None:
    by = rules(overall_rate_limit=(Window(2, HOUR),))
    accept(journal, by)
    for _ in range(2):
        claim_next(journal, by, clock)
        worker_dies(journal, by)
    end(journal, by, claim_next(journal, by, clock), SUCCEEDED)
    accept(journal, by, alert("f2"))
    assert len(claim(journal, by)) == 1


# Runs alone


def make_suspect(journal: Journal, by: Rules, clock: Clock) -> None:
    """Let two workers die during attempts of run 1, and make it due again."""
    accept(journal, by)
    for _ in range(2):
        claim_next(journal, by, clock)
        worker_dies(journal, by)
    clock.now = find(journal)["due_at"]


def test_suspect_is_claimed_alone_and_nothing_overtakes_it(journal: Journal, clock: Clock) -> None:
    by = rules()
    make_suspect(journal, by, clock)
    clock.move(seconds=1)
    accept(journal, by, alert("new1"), alert("new2"))
    assert claim(journal, by, under_way=1) == []
    (suspect,) = claim(journal, by)
    assert (suspect.id, suspect.runs_alone) == (1, True)
    end(journal, by, suspect, SUCCEEDED)
    assert [run.fingerprint for run in claim(journal, by)] == ["new1", "new2"]


def test_what_waited_before_a_suspect_goes_first_and_the_suspect_has_its_turn_then(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    make_suspect(journal, by, clock)
    clock.now -= SECOND
    accept(journal, by, alert("before"))
    clock.move(seconds=2)
    accept(journal, by, alert("after"))
    assert [run.fingerprint for run in claim(journal, by)] == ["before"]
    assert claim(journal, by, under_way=1) == []
    assert [run.id for run in claim(journal, by)] == [1]


def test_suspect_that_a_guardrail_holds_back_blocks_nobody(journal: Journal, clock: Clock) -> None:
    by = rules()
    make_suspect(journal, by, clock)
    requests.pause(journal, ANN, "a")
    accept(journal, by, alert("f2"), action="b")
    assert [run.action for run in claim(journal, by, under_way=1)] == ["b"]


# Jobs that run elsewhere


def test_saved_state_is_there_for_the_next_attempt_and_after_a_persons_retry(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_attempts=1)
    accept(journal, by)
    (run,) = claim(journal, by)
    assert run.saved_state is None
    assert save_state(journal, "w1", run.id, run.attempt, '{"job": 7}')
    end(journal, by, run, STILL_RUNNING)
    run = claim_next(journal, by, clock)
    assert run.saved_state == '{"job": 7}'
    end(journal, by, run, FAILED)
    assert find(journal)["outcome"] == "failed"
    requests.retry(journal, ANN, 1)
    assert claim_next(journal, by, clock).saved_state == '{"job": 7}'


def test_state_is_saved_by_the_owner_of_the_attempt_alone(journal: Journal, clock: Clock) -> None:
    by = rules()
    accept(journal, by)
    (run,) = claim(journal, by)
    assert not save_state(journal, "w2", run.id, run.attempt, "1")
    assert not save_state(journal, "w1", run.id, run.attempt + 1, "1")
    assert not save_state(journal, "w1", run.id + 1, run.attempt, "1")
    worker_dies(journal, by)
    assert not save_state(journal, "w1", run.id, run.attempt, "1")
    again = claim_next(journal, by, clock)
    assert not save_state(journal, "w1", run.id, run.attempt, "1")
    assert save_state(journal, "w1", again.id, again.attempt, "2")
    assert find(journal)["saved_state"] == "2"


@pytest.mark.parametrize(("size", "is_stored"), [(4096, True), (4097, False)])
def test_state_of_more_than_four_kibibytes_is_refused(
    journal: Journal, size: int, is_stored: bool
) -> None:
    by = rules()
    accept(journal, by)
    (run,) = claim(journal, by)
    state = '"' + "é" * 2047 + "x" * (size - 4096) + '"'
    assert len(state.encode()) == size
    if is_stored:
        assert save_state(journal, "w1", run.id, run.attempt, state)
    else:
        with pytest.raises(ValueError, match="at most 4096"):
            save_state(journal, "w1", run.id, run.attempt, state)


def test_polls_use_up_no_attempts_and_leave_one_row(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=2, overall_rate_limit=(Window(2, HOUR),), breaker=Breaker(1, HOUR))
    accept(journal, by)
    end(journal, by, claim_next(journal, by, clock), STILL_RUNNING)
    for _ in range(50):
        recorded = end(journal, by, claim_next(journal, by, clock), STILL_RUNNING)
        assert recorded.next.due_at == clock.now + MINUTE
    # The first is the start that limits count.
    assert made(journal) == [(1, "still_running"), (51, "still_running")]
    end(journal, by, claim_next(journal, by, clock), SUCCEEDED)
    assert find(journal)["outcome"] == "succeeded"
    assert made(journal)[-1] == (52, "succeeded")
    accept(journal, by, alert("f2"))
    assert len(claim(journal, by)) == 1, "the polls were one start"


def test_failed_attempts_between_polls_stay(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=3)
    accept(journal, by)
    for how in (FAILED, STILL_RUNNING, STILL_RUNNING, CRASHED, STILL_RUNNING, SUCCEEDED):
        end(journal, by, claim_next(journal, by, clock), how)
    assert made(journal) == [
        (1, "failed"), (4, "crashed"), (5, "still_running"), (6, "succeeded"),
    ]  # fmt: skip


def test_max_duration_counts_from_the_first_attempt_and_anew_after_a_persons_retry(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_duration=HOUR, escalate_to="page")
    accept(journal, by)
    run = claim_next(journal, by, clock)
    began = run.running_since
    assert began == clock.now
    while end(journal, by, run, STILL_RUNNING).next.outcome is None:
        clock.move(seconds=1)
        run = claim_next(journal, by, clock)
        assert run.running_since == began
    assert clock.now == began + HOUR + SECOND
    assert find(journal)["outcome"] == "failed"
    assert "max_duration is 1h" in find(journal)["reason"]
    assert find(journal, 2)["kind"] == "escalation"
    requests.retry(journal, ANN, 1)
    (run,) = [one for one in claim(journal, by) if one.id == 1]
    assert run.running_since == clock.now
    assert end(journal, by, run, STILL_RUNNING).next.outcome is None


def test_time_of_a_job_does_not_begin_with_an_attempt_that_had_not_begun(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_duration=HOUR)
    accept(journal, by)
    run = claim_next(journal, by, clock)
    end(journal, by, run, AttemptEnd(AttemptOutcome.STOPPED, has_begun=False))
    clock.move(hours=3)
    run = claim_next(journal, by, clock)
    assert run.running_since == clock.now


def test_run_that_waits_between_polls_is_cancelled_when_its_alert_resolves(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    accept(journal, by)
    run = claim_next(journal, by, clock)
    assert save_state(journal, "w1", run.id, run.attempt, '{"job": 7}')
    end(journal, by, run, STILL_RUNNING)
    clock.move(seconds=1)
    accept(journal, by, alert(status="resolved", ends_at=clock.now))
    assert (find(journal)["outcome"], find(journal)["cancelled_by"]) == ("cancelled", "resolved")
    # The resolved was false: the run goes on with its job.
    accept(journal, by, alert())
    assert claim_next(journal, by, clock).saved_state == '{"job": 7}'


def test_run_whose_alert_resolved_during_a_poll_is_cancelled(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    accept(journal, by)
    run = claim_next(journal, by, clock)
    clock.move(seconds=1)
    accept(journal, by, alert(status="resolved", ends_at=clock.now))
    assert end(journal, by, run, STILL_RUNNING).next.outcome == "cancelled"


def test_resolved_run_that_polls_its_job_has_begun(journal: Journal, clock: Clock) -> None:
    by = Rules(policies={"a": Policy(resolved_after=timedelta(0))}, resolved_hooks=frozenset("a"))
    accept(journal, by)
    end(journal, by, claim_next(journal, by, clock), SUCCEEDED)
    clock.move(seconds=1)
    accept(journal, by, alert(status="resolved", ends_at=clock.now))
    (undo,) = claim(journal, by)
    end(journal, by, undo, STILL_RUNNING)
    accept(journal, by, alert())
    kinds = [(one["kind"], one["ordinal"]) for one in reversed(reading.list_runs(journal))]
    assert kinds == [("fired", 0), ("resolved", 0), ("fired", 1)], "its action must run anew"


# The breaker and people


def break_it(journal: Journal, by: Rules, clock: Clock) -> None:
    for number in range(2):
        accept(journal, by, alert(f"broken{number}"))
        (run,) = claim(journal, by)
        end(journal, by, run, CRASHED)
        clock.move(seconds=1)


def test_resume_resets_the_breaker_of_an_action_that_is_not_paused(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_attempts=1, breaker=Breaker(2, HOUR))
    break_it(journal, by, clock)
    accept(journal, by, alert("f1"))
    assert claim(journal, by) == []
    assert requests.resume(journal, ANN, "a") == "the breaker of a is reset"
    (run,) = claim(journal, by)
    # Only failures from now on count.
    clock.move(seconds=1)
    end(journal, by, run, CRASHED)
    accept(journal, by, alert("f2"))
    assert len(claim(journal, by)) == 1
    (audited,) = [one for one in reading.audit_of(journal) if one["operation"] == "resume"]
    assert (audited["action"], audited["detail"]) == ("a", "breaker reset")


def test_resume_of_a_paused_action_resets_its_breaker_too(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=1, breaker=Breaker(2, HOUR))
    break_it(journal, by, clock)
    requests.pause(journal, ANN, "a")
    assert requests.resume(journal, ANN, "a") == "a resumed, its breaker is reset"
    accept(journal, by, alert("f1"))
    assert len(claim(journal, by)) == 1


def test_resume_of_all_actions_resets_no_breaker(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=1, breaker=Breaker(2, HOUR))
    break_it(journal, by, clock)
    requests.pause(journal, ANN, None)
    assert requests.resume(journal, ANN, None) == "all actions resumed"
    accept(journal, by, alert("f1"))
    assert claim(journal, by) == []


def test_row_of_a_breaker_that_the_version_before_writes_has_no_effect(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    values = {"action": "a", "kind": "breaker", "since": clock.now, "reason": "never returned"}
    with journal.writing() as connection:
        connection.execute(sa.insert(tables.holds).values(until=clock.now + HOUR, **values))
    accept(journal, by)
    assert len(claim(journal, by)) == 1
    assert reading.list_holds(journal) == []
