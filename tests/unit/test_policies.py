"""What becomes of a run after an attempt, when it is tried again, and its key."""

import itertools
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.declarations import Backoff, declared
from receiver.policies import (
    AttemptEnd,
    AttemptOutcome,
    Next,
    Policy,
    Rules,
    after_attempt,
    idempotency_key,
    next_attempt_at,
    target_of,
)
from tests.support.notifications import T0

# The table of DESIGN section 5, as it is written there.
DEFAULTS: Mapping[str, str] = {
    "timeout": "60s",
    "isolation": "thread",
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


@pytest.mark.parametrize(
    ("end", "attempt", "policy", "expected"),
    [
        pytest.param(
            AttemptEnd(AttemptOutcome.SUCCEEDED, result='"ok"'), 3, RETRY,
            Next("succeeded", "the action succeeded"), id="success at the last attempt",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.CANCELLED, error="the alert resolved"), 1, RETRY,
            Next("cancelled", "the alert resolved"), id="asked to stop",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.CANCELLED), 1, RETRY, Next("cancelled", "cancelled"),
            id="asked to stop without a reason",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="boom"), 1, RETRY,
            Next(None, "attempt 1 of 3 failed", T0 + timedelta(seconds=0.5)), id="first failure",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="boom"), 2, RETRY,
            Next(None, "attempt 2 of 3 failed", T0 + timedelta(seconds=1)), id="second failure",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="boom"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="last failure",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="boom"), 7, RETRY,
            Next("failed", "attempt 7 of 3 was the last"), id="policy was shortened meanwhile",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="no", permanent=True), 1, RETRY,
            Next("failed", "the action said that trying again cannot help"), id="permanent",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_at=LATER), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", LATER), id="names an instant",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_after=MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0 + MINUTE),
            id="names a pause",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_after=timedelta(0)), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="names no pause",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_at=T0 - MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="names the past",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_after=-MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", T0), id="negative pause",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_at=LATER, retry_after=MINUTE), 1, RETRY,
            Next(None, "attempt 1 failed; the action named the time", LATER), id="names both",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, retry_at=LATER), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="names a time at the last attempt",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.INTERRUPTED, error="its process died"), 1, RETRY,
            Next(None, "attempt 1 of 3 was interrupted", T0 + timedelta(seconds=0.5)),
            id="interrupted, safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.INTERRUPTED, error="its process died"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="interrupted at the last attempt",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.INTERRUPTED, error="its process died"), 1, HOLD,
            Next("unknown", "its process died; it may have acted, and on_interrupt is hold"),
            id="interrupted, not safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.INTERRUPTED, error="its process died"), 3, HOLD,
            Next("unknown", "its process died; it may have acted, and on_interrupt is hold"),
            id="interrupted at the last attempt, not safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.INTERRUPTED), 1, HOLD,
            Next("unknown", "it was interrupted; it may have acted, and on_interrupt is hold"),
            id="interrupted without a word, not safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.KILLED, error="its time was up"), 2, RETRY,
            Next(None, "attempt 2 of 3 was interrupted", T0 + timedelta(seconds=1)),
            id="killed, safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.KILLED, error="its time was up"), 3, RETRY,
            Next("failed", "attempt 3 of 3 was the last"), id="killed at the last attempt",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.KILLED, error="its time was up"), 1, HOLD,
            Next("unknown", "its time was up; it may have acted, and on_interrupt is hold"),
            id="killed, not safe to repeat",
        ),
        pytest.param(
            AttemptEnd(AttemptOutcome.FAILED, error="boom"), 1, HOLD,
            Next(None, "attempt 1 of 3 failed", T0 + timedelta(seconds=0.5)),
            id="a failure is no interruption",
        ),
    ],
)  # fmt: skip
def test_where_a_run_stands_after_an_attempt(
    end: AttemptEnd, attempt: int, policy: Policy, expected: Next
) -> None:
    assert after_attempt(end, attempt, policy, T0, 0.5) == expected


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
    assert (
        after_attempt(AttemptEnd(AttemptOutcome.FAILED, **named), 1, RETRY, T0, 0.5).due_at
        == due_at
    )


@given(
    outcome=st.sampled_from(["succeeded", "failed", "cancelled", "interrupted", "killed"]),
    permanent=st.booleans(),
    retry_after=st.none() | st.timedeltas(),
    attempt=st.integers(1, 5),
    policy=st.sampled_from([RETRY, HOLD, Policy(max_attempts=1)]),
)
def test_run_either_has_an_outcome_or_is_due_and_never_waits_forever(
    outcome: str, permanent: bool, retry_after: timedelta | None, attempt: int, policy: Policy
) -> None:
    end = AttemptEnd(outcome, "why", permanent=permanent, retry_after=retry_after)

    step = after_attempt(end, attempt, policy, T0, 0.5)

    assert step.reason
    assert "None" not in step.reason
    assert (step.outcome is None) == (step.due_at is not None)
    if step.due_at is not None:
        assert step.due_at >= T0
        assert attempt < policy.max_attempts


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


def test_attempt_that_had_not_begun_is_made_again_whatever_the_policy() -> None:
    policy = Policy(max_attempts=1, on_interrupt="hold")
    end = AttemptEnd(
        AttemptOutcome.INTERRUPTED, error="its process was ended by SIGKILL", has_begun=False
    )
    step = after_attempt(end, 1, policy, T0, 0.5)
    assert (step.outcome, step.due_at) == (None, T0)
    assert step.reason == "attempt 1 was claimed, and had not begun"
