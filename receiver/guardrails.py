"""Whether a due run may start now, must wait, or is skipped: policy + history + now. Pure.

Delaying is the rule and skipping the exception: a re-fire inside a cooldown must not lose its
action for good. Every verdict says in words why.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from receiver.clock import past
from receiver.declarations import Window
from receiver.durations import format_duration
from receiver.policies import Limits, Policy

# The guardrail of runs whose action no worker has loaded.
UNLOADED = "not loaded"


@dataclass(frozen=True, slots=True)
class History:
    """What happened before, as far as the policy asks for it.

    `target_starts`, `action_starts` and `all_starts` are the starts of runs (not of attempts, not
    of dry runs), the newest first. `ends` are the latest attempts of the action, the newest first:
    when each ended, and whether it failed. `running` counts the runs of the action that hold a
    slot, `running_all` those of all actions. `paused_until`: when the latest pause for a time
    ended, while it is known.
    """

    paused: str | None = None
    target_busy: bool = False
    running: int = 0
    running_all: int = 0
    target_starts: Sequence[datetime] = ()
    action_starts: Sequence[datetime] = ()
    all_starts: Sequence[datetime] = ()
    ends: Sequence[tuple[datetime, bool]] = ()
    paused_until: datetime | None = None

    def as_of(self, now: datetime) -> "History":
        """Return what of it counts now, whatever clock recorded it; see receiver.clock."""
        starts = (*self.target_starts, *self.action_starts, *self.all_starts)
        until = self.paused_until or now
        if until <= now and all(at <= now for at in (*starts, *[end for end, _ in self.ends])):
            return self  # As it is, unless a clock was wrong.
        return replace(
            self,
            target_starts=_as_of(self.target_starts, now),
            action_starts=_as_of(self.action_starts, now),
            all_starts=_as_of(self.all_starts, now),
            ends=[(at, failed) for end, failed in self.ends if (at := past(end, now)) is not None],
            paused_until=past(self.paused_until, now),
        )


def _as_of(starts: Sequence[datetime], now: datetime) -> list[datetime]:
    return [at for start in starts if (at := past(start, now)) is not None]


@dataclass(frozen=True, slots=True)
class Asking:
    """What the verdict needs to know of the run itself.

    `is_retry`: it has started before, and was counted then. `held_since`: when a guardrail first
    delayed it. `needs_approval`: nobody has approved it yet, see the function of this name.
    """

    kind: str = "fired"
    is_retry: bool = False
    held_since: datetime | None = None
    needs_approval: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """`run`, `wait` (for what has no time), `delay` until a time, `ask` a person, or `skip`.

    `guardrail` names the rule that decided, empty for `run`.
    """

    kind: str
    guardrail: str = ""
    reason: str = ""
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Hold:
    guardrail: str
    reason: str
    until: datetime = field(compare=True)


def decide(
    asking: Asking, policy: Policy, limits: Limits, history: History, now: datetime
) -> Verdict:
    """Return whether a due run may start now, and if not, by which rule."""
    if asking.needs_approval:
        return ask(policy, now)
    history = history.as_of(now)
    waits = _wait(policy, limits, history)
    if waits is not None:
        return waits
    holds = [hold for hold in _holds(asking, policy, limits, history, now) if hold.until > now]
    if holds:
        # The one that lasts longest: whoever waits for it has waited for all.
        longest = max(holds, key=lambda hold: hold.until)
        return _limited(longest, asking, policy, history.paused_until, now)
    if history.running and is_open(policy, history.ends):
        reason = "the breaker is half open: one run at a time shows whether the action works again"
        return Verdict("wait", "breaker", reason)
    return Verdict("run")


def ask(policy: Policy, now: datetime) -> Verdict:
    """Return that a run waits for a person, and until when."""
    reason = f"waits for approval, {format_duration(policy.approval_timeout)} at most"
    return Verdict("ask", "approval", reason, now + policy.approval_timeout)


def needs_approval(
    policy: Policy, kind: str, approval: str | None, is_dry_run: bool, was_started: bool
) -> bool:
    """Whether a run must wait for a person, who may have been asked (`approval`) before.

    Who approved an action has approved its repeats (they have its `approval`), and what undoes it
    needs none. A run that was a dry run, or that needed no approval, when it was accepted may need
    one by the time when it is due.
    """
    if policy.approval != "required" or approval == "approved":
        return False
    return not (is_dry_run or was_started or kind == "resolved")


def is_open(policy: Policy, ends: Sequence[tuple[datetime, bool]]) -> bool:
    """Whether the latest attempts of an action failed so often in a row that its breaker opens."""
    if policy.breaker is None:
        return False
    latest = ends[: policy.breaker.failures]
    return len(latest) == policy.breaker.failures and all(failed for _, failed in latest)


def stale_since(policy: Policy, waits_since: datetime, reported_at: datetime) -> datetime:
    """Return since when a run waits for a report of its alert.

    `waits_since` is when it could have started, `reported_at` the latest report, or the time at
    which a person asked for it.
    """
    return max(reported_at + policy.max_staleness, waits_since)


def end_stale_wait(
    policy: Policy, waits_since: datetime, reported_at: datetime, now: datetime
) -> Verdict | None:
    """Return that a run is skipped, whose alert has not been reported for too long; None: not yet.

    A limit would have skipped it by then, too.
    """
    if now - stale_since(policy, waits_since, reported_at) < policy.max_delay:
        return None
    staleness, delay = (format_duration(one) for one in (policy.max_staleness, policy.max_delay))
    reason = (
        f"skipped: its alert was not reported for {staleness} (max_staleness), "
        f"and for {delay} more (max_delay)"
    )
    return Verdict("skip", "max_staleness", reason)


def end_unloaded_wait(
    policy: Policy, action: str, unloaded_since: datetime | None, now: datetime
) -> Verdict | None:
    """Return what becomes of a run whose action no worker has loaded; None: it waits on.

    `unloaded_since` is None at first: then it begins to be delayed.
    """
    reason = f"no worker has loaded the action {action}"
    since = past(unloaded_since, now)
    if since is None:
        return Verdict("delay", UNLOADED, f"delayed: {reason}", now + policy.max_delay)
    if now - since < policy.max_delay:
        return None
    delay = format_duration(policy.max_delay)
    return Verdict("skip", UNLOADED, f"skipped: {reason} for {delay} (max_delay)")


def _wait(policy: Policy, limits: Limits, history: History) -> Verdict | None:
    if history.paused is not None:
        return Verdict("wait", "pause", f"paused: {history.paused}")
    if history.target_busy:
        return Verdict("wait", "target", "another run of the same target is running")
    if history.running >= policy.max_concurrent:
        reason = f"{history.running} runs of the action are running, as many as max_concurrent says"
        return Verdict("wait", "max_concurrent", reason)
    if limits.max_concurrent is not None and history.running_all >= limits.max_concurrent:
        reason = f"{history.running_all} runs are running, as many as [limits] max_concurrent says"
        return Verdict("wait", "limits", reason)
    return None


def _holds(
    asking: Asking, policy: Policy, limits: Limits, history: History, now: datetime
) -> list[_Hold]:
    """Return every limit that speaks against starting, each with the time it lasts."""
    holds: list[_Hold] = []
    if policy.breaker is not None and is_open(policy, history.ends):
        number = policy.breaker.failures
        reason = f"the breaker is open: the last {number} attempts of the action failed"
        holds.append(_Hold("breaker", reason, history.ends[0][0] + policy.breaker.pause))
    # What has started was counted then; what undoes must not be kept from undoing.
    if asking.is_retry or asking.kind == "resolved":
        return holds
    if policy.cooldown is not None and history.target_starts:
        cooldown = format_duration(policy.cooldown)
        reason = f"the action ran for this target less than {cooldown} ago (cooldown)"
        holds.append(_Hold("cooldown", reason, history.target_starts[0] + policy.cooldown))
    for name, windows, starts, whose in (
        ("rate_limit", policy.rate_limit, history.target_starts, "for this target"),
        ("overall_rate_limit", policy.overall_rate_limit, history.action_starts, "of this action"),
        ("limits", limits.rate_limit, history.all_starts, "of all actions"),
    ):
        # Whoever is to be told that remediation failed must not be kept from it by the rest.
        for window in windows if name != "limits" or asking.kind != "escalation" else ():
            free_at = _free_at(window, starts, now)
            if free_at is not None:
                much = f"{window.number} runs in {format_duration(window.period)}"
                reason = f"there were {much} {whose} already ({name})"
                holds.append(_Hold(name, reason, free_at))
    return holds


def _free_at(window: Window, starts: Sequence[datetime], now: datetime) -> datetime | None:
    """Return when a window has room again, None when it has room now."""
    if len(starts) < window.number:
        return None
    # The newest starts come first: room is made when the window's last place falls out of it.
    free_at = starts[window.number - 1] + window.period
    return free_at if free_at > now else None


def _limited(
    hold: _Hold, asking: Asking, policy: Policy, paused_until: datetime | None, now: datetime
) -> Verdict:
    # Were a repeat skipped, none would follow; were an undoing, nothing would be undone.
    may_skip = not asking.is_retry and asking.kind not in ("repeat", "resolved")
    if policy.when_limited == "skip" and may_skip:
        return Verdict("skip", hold.guardrail, f"skipped: {hold.reason}; when_limited is skip")
    since = past(asking.held_since, now) or now
    # While it was paused, no limit delayed it.
    last = (max(since, paused_until) if paused_until else since) + policy.max_delay
    if now >= last:
        delayed = f"it was delayed for {format_duration(policy.max_delay)} (max_delay)"
        return Verdict("skip", hold.guardrail, f"skipped: {hold.reason}, and {delayed}")
    return Verdict("delay", hold.guardrail, f"delayed: {hold.reason}", min(hold.until, last))
