"""Per-action policy: what `[actions.<name>]` and `RECEIVER_ACTION_<NAME>_<KEY>` may say. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from receiver.declarations import Backoff, Breaker, Window, setting

# An action may name the time of its next attempt, but not one that nobody will live to see.
_LONGEST_NAMED = timedelta(days=7)
# So that no label's text can pass for another label.
_ESCAPED = re.compile(r"[\\,=]")
# Indexed, and an index entry has a limit.
_LONGEST_TARGET = 250


@dataclass(frozen=True)
class Policy:
    """How the runs of one action are carried out; the fields are a table of docs/settings.md."""

    timeout: timedelta = setting(
        "timeout", "duration", "60s", "time for one attempt, as `context.deadline`"
    )
    isolation: str = setting(
        "isolation",
        "text",
        "thread",
        "`process` runs it in a process of its own, killed with all it started at the deadline",
        choices=("thread", "process"),
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
        "what becomes of a run whose process died: `retry`, or `hold` it for a person",
        choices=("retry", "hold"),
    )
    max_abandoned: int = setting(
        "max_abandoned",
        "count",
        "3",
        "attempts past their deadline that never returned, at which the worker is replaced",
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
        "max_delay", "duration", "24h", "a run that limits delayed for longer is skipped"
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
        "a run whose alert was not reported for longer waits until it is",
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


def next_attempt_at(
    failed_at: datetime, attempts: int, policy: Policy, jitter: float
) -> datetime | None:
    """Return when to try again, or None when the policy is used up.

    `attempts` counts those already made; `jitter` is a random number in [0, 1). Exponential with
    full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    if attempts >= policy.max_attempts:
        return None
    first, longest = (pause.total_seconds() for pause in policy.backoff)
    # 2**50 times the shortest pause outlasts every `longest`; more would overflow one day.
    ceiling = min(first * 2 ** min(attempts - 1, 50), longest)
    return failed_at + timedelta(seconds=ceiling * jitter)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How one attempt ended.

    `outcome` is `succeeded`, `failed`, `cancelled` (it was asked to stop, and did), `interrupted`
    (its worker died) or `killed` (its own process died, or was killed at the deadline). `result`
    is JSON. `permanent`: trying again cannot help; `retry_at` and `retry_after` are the plugin's
    word on when it may. One that has not `has_begun` is known to have done nothing.
    """

    outcome: str
    error: str | None = None
    result: str | None = None
    permanent: bool = False
    retry_at: datetime | None = None
    retry_after: timedelta | None = None
    has_begun: bool = True


@dataclass(frozen=True, slots=True)
class Next:
    """Where a run stands after an attempt: queued until `due_at`, or finished with an outcome."""

    outcome: str | None
    reason: str
    due_at: datetime | None = None


def after_attempt(
    end: AttemptEnd, attempt: int, policy: Policy, now: datetime, jitter: float
) -> Next:
    """Return where a run stands after its attempt number `attempt`; see next_attempt_at."""
    if end.outcome == "succeeded":
        return Next("succeeded", "the action succeeded")
    if end.outcome == "cancelled":
        return Next("cancelled", end.error or "cancelled")
    if not end.has_begun:
        return Next(None, f"attempt {attempt} was claimed, and had not begun", now)
    interrupted = end.outcome in ("interrupted", "killed")
    if interrupted and policy.on_interrupt == "hold":
        why = end.error or "it was interrupted"
        return Next("unknown", f"{why}; it may have acted, and on_interrupt is hold")
    if end.permanent:
        return Next("failed", "the action said that trying again cannot help")
    due_at = next_attempt_at(now, attempt, policy, jitter)
    if due_at is None:
        return Next("failed", f"attempt {attempt} of {policy.max_attempts} was the last")
    named = end.retry_at
    if named is None and end.retry_after is not None:
        named = now + min(end.retry_after, _LONGEST_NAMED) if end.retry_after.days >= 0 else now
    what = "was interrupted" if interrupted else "failed"
    if named is not None:
        due_at = min(max(named, now), now + _LONGEST_NAMED)
        return Next(None, f"attempt {attempt} {what}; the action named the time", due_at)
    return Next(None, f"attempt {attempt} of {policy.max_attempts} {what}", due_at)


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


def _escape(match: re.Match[str]) -> str:
    return f"\\{match[0]}"


def target_of(policy: Policy, source: str, fingerprint: str, labels: Mapping[str, str]) -> str:
    """Return what a run acts on, as the limits count it: by default the alert itself."""
    named = [
        f"{label}={_ESCAPED.sub(_escape, labels[label])}"
        for label in policy.target_labels
        if labels.get(label)
    ]
    target = ",".join(named)[:_LONGEST_TARGET] if named else fingerprint
    return f"{source}/{target}" if source else target


def idempotency_key(
    source: str, fingerprint: str, action: str, starts_at: datetime, kind: str, ordinal: int
) -> str:
    """Return the key of a run: the same at every attempt, another for every other identity."""
    begun = starts_at.astimezone(UTC).isoformat()
    identity = json.dumps([source, fingerprint, action, begun, kind, ordinal])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
