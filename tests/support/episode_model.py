"""What the journal must do, a second time: DESIGN sections 4 and 5 as plain rules on dictionaries.

No SQL, no batches, no statements saved: slow and obvious. `tests/journal/test_machine.py` plays the
same story to this and to the real journal, and compares. It shares with the code under test only
the data that describe an action's policy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from receiver.policies import Policy, Rules

AT_ONCE = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE, FIVE_MINUTES = timedelta(minutes=1), timedelta(minutes=5)
# A deliberate choice of the code: what is reported every second is noted once a minute.
NOTED_EVERY = timedelta(minutes=1)
# How much of the whole pause is waited: the part of the random generator.
JITTER = 0.5
WAITING = ("queued", "awaiting_approval")
CUT_OFF = ("crashed", "killed", "interrupted", "stopped")

Identity = tuple[str, str, datetime, str, int]


@dataclass
class Row:
    """The latest episode of one (fingerprint, action)."""

    starts_at: datetime
    mark_at: datetime
    seen_at: datetime
    receiver: str
    closed_at: datetime | None = None
    ends_at: datetime = AT_ONCE
    round: int = 0
    # How a peer names the episode whose clock is ahead; the row's own startsAt: no peer can.
    ahead_starts_at: datetime | None = None


@dataclass(eq=False)
class Run:
    """One run; `attempts` holds by number how each ended, None while it is under way."""

    fingerprint: str
    action: str
    starts_at: datetime
    kind: str
    ordinal: int
    episode_action: str
    due_at: datetime
    created_at: datetime
    state: str = "queued"
    outcome: str | None = None
    cancelled_by: str | None = None
    attempts: dict[int, str | None] = field(default_factory=dict)
    made: int = 0
    # When each attempt began, and which of them limits count.
    begun_at: dict[int, datetime] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)
    is_counted: bool = False
    running_since: datetime | None = None
    interruptions: int = 0
    saved_state: str | None = None
    owner: str | None = None
    approval: str | None = None
    expires_at: datetime | None = None
    forgiven: int = 0
    retried_at: datetime | None = None
    must_stop: bool = False
    finished_at: datetime | None = None
    verify_at: datetime | None = None
    effect: str | None = None
    effect_seconds: int | None = None

    @property
    def row_key(self) -> tuple[str, str]:
        """The row of its episode."""
        return (self.fingerprint, self.episode_action)

    @property
    def identity(self) -> Identity:
        """What is unique."""
        return (self.fingerprint, self.action, self.starts_at, self.kind, self.ordinal)


class Model:
    """Rows, runs, and what happens to them; the caller sets `now`."""

    def __init__(self, rules: Rules, now: datetime) -> None:
        self.rules = rules
        self.now = now
        self.rows: dict[tuple[str, str], Row] = {}
        self.runs: dict[Identity, Run] = {}
        # Of each, when it last sent a resolved alert, as far as that is written.
        self.receivers_that_resolve: dict[str, datetime] = {}

    # What Alertmanager says.

    def fire(self, fingerprint: str, action: str, starts_at: datetime, receiver: str) -> bool:
        """Tell that an alert fires; return whether that is a new episode."""
        row = self.rows.get((fingerprint, action))
        how = "new" if row is None else self._belongs(row, starts_at)
        if how == "new" and (fingerprint, action, starts_at, "fired", 0) in self.runs:
            how = "known"
        if row is None or how == "new":
            for run in self.runs.values():
                if (run.fingerprint, run.episode_action) == (fingerprint, action):
                    if run.kind in ("resolved", "repeat"):
                        self._cancel(run, "new episode")
            row = Row(starts_at, min(starts_at, self.now), self.now, receiver)
            if not self.now - FIVE_MINUTES <= starts_at <= self.now + MINUTE:
                row.ahead_starts_at = starts_at
            self.rows[fingerprint, action] = row
            self._add(fingerprint, action, starts_at, "fired", 0, action, AT_ONCE)
            return True
        noted_every = NOTED_EVERY if row.starts_at <= row.seen_at else timedelta(0)
        if how == "beyond":
            row.mark_at = max(row.mark_at, min(starts_at, self.now + MINUTE))
        elif how == "peer":
            row.ahead_starts_at = starts_at
        is_moved = how in ("beyond", "peer")
        if row.closed_at is not None or is_moved or self.now - row.seen_at >= noted_every:
            row.seen_at, row.receiver = self.now, receiver
        if row.closed_at is not None:
            row.closed_at = None
            self._put_back(fingerprint, action, row)
        return False

    def _belongs(self, row: Row, starts_at: datetime) -> str:
        """Say how a startsAt belongs to the episode of a row; the clock here never jumps."""
        is_open = row.closed_at is None
        watermark = max(row.mark_at, min(row.starts_at, row.seen_at))
        is_future = starts_at > self.now + MINUTE
        if starts_at in (row.starts_at, row.ahead_starts_at) or starts_at <= watermark:
            return "same"
        if is_future and timedelta(0) <= row.starts_at - starts_at <= FIVE_MINUTES:
            return "same"
        if is_open and starts_at <= watermark + self.rules.tolerance:
            return "beyond"
        is_before_end = row.closed_at is None or starts_at < min(row.closed_at, row.ends_at)
        if is_before_end and starts_at <= min(row.starts_at, watermark + FIVE_MINUTES):
            return "beyond"
        is_far = starts_at > self.now + FIVE_MINUTES
        if is_open and is_far and row.ahead_starts_at is None:
            return "peer"
        return "new"

    def _put_back(self, fingerprint: str, action: str, row: Row) -> None:
        has_begun = False
        for run in list(self._of_episode(fingerprint, action, row)):
            if run.kind != "resolved":
                if run.cancelled_by == "resolved":
                    self._wait_again(run)
            elif run.ordinal == row.round:
                was_retried = run.made > 0 and run.retried_at is not None
                has_begun = run.running_since is not None or was_retried
                self._cancel(run, "fired again")
        if has_begun:
            row.round += 1
            self._add(fingerprint, action, row.starts_at, "fired", row.round, action, AT_ONCE)

    def resolve(self, fingerprint: str, ends_at: datetime | None, receiver: str) -> None:
        """Tell that an alert is resolved, whatever the route."""
        last = self.receivers_that_resolve.get(receiver)
        if last is None or self.now >= last + timedelta(days=1):
            self.receivers_that_resolve[receiver] = self.now
        for (of_alert, action), row in self.rows.items():
            is_later = ends_at is None or ends_at > min(row.starts_at, row.mark_at)
            if of_alert == fingerprint and row.closed_at is None and is_later:
                row.closed_at, row.ends_at = self.now, ends_at or self.now
                # Of this episode only: what waits of an older one runs, as the code reads DESIGN.
                for run in self._of_episode(fingerprint, action, row):
                    if run.kind != "resolved":
                        self._cancel(run, "resolved")
                self._follow_resolved(fingerprint, action, row)

    def _follow_resolved(self, fingerprint: str, action: str, row: Row) -> None:
        """See to the `resolved` run, once the episode is closed and its run has succeeded."""
        fired = self.runs.get((fingerprint, action, row.starts_at, "fired", row.round))
        if (
            action not in self.rules.resolved_hooks
            or row.closed_at is None
            or fired is None
            or fired.outcome != "succeeded"
        ):
            return
        due_at = self.now + self.rules.policy(action).resolved_after
        there = self.runs.get((fingerprint, action, row.starts_at, "resolved", row.round))
        if there is None:
            fired = self.runs[fingerprint, action, row.starts_at, "fired", row.round]
            self._add(fingerprint, action, row.starts_at, "resolved", row.round, action, due_at,
                      fired.approval)  # fmt: skip
        elif there.cancelled_by == "fired again":
            self._wait_again(there)
            there.due_at = due_at

    # What workers do.

    def why_not_now(self, run: Run) -> str:
        """Return what keeps a run from being claimed, empty when nothing does."""
        policy = self.rules.policy(run.action)
        row = self.rows.get((run.fingerprint, run.episode_action))
        running = [one for one in self.runs.values()
                   if one.state == "running" and one.action == run.action]  # fmt: skip
        if run.state != "queued":
            return f"it is {run.state}"
        if run.due_at > self.now:
            return f"it is due at {run.due_at}"
        if any(one.fingerprint == run.fingerprint for one in running):
            return "another run of its row runs"
        if len(running) >= policy.max_concurrent:
            return "as many run as may"
        reported_at = max(row.seen_at, run.retried_at or row.seen_at) if row else self.now
        if run.kind != "resolved" and self.now - reported_at > policy.max_staleness:
            return "its alert was not reported for long"
        return ""

    def claim(self, run: Run, owner: str) -> None:
        """Begin an attempt."""
        run.state, run.owner = "running", owner
        run.made += 1
        run.attempts[run.made] = None
        run.begun_at[run.made] = self.now
        if not run.is_counted:
            run.counted.add(run.made)
            run.is_counted = True
        if run.running_since is None:
            run.running_since = self.now

    def must_run_alone(self, run: Run) -> bool:
        """Return whether two workers died during attempts of the run."""
        return run.interruptions >= 2

    def save(self, run: Run, state: str) -> None:
        """Keep what an attempt saves."""
        run.saved_state = state

    def end(
        self,
        run: Run,
        how: str,
        named_at: datetime | None = None,
        check_after: timedelta = timedelta(seconds=30),
    ) -> None:
        """End an attempt.

        `how` is an outcome of an attempt, `permanent` (a failure), or `not begun`: it was
        interrupted, but is known to have done nothing.
        """
        policy = self.rules.policy(run.action)
        if how == "interrupted":
            # After two deaths it ran alone, so the third is its own crash.
            how = "crashed" if self.must_run_alone(run) else "interrupted"
            run.interruptions += 1
        run.attempts[run.made] = {"permanent": "failed", "not begun": "interrupted"}.get(how, how)
        if how == "still_running":
            for number, outcome in list(run.attempts.items()):
                if outcome == how and number < run.made and number not in run.counted:
                    del run.attempts[number]
        run.owner = None
        used = run.made - run.forgiven
        if how == "not begun" and run.running_since == run.begun_at[run.made]:
            run.running_since = None
        if how == "succeeded":
            self._finish(run, "succeeded")
        elif how == "cancelled" or run.must_stop:
            self._finish(run, "cancelled", by="person")
        elif how == "not begun":
            self._wait_for_free(run, self.now)
        elif how == "still_running":
            assert run.running_since is not None
            until = run.running_since + policy.max_duration
            if self.now > until:
                self._finish(run, "failed")
            else:
                self._wait_for_free(run, min(self.now + check_after, until))
        elif how in CUT_OFF and policy.on_interrupt == "hold":
            self._finish(run, "unknown")
        elif how == "stopped":
            self._wait_for_free(run, self.now)
        elif how == "interrupted":
            pause = min(timedelta(seconds=2 ** (run.interruptions - 1)), FIVE_MINUTES)
            if run.interruptions > 10:
                self._finish(run, "unknown")
            else:
                self._wait_for_free(run, self.now + pause * JITTER)
        elif how == "permanent" or used >= policy.max_attempts:
            self._finish(run, "failed")
        elif run.interruptions > 10:
            self._finish(run, "unknown")
        else:
            run.state = "queued"
            first, longest = policy.backoff
            pause = min(first * 2 ** (used - 1), longest) * JITTER
            run.due_at = max(named_at, self.now) if named_at else self.now + pause
            self._drop_unless_wanted(run)

    def _wait_for_free(self, run: Run, due_at: datetime) -> None:
        """Queue a run again whose attempt used up none of `max_attempts`."""
        run.state, run.due_at = "queued", due_at
        run.forgiven += 1
        self._drop_unless_wanted(run)

    def _drop_unless_wanted(self, run: Run) -> None:
        """Cancel a run that waits for a retry when that is not wanted any more."""
        row = self._row_of(run)
        if row is None:
            if run.kind in ("resolved", "repeat"):
                self._cancel(run, "new episode")
        elif row.closed_at is None:
            if run.kind == "resolved":
                self._cancel(run, "fired again")
        elif run.kind != "resolved" and not (run.retried_at and run.retried_at >= row.closed_at):
            self._cancel(run, "resolved")

    def _finish(self, run: Run, outcome: str, by: str | None = None) -> None:
        policy = self.rules.policy(run.action)
        run.state, run.outcome, run.cancelled_by = "finished", outcome, by
        run.finished_at = self.now
        if outcome == "succeeded" and run.kind in ("fired", "repeat"):
            if policy.verify_after is not None:
                run.verify_at = self.now + policy.verify_after
            row = self._row_of(run)
            if row is not None:
                self._repeat(run, row, policy)
                self._follow_resolved(run.fingerprint, run.action, row)
        self._escalate(run, outcome)

    def _repeat(self, run: Run, row: Row, policy: Policy) -> None:
        """See to one next repeat, `repeat_after` after this success."""
        if policy.repeat_after is None:
            return
        due_at = self.now + policy.repeat_after
        repeats = [one for one in self._of_episode(run.fingerprint, run.action, row)
                   if one.kind == "repeat"]  # fmt: skip
        waiting = [one for one in repeats
                   if one.state == "queued" or one.cancelled_by == "resolved"]  # fmt: skip
        for one in waiting:
            one.due_at = due_at
        ordinal = max((one.ordinal for one in repeats), default=0) + 1
        if not waiting and ordinal <= policy.max_repeats:
            to = run.action
            self._add(run.fingerprint, to, run.starts_at, "repeat", ordinal, to, due_at,
                      run.approval)  # fmt: skip
            if row.closed_at is not None:
                # Put back, should the same episode fire again.
                new = self.runs[run.fingerprint, to, run.starts_at, "repeat", ordinal]
                self._cancel(new, "resolved")

    def _escalate(self, run: Run, ending: str) -> None:
        """Run another action, once per episode, also when that is closed by now."""
        to = self.rules.policy(run.action).escalate_to
        if to is not None and ending in ("failed", "unknown", "ineffective", "skipped"):
            if (run.fingerprint, to, run.starts_at, "escalation", 0) not in self.runs:
                self._add(run.fingerprint, to, run.starts_at, "escalation", 0,
                          run.episode_action, AT_ONCE)  # fmt: skip

    def verify(self) -> dict[Identity, str]:
        """Look what runs did to their alerts, where that is due."""
        seen = {}
        # In the order of the rows: the first of several to escalate is the one that does.
        for run in sorted(self.runs.values(), key=lambda one: one.row_key):
            if run.verify_at is None or run.verify_at > self.now:
                continue
            assert run.finished_at is not None
            row = self._row_of(run)
            run.effect, run.verify_at = "unverified", None
            if row is not None and row.closed_at is not None:
                took = max(timedelta(0), row.closed_at - run.finished_at)
                run.effect, run.effect_seconds = "effective", round(took.total_seconds())
            elif row is not None and row.receiver in self.receivers_that_resolve:
                run.effect = "ineffective"
            self._escalate(run, run.effect)
            seen[run.identity] = run.effect
        return seen

    # What people and time do.

    def cancel(self, run: Run) -> None:
        """Cancel a run for a person: at once while it waits, else when its attempt ends."""
        if run.state == "running":
            run.must_stop = True
        self._cancel(run, "person")

    def retry(self, run: Run) -> None:
        """Let a run run again for a person, with all its attempts."""
        self._wait_again(run)
        run.state, run.due_at, run.forgiven = "queued", AT_ONCE, run.made
        run.must_stop, run.approval, run.retried_at = False, "approved", self.now
        run.interruptions, run.is_counted = 0, False
        if run.running_since is not None and run.running_since < self.now:
            run.running_since = None

    def approve(self, run: Run) -> None:
        """Let a run that waits for a person run."""
        run.state, run.approval = "queued", "approved"

    def expire(self) -> list[Identity]:
        """Skip what nobody approved in time."""
        late = [run for run in self.runs.values()
                if run.state == "awaiting_approval" and run.expires_at <= self.now]  # fmt: skip
        for run in late:
            self._finish(run, "skipped")
        return [run.identity for run in late]

    def forget(self, retention: timedelta) -> None:
        """Delete what has been finished for long, and then rows that nothing is left of."""
        before = self.now - retention
        for identity, run in list(self.runs.items()):
            row = self._row_of(run)
            is_firing = row is not None and row.closed_at is None and row.seen_at >= before
            is_old = run.finished_at is not None and run.finished_at < before
            is_verified = run.verify_at is None or run.verify_at < before
            if is_old and not is_firing and is_verified:
                del self.runs[identity]
        for receiver, at in list(self.receivers_that_resolve.items()):
            if at < before:
                del self.receivers_that_resolve[receiver]
        left = {(run.fingerprint, run.episode_action) for run in self.runs.values()}
        for key, row in list(self.rows.items()):
            if row.seen_at < before and key not in left:
                del self.rows[key]

    # What they have in common.

    def _row_of(self, run: Run) -> Row | None:
        """Return the row of a run, None when a newer episode has its place."""
        row = self.rows.get((run.fingerprint, run.episode_action))
        return row if row is not None and row.starts_at == run.starts_at else None

    def _of_episode(self, fingerprint: str, action: str, row: Row) -> Iterator[Run]:
        for run in self.runs.values():
            if (run.fingerprint, run.episode_action) == (fingerprint, action):
                if run.starts_at == row.starts_at:
                    yield run

    def _add(self, fingerprint: str, action: str, starts_at: datetime, kind: str, ordinal: int,
             episode_action: str, due_at: datetime,
             approval: str | None = None) -> None:  # fmt: skip
        run = Run(fingerprint, action, starts_at, kind, ordinal, episode_action, due_at, self.now)
        run.approval = approval
        # Who approved an action has approved its repeats, and what undoes it.
        if self.rules.policy(action).approval == "required" and kind in ("fired", "escalation"):
            run.approval = "required"
        assert run.identity not in self.runs
        self.runs[run.identity] = run
        self._wait_again(run)

    def _cancel(self, run: Run, by: str) -> None:
        if run.state in WAITING:
            run.state, run.outcome, run.cancelled_by = "finished", "cancelled", by
            run.finished_at = self.now

    def _wait_again(self, run: Run) -> None:
        run.state, run.outcome, run.cancelled_by = "queued", None, None
        run.finished_at = None
        if run.approval == "required":
            run.state = "awaiting_approval"
            run.expires_at = self.now + self.rules.policy(run.action).approval_timeout
