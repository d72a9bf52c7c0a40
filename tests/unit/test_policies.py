"""What becomes of a run after an attempt, when it is tried again, and its key."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.declarations import Backoff, declared
from receiver.policies import (
    BREAKER_OUTCOMES,
    MAX_INTERRUPTIONS,
    AttemptEnd,
    AttemptOutcome,
    Next,
    Policy,
    Rules,
    RunProgress,
    after_attempt,
    counted_end,
    describe_unknown_key,
    next_attempt_at,
    running_since,
    runs_alone,
)
from receiver.subject import idempotency_key, target_of
from tests.support.notifications import T0

# The table of DESIGN section 5, as it is written there.
DEFAULTS: Mapping[str, str] = {
    "timeout": "60s",
    "max_attempts": "3",
    "backoff": "1s..5m",
    "on_interrupt": "retry",
    "max_concurrent": "4",
    "cooldown": "none",
    "rate_limit": "none",
    "breaker": "5 failures, 10m",
    "when_limited": "delay",
    "max_delay": "24h",
    "approval": "none",
    "approval_timeout": "1h",
    "dry_run": "false",
    "repeat_after": "never",
    "max_repeats": "10",
    "resolved_after": "5m",
    "verify_after": "none",
    "escalate_to": "none",
    "max_staleness": "5h",
    "max_memory": "256MiB",
    "max_duration": "6h",
}
MANY = 10**9


def waits(policy: Policy, jitter: float, attempts: range) -> list[float]:
    """Return the pauses after so many attempts, in seconds."""
    found = [next_attempt_at(T0, made, policy, jitter) for made in attempts]
    return [(one - T0).total_seconds() for one in found if one is not None]


def backoff(first: float, longest: float) -> Backoff:
    return Backoff(timedelta(seconds=first), timedelta(seconds=longest))


@pytest.mark.parametrize("key", [key for key in DEFAULTS if key in declared(Policy)])
def test_key_of_a_policy_has_the_default_that_was_promised(key: str) -> None:
    setting, text = declared(Policy)[key], DEFAULTS[key]

    assert (setting.default or "none") == text.replace("never", "none")
    assert getattr(Policy(), key) == setting.default_value()


@pytest.mark.parametrize("key", declared(Policy))
def test_key_of_a_policy_is_named_like_its_field_and_explained(key: str) -> None:
    setting = declared(Policy)[key]

    assert setting.name == key
    assert re.fullmatch("[a-z]+(_[a-z]+)*", key)
    assert setting.help


@pytest.mark.parametrize(
    ("pauses", "expected"),
    [
        pytest.param(backoff(1, 300), [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300], id="default"),
        pytest.param(backoff(10, 15), [10, 15, 15], id="soon at its longest"),
        pytest.param(backoff(30, 30), [30, 30, 30], id="constant"),
        pytest.param(backoff(0.001, 0.003), [0.001, 0.002, 0.003, 0.003], id="milliseconds"),
        pytest.param(backoff(0, 0), [0, 0, 0], id="none"),
    ],
)
def test_pause_doubles_up_to_the_longest(pauses: Backoff, expected: list[float]) -> None:
    policy = Policy(max_attempts=MANY, backoff=pauses)

    # Jitter is below 1; 1 itself gives the ceiling.
    assert waits(policy, 1.0, range(1, len(expected) + 1)) == expected


@pytest.mark.parametrize("jitter", [0.0, 0.25, 0.5, 0.999])
def test_jitter_takes_its_share_of_the_whole_pause(jitter: float) -> None:
    found = waits(Policy(max_attempts=MANY), jitter, range(1, 12))

    ceilings = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert found == pytest.approx([jitter * ceiling for ceiling in ceilings], abs=1e-6)


@pytest.mark.parametrize("attempts", [50, 51, 1_000, 10**8, MANY - 1])
def test_endless_attempts_do_not_overflow(attempts: int) -> None:
    hundred_years = timedelta(days=36500)
    policies = {
        timedelta(minutes=5): Policy(max_attempts=MANY),
        hundred_years: Policy(
            max_attempts=MANY, backoff=Backoff(timedelta(milliseconds=1), hundred_years)
        ),
    }
    for longest, policy in policies.items():
        assert next_attempt_at(T0, attempts, policy, 1.0) == T0 + longest


@pytest.mark.parametrize(
    ("attempts", "most", "more"),
    [(1, 1, False), (1, 2, True), (2, 2, False), (2, 3, True), (3, 3, False), (9, 3, False)],
)
def test_policy_is_used_up_after_its_attempts(attempts: int, most: int, more: bool) -> None:
    found = next_attempt_at(T0, attempts, Policy(max_attempts=most), 0.0)

    assert found == (T0 if more else None)


@given(
    attempts=st.integers(1, MANY),
    first=st.floats(0, 1e9),
    factor=st.floats(1, 3),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_next_attempt_is_never_earlier_than_now_nor_later_than_the_longest_pause(
    attempts: int, first: float, factor: float, jitter: float
) -> None:
    policy = Policy(max_attempts=MANY + 1, backoff=backoff(first, first * factor))

    found = next_attempt_at(T0, attempts, policy, jitter)

    assert found is not None
    assert T0 <= found <= T0 + policy.backoff.longest + timedelta(microseconds=1)


RETRY = Policy(max_attempts=3)
HOLD = Policy(max_attempts=3, on_interrupt="hold")
MINUTE = timedelta(minutes=1)
LATER = T0 + timedelta(hours=24)
FIRST, LAST = (one.replace(tzinfo=UTC) for one in (datetime.min, datetime.max))


SUCCEEDED, FAILED, CANCELLED = (
    AttemptOutcome.SUCCEEDED, AttemptOutcome.FAILED, AttemptOutcome.CANCELLED,
)  # fmt: skip
CRASHED, KILLED = AttemptOutcome.CRASHED, AttemptOutcome.KILLED
INTERRUPTED, STOPPED = AttemptOutcome.INTERRUPTED, AttemptOutcome.STOPPED
STILL_RUNNING = AttemptOutcome.STILL_RUNNING
CUT_OFF = (CRASHED, KILLED, INTERRUPTED, STOPPED)
SECOND = timedelta(seconds=1)


def at_attempt(attempt: int) -> RunProgress:
    return RunProgress(attempt, running_since=T0 - MINUTE)


@pytest.mark.parametrize(
    ("end", "attempt", "policy", "expected"),
    [
        pytest.param(
            AttemptEnd(SUCCEEDED, result='"ok"'), 3, RETRY,
            Next("succeeded", "the action succeeded"), id="success at the last attempt",
        ),
        pytest.param(
            AttemptEnd(CANCELLED, error="the alert resolved"), 1, RETRY,
            Next("cancelled", "the alert resolved"), id="asked to stop",
        ),
        pytest.param(
            AttemptEnd(CANCELLED), 1, RETRY, Next("cancelled", "cancelled"),
            id="asked to stop without a reason",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="boom"), 1, RETRY,
            Next(None, "attempt 1 of 3 failed", T0 + timedelta(seconds=0.5)), id="first failure",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="boom"), 2, RETRY,
            Next(None, "attempt 2 of 3 failed", T0 + timedelta(seconds=1)), id="second failure",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="boom"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="last failure",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="boom"), 7, RETRY,
            Next("failed", "attempt 7 of 3 was the last"), id="policy was shortened meanwhile",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="no", permanent=True), 1, RETRY,
            Next("failed", "the action said that trying again cannot help"), id="permanent",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_at=LATER), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", LATER), id="names an instant",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_after=MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0 + MINUTE),
            id="names a pause",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_after=timedelta(0)), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="names no pause",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_at=T0 - MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="names the past",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_after=-MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="negative pause",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_at=LATER, retry_after=MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", LATER), id="names both",
        ),
        pytest.param(
            AttemptEnd(FAILED, retry_at=LATER), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="names a time at the last attempt",
        ),
        pytest.param(
            AttemptEnd(FAILED, error="boom"), 1, HOLD,
            Next(None, "attempt 1 of 3 failed", T0 + timedelta(seconds=0.5)),
            id="a failure is no interruption",
        ),
        pytest.param(
            AttemptEnd(CRASHED, error="SIGSEGV"), 2, RETRY,
            Next(None, "attempt 2 of 3 crashed", T0 + timedelta(seconds=1)), id="crash",
        ),
        pytest.param(
            AttemptEnd(CRASHED, error="SIGSEGV"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="crash at the last attempt",
        ),
        pytest.param(
            AttemptEnd(KILLED, error="its time was up"), 2, RETRY,
            Next(None, "attempt 2 of 3 was killed", T0 + timedelta(seconds=1)), id="killed",
        ),
        pytest.param(
            AttemptEnd(KILLED, error="its time was up"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="killed at the last attempt",
        ),
        pytest.param(
            AttemptEnd(STOPPED), 3, RETRY,
            Next(None, "attempt 3 was stopped with its worker, and uses up no attempt", T0, False),
            id="stopped in good order at the last attempt",
        ),
    ],
)  # fmt: skip
def test_where_a_run_stands_after_an_attempt(
    end: AttemptEnd, attempt: int, policy: Policy, expected: Next
) -> None:
    assert after_attempt(end, at_attempt(attempt), policy, T0, 0.5) == expected


@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize("outcome", CUT_OFF)
def test_hold_ends_every_attempt_that_was_cut_off_as_unknown(
    outcome: AttemptOutcome, attempt: int
) -> None:
    end = AttemptEnd(outcome, error="SIGKILL")

    step = after_attempt(end, at_attempt(attempt), HOLD, T0, 0.5)

    assert step == Next("unknown", "SIGKILL; it may have acted, and on_interrupt is hold")


@pytest.mark.parametrize("outcome", CUT_OFF)
def test_hold_does_not_apply_to_an_attempt_that_had_not_begun(outcome: AttemptOutcome) -> None:
    end = AttemptEnd(outcome, error="SIGKILL", has_begun=False)

    step = after_attempt(end, at_attempt(1), replace(HOLD, max_attempts=1), T0, 0.5)

    reason = "attempt 1 was claimed, and had not begun"
    assert step == Next(None, reason, T0, uses_attempt=False)


def test_hold_without_a_word_says_how_the_attempt_was_cut_off() -> None:
    reasons = [
        after_attempt(AttemptEnd(outcome), at_attempt(1), HOLD, T0, 0.5).reason
        for outcome in CUT_OFF
    ]

    assert [reason.partition(";")[0] for reason in reasons] == [
        "attempt 1 crashed", "attempt 1 was killed", "attempt 1 was interrupted",
        "attempt 1 was stopped",
    ]  # fmt: skip


# Deaths of the worker


def after_death(interruptions: int, attempt: int = 1, policy: Policy = RETRY) -> Next:
    """Return what follows a death of the worker, after so many of them in all."""
    progress = RunProgress(attempt, interruptions, T0 - MINUTE)
    return after_attempt(AttemptEnd(INTERRUPTED, "it died"), progress, policy, T0, 0.5)


def test_pauses_after_deaths_of_the_worker_grow_up_to_five_minutes() -> None:
    steps = [after_death(number) for number in range(1, MAX_INTERRUPTIONS + 1)]

    pauses = [(step.due_at - T0).total_seconds() for step in steps if step.due_at is not None]
    assert pauses == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 150]
    assert not any(step.uses_attempt for step in steps)


def test_eleventh_death_of_the_worker_ends_the_run_unknown() -> None:
    step = after_death(11)

    assert step.outcome == "unknown"
    assert step.reason == "the worker died 11 times while the run was under way; it may have acted"


def test_death_of_the_worker_at_the_last_attempt_does_not_fail_the_run() -> None:
    step = after_death(1, attempt=3)

    assert (step.outcome, step.uses_attempt) == (None, False)
    assert step.reason == "the worker died during attempt 3, which uses up no attempt"


def test_run_that_saw_two_deaths_runs_alone() -> None:
    assert [runs_alone(number) for number in range(5)] == [False, False, True, True, True]
    assert "after 2 such deaths the next attempt runs alone" in after_death(2).reason


@pytest.mark.parametrize(
    ("end", "deaths_before", "outcome"),
    [
        pytest.param(AttemptEnd(INTERRUPTED), 0, INTERRUPTED, id="first death"),
        pytest.param(AttemptEnd(INTERRUPTED), 1, INTERRUPTED, id="second death"),
        pytest.param(AttemptEnd(INTERRUPTED), 2, CRASHED, id="third death, alone"),
        pytest.param(AttemptEnd(INTERRUPTED), 7, CRASHED, id="eighth death, alone"),
        pytest.param(
            AttemptEnd(INTERRUPTED, has_begun=False), 2, INTERRUPTED, id="alone, had not begun"
        ),
        pytest.param(AttemptEnd(STOPPED), 2, STOPPED, id="alone, stopped in good order"),
        pytest.param(AttemptEnd(KILLED), 2, KILLED, id="alone, killed"),
        pytest.param(AttemptEnd(SUCCEEDED), 2, SUCCEEDED, id="alone, succeeded"),
    ],
)
def test_death_of_the_worker_while_an_attempt_ran_alone_is_its_crash(
    end: AttemptEnd, deaths_before: int, outcome: AttemptOutcome
) -> None:
    found = counted_end(end, deaths_before)

    assert found.outcome is outcome
    if outcome is CRASHED:
        expected = f"the attempt ran alone after {deaths_before} deaths of its worker"
        assert expected in str(found.error)
    else:
        assert found == end


@pytest.mark.parametrize("outcome", CUT_OFF)
def test_attempt_that_had_not_begun_is_no_evidence_about_its_action(
    outcome: AttemptOutcome,
) -> None:
    found = counted_end(AttemptEnd(outcome, "SIGKILL", has_begun=False), 2)

    assert found == AttemptEnd(INTERRUPTED, "SIGKILL", has_begun=False)
    assert not found.is_interruption


def test_crash_of_an_attempt_that_ran_alone_uses_up_attempts_and_never_passes_the_bound() -> None:
    crash, endless = AttemptEnd(CRASHED), Policy(max_attempts=MANY)

    third = after_attempt(crash, RunProgress(1, 3, T0), RETRY, T0, 0.5)
    last = after_attempt(crash, RunProgress(3, 5, T0), RETRY, T0, 0.5)
    eleventh = after_attempt(crash, RunProgress(9, 11, T0), endless, T0, 0.5)

    assert (third.outcome, third.uses_attempt) == (None, True)
    assert last.outcome == "failed"
    assert eleventh.outcome == "unknown"


# Jobs that run elsewhere


@pytest.mark.parametrize(
    ("named", "pause"),
    [
        pytest.param(None, 30 * SECOND, id="names none"),
        pytest.param(30 * SECOND, 30 * SECOND, id="names half a minute"),
        pytest.param(timedelta(0), SECOND, id="at once"),
        pytest.param(-MINUTE, SECOND, id="in the past"),
        pytest.param(timedelta(days=30), timedelta(days=7), id="a month"),
        pytest.param(timedelta.max, timedelta(days=7), id="for ever"),
        pytest.param(timedelta.min, SECOND, id="before all times"),
    ],
)
def test_job_that_still_runs_is_checked_after_the_pause_that_the_action_named(
    named: timedelta | None, pause: timedelta
) -> None:
    policy = Policy(max_attempts=1, max_duration=timedelta(days=365))
    end = AttemptEnd(STILL_RUNNING, check_after=named)

    step = after_attempt(end, RunProgress(1, 0, T0), policy, T0, 0.5)

    reason = "the job was still running at attempt 1; it is checked again"
    assert step == Next(None, reason, T0 + pause, uses_attempt=False)


@pytest.mark.parametrize("policy", [RETRY, HOLD, Policy(max_attempts=1)])
@pytest.mark.parametrize(
    ("since", "due_at"),
    [
        pytest.param(T0, T0 + MINUTE, id="it has just begun"),
        pytest.param(T0 - timedelta(hours=5), T0 + MINUTE, id="time is left"),
        pytest.param(T0 - timedelta(hours=6) + 9 * SECOND, T0 + 9 * SECOND, id="the last check"),
        pytest.param(T0 - timedelta(hours=6), T0, id="to the last moment"),
        pytest.param(T0 - timedelta(hours=6) - SECOND, None, id="too late"),
        pytest.param(T0 + timedelta(days=365), T0 + MINUTE, id="begun by a clock ahead"),
        pytest.param(None, T0 + MINUTE, id="unknown"),
    ],
)
def test_job_is_never_waited_for_beyond_max_duration(
    since: datetime | None, due_at: datetime | None, policy: Policy
) -> None:
    end = AttemptEnd(STILL_RUNNING, check_after=MINUTE)

    step = after_attempt(end, RunProgress(1, 0, since), policy, T0, 0.5)

    assert (step.outcome, step.due_at) == (None if due_at else "failed", due_at)
    assert ("max_duration is 6h" in step.reason) == (due_at is None)


@pytest.mark.parametrize(
    ("started", "retried", "expected"),
    [
        pytest.param(None, None, None, id="not yet"),
        pytest.param(T0 - MINUTE, None, T0 - MINUTE, id="a minute ago"),
        pytest.param(T0 - MINUTE, T0 - SECOND, None, id="a person asked for more since"),
        pytest.param(T0 - SECOND, T0 - MINUTE, T0 - SECOND, id="it began after that"),
        pytest.param(T0 + timedelta(days=365), None, None, id="begun by a clock ahead"),
        pytest.param(
            T0 - SECOND, T0 + timedelta(days=365), T0 - SECOND, id="asked for by a clock ahead"
        ),
        pytest.param(T0 + SECOND, None, T0, id="begun before a step back"),
    ],
)
def test_time_of_a_job_begins_with_the_first_attempt_since_a_person_asked(
    started: datetime | None, retried: datetime | None, expected: datetime | None
) -> None:
    assert running_since(started, retried, T0) == expected


@pytest.mark.parametrize(
    ("key", "text"), [("max_memory", "31MiB"), ("max_memory", "0"), ("max_duration", "0s")]
)
def test_bound_too_small_for_any_attempt_is_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError, match="is less than"):
        declared(Policy)[key].parse(text)


@pytest.mark.parametrize("key", ["isolation", "max_abandoned"])
def test_key_of_an_older_version_is_refused_with_the_cure(key: str) -> None:
    assert describe_unknown_key(key) == (
        f"{key} is not a key of a policy: every attempt has a process of its own now; remove it"
    )


def test_outcomes_of_attempts_keep_their_texts() -> None:
    # Journals hold them.
    assert [str(outcome) for outcome in AttemptOutcome] == [
        "succeeded", "failed", "cancelled", "crashed", "killed", "interrupted", "stopped",
        "still_running",
    ]  # fmt: skip
    assert set(BREAKER_OUTCOMES) == {SUCCEEDED, FAILED, CRASHED, KILLED}


WEEK = timedelta(days=7)


@pytest.mark.parametrize(
    ("named", "due_at"),
    [
        pytest.param({"retry_after": timedelta.max}, T0 + WEEK, id="pause without end"),
        pytest.param({"retry_after": timedelta.min}, T0, id="pause of eternities ago"),
        pytest.param({"retry_after": WEEK}, T0 + WEEK, id="pause of a week"),
        pytest.param({"retry_at": FIRST}, T0, id="first instant"),
        pytest.param({"retry_at": LAST}, T0 + WEEK, id="last instant"),
    ],
)
def test_action_names_no_time_that_nobody_lives_to_see(
    named: dict[str, Any], due_at: datetime
) -> None:
    step = after_attempt(AttemptEnd(FAILED, **named), at_attempt(1), RETRY, T0, 0.5)

    assert step.due_at == due_at


@given(
    outcome=st.sampled_from(AttemptOutcome),
    permanent=st.booleans(),
    has_begun=st.booleans(),
    named=st.none() | st.timedeltas(),
    attempt=st.integers(1, 5),
    interruptions=st.integers(0, 12),
    since=st.none() | st.timedeltas(timedelta(0), timedelta(days=2)).map(lambda age: T0 - age),
    policy=st.sampled_from([RETRY, HOLD, Policy(max_attempts=1)]),
)
def test_run_either_has_an_outcome_or_is_due_and_never_waits_forever(
    outcome: AttemptOutcome,
    permanent: bool,
    has_begun: bool,
    named: timedelta | None,
    attempt: int,
    interruptions: int,
    since: datetime | None,
    policy: Policy,
) -> None:
    end = AttemptEnd(
        outcome, "why", permanent=permanent, retry_after=named, check_after=named,
        has_begun=has_begun,
    )  # fmt: skip
    progress = RunProgress(attempt, interruptions, since)

    step = after_attempt(end, progress, policy, T0, 0.5)

    assert step.reason
    assert "None" not in step.reason
    assert (step.outcome is None) == (step.due_at is not None)
    if step.due_at is not None:
        assert T0 <= step.due_at <= T0 + timedelta(days=7)
        assert attempt < policy.max_attempts or not step.uses_attempt


IDENTITY = ("eu", "686559e8d47da46f", "log_action", T0, "fired", 0)
OTHER = ("us", "0000000000000000", "file_action", T0 + timedelta(microseconds=1), "repeat", 1)


def test_key_of_a_run_stays_the_same_for_ever() -> None:
    # Whatever an action called has stored it: this very text must come out of every version.
    assert idempotency_key(*IDENTITY) == "b8b29ce4f9d24230234d7921c953bc50"
    assert re.fullmatch("[0-9a-f]{32}", idempotency_key(*IDENTITY))


@pytest.mark.parametrize("hours", [-12, -3.5, 0, 5.75, 14])
def test_key_is_that_of_the_instant_however_it_is_written(hours: float) -> None:
    starts_at = T0.astimezone(timezone(timedelta(hours=hours)))
    source, fingerprint, action, _, kind, ordinal = IDENTITY

    assert idempotency_key(
        source, fingerprint, action, starts_at, kind, ordinal
    ) == idempotency_key(*IDENTITY)


def test_every_part_of_the_identity_makes_another_key() -> None:
    identities = itertools.product(*zip(IDENTITY, OTHER, strict=True))

    keys = [idempotency_key(*identity) for identity in identities]

    assert len(set(keys)) == len(keys) == 2**6


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", "b"), ("", "ab")),
        (("", "ab"), ("ab", "")),
        (("a/b", "c"), ("a", "b/c")),
        (("a,b", "c"), ("a", "b,c")),
        (("é", "c"), ("e\u0301", "c")),
        (("a\x1fb", "c"), ("a", "b\x1fc")),
        (('a", "b', "c"), ("a", 'b", "c')),
        (("a\\", "b"), ("a", "\\b")),
    ],
)
def test_parts_of_the_identity_do_not_run_together(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assert idempotency_key(*one, *IDENTITY[2:]) != idempotency_key(*other, *IDENTITY[2:])


EFS = Policy(target_labels=("region", "file_system"))


@pytest.mark.parametrize(
    ("policy", "source", "labels", "target"),
    [
        pytest.param(Policy(), "", {"region": "a"}, "f1", id="the alert itself"),
        pytest.param(Policy(), "eu", {}, "eu/f1", id="the alert of a source"),
        pytest.param(
            EFS, "", {"file_system": "fs-1", "region": "a", "x": "y"}, "region=a,file_system=fs-1",
            id="its labels, in the order of the policy",
        ),
        pytest.param(EFS, "eu", {"file_system": "fs-1"}, "eu/file_system=fs-1", id="some of them"),
        pytest.param(EFS, "eu", {"region": "", "x": "y"}, "eu/f1", id="none of them"),
        pytest.param(
            EFS, "", {"region": "a,file_system=fs-1"}, "region=a\\,file_system\\=fs-1",
            id="one that looks like two",
        ),
        pytest.param(
            EFS, "", {"region": "a\\", "file_system": "b"}, "region=a\\\\,file_system=b",
            id="one that ends in what escapes",
        ),
    ],
)  # fmt: skip
def test_target_is_what_the_policy_says(
    policy: Policy, source: str, labels: dict[str, str], target: str
) -> None:
    assert target_of(policy, source, "f1", labels) == target


TEXTS = st.text(st.sampled_from("ab=,\\"), max_size=8)


@given(st.tuples(TEXTS, TEXTS), st.tuples(TEXTS, TEXTS))
def test_other_labels_make_another_target(one: tuple[str, str], other: tuple[str, str]) -> None:
    def target(texts: tuple[str, str]) -> str:
        return target_of(EFS, "", "f1", dict(zip(EFS.target_labels, texts, strict=True)))

    assert (target(one) == target(other)) == (one == other)


@pytest.mark.parametrize("length", [1, 200, 300, 100_000])
def test_target_stays_short_enough_for_an_index(length: int) -> None:
    labels = {"region": "ü" * length, "file_system": "fs-1"}

    assert len(target_of(EFS, "eu", "f1", labels)) <= 256


def test_rules_give_each_action_its_policy_and_the_others_the_defaults() -> None:
    own = Policy(max_attempts=7, resolved_after=MINUTE)
    rules = Rules(policies={"a": own, "b": own}, resolved_hooks=frozenset({"a", "c"}))

    assert (rules.policy("a"), rules.policy("c"), rules.tolerance) == (own, Policy(), timedelta(0))
    assert [rules.resolved_after(name) for name in "abcd"] == [
        MINUTE, None, timedelta(minutes=5), None,
    ]  # fmt: skip


def test_instant_of_the_next_attempt_is_aware() -> None:
    found = next_attempt_at(T0, 1, Policy(), 0.5)

    assert isinstance(found, datetime)
    assert found.tzinfo is not None
