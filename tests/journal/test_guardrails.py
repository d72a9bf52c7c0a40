"""Guardrails, approvals, pauses and what people ask for, through the journal on every database."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.alertmanager import parse_notification
from receiver.declarations import Breaker, Window
from receiver.errors import OperationError
from receiver.intake import Counts, intake_of
from receiver.journal import approvals, claims, due, outcomes, reading, requests, tables
from receiver.journal.acceptance import record
from receiver.journal.due import ClaimedRun
from receiver.journal.journal import Journal
from receiver.journal.outcomes import Ended
from receiver.journal.requests import Person
from receiver.policies import AttemptEnd, AttemptOutcome, Limits, Next, Policy, Rules
from receiver.routing import Catalog
from tests.support.clock import Clock
from tests.support.notifications import T0, alert, notification

LOADED = frozenset({"a", "b", "page"})
ANN = Person("ann", "cli on desk")
SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
SUCCEEDED = AttemptEnd(AttemptOutcome.SUCCEEDED)
FAILED = AttemptEnd(AttemptOutcome.FAILED, error="no")
BROKEN = AttemptEnd(AttemptOutcome.FAILED, error="no", permanent=True)


def rules(limits: Limits | None = None, **policy: Any) -> Rules:
    """Return rules with this policy for the action `a`, and defaults for `b` and `page`."""
    return Rules(policies={"a": Policy(**policy)}, limits=limits or Limits())


def accept(
    journal: Journal,
    by: Rules,
    *alerts: dict[str, Any],
    action: str = "a",
    source: str = "",
) -> Counts:
    body = parse_notification(notification(*alerts))
    (counts,) = record(journal, [intake_of(body, source, action, (), Catalog(LOADED))], by)
    return replace(counts, ahead=0)


def of_host(fingerprint: str, host: str = "h1", **more: Any) -> dict[str, Any]:
    return alert(fingerprint, labels={"host": host}, **more)


def look(journal: Journal, by: Rules, owner: str = "w1", slots: int = 16) -> claims.Claims:
    return claims.claim_due_runs(journal, owner, sorted(LOADED), slots, by)


def claim(journal: Journal, by: Rules) -> list[ClaimedRun]:
    return look(journal, by).claimed


def finish(journal: Journal, by: Rules, run: ClaimedRun, end: AttemptEnd = SUCCEEDED) -> Next:
    ended = [Ended(run.id, run.attempt, end)]
    (one,) = outcomes.record_ends(journal, "w1", ended, by, lambda: 0.5)
    assert one.next is not None
    return one.next


def run_one(
    journal: Journal, by: Rules, end: AttemptEnd = SUCCEEDED, *alerts: dict[str, Any]
) -> ClaimedRun:
    """Accept, claim and end one run; it must be the only one that may start."""
    accept(journal, by, *alerts or [alert()])
    (run,) = claim(journal, by)
    finish(journal, by, run, end)
    return run


def run_all(journal: Journal, by: Rules) -> list[str]:
    """Run all that may run now, and return whose runs those were."""
    ran = []
    while found := claim(journal, by):
        for run in found:
            finish(journal, by, run)
            ran.append(run.fingerprint)
    return ran


def row(journal: Journal, run_id: int = 1) -> dict[str, Any]:
    return reading.find_run(journal, run_id)


def shown(journal: Journal) -> list[tuple[str, str, str]]:
    """Return action, kind and state (or outcome) of every run, the oldest first."""
    found = reversed(reading.list_runs(journal))
    return [(one["action"], one["kind"], one["outcome"] or one["state"]) for one in found]


# Cooldown


COOLING = rules(cooldown=30 * MINUTE)
REFIRED = alert(starts_at=T0 + 5 * MINUTE)


def test_refire_inside_a_cooldown_is_delayed_and_then_runs(journal: Journal, clock: Clock) -> None:
    started = clock.now
    run_one(journal, COOLING)
    clock.move(minutes=10)
    assert accept(journal, COOLING, REFIRED) == Counts(accepted=1)
    assert claim(journal, COOLING) == []
    delayed = row(journal, 2)
    assert delayed["state"] == "queued"
    assert (delayed["due_at"], delayed["held_since"]) == (started + 30 * MINUTE, clock.now)
    assert delayed["held_by"] == "cooldown"
    assert delayed["reason"] == (
        "delayed: the action ran for this target less than 30m ago (cooldown)"
    )
    clock.now = started + 30 * MINUTE - SECOND
    assert claim(journal, COOLING) == []
    clock.move(seconds=1)
    (run,) = claim(journal, COOLING)
    assert (run.id, run.held_since) == (2, started + 10 * MINUTE)
    assert (row(journal, 2)["held_since"], row(journal, 2)["held_by"]) == (None, None)


def test_delay_is_told_once_and_not_looked_at_again_before_its_time(
    journal: Journal, clock: Clock
) -> None:
    run_one(journal, COOLING)
    accept(journal, COOLING, REFIRED)
    assert [(run, verdict.kind) for run, verdict in look(journal, COOLING).moved] == [(2, "delay")]
    assert look(journal, COOLING).moved == []
    assert due.seconds_until_due(journal, LOADED) == (30 * MINUTE).total_seconds()


def test_cooldown_counts_from_the_start_and_holds_no_retry(journal: Journal, clock: Clock) -> None:
    accept(journal, COOLING, alert())
    (run,) = claim(journal, COOLING)
    clock.move(minutes=29)
    assert finish(journal, COOLING, run, FAILED).outcome is None
    clock.move(seconds=30)
    (again,) = claim(journal, COOLING)
    assert (again.attempt, again.was_counted) == (2, True)
    finish(journal, COOLING, again)
    accept(journal, COOLING, REFIRED)
    clock.move(seconds=30)
    assert len(claim(journal, COOLING)) == 1


def test_delayed_run_is_cancelled_by_its_resolved_and_put_back_at_its_time(
    journal: Journal, clock: Clock
) -> None:
    started = clock.now
    run_one(journal, COOLING)
    accept(journal, COOLING, REFIRED)
    claim(journal, COOLING)
    resolved = alert(status="resolved", starts_at=T0 + 5 * MINUTE)
    accept(journal, COOLING, resolved)
    assert row(journal, 2)["outcome"] == "cancelled"
    accept(journal, COOLING, REFIRED)
    assert claim(journal, COOLING) == []
    clock.now = started + 30 * MINUTE
    assert len(claim(journal, COOLING)) == 1


# Rates


def starts_by_minute(
    journal: Journal, clock: Clock, by: Rules, minutes: int
) -> list[tuple[int, str]]:
    """Run whatever may run, minute by minute; return when runs started, and whose."""
    found = []
    for minute in range(minutes):
        found += [(minute, fingerprint) for fingerprint in run_all(journal, by)]
        clock.move(minutes=1)
    return found


def test_rate_limit_with_several_windows_lets_a_target_start_as_often_as_each_allows(
    journal: Journal, clock: Clock
) -> None:
    by = rules(target_labels=("host",), rate_limit=(Window(2, 10 * MINUTE), Window(3, HOUR)))
    accept(journal, by, *[of_host(f"f{number}") for number in range(6)])
    found = [minute for minute, _ in starts_by_minute(journal, clock, by, 75)]
    assert found == [0, 0, 10, 60, 60, 70]


def test_delayed_by_a_rate_the_run_says_by_which(journal: Journal, clock: Clock) -> None:
    by = rules(target_labels=("host",), rate_limit=(Window(2, 10 * MINUTE), Window(3, HOUR)))
    accept(journal, by, *[of_host(f"f{number}") for number in range(4)])
    run_all(journal, by)
    assert {row(journal, number)["reason"] for number in (3, 4)} == {
        "delayed: there were 2 runs in 10m for this target already (rate_limit)"
    }
    clock.move(minutes=10)
    run_all(journal, by)
    last = row(journal, 4)
    assert (last["held_by"], last["due_at"]) == ("rate_limit", T0 + MINUTE + HOUR)
    assert last["reason"] == "delayed: there were 3 runs in 1h for this target already (rate_limit)"


def test_rate_limit_counts_each_target_by_itself(journal: Journal) -> None:
    by = rules(target_labels=("host",), rate_limit=(Window(1, HOUR),))
    accept(journal, by, *[of_host(f"{host}-{number}", host) for host in "xy" for number in (1, 2)])
    assert sorted(run_all(journal, by)) == ["x-1", "y-1"]


def test_overall_rate_limit_counts_all_targets_of_an_action_together(
    journal: Journal, clock: Clock
) -> None:
    by = rules(overall_rate_limit=(Window(2, HOUR),))
    accept(journal, by, *[alert(f"f{number}") for number in range(5)], action="b")
    assert len(run_all(journal, by)) == 5
    accept(journal, by, *[alert(f"f{number}") for number in range(5)])
    assert len(run_all(journal, by)) == 2
    held = reading.list_runs(journal, action="a", state="queued")
    assert {one["held_by"] for one in held} == {"overall_rate_limit"}
    assert {one["due_at"] for one in held} == {clock.now + HOUR}


def test_limits_rate_limit_counts_all_actions_together(journal: Journal, clock: Clock) -> None:
    by = rules(Limits(rate_limit=(Window(3, HOUR),)))
    accept(journal, by, alert("f1"), alert("f2"))
    accept(journal, by, alert("f1"), alert("f2"), action="b")
    assert [run.id for run in claim(journal, by)] == [1, 2, 3]
    assert row(journal, 4)["reason"] == (
        "delayed: there were 3 runs in 1h of all actions already (limits)"
    )
    clock.move(hours=1)
    assert [run.id for run in claim(journal, by)] == [4]


def test_limits_max_concurrent_bounds_all_actions_together(journal: Journal) -> None:
    by = rules(Limits(max_concurrent=3))
    accept(journal, by, alert("f1"), alert("f2"))
    accept(journal, by, alert("f1"), alert("f2"), action="b")
    first, *_ = claim(journal, by)
    assert [one["state"] for one in reading.list_runs(journal)].count("running") == 3
    assert look(journal, by) == claims.Claims([], [], is_left=True)
    finish(journal, by, first)
    assert len(claim(journal, by)) == 1


def test_runs_of_one_turn_count_against_each_other(journal: Journal) -> None:
    by = rules(
        Limits(rate_limit=(Window(5, HOUR),), max_concurrent=4),
        target_labels=("host",),
        max_concurrent=3,
        overall_rate_limit=(Window(2, HOUR),),
    )
    accept(journal, by, *[of_host(f"f{number}", f"h{number % 5}") for number in range(10)])
    accept(journal, by, *[alert(f"f{number}") for number in range(10)], action="b")
    claimed = claim(journal, by)
    assert [run.action for run in claimed] == ["a", "a", "b", "b"]
    assert len({run.target for run in claimed if run.action == "a"}) == 2


def test_limit_is_not_exceeded_by_many_claimers_at_once(
    open_journal: Callable[..., Journal],
) -> None:
    journal = open_journal()
    by = rules(
        Limits(rate_limit=(Window(9, HOUR),)),
        target_labels=("host",),
        max_concurrent=8,
        rate_limit=(Window(1, HOUR),),
    )
    now = journal_time(journal)
    of_hosts = [of_host(f"f{number}", f"h{number % 12}", starts_at=now) for number in range(36)]
    accept(journal, by, *of_hosts)
    with ThreadPoolExecutor(8) as threads:
        looks = [
            threads.submit(partial(look, journal, by, owner=f"w{number}", slots=2))
            for number in range(16)
        ]
    claimed = [run for one in looks for run in one.result().claimed]
    assert len(claimed) == 8
    assert len({run.target for run in claimed}) == 8


def journal_time(journal: Journal) -> datetime:
    with journal.reading() as connection:
        return journal.now(connection)


# Targets


def test_two_alerts_of_one_host_never_overlap_and_share_its_cooldown(
    journal: Journal, clock: Clock
) -> None:
    by = rules(target_labels=("host",), cooldown=10 * MINUTE)
    accept(journal, by, of_host("disk"), of_host("memory"), of_host("disk-2", "h2"))
    first, other = claim(journal, by)
    assert (first.fingerprint, first.target) == ("disk", "host=h1")
    assert (other.fingerprint, other.target) == ("disk-2", "host=h2")
    assert claim(journal, by) == []
    assert row(journal, 2)["held_by"] is None
    finish(journal, by, first)
    assert claim(journal, by) == []
    assert row(journal, 2)["held_by"] == "cooldown"
    clock.move(minutes=10)
    assert [run.fingerprint for run in claim(journal, by)] == ["memory"]


def test_target_is_made_of_all_its_labels_and_of_the_source(journal: Journal) -> None:
    by = rules(target_labels=("region", "fs"), max_concurrent=9)
    both = {"region": "eu", "fs": "fs-1"}
    for source in ("", "west"):
        accept(journal, by, alert("f1", labels=both), alert("f2", labels={"fs": "fs-1"}),
               source=source)  # fmt: skip
    assert sorted(run.target for run in claim(journal, by)) == [
        "fs=fs-1", "region=eu,fs=fs-1", "west/fs=fs-1", "west/region=eu,fs=fs-1",
    ]  # fmt: skip


def test_alert_without_the_label_is_a_target_of_its_own(journal: Journal) -> None:
    by = rules(target_labels=("host",), cooldown=HOUR)
    accept(journal, by, alert("f1"), alert("f2"), alert("f3", labels={"host": ""}))
    assert sorted(run.target for run in claim(journal, by)) == ["f1", "f2", "f3"]


def test_same_target_of_another_action_is_free(journal: Journal) -> None:
    by = Rules(policies={name: Policy(target_labels=("host",), cooldown=HOUR) for name in "ab"})
    for action in ("a", "b"):
        accept(journal, by, of_host("f1"), action=action)
        assert [(run.action, run.target) for run in claim(journal, by)] == [(action, "host=h1")]


# The breaker


BREAKING = rules(breaker=Breaker(3, 10 * MINUTE), max_attempts=1)


def break_it(journal: Journal, clock: Clock, by: Rules = BREAKING, times: int = 3) -> None:
    for number in range(times):
        run_one(journal, by, FAILED, alert(f"broken-{number}"))
        clock.move(seconds=1)


def test_breaker_opens_half_opens_and_closes_again(journal: Journal, clock: Clock) -> None:
    break_it(journal, clock)
    accept(journal, BREAKING, *[alert(f"f{number}") for number in range(5)])
    assert claim(journal, BREAKING) == []
    held = reading.list_runs(journal, state="queued")
    assert {one["held_by"] for one in held} == {"breaker"}
    assert {one["reason"] for one in held} == {
        "delayed: the breaker is open: the last 3 attempts of the action failed"
    }
    assert {one["due_at"] for one in held} == {clock.now - SECOND + 10 * MINUTE}
    clock.move(minutes=10)
    (first,) = claim(journal, BREAKING)
    assert claim(journal, BREAKING) == []
    clock.move(seconds=1)
    finish(journal, BREAKING, first, FAILED)
    assert claim(journal, BREAKING) == []
    clock.move(minutes=10)
    (second,) = claim(journal, BREAKING)
    clock.move(seconds=1)
    finish(journal, BREAKING, second)
    assert len(claim(journal, BREAKING)) == 3


def test_breaker_of_one_action_holds_no_other_back(journal: Journal, clock: Clock) -> None:
    break_it(journal, clock)
    accept(journal, BREAKING, alert("f1"), alert("f2"), action="b")
    assert len(claim(journal, BREAKING)) == 2


@pytest.mark.parametrize(
    ("ends", "opens"),
    [
        pytest.param([FAILED, FAILED], False, id="fewer"),
        pytest.param([FAILED, SUCCEEDED, FAILED, FAILED], False, id="not in a row"),
        pytest.param([SUCCEEDED, FAILED, FAILED, FAILED], True, id="in a row"),
        pytest.param(
            [BROKEN, AttemptEnd(AttemptOutcome.KILLED), AttemptEnd(AttemptOutcome.CRASHED)],
            True,
            id="failed in every way",
        ),
        pytest.param([FAILED, AttemptEnd(AttemptOutcome.STOPPED), FAILED], False, id="stopped"),
        pytest.param(
            [FAILED, AttemptEnd(AttemptOutcome.STILL_RUNNING), FAILED], False, id="still running"
        ),
        pytest.param(
            [FAILED, AttemptEnd(AttemptOutcome.CRASHED, has_begun=False), FAILED],
            False,
            id="had not begun",
        ),
        pytest.param(
            [FAILED, AttemptEnd(AttemptOutcome.INTERRUPTED), FAILED], False, id="interrupted"
        ),
        pytest.param([FAILED, AttemptEnd(AttemptOutcome.CANCELLED), FAILED], False, id="cancelled"),
        pytest.param(
            [
                FAILED,
                FAILED,
                AttemptEnd(AttemptOutcome.CANCELLED),
                AttemptEnd(AttemptOutcome.INTERRUPTED),
                FAILED,
            ],
            True,
            id="cancelled and interrupted ones do not break the row",
        ),
    ],
)
def test_breaker_counts_attempts_that_say_something_about_the_action(
    journal: Journal, clock: Clock, ends: Sequence[AttemptEnd], opens: bool
) -> None:
    for number, end in enumerate(ends):
        run = run_one(journal, BREAKING, end, alert(f"broken-{number}"))
        if row(journal, run.id)["state"] == "queued":
            requests.cancel(journal, ANN, run.id)
        clock.move(seconds=1)
    accept(journal, BREAKING, alert("next"))
    assert len(claim(journal, BREAKING)) == (0 if opens else 1)


def test_breaker_delays_retries_too(journal: Journal, clock: Clock) -> None:
    by = rules(breaker=Breaker(2, 10 * MINUTE), max_attempts=5)
    accept(journal, by, alert())
    for _ in range(2):
        (run,) = claim(journal, by)
        finish(journal, by, run, FAILED)
        clock.move(seconds=10)
    assert claim(journal, by) == []
    assert row(journal)["held_by"] == "breaker"
    clock.move(minutes=10)
    (run,) = claim(journal, by)
    assert run.attempt == 3


def test_resume_lets_what_the_breaker_delayed_start_at_once(journal: Journal, clock: Clock) -> None:
    by = rules(cooldown=HOUR, target_labels=("host",), breaker=Breaker(1, 10 * MINUTE))
    run_one(journal, by, SUCCEEDED, of_host("f0", "h0"))
    accept(journal, by, of_host("cooling", "h0"))
    claim(journal, by)
    clock.move(seconds=1)
    run_one(journal, by, BROKEN, of_host("f1", "h1"))
    accept(journal, by, of_host("broken", "h2"))
    assert claim(journal, by) == []
    requests.resume(journal, ANN, "a")
    # Only what the breaker held: the cooldown still lasts.
    assert [run.fingerprint for run in claim(journal, by)] == ["broken"]
    assert row(journal, 2)["due_at"] == clock.now - SECOND + HOUR


def test_relaxed_limit_frees_what_it_delayed_once_judged_anew(journal: Journal) -> None:
    run_one(journal, COOLING)
    accept(journal, COOLING, REFIRED)
    assert claim(journal, COOLING) == []
    assert claim(journal, rules()) == []
    with journal.writing() as connection:
        due.judge_anew(journal, connection, ["a"])
    assert len(claim(journal, rules())) == 1


def test_what_was_delayed_starts_before_what_is_new(journal: Journal, clock: Clock) -> None:
    by = rules(overall_rate_limit=(Window(1, HOUR),))
    run_one(journal, by)
    accept(journal, by, alert("f2"))
    claim(journal, by)
    clock.move(hours=1)
    for number in range(20):
        accept(journal, by, alert(f"new{number}"))
    assert [run.fingerprint for run in look(journal, by, slots=4).claimed] == ["f2"]


def test_stream_of_new_runs_starves_no_retry_and_no_repeat(journal: Journal, clock: Clock) -> None:
    by = rules(max_concurrent=1, repeat_after=5 * MINUTE)
    accept(journal, by, alert("retried"), alert("repeated"))
    for end in (FAILED, SUCCEEDED):
        (run,) = claim(journal, by)
        finish(journal, by, run, end)
    ran = []
    for number in range(8):
        clock.move(minutes=1)
        accept(journal, by, alert(f"new{number}"), alert(f"newer{number}"))
        (run,) = look(journal, by, slots=1).claimed
        finish(journal, by, run)
        ran.append((run.fingerprint, run.kind))
    # Each in its turn: at most what was accepted before it was due goes first.
    assert ran[0] == ("retried", "fired")
    assert ("repeated", "repeat") not in ran
    for _ in range(8):
        (run,) = look(journal, by, slots=1).claimed
        finish(journal, by, run)
        ran.append((run.fingerprint, run.kind))
    assert ("repeated", "repeat") in ran


def test_look_that_saw_one_target_only_says_that_there_may_be_more(journal: Journal) -> None:
    by = rules(target_labels=("host",))
    accept(journal, by, *[of_host(f"f{number}") for number in range(4)], of_host("other", "h2"))
    first = look(journal, by, slots=4)
    assert ([run.fingerprint for run in first.claimed], first.is_more) == (["f0"], True)
    second = look(journal, by, slots=4)
    assert ([run.fingerprint for run in second.claimed], second.is_more) == (["other"], False)


# Skipping


def test_when_limited_is_skip_a_limited_run_is_skipped_and_escalated(
    journal: Journal, clock: Clock
) -> None:
    by = rules(cooldown=30 * MINUTE, when_limited="skip", escalate_to="page")
    run_one(journal, by)
    accept(journal, by, REFIRED)
    found = look(journal, by)
    assert [(run, verdict.kind) for run, verdict in found.moved] == [(2, "skip")]
    assert shown(journal) == [
        ("a", "fired", "succeeded"),
        ("a", "fired", "skipped"),
        ("page", "escalation", "queued"),
    ]
    skipped, page = row(journal, 2), row(journal, 3)
    assert (skipped["held_by"], skipped["finished_at"]) == ("cooldown", clock.now)
    assert skipped["reason"] == (
        "skipped: the action ran for this target less than 30m ago (cooldown); when_limited is skip"
    )
    assert (page["escalated_from"], page["reason"]) == (2, "escalated: run 2 ended skipped")
    assert [run.action for run in claim(journal, by)] == ["page"]


def test_skipped_run_is_not_put_back_and_its_episode_runs_no_more(
    journal: Journal, clock: Clock
) -> None:
    by = rules(cooldown=30 * MINUTE, when_limited="skip")
    run_one(journal, by)
    accept(journal, by, REFIRED)
    claim(journal, by)
    accept(journal, by, alert(status="resolved", starts_at=T0 + 5 * MINUTE))
    clock.move(hours=1)
    accept(journal, by, REFIRED)
    assert claim(journal, by) == []
    assert shown(journal) == [("a", "fired", "succeeded"), ("a", "fired", "skipped")]


def test_what_was_delayed_for_max_delay_is_skipped_and_escalated(
    journal: Journal, clock: Clock
) -> None:
    by = rules(cooldown=HOUR, max_delay=20 * MINUTE, escalate_to="page")
    run_one(journal, by)
    accept(journal, by, REFIRED)
    assert claim(journal, by) == []
    assert row(journal, 2)["due_at"] == clock.now + 20 * MINUTE
    clock.move(minutes=20)
    assert [run.action for run in claim(journal, by)] == []
    assert row(journal, 2)["outcome"] == "skipped"
    assert row(journal, 2)["reason"] == (
        "skipped: the action ran for this target less than 1h ago (cooldown), "
        "and it was delayed for 20m (max_delay)"
    )
    assert [run.action for run in claim(journal, by)] == ["page"]


def test_what_is_free_again_before_max_delay_runs(journal: Journal, clock: Clock) -> None:
    by = rules(target_labels=("host",), rate_limit=(Window(1, 15 * MINUTE),), max_delay=40 * MINUTE)
    accept(journal, by, *[of_host(f"f{number}") for number in range(5)])
    assert starts_by_minute(journal, clock, by, 60) == [(0, "f0"), (15, "f1"), (30, "f2")]
    assert [one["outcome"] for one in reading.list_runs(journal)] == [
        "skipped", "skipped", "succeeded", "succeeded", "succeeded",
    ]  # fmt: skip
    assert {row(journal, number)["finished_at"] for number in (4, 5)} == {T0 + 41 * MINUTE}


@pytest.mark.parametrize("how", ["resumed", "over"])
def test_time_of_a_pause_is_none_of_max_delay(journal: Journal, clock: Clock, how: str) -> None:
    by = rules(rate_limit=(Window(1, HOUR),), target_labels=("host",), max_delay=2 * HOUR)
    run_one(journal, by, SUCCEEDED, of_host("f1"))
    accept(journal, by, of_host("f2"), of_host("f3"))
    assert claim(journal, by) == []
    requests.pause(journal, ANN, None, lasting=None if how == "resumed" else 4 * HOUR)
    clock.move(hours=4)
    if how == "resumed":
        requests.resume(journal, ANN, None)
    (run,) = claim(journal, by)
    assert run.fingerprint == "f2"
    finish(journal, by, run)
    assert claim(journal, by) == []
    assert (row(journal, 3)["state"], row(journal, 3)["due_at"]) == ("queued", clock.now + HOUR)


def test_put_back_run_was_delayed_by_nothing_yet(journal: Journal, clock: Clock) -> None:
    by = rules(cooldown=30 * MINUTE, max_delay=20 * MINUTE, target_labels=("host",))
    run_one(journal, by, SUCCEEDED, of_host("x"))
    accept(journal, by, of_host("y"))
    claim(journal, by)
    clock.move(minutes=1)
    accept(journal, by, of_host("y", status="resolved"))
    clock.move(minutes=22)
    accept(journal, by, of_host("y"))
    assert claim(journal, by) == []
    kept = row(journal, 2)
    assert (kept["state"], kept["held_since"]) == ("queued", clock.now)


def test_what_was_put_back_for_later_is_not_judged_before(journal: Journal, clock: Clock) -> None:
    by = replace(
        rules(breaker=Breaker(1, 10 * MINUTE), max_attempts=1), resolved_hooks=frozenset({"a"})
    )
    run_one(journal, by, SUCCEEDED, alert("undo"))
    accept(journal, by, alert("undo", status="resolved"))
    clock.move(seconds=1)
    run_one(journal, by, BROKEN, alert("bad"))
    clock.move(minutes=6)
    assert claim(journal, by) == []
    assert row(journal, 2)["held_by"] == "breaker"
    accept(journal, by, alert("undo"))
    clock.move(minutes=20)
    accept(journal, by, alert("undo", status="resolved"))
    with journal.writing() as connection:
        due.judge_anew(journal, connection, ["a"])
    assert claim(journal, by) == []
    assert row(journal, 2)["due_at"] == clock.now + 5 * MINUTE


def test_repeat_is_delayed_where_others_are_skipped(journal: Journal, clock: Clock) -> None:
    by = rules(repeat_after=10 * MINUTE, rate_limit=(Window(1, HOUR),), when_limited="skip")
    run_one(journal, by)
    clock.move(minutes=10)
    assert claim(journal, by) == []
    assert (row(journal, 2)["kind"], row(journal, 2)["state"]) == ("repeat", "queued")


def test_escalation_is_not_held_by_what_bounds_all_actions(journal: Journal) -> None:
    by = rules(Limits(rate_limit=(Window(1, HOUR),)), escalate_to="page", max_attempts=1)
    run_one(journal, by, BROKEN)
    assert [run.action for run in claim(journal, by)] == ["page"]


@pytest.mark.parametrize("database_order", [False, True], ids=["success first", "success last"])
def test_success_recorded_with_failures_keeps_the_breaker_closed(
    journal: Journal, database_order: bool
) -> None:
    by = rules(breaker=Breaker(2, 10 * MINUTE), max_attempts=1)
    accept(journal, by, *[alert(f"f{number}") for number in range(3)])
    how = [SUCCEEDED, BROKEN, BROKEN]
    ends = how[::-1] if database_order else how
    ended = [
        Ended(run.id, run.attempt, end)
        for run, end in zip(claim(journal, by), ends, strict=True)
    ]  # fmt: skip
    outcomes.record_ends(journal, "w1", ended, by, lambda: 0.5)
    accept(journal, by, alert("next"))
    assert len(claim(journal, by)) == 1


def test_hook_that_undoes_says_nothing_about_the_breaker(journal: Journal, clock: Clock) -> None:
    by = replace(
        rules(breaker=Breaker(2, 10 * MINUTE), max_attempts=1), resolved_hooks=frozenset({"a"})
    )
    run_one(journal, by, SUCCEEDED, alert("undo"))
    accept(journal, by, alert("undo", status="resolved"))
    clock.move(seconds=1)
    run_one(journal, by, BROKEN, alert("f1"))
    clock.move(minutes=5)
    (undo,) = claim(journal, by)
    assert undo.kind == "resolved"
    finish(journal, by, undo)
    run_one(journal, by, BROKEN, alert("f2"))
    accept(journal, by, alert("f3"))
    assert claim(journal, by) == []


# Dry runs


DRY = {
    "per action": (rules(dry_run=True), {}),
    "global": (Rules(dry_run=True), {}),
    "by annotation": (Rules(), {"action_dry_run": " True "}),
}


@pytest.mark.parametrize(("by", "annotations"), DRY.values(), ids=DRY)
def test_dry_run_is_claimed_and_recorded_as_one(
    journal: Journal, by: Rules, annotations: dict[str, str]
) -> None:
    accept(journal, by, alert(annotations=annotations))
    (run,) = claim(journal, by)
    assert run.is_dry_run
    said = AttemptEnd(AttemptOutcome.SUCCEEDED, result='{"dry_run":"would do it"}')
    finish(journal, by, run, said)
    kept = row(journal)
    assert (kept["dry_run"], kept["outcome"], kept["result"]) == (True, "succeeded", said.result)
    assert kept["reason"] == "a dry run: the action only said what it would do"


@pytest.mark.parametrize("asked", ["false", "", "yes", "1", "truely"])
def test_annotation_that_does_not_say_true_makes_no_dry_run(journal: Journal, asked: str) -> None:
    accept(journal, Rules(), alert(annotations={"action_dry_run": asked}))
    (run,) = claim(journal, Rules())
    assert not run.is_dry_run


FOLLOWED: dict[str, Any] = {
    "repeat_after": MINUTE,
    "verify_after": MINUTE,
    "escalate_to": "page",
    "cooldown": HOUR,
    "target_labels": ("host",),
}


@pytest.mark.parametrize("how", DRY)
@pytest.mark.parametrize("end", [SUCCEEDED, BROKEN], ids=["succeeded", "failed"])
def test_dry_run_counts_in_no_limit_and_nothing_follows_it(
    journal: Journal, clock: Clock, how: str, end: AttemptEnd
) -> None:
    by = Rules(
        policies={"a": Policy(**FOLLOWED, overall_rate_limit=(Window(1, HOUR),))},
        limits=Limits(rate_limit=(Window(1, HOUR),)),
        resolved_hooks=frozenset({"a"}),
    )
    dry = by
    if how == "per action":
        dry = replace(by, policies={"a": replace(by.policy("a"), dry_run=True)})
    if how == "global":
        dry = replace(by, dry_run=True)
    accept(journal, dry, of_host("shadow", annotations=DRY[how][1]))
    (run,) = claim(journal, dry)
    # Resolved while it runs: its success would be what a `resolved` run waits for.
    accept(journal, dry, of_host("shadow", status="resolved"))
    finish(journal, dry, run, end)
    clock.move(minutes=1)
    assert outcomes.verify_due(journal, LOADED, dry) == []
    assert [one["kind"] for one in reading.list_runs(journal)] == ["fired"]
    accept(journal, by, of_host("real"))
    (real,) = claim(journal, by)
    assert not real.is_dry_run


def test_dry_run_does_not_count_in_the_turn_that_starts_it_either(journal: Journal) -> None:
    one_an_hour = (Window(1, HOUR),)
    by = rules(Limits(rate_limit=one_an_hour), overall_rate_limit=one_an_hour)
    accept(journal, by, alert("dry", annotations={"action_dry_run": "true"}), alert("real"))
    assert [(run.fingerprint, run.is_dry_run) for run in claim(journal, by)] == [
        ("dry", True),
        ("real", False),
    ]


def test_dry_run_that_is_skipped_does_not_escalate(journal: Journal) -> None:
    by = rules(cooldown=HOUR, when_limited="skip", escalate_to="page", target_labels=("host",))
    run_one(journal, by, SUCCEEDED, of_host("real"))
    accept(journal, by, of_host("shadow", annotations={"action_dry_run": "true"}))
    claim(journal, by)
    assert shown(journal) == [("a", "fired", "succeeded"), ("a", "fired", "skipped")]


def test_dry_run_keeps_its_target_and_slot_while_it_runs(journal: Journal) -> None:
    by = rules(dry_run=True, target_labels=("host",), max_concurrent=2)
    accept(journal, by, *[of_host(f"f{number}", f"h{number // 2}") for number in range(6)])
    assert [run.target for run in claim(journal, by)] == ["host=h0", "host=h1"]


def test_dry_run_of_an_action_that_needs_approval_waits_for_nobody(journal: Journal) -> None:
    by = rules(approval="required")
    accept(journal, by, alert("real"), alert("dry", annotations={"action_dry_run": "true"}))
    (run,) = claim(journal, by)
    assert (run.fingerprint, run.is_dry_run) == ("dry", True)
    assert row(journal)["state"] == "awaiting_approval"


def test_real_attempt_after_a_dry_one_is_a_start_like_any_other(journal: Journal) -> None:
    by = rules(overall_rate_limit=(Window(1, HOUR),))
    accept(journal, by, alert("f1"), alert("f2"))
    dry = replace(by, dry_run=True)
    (first, second) = claim(journal, dry)
    finish(journal, dry, first, FAILED)
    finish(journal, dry, second, FAILED)
    with journal.writing() as connection:
        connection.execute(sa.update(tables.runs).values(due_at=tables.AT_ONCE))
    (real,) = claim(journal, by)
    assert (real.fingerprint, real.attempt, real.is_dry_run) == ("f1", 2, False)
    assert row(journal, 2)["held_by"] == "overall_rate_limit"


def test_dry_attempt_after_a_real_one_does_not_undo_that_it_was_counted(
    journal: Journal, clock: Clock
) -> None:
    by = rules(overall_rate_limit=(Window(1, HOUR),))
    accept(journal, by, alert("f1"))
    (real,) = claim(journal, by)
    finish(journal, by, real, FAILED)
    clock.move(minutes=10)
    dry = replace(by, dry_run=True)
    (again,) = claim(journal, dry)
    assert (again.attempt, again.is_dry_run) == (2, True)
    finish(journal, dry, again)
    accept(journal, by, alert("f2"))
    assert claim(journal, by) == []
    assert row(journal, 2)["due_at"] == T0 + MINUTE + HOUR


def test_run_accepted_as_a_dry_one_needs_approval_once_it_would_act(
    journal: Journal, clock: Clock
) -> None:
    by = rules(approval="required", approval_timeout=20 * MINUTE)
    accept(journal, replace(by, dry_run=True), alert())
    found = look(journal, by)
    assert (found.claimed, [verdict.kind for _, verdict in found.moved]) == ([], ["ask"])
    kept = row(journal)
    assert (kept["state"], kept["expires_at"]) == ("awaiting_approval", clock.now + 20 * MINUTE)
    assert kept["reason"] == "waits for approval, 20m at most"
    requests.approve(journal, ANN, 1)
    (run,) = claim(journal, by)
    assert not run.is_dry_run


def test_dry_success_neither_opens_nor_closes_the_breaker(journal: Journal, clock: Clock) -> None:
    by = rules(breaker=Breaker(2, 10 * MINUTE))
    dry = replace(by, dry_run=True)
    for number, end in enumerate([BROKEN, BROKEN]):
        accept(journal, by, alert(f"f{number}"))
        (run,) = claim(journal, by)
        finish(journal, by, run, end)
        accept(journal, by, alert(f"dry{number}"))
        (shadow,) = claim(journal, dry) or (None,)
        if shadow is not None:
            finish(journal, dry, shadow)
    accept(journal, by, alert("next"))
    assert claim(journal, by) == []
    assert row(journal, 5)["held_by"] == "breaker"


def test_dry_success_is_followed_by_no_resolved_run_whichever_comes_first(
    journal: Journal,
) -> None:
    by = replace(rules(), resolved_hooks=frozenset({"a"}))
    accept(journal, by, alert(annotations={"action_dry_run": "true"}))
    (run,) = claim(journal, by)
    finish(journal, by, run)
    accept(journal, by, alert(status="resolved"))
    assert shown(journal) == [("a", "fired", "succeeded")]


# Pause and resume


def test_paused_action_starts_nothing_until_resumed_while_others_do(journal: Journal) -> None:
    by = rules()
    assert requests.pause(journal, ANN, "a", "deploy") == "a paused"
    accept(journal, by, alert("f1"))
    accept(journal, by, alert("f2"), action="b")
    assert [run.action for run in claim(journal, by)] == ["b"]
    assert row(journal)["state"] == "queued"
    assert requests.resume(journal, ANN, "a") == "a resumed"
    assert [run.action for run in claim(journal, by)] == ["a"]


def test_global_pause_starts_nothing_at_all(journal: Journal) -> None:
    by = rules()
    assert requests.pause(journal, ANN, None) == "all actions paused"
    for action in ("a", "b"):
        accept(journal, by, alert(), action=action)
    assert look(journal, by) == claims.Claims([], [])
    assert requests.resume(journal, ANN, None) == "all actions resumed"
    assert [run.action for run in claim(journal, by)] == ["a", "b"]


def test_pause_of_an_action_outlasts_the_global_one(journal: Journal) -> None:
    by = rules()
    requests.pause(journal, ANN, "a")
    requests.pause(journal, ANN, None)
    for action in ("a", "b"):
        accept(journal, by, alert(), action=action)
    requests.resume(journal, ANN, None)
    assert [run.action for run in claim(journal, by)] == ["b"]


@pytest.mark.parametrize("action", ["a", None], ids=["an action", "all"])
def test_pause_for_a_time_ends_by_itself(
    journal: Journal, clock: Clock, action: str | None
) -> None:
    by = rules()
    requests.pause(journal, ANN, action, lasting=30 * MINUTE)
    accept(journal, by, alert())
    clock.move(minutes=30, seconds=-1)
    assert claim(journal, by) == []
    clock.move(seconds=1)
    assert len(claim(journal, by)) == 1


def test_later_pause_takes_the_place_of_an_earlier_one(journal: Journal, clock: Clock) -> None:
    by = rules()
    requests.pause(journal, ANN, "a", "first", lasting=MINUTE)
    requests.pause(journal, ANN, "a", "second")
    (held,) = reading.list_holds(journal)
    assert (held["kind"], held["until"], held["reason"]) == ("pause", None, "by ann: second")
    clock.move(hours=1)
    accept(journal, by, alert())
    assert claim(journal, by) == []


def test_pause_is_obeyed_by_the_next_claim_while_what_runs_goes_on(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    accept(journal, by, alert("done"), alert("fails"))
    done, fails = claim(journal, by)
    requests.pause(journal, ANN, "a")
    assert finish(journal, by, done).outcome == "succeeded"
    assert finish(journal, by, fails, FAILED).outcome is None
    clock.move(minutes=1)
    assert claim(journal, by) == []  # Another attempt is a start too, as far as a pause goes.
    requests.resume(journal, ANN, "a")
    assert [(run.id, run.attempt) for run in claim(journal, by)] == [(fails.id, 2)]


def test_alerts_are_accepted_and_closed_while_all_is_paused(journal: Journal) -> None:
    by = rules()
    requests.pause(journal, ANN, None)
    assert accept(journal, by, alert("f1"), alert("f2")) == Counts(accepted=2)
    assert accept(journal, by, alert("f1", status="resolved")) == Counts(resolved=1)
    assert shown(journal) == [("a", "fired", "cancelled"), ("a", "fired", "queued")]


def test_pause_delays_nothing_beyond_itself(journal: Journal, clock: Clock) -> None:
    by = rules(cooldown=HOUR, max_delay=2 * HOUR)
    run_one(journal, by)
    accept(journal, by, REFIRED)
    claim(journal, by)
    requests.pause(journal, ANN, "a")
    clock.move(hours=4)
    assert look(journal, by) == claims.Claims([], [])
    requests.resume(journal, ANN, "a")
    assert len(claim(journal, by)) == 1


@pytest.mark.parametrize("action", ["a", None], ids=["an action", "all"])
def test_resume_of_what_is_not_paused_is_refused(journal: Journal, action: str | None) -> None:
    requests.pause(journal, ANN, "b")
    with pytest.raises(OperationError, match="paused"):
        requests.resume(journal, ANN, action)
    assert [one["operation"] for one in reading.audit_of(journal)] == ["pause"]


def test_pause_of_no_time_is_refused_and_takes_none_away(journal: Journal) -> None:
    requests.pause(journal, ANN, None, "incident")
    for lasting in (timedelta(0), timedelta(milliseconds=400)):
        with pytest.raises(OperationError, match="a second at least"):
            requests.pause(journal, ANN, None, lasting=lasting)
    accept(journal, rules(), alert())
    assert claim(journal, rules()) == []


def test_resume_of_one_says_that_all_are_still_paused(journal: Journal) -> None:
    requests.pause(journal, ANN, "a")
    requests.pause(journal, ANN, None)
    assert requests.resume(journal, ANN, "a") == "a resumed; all actions are still paused"
    assert requests.resume(journal, ANN, None) == "all actions resumed"


def test_refused_resume_says_what_is_paused(journal: Journal, clock: Clock) -> None:
    with pytest.raises(OperationError, match=r"^not all actions are paused; nothing is$"):
        requests.resume(journal, ANN, None)
    requests.pause(journal, ANN, None, lasting=HOUR)
    with pytest.raises(OperationError, match=r"^a is not paused; paused: all actions$"):
        requests.resume(journal, ANN, "a")
    clock.move(hours=1)
    with pytest.raises(OperationError, match=r"^not all actions are paused; nothing is$"):
        requests.resume(journal, ANN, None)
    assert reading.list_holds(journal) == []


# Approval


APPROVED = rules(approval="required", approval_timeout=20 * MINUTE, escalate_to="page")


def test_run_waits_for_a_person_and_runs_once_approved(journal: Journal, clock: Clock) -> None:
    accept(journal, APPROVED, alert())
    waiting = row(journal)
    assert (waiting["state"], waiting["approval"]) == ("awaiting_approval", "required")
    assert waiting["expires_at"] == clock.now + 20 * MINUTE
    assert waiting["reason"] == "waits for approval, 20m at most"
    assert claim(journal, APPROVED) == []
    assert requests.approve(journal, ANN, 1) == "run 1 is approved"
    assert row(journal)["reason"] == "approved by ann"
    (run,) = claim(journal, APPROVED)
    assert finish(journal, APPROVED, run).outcome == "succeeded"
    clock.move(minutes=20)
    assert approvals.expire_approvals(journal, LOADED, APPROVED) == []


def test_rejected_run_is_cancelled_for_good(journal: Journal) -> None:
    accept(journal, APPROVED, alert())
    assert requests.reject(journal, ANN, 1, "not now") == "run 1 is rejected"
    kept = row(journal)
    assert (kept["outcome"], kept["cancelled_by"]) == ("cancelled", "person")
    assert kept["reason"] == "rejected by ann: not now"
    accept(journal, APPROVED, alert(status="resolved"))
    accept(journal, APPROVED, alert())
    assert shown(journal) == [("a", "fired", "cancelled")]


def test_group_that_nobody_approved_expires_in_parts(journal: Journal, clock: Clock) -> None:
    accept(journal, APPROVED, *(alert(f"f{number}") for number in range(130)))
    clock.move(minutes=20)
    expire = lambda: len(approvals.expire_approvals(journal, LOADED, APPROVED))  # noqa: E731
    # Notifications wait for a few at a time, not for all of them.
    assert [expire() for _ in range(3)] == [100, 30, 0]


def test_what_nobody_approved_in_time_is_skipped_and_escalated(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, APPROVED, alert("f1"))
    clock.move(minutes=10)
    accept(journal, APPROVED, alert("f2"))
    assert approvals.expire_approvals(journal, LOADED, APPROVED) == []
    clock.move(minutes=10)
    assert approvals.expire_approvals(journal, LOADED, APPROVED) == [1]
    assert shown(journal) == [
        ("a", "fired", "skipped"),
        ("a", "fired", "awaiting_approval"),
        ("page", "escalation", "queued"),
    ]
    expired = row(journal)
    assert (expired["held_by"], expired["finished_at"]) == ("approval", clock.now)
    assert expired["reason"] == "skipped: nobody approved it in time"
    assert row(journal, 3)["escalated_from"] == 1
    assert [run.action for run in claim(journal, APPROVED)] == ["page"]


def test_escalation_that_needs_approval_waits_for_it(journal: Journal) -> None:
    by = Rules(policies={"a": Policy(escalate_to="b"), "b": Policy(approval="required")})
    run_one(journal, by, BROKEN)
    assert shown(journal)[1] == ("b", "escalation", "awaiting_approval")
    requests.approve(journal, ANN, 2)
    assert [run.action for run in claim(journal, by)] == ["b"]


def test_resolved_cancels_what_waits_for_approval(journal: Journal) -> None:
    accept(journal, APPROVED, alert())
    accept(journal, APPROVED, alert(status="resolved"))
    assert shown(journal) == [("a", "fired", "cancelled")]
    with pytest.raises(OperationError, match="run 1 waits for no approval: it is cancelled"):
        requests.approve(journal, ANN, 1)


def test_false_resolved_puts_an_unapproved_run_back_to_waiting_for_approval(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, APPROVED, alert())
    accept(journal, APPROVED, alert(status="resolved"))
    clock.move(hours=1)
    accept(journal, APPROVED, alert())
    assert row(journal)["state"] == "awaiting_approval"
    assert row(journal)["expires_at"] == clock.now + 20 * MINUTE
    assert approvals.expire_approvals(journal, LOADED, APPROVED) == []
    assert claim(journal, APPROVED) == []
    requests.approve(journal, ANN, 1)
    assert len(claim(journal, APPROVED)) == 1


def test_false_resolved_puts_an_approved_run_back_without_another_approval(
    journal: Journal,
) -> None:
    accept(journal, APPROVED, alert())
    requests.approve(journal, ANN, 1)
    accept(journal, APPROVED, alert(status="resolved"))
    accept(journal, APPROVED, alert())
    assert len(claim(journal, APPROVED)) == 1


def test_repeats_and_what_undoes_need_no_second_approval(journal: Journal, clock: Clock) -> None:
    by = Rules(
        policies={"a": Policy(approval="required", repeat_after=10 * MINUTE)},
        resolved_hooks=frozenset({"a"}),
    )
    accept(journal, by, alert())
    requests.approve(journal, ANN, 1)
    run_all(journal, by)
    clock.move(minutes=10)
    assert run_all(journal, by) == ["f1"]
    accept(journal, by, alert(status="resolved"))
    clock.move(minutes=5)
    assert [run.kind for run in claim(journal, by)] == ["resolved"]


def test_repeat_of_what_nobody_approved_waits_once_that_is_required(
    journal: Journal, clock: Clock
) -> None:
    run_one(journal, rules(repeat_after=10 * MINUTE))
    clock.move(minutes=10)
    assert claim(journal, rules(repeat_after=10 * MINUTE, approval="required")) == []
    assert (row(journal, 2)["kind"], row(journal, 2)["state"]) == ("repeat", "awaiting_approval")


def test_approval_after_its_time_is_refused(journal: Journal, clock: Clock) -> None:
    accept(journal, APPROVED, alert())
    clock.move(minutes=20)
    with pytest.raises(OperationError, match="time to approve run 1 was over at 2026-01-02 03:25"):
        requests.approve(journal, ANN, 1)
    assert claim(journal, APPROVED) == []


def test_new_episode_needs_an_approval_of_its_own(journal: Journal) -> None:
    accept(journal, APPROVED, alert())
    requests.approve(journal, ANN, 1)
    run_all(journal, APPROVED)
    accept(journal, APPROVED, REFIRED)
    assert row(journal, 2)["state"] == "awaiting_approval"


def test_approved_run_is_held_by_limits_like_any_other(journal: Journal) -> None:
    by = rules(approval="required", cooldown=HOUR, target_labels=("host",))
    accept(journal, by, of_host("f1"), of_host("f2"))
    for run_id in (1, 2):
        requests.approve(journal, ANN, run_id)
    assert run_all(journal, by) == ["f1"]
    assert row(journal, 2)["held_by"] == "cooldown"


# Retry and cancel


def test_retry_gives_a_failed_run_all_its_attempts_again(journal: Journal, clock: Clock) -> None:
    by = rules(max_attempts=3)
    accept(journal, by, alert())
    for attempt in (1, 2, 3, 4, 5, 6):
        (run,) = claim(journal, by)
        assert (run.attempt, run.attempts_before) == (attempt, 0 if attempt < 4 else 3)
        step = finish(journal, by, run, FAILED)
        assert step.outcome == ("failed" if attempt in (3, 6) else None)
        clock.move(minutes=10)
        if attempt == 3:
            assert claim(journal, by) == []
            assert requests.retry(journal, ANN, 1) == "run 1 is queued again"
            assert row(journal)["reason"] == "retried by ann"
            assert (row(journal)["outcome"], row(journal)["finished_at"]) == (None, None)
    assert len(reading.attempts_of(journal, 1)) == 6
    assert len(reading.list_runs(journal)) == 1


def test_retry_does_not_wait_for_the_time_that_the_run_waited_for(
    journal: Journal, clock: Clock
) -> None:
    by = rules()
    accept(journal, by, alert())
    (run,) = claim(journal, by)
    finish(journal, by, run, replace(FAILED, retry_at=clock.now + 3 * HOUR))
    requests.cancel(journal, ANN, 1)
    requests.retry(journal, ANN, 1)
    assert len(claim(journal, by)) == 1


def test_retry_keeps_the_run_and_its_key(journal: Journal) -> None:
    by = rules()
    run = run_one(journal, by, BROKEN)
    requests.retry(journal, ANN, run.id)
    (again,) = claim(journal, by)
    assert (again.id, again.idempotency_key) == (run.id, run.idempotency_key)


def test_retry_is_a_start_that_limits_hold_back_and_count(journal: Journal, clock: Clock) -> None:
    run_one(journal, COOLING, BROKEN)
    clock.move(minutes=10)
    requests.retry(journal, ANN, 1)
    assert claim(journal, COOLING) == []
    assert row(journal)["held_by"] == "cooldown"
    clock.move(minutes=20)
    assert run_all(journal, COOLING) == ["f1"]
    accept(journal, COOLING, REFIRED)
    assert claim(journal, COOLING) == []
    assert row(journal, 2)["due_at"] == clock.now + 30 * MINUTE


def test_retry_after_the_alert_resolved_has_all_its_attempts(
    journal: Journal, clock: Clock
) -> None:
    by = rules(max_attempts=2)
    run_one(journal, by, BROKEN)
    accept(journal, by, alert(status="resolved"))
    requests.retry(journal, ANN, 1)
    for _ in range(2):
        clock.move(minutes=10)
        (run,) = claim(journal, by)
        finish(journal, by, run, FAILED)
    assert (row(journal)["outcome"], row(journal)["attempts"]) == ("failed", 3)


def test_retry_adds_a_start_and_takes_none_away(journal: Journal, clock: Clock) -> None:
    by = rules(overall_rate_limit=(Window(2, HOUR),))
    run_one(journal, by, BROKEN)
    clock.move(minutes=10)
    requests.retry(journal, ANN, 1)
    assert run_all(journal, by) == ["f1"]
    accept(journal, by, alert("f2"))
    assert claim(journal, by) == []
    # The first of the two is the one that makes room first.
    assert row(journal, 2)["due_at"] == T0 + MINUTE + HOUR


def test_retry_of_a_run_that_nobody_approved_is_its_approval(
    journal: Journal, clock: Clock
) -> None:
    accept(journal, APPROVED, alert())
    clock.move(minutes=20)
    approvals.expire_approvals(journal, LOADED, APPROVED)
    requests.retry(journal, ANN, 1)
    assert row(journal)["approval"] == "approved"
    assert [run.action for run in claim(journal, APPROVED)] == ["a", "page"]


def test_retried_run_that_was_skipped_may_be_delayed_for_max_delay_again(
    journal: Journal, clock: Clock
) -> None:
    by = rules(cooldown=5 * HOUR, max_delay=HOUR)
    run_one(journal, by)
    accept(journal, by, REFIRED)
    for _ in range(2):
        claim(journal, by)
        clock.move(hours=1)
    assert row(journal, 2)["outcome"] == "skipped"
    requests.retry(journal, ANN, 2)
    assert claim(journal, by) == []
    assert (row(journal, 2)["state"], row(journal, 2)["due_at"]) == ("queued", clock.now + HOUR)


def test_person_cancels_what_waits_at_once_and_it_is_never_put_back(journal: Journal) -> None:
    by = rules()
    accept(journal, by, alert())
    assert requests.cancel(journal, ANN, 1, "known") == "run 1 is cancelled"
    kept = row(journal)
    assert (kept["outcome"], kept["cancelled_by"]) == ("cancelled", "person")
    assert kept["reason"] == "cancelled by ann: known"
    accept(journal, by, alert(status="resolved"))
    accept(journal, by, alert())
    assert shown(journal) == [("a", "fired", "cancelled")]
    assert claim(journal, by) == []


def test_running_run_is_asked_to_stop_and_is_never_put_back(journal: Journal, clock: Clock) -> None:
    by = rules()
    accept(journal, by, alert())
    (run,) = claim(journal, by)
    done = "run 1 is running; its attempt was asked to stop"
    assert requests.cancel(journal, ANN, 1) == done
    assert claims.cancel_requests(journal, "w1") == {1: "cancelled by ann"}
    assert claims.cancel_requests(journal, "w2") == {}
    accept(journal, by, alert(status="resolved"))
    # It did not listen, and failed; without the cancel it would be tried again.
    step = finish(journal, by, run, FAILED)
    assert (step.outcome, step.reason) == ("cancelled", "cancelled by ann")
    accept(journal, by, alert())
    clock.move(hours=1)
    assert claim(journal, by) == []
    assert row(journal)["cancelled_by"] == "person"


def test_run_that_succeeded_before_it_could_be_cancelled_has_succeeded(journal: Journal) -> None:
    by = rules()
    accept(journal, by, alert())
    (run,) = claim(journal, by)
    requests.cancel(journal, ANN, 1)
    assert finish(journal, by, run).outcome == "succeeded"


def test_retry_of_a_cancelled_run_forgets_the_cancel(journal: Journal, clock: Clock) -> None:
    by = rules()
    accept(journal, by, alert())
    (run,) = claim(journal, by)
    requests.cancel(journal, ANN, 1)
    finish(journal, by, run, FAILED)
    requests.retry(journal, ANN, 1)
    (again,) = claim(journal, by)
    assert claims.cancel_requests(journal, "w1") == {}
    assert finish(journal, by, again, FAILED).outcome is None


@pytest.mark.parametrize("end", ["failed", "killed", "permanent"])
def test_run_asked_to_stop_is_cancelled_however_its_attempt_fails(
    journal: Journal, end: str
) -> None:
    by = rules(escalate_to="page", on_interrupt="hold", max_attempts=1)
    accept(journal, by, alert())
    (run,) = claim(journal, by)
    requests.cancel(journal, ANN, run.id)
    how = BROKEN if end == "permanent" else AttemptEnd(end, error="no")
    finish(journal, by, run, how)
    assert shown(journal) == [("a", "fired", "cancelled")]


def test_worker_ends_nothing_of_actions_that_it_has_not_loaded(
    journal: Journal, clock: Clock
) -> None:
    by = rules(on_interrupt="hold", escalate_to="page", verify_after=MINUTE)
    accept(journal, by, alert("f1"), alert("f2"))
    accept(journal, replace(by, policies={"a": Policy(approval="required")}), alert("f3"))
    (first, second) = claim(journal, by)
    finish(journal, by, first)
    clock.move(hours=2)
    others = (["b", "page"], Rules())
    assert outcomes.recover_from(journal, "w1", *others, lambda: 0.5) == []
    assert outcomes.verify_due(journal, *others) == []
    assert approvals.expire_approvals(journal, *others) == []
    (ended,) = outcomes.recover_from(journal, "w1", LOADED, by, lambda: 0.5)
    assert (ended.ended.run_id, row(journal, second.id)["outcome"]) == (second.id, "unknown")
    assert approvals.expire_approvals(journal, LOADED, by) == [3]


@pytest.mark.parametrize("number", [-1, 0, -(10**20), 10**20])
def test_number_of_no_run_is_refused_in_words(journal: Journal, number: int) -> None:
    with pytest.raises(OperationError, match=f"there is no run {number}"):
        requests.cancel(journal, ANN, number)
    with pytest.raises(OperationError, match=f"there is no run {number}"):
        reading.find_run(journal, number)


def test_text_that_no_database_stores_stops_nobody_from_stopping(journal: Journal) -> None:
    requests.pause(journal, Person("\udcff", "cli\x00"), None, "caf\udce9\x00")
    (held,) = reading.list_holds(journal)
    assert held["reason"] == "by \ufffd: caf\ufffd\ufffd"
    (kept,) = reading.audit_of(journal)
    assert (kept["who"], kept["origin"]) == ("\ufffd", "cli\ufffd")
    assert reading.list_runs(journal, alert_name="\udcff") == []


def test_cancelled_run_does_not_escalate(journal: Journal) -> None:
    accept(journal, APPROVED, alert("f1"), alert("f2"))
    requests.cancel(journal, ANN, 1)
    requests.reject(journal, ANN, 2)
    assert {action for action, *_ in shown(journal)} == {"a"}


# Whatever a run's state, and who asked


Make = Callable[[Journal, Clock], object]


def _ended(end: AttemptEnd) -> Make:
    return lambda journal, clock: run_one(journal, rules(), end)


def _skipped(journal: Journal, clock: Clock) -> None:
    accept(journal, APPROVED, alert())
    clock.move(hours=1)
    approvals.expire_approvals(journal, LOADED, APPROVED)


def _unknown(journal: Journal, clock: Clock) -> None:
    del clock
    run_one(
        journal, rules(on_interrupt="hold"), AttemptEnd(AttemptOutcome.INTERRUPTED, error="it died")
    )


def _running(journal: Journal, clock: Clock) -> None:
    del clock
    accept(journal, rules(), alert())
    claim(journal, rules())


STATES: dict[str, Make] = {
    "queued": lambda journal, clock: accept(journal, rules(), alert()),
    "awaiting_approval": lambda journal, clock: accept(journal, APPROVED, alert()),
    "running": _running,
    "succeeded": _ended(SUCCEEDED),
    "failed": _ended(BROKEN),
    "cancelled": _ended(AttemptEnd(AttemptOutcome.CANCELLED, error="stop")),
    "skipped": _skipped,
    "unknown": _unknown,
}
OPERATIONS: dict[str, tuple[Callable[[Journal, Person, int], str], set[str]]] = {
    "retry": (requests.retry, {"failed", "cancelled", "skipped", "unknown"}),
    "cancel": (requests.cancel, {"queued", "awaiting_approval", "running"}),
    "approve": (requests.approve, {"awaiting_approval"}),
    "reject": (requests.reject, {"awaiting_approval"}),
}


@pytest.mark.parametrize("state", STATES)
def test_operation_is_carried_out_in_its_states_and_refused_in_words_in_all_others(
    open_journal: Callable[..., Journal], clock: Clock, state: str
) -> None:
    journal = open_journal(clock=clock)
    STATES[state](journal, clock)
    before = row(journal)
    assert (before["outcome"] or before["state"]) == state
    refused = [name for name, (_, states) in OPERATIONS.items() if state not in states]
    for name in refused:
        with pytest.raises(OperationError, match=rf"^run 1 .*\b{state}\b"):
            OPERATIONS[name][0](journal, ANN, 1)
    assert row(journal) == before
    assert reading.audit_of(journal) == []
    # One that is allowed changes the state, and with it what is allowed.
    for name in sorted(OPERATIONS.keys() - set(refused))[:1]:
        OPERATIONS[name][0](journal, ANN, 1)
        assert row(journal) != before


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_on_an_unknown_run_is_refused_in_words(journal: Journal, name: str) -> None:
    with pytest.raises(OperationError, match="there is no run 7; see `receiver runs`"):
        OPERATIONS[name][0](journal, ANN, 7)
    assert reading.audit_of(journal) == []


@pytest.mark.parametrize(
    ("operation", "state", "ask", "detail"),
    [
        pytest.param("retry", "failed", requests.retry, "", id="retry"),
        pytest.param("cancel", "queued", partial(requests.cancel, reason="why"), "why",
                     id="cancel what waits"),
        pytest.param("cancel", "running", partial(requests.cancel, reason="why"), "why",
                     id="cancel what runs"),
        pytest.param("approve", "awaiting_approval", requests.approve, "", id="approve"),
        pytest.param("reject", "awaiting_approval", partial(requests.reject, reason="why"), "why",
                     id="reject"),
    ],
)  # fmt: skip
def test_operation_on_a_run_leaves_one_audit_row(
    journal: Journal,
    clock: Clock,
    operation: str,
    state: str,
    ask: Callable[[Journal, Person, int], str],
    detail: str,
) -> None:
    STATES[state](journal, clock)
    clock.move(seconds=30)
    ask(journal, ANN, 1)
    (kept,) = reading.audit_of(journal)
    assert kept == {
        "id": 1, "at": clock.now, "who": "ann", "origin": "cli on desk", "operation": operation,
        "action": "a", "run_id": 1, "detail": detail,
    }  # fmt: skip
    assert reading.audit_of(journal, 1) == [kept]
    assert reading.audit_of(journal, 2) == []


@pytest.mark.parametrize("action", ["a", None], ids=["an action", "all"])
def test_pause_and_resume_leave_one_audit_row_each(
    journal: Journal, clock: Clock, action: str | None
) -> None:
    requests.pause(journal, ANN, action, "deploy", lasting=HOUR)
    clock.move(seconds=30)
    requests.resume(journal, Person("bob", "api"), action)
    resumed, paused = reading.audit_of(journal)
    assert paused == {
        "id": 1, "at": clock.now - 30 * SECOND, "who": "ann", "origin": "cli on desk",
        "operation": "pause", "action": action, "run_id": None, "detail": "deploy",
    }  # fmt: skip
    assert resumed == {
        "id": 2, "at": clock.now, "who": "bob", "origin": "api",
        "operation": "resume", "action": action, "run_id": None, "detail": "",
    }  # fmt: skip
