"""Per-action policy: what `[actions.<name>]` and `RECEIVER_ACTION_<NAME>_<KEY>` may say. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from receiver.clock import past
from receiver.declarations import Backoff, Breaker, Window, declared, nearest, setting
from receiver.durations import format_duration
from receiver.packing import Packed

# An action may name the time of its next attempt, but not one that nobody will live to see.
_LONGEST_NAMED = timedelta(days=7)
# Between two calls of an action whose job is still running; shorter would only burn attempts.
_CHECK_AFTER, _SHORTEST_CHECK = timedelta(seconds=30), timedelta(seconds=1)
# Deaths of workers that a run survives; they use up none of `max_attempts`.
MAX_INTERRUPTIONS = 10
_INTERRUPTIONS_BEFORE_ALONE = 2
_INTERRUPTION_BACKOFF = Backoff(timedelta(seconds=1), timedelta(minutes=5))
# What a run may save for its next attempt: JSON, in bytes of UTF-8.
MAX_STATE_BYTES = 4096


@dataclass(frozen=True)
class Policy:
    """How the runs of one action are carried out; the fields are a table of docs/settings.md."""

    timeout: timedelta = setting(
        "timeout", "duration", "60s", "time for one attempt, as `context.deadline`"
    )
    max_attempts: int = setting(
        "max_attempts", "count", "3", "attempts before the run ends `failed`"
    )
    backoff: Backoff = setting(
        "backoff", "backoff", "1s..5m", "first and longest pause between attempts"
    )
    on_interrupt: str = setting(
        "on_interrupt",
        "text",
        "retry",
        "after an attempt that was cut off: `retry`, or `hold` the run for a person",
        choices=("retry", "hold"),
    )
    max_memory: int = setting(
        "max_memory",
        "size",
        "256MiB",
        "memory that the process of an attempt may use",
        minimum="32MiB",
    )
    max_duration: timedelta = setting(
        "max_duration",
        "duration",
        "6h",
        "time from the first attempt within which a job that runs elsewhere must end",
        minimum="1s",
    )
    max_concurrent: int = setting(
        "max_concurrent", "count", "4", "runs at a time; for one target always 1"
    )
    target_labels: tuple[str, ...] = setting(
        "target_labels", "list", "", "the labels that name what is acted on; none: the alert itself"
    )
    cooldown: timedelta | None = setting(
        "cooldown", "duration", None, "pause between two runs for one target"
    )
    rate_limit: tuple[Window, ...] = setting(
        "rate_limit", "rates", "", "runs for one target: `3/1h, 7/1d`"
    )
    overall_rate_limit: tuple[Window, ...] = setting(
        "overall_rate_limit", "rates", "", "runs of the action for all targets together"
    )
    breaker: Breaker | None = setting(
        "breaker",
        "breaker",
        "5 failures, 10m",
        "after so many failed attempts in a row none for so long, then one at a time; or `none`",
    )
    when_limited: str = setting(
        "when_limited",
        "text",
        "delay",
        "`delay` a run that a limit holds back, or `skip` it",
        choices=("delay", "skip"),
    )
    max_delay: timedelta = setting(
        "max_delay", "duration", "24h", "a run that was delayed for longer is skipped"
    )
    approval: str = setting(
        "approval",
        "text",
        "none",
        "`required`: a run waits until a person approves it",
        choices=("none", "required"),
    )
    approval_timeout: timedelta = setting(
        "approval_timeout", "duration", "1h", "what nobody approved for so long is skipped"
    )
    dry_run: bool = setting(
        "dry_run", "boolean", "false", "only say what the action would do, and record that"
    )
    max_staleness: timedelta = setting(
        "max_staleness",
        "duration",
        "5h",
        "a run whose alert was not reported for longer waits, and is skipped after `max_delay`",
    )
    repeat_after: timedelta | None = setting(
        "repeat_after", "duration", None, "run again while the alert fires, so long after a success"
    )
    max_repeats: int = setting("max_repeats", "count", "10", "repeats of one episode at most")
    verify_after: timedelta | None = setting(
        "verify_after", "duration", None, "look whether the alert resolved, so long after a success"
    )
    escalate_to: str | None = setting(
        "escalate_to", "text", None, "the action to run when this one failed or did not help"
    )
    resolved_after: timedelta = setting(
        "resolved_after", "duration", "5m", "pause before the action's `resolved` hook is called"
    )

    @property
    def longest_windows(self) -> tuple[Window, ...]:
        """Everything the policy looks back on."""
        cooldown = (Window(1, self.cooldown),) if self.cooldown is not None else ()
        return (*cooldown, *self.rate_limit, *self.overall_rate_limit)


_OWN_PROCESS = "every attempt has a process of its own now; remove it"
_REMOVED_KEYS = {"isolation": _OWN_PROCESS, "max_abandoned": _OWN_PROCESS}


def removed_key(words: str) -> str | None:
    """Return the key of an older version with which these words end, None for others."""
    return next((key for key in _REMOVED_KEYS if f"_{words}".endswith(f"_{key}")), None)


def describe_unknown_key(key: str) -> str:
    """Return why a key of a policy is refused, and the cure."""
    cure = f": {_REMOVED_KEYS[key]}" if key in _REMOVED_KEYS else nearest(key, declared(Policy))
    return f"{key} is not a key of a policy{cure}"


def next_attempt_at(
    failed_at: datetime, attempts: int, policy: Policy, jitter: float
) -> datetime | None:
    """Return when to try again, or None when the policy is used up.

    `attempts` counts those already made; `jitter` is a random number in [0, 1). Exponential with
    full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if attempts >= policy.max_attempts:
        return None
    return failed_at + _pause(policy.backoff, attempts, jitter)


def _pause(backoff: Backoff, times: int, jitter: float) -> timedelta:
    first, longest = (pause.total_seconds() for pause in backoff)
    # 2**50 times the shortest pause outlasts every `longest`; more would overflow one day.
    return timedelta(seconds=min(first * 2 ** min(times - 1, 50), longest) * jitter)


class AttemptOutcome(StrEnum):
    """How one attempt ended; the texts are stored."""

    SUCCEEDED = "succeeded"
    # The action raised an error.
    FAILED = "failed"
    # The action was asked to stop, and did.
    CANCELLED = "cancelled"
    # The executor process died by itself, or the worker died while this attempt ran alone.
    CRASHED = "crashed"
    # The executor was killed at the deadline, or because it used too much memory.
    KILLED = "killed"
    # The worker or the machine died. That says nothing about the action.
    INTERRUPTED = "interrupted"
    # A stop in good order cut the attempt off.
    STOPPED = "stopped"
    # The action started a job elsewhere, and asks to be called again later.
    STILL_RUNNING = "still_running"


# The action may have done a part of its work, and nobody knows which.
_CUT_OFF = {
    AttemptOutcome.CRASHED: "crashed",
    AttemptOutcome.KILLED: "was killed",
    AttemptOutcome.INTERRUPTED: "was interrupted",
    AttemptOutcome.STOPPED: "was stopped",
}

# The breaker counts these outcomes. The others say nothing about whether the action works.
BREAKER_OUTCOMES = (
    AttemptOutcome.SUCCEEDED,
    AttemptOutcome.FAILED,
    AttemptOutcome.CRASHED,
    AttemptOutcome.KILLED,
)


@dataclass(frozen=True, slots=True)
class AttemptEnd(Packed):
    """How one attempt ended.

    `result` is JSON. `permanent`: trying again cannot help. `retry_at` and `retry_after` are the
    times that a failed action named, `check_after` the pause that an action named whose job is
    still running. An attempt that has not `has_begun` is known to have done nothing.
    """

    outcome: AttemptOutcome
    error: str | None = None
    result: str | None = None
    permanent: bool = False
    retry_at: datetime | None = None
    retry_after: timedelta | None = None
    has_begun: bool = True
    check_after: timedelta | None = None

    @property
    def is_interruption(self) -> bool:
        """Whether the worker died under an attempt that may have acted."""
        return self.has_begun and self.outcome is AttemptOutcome.INTERRUPTED


@dataclass(frozen=True, slots=True)
class RunProgress:
    """What a run has behind it when an attempt ends.

    `attempt` is the number of the attempt that ended, since a person last asked for a retry and
    without those that used up none. `interruptions` counts the deaths of workers, this one
    included. `running_since` is the time of the first attempt since the last such retry.
    """

    attempt: int
    interruptions: int = 0
    running_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Next:
    """Where a run stands after an attempt: queued until `due_at`, or finished with an outcome.

    `uses_attempt`: whether the attempt counts for `max_attempts`.
    """

    outcome: str | None
    reason: str
    due_at: datetime | None = None
    uses_attempt: bool = True


def runs_alone(interruptions: int) -> bool:
    """Whether the next attempt of a run runs while its worker executes nothing else.

    A run that was under way at two deaths of its worker may be their cause, for example by its
    use of memory. Then the next death proves it, and harms no other attempt.
    """
    return interruptions >= _INTERRUPTIONS_BEFORE_ALONE


def counted_end(end: AttemptEnd, interruptions: int) -> AttemptEnd:
    """Return how an attempt ended, as it counts: the death of a worker may be its own crash.

    `interruptions` counts the deaths before this one. What an attempt was cut off by that had not
    begun is no evidence about its action.
    """
    if end.outcome in _CUT_OFF and not end.has_begun:
        return replace(end, outcome=AttemptOutcome.INTERRUPTED)
    if not (end.is_interruption and runs_alone(interruptions)):
        return end
    error = end.error or "the worker died"
    why = f"the attempt ran alone after {interruptions} deaths of its worker, so it is the cause"
    return replace(end, outcome=AttemptOutcome.CRASHED, error=f"{error}; {why}")


def running_since(
    started_at: datetime | None, retried_at: datetime | None, now: datetime
) -> datetime | None:
    """Return the time of a run's first attempt since a person's last retry, None before it."""
    started, retried = past(started_at, now), past(retried_at, now)
    return None if started is None or (retried is not None and started < retried) else started


def after_attempt(
    end: AttemptEnd, run: RunProgress, policy: Policy, now: datetime, jitter: float
) -> Next:
    """Return where a run stands after an attempt; see next_attempt_at.

    `on_interrupt = "hold"` ends the run `unknown` after every attempt that had begun and did not
    end by itself: its process crashed, it was killed (at its deadline too, because the action may
    have acted before), its worker died, or a stop cut it off. An action that raised an error or
    asked to be called again has reported what it did, so `hold` does not apply.
    """
    if end.outcome is AttemptOutcome.SUCCEEDED:
        return Next("succeeded", "the action succeeded")
    if end.outcome is AttemptOutcome.CANCELLED:
        return Next("cancelled", end.error or "cancelled")
    if not end.has_begun:
        reason = f"attempt {run.attempt} was claimed, and had not begun"
        return Next(None, reason, now, uses_attempt=False)
    if end.outcome is AttemptOutcome.STILL_RUNNING:
        return _check_later(end, run, policy, now)
    cut_off = _CUT_OFF.get(end.outcome)
    if cut_off and policy.on_interrupt == "hold":
        why = end.error or f"attempt {run.attempt} {cut_off}"
        return Next("unknown", f"{why}; it may have acted, and on_interrupt is hold")
    if end.outcome is AttemptOutcome.STOPPED:
        reason = f"attempt {run.attempt} was stopped with its worker, and uses up no attempt"
        return Next(None, reason, now, uses_attempt=False)
    if end.outcome is AttemptOutcome.INTERRUPTED:
        return _resume_later(run, now, jitter)
    return _try_again(end, run, policy, now, jitter)


def _check_later(end: AttemptEnd, run: RunProgress, policy: Policy, now: datetime) -> Next:
    since = past(run.running_since, now) or now
    until = since + policy.max_duration
    if now > until:
        reason = (
            f"the job was still running {format_duration(now - since)} after the first attempt; "
            f"max_duration is {format_duration(policy.max_duration)}"
        )
        return Next("failed", reason)
    named = _CHECK_AFTER if end.check_after is None else end.check_after
    pause = min(max(named, _SHORTEST_CHECK), _LONGEST_NAMED)
    reason = f"the job was still running at attempt {run.attempt}; it is checked again"
    return Next(None, reason, min(now + pause, until), uses_attempt=False)


def _resume_later(run: RunProgress, now: datetime, jitter: float) -> Next:
    if run.interruptions > MAX_INTERRUPTIONS:
        return _interrupted_too_often(run)
    reason = f"the worker died during attempt {run.attempt}, which uses up no attempt"
    if runs_alone(run.interruptions):
        reason += f"; after {run.interruptions} such deaths the next attempt runs alone"
    due_at = now + _pause(_INTERRUPTION_BACKOFF, max(run.interruptions, 1), jitter)
    return Next(None, reason, due_at, uses_attempt=False)


def _interrupted_too_often(run: RunProgress) -> Next:
    reason = f"the worker died {run.interruptions} times while the run was under way"
    return Next("unknown", f"{reason}; it may have acted")


def _try_again(
    end: AttemptEnd, run: RunProgress, policy: Policy, now: datetime, jitter: float
) -> Next:
    if end.permanent:
        return Next("failed", "the action said that trying again cannot help")
    due_at = next_attempt_at(now, run.attempt, policy, jitter)
    if due_at is None:
        return Next("failed", f"attempt {run.attempt} of {policy.max_attempts} was the last")
    if run.interruptions > MAX_INTERRUPTIONS:
        return _interrupted_too_often(run)
    what = _CUT_OFF.get(end.outcome, "failed")
    named = end.retry_at
    if named is None and end.retry_after is not None:
        named = now + min(end.retry_after, _LONGEST_NAMED) if end.retry_after.days >= 0 else now
    if named is not None:
        due_at = min(max(named, now), now + _LONGEST_NAMED)
        return Next(None, f"attempt {run.attempt} {what}; the action named the time", due_at)
    return Next(None, f"attempt {run.attempt} of {policy.max_attempts} {what}", due_at)


@dataclass(frozen=True)
class Limits:
    """What bounds all actions together: the blast radius."""

    rate_limit: tuple[Window, ...] = ()
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Rules:
    """What the journal must know of settings and plugins to decide what becomes of a run."""

    tolerance: timedelta = timedelta(0)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    resolved_hooks: frozenset[str] = frozenset()
    limits: Limits = Limits()
    dry_run: bool = False
    grafana_value: str = ""

    def is_dry_run(self, action: str, annotations: Mapping[str, str]) -> bool:
        """Whether a run must only say what it would do: globally, its action, or its alert."""
        asked = annotations.get("action_dry_run", "").strip().lower() == "true"
        return asked or self.dry_run or self.policy(action).dry_run

    def policy(self, action: str) -> Policy:
        """Return the policy of an action, the defaults where nothing is set."""
        return self.policies.get(action, _DEFAULT)

    def resolved_after(self, action: str) -> timedelta | None:
        """Return when its `resolved` hook is due after the fact, None when it has none."""
        return self.policy(action).resolved_after if action in self.resolved_hooks else None


_DEFAULT = Policy()
