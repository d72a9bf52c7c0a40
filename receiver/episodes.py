"""What becomes of the runs of an episode: when it closes, fires again, or a run ends. Pure.

`receiver.identity` decides which alerts belong to an episode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from receiver.clock import past
from receiver.identity import Episode
from receiver.policies import Policy


@dataclass(frozen=True, slots=True)
class EpisodeRun:
    """What the decisions below need to know of one run of an episode."""

    id: int
    kind: str
    ordinal: int
    state: str
    outcome: str | None
    attempts: int
    cancelled_by: str | None
    dry_run: bool
    started_at: datetime | None = None
    retried_at: datetime | None = None

    @property
    def has_begun(self) -> bool:
        """Whether its action may have run.

        An attempt that had not begun leaves no `started_at`; the attempts before a person's retry
        count as begun.
        """
        return self.started_at is not None or (self.attempts > 0 and self.retried_at is not None)


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a run that waits; `by` decides whether it can be put back."""

    run_id: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True)
class PutBack:
    """Let a cancelled run wait again; at its old due time unless another is given."""

    run_id: int
    reason: str
    due_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Create:
    """Create a run about the same alert as the run `like`.

    `due_at` None: at once. `action` None: the same. `cancelled_by`: it is born cancelled, to be
    put back if the alert fires again.
    """

    like: int
    kind: str
    ordinal: int
    reason: str
    due_at: datetime | None = None
    action: str | None = None
    cancelled_by: str | None = None


@dataclass(frozen=True, slots=True)
class Postpone:
    """Give a run that waits, or that would be put back, another due time."""

    run_id: int
    due_at: datetime


Change = Cancel | PutBack | Create | Postpone

WAITING = ("queued", "awaiting_approval")
ESCALATED = ("failed", "unknown", "ineffective", "skipped")


def when_closed(
    runs: Sequence[EpisodeRun],
    row: Episode,
    resolved_after: timedelta | None,
    now: datetime,
) -> list[Change]:
    """Return what the end of an episode means for its runs.

    `resolved_after` is None when the action has no `resolved` hook.
    """
    changes: list[Change] = [
        Cancel(
            run.id,
            "resolved",
            "the alert resolved before the run started"
            if run.attempts == 0
            else "the alert resolved while the run waited for a retry",
        )
        for run in runs
        if run.state in WAITING and run.kind != "resolved"
    ]
    follow_up = when_settled(runs, row, resolved_after, now)
    return changes + ([follow_up] if follow_up else [])


def when_settled(
    runs: Sequence[EpisodeRun],
    row: Episode,
    resolved_after: timedelta | None,
    now: datetime,
) -> Change | None:
    """Return the `resolved` run that is owed once an episode is closed and its run succeeded.

    Called whenever one of the two has come true, so that whichever is second creates it.
    """
    if resolved_after is None or row.is_open:
        return None
    succeeded = [
        run
        for run in runs
        if run.kind == "fired"
        and run.ordinal == row.round
        and run.outcome == "succeeded"
        and not run.dry_run  # What did nothing has nothing to undo.
    ]
    if not succeeded:
        return None
    due_at = now + resolved_after
    for run in runs:
        if run.kind == "resolved" and run.ordinal == row.round:
            if run.cancelled_by == "fired again":
                return PutBack(run.id, "the alert resolved again", due_at)
            return None
    reason = "the alert resolved after the action succeeded"
    return Create(succeeded[0].id, "resolved", row.round, reason, due_at)


def when_put_back(runs: Sequence[EpisodeRun], row: Episode) -> tuple[Episode, list[Change]]:
    """Return what it means that a closed episode fires again, and the row with its round.

    Exactly the runs that a resolved cancelled wait again. A `resolved` run that has not begun is
    cancelled; when it had begun, the action must run anew.
    """
    changes: list[Change] = []
    begun: EpisodeRun | None = None
    for run in runs:
        if run.kind != "resolved":
            if run.cancelled_by == "resolved":
                changes.append(PutBack(run.id, "the alert fires again: the resolved was false"))
        elif run.ordinal == row.round:
            begun = run if run.has_begun else begun
            if run.state in WAITING:
                changes.append(Cancel(run.id, "fired again", "the alert fires again"))
    if begun is None:
        return row, changes
    reason = "the alert fires again after its resolved run"
    changes.append(Create(begun.id, "fired", row.round + 1, reason))
    return replace(row, round=row.round + 1), changes


def when_retried(
    kind: str, row: Episode | None, now: datetime, retried_at: datetime | None = None
) -> tuple[str, str] | None:
    """Return by what a run that is to wait again is cancelled, and why; None: it waits.

    It waits for a retry, or for the next look at the job that it has started elsewhere.

    What happened to its episode meanwhile means the same as if the run had waited all along; `row`
    is None when a newer episode has its place. What a person asked for (`retried_at`) after the
    episode had closed is tried again all the same.
    """
    if row is None:
        if kind in ("resolved", "repeat"):
            return "new episode", "a new episode of the alert began while the run was under way"
    elif row.is_open:
        if kind == "resolved":
            return "fired again", "the alert fires again"
    elif kind != "resolved" and not _is_retried_since(row, retried_at, now):
        return "resolved", "the alert resolved while the run waited for a retry"
    return None


def _is_retried_since(row: Episode, retried_at: datetime | None, now: datetime) -> bool:
    """Whether a person asked for the run after its episode had closed."""
    if retried_at is None:
        return False
    # A clock that was ahead closed it; the retry is what a person asked for since.
    closed_at = past(row.closed_at, now)
    return closed_at is None or retried_at >= closed_at


def when_finished(
    run: EpisodeRun,
    runs: Sequence[EpisodeRun],
    row: Episode | None,
    policy: Policy,
    resolved_after: timedelta | None,
    now: datetime,
) -> list[Change]:
    """Return what a finished run brings about: a repeat, the `resolved` run, an escalation.

    `runs` are all of its episode, this one included; `row` is None when that episode is not the
    latest any more.
    """
    changes: list[Change] = []
    if run.outcome == "succeeded" and run.kind in ("fired", "repeat") and row is not None:
        changes += _next_repeat(run, runs, row, policy, now)
        follow_up = when_settled(runs, row, resolved_after, now)
        changes += [follow_up] if follow_up else []
    return changes + escalation(run, run.outcome or "", policy)


def _next_repeat(
    run: EpisodeRun, runs: Sequence[EpisodeRun], row: Episode, policy: Policy, now: datetime
) -> list[Change]:
    """Return the repeat that a success brings about: one at a time, so long after this success."""
    if policy.repeat_after is None:
        return []
    due_at = now + policy.repeat_after
    repeats = [one for one in runs if one.kind == "repeat"]
    # After a false resolved the action ran anew while the repeat of an earlier success waits.
    waiting = [one for one in repeats if one.state in WAITING or one.cancelled_by == "resolved"]
    if waiting:
        return [Postpone(one.id, due_at) for one in waiting]
    ordinal = max((one.ordinal for one in repeats), default=0) + 1
    if ordinal > policy.max_repeats:
        return []
    reason = f"the alert still fires; repeat {ordinal} of at most {policy.max_repeats}"
    cancelled_by = None if row.is_open else "resolved"
    return [Create(run.id, "repeat", ordinal, reason, due_at, cancelled_by=cancelled_by)]


def escalation(run: EpisodeRun, ending: str, policy: Policy) -> list[Change]:
    """Return the run of `escalate_to` that a run's ending calls for, if any."""
    if policy.escalate_to is None or ending not in ESCALATED:
        return []
    reason = f"escalated: run {run.id} ended {ending}"
    return [Create(run.id, "escalation", 0, reason, action=policy.escalate_to)]


def effect_of(
    row: Episode | None, finished_at: datetime, route_resolves: bool
) -> tuple[str, timedelta | None]:
    """Return what a run did to its alert, and how long that took.

    `row` is None when the run's episode is not the latest any more; `route_resolves` says whether
    the alert's route ever sent a resolved: without one, silence means nothing.
    """
    if row is None:
        return "unverified", None
    if row.closed_at is not None:
        return "effective", max(timedelta(0), row.closed_at - finished_at)
    return ("ineffective" if route_resolves else "unverified"), None
