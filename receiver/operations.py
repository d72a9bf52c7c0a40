"""What people do with a receiver beyond sending alerts: the API, the page and the CLI call this.

Retry, cancel, approve, reject, pause and resume are in `journal.requests`; here is what needs the
plugins too: to replay what was rejected, and to explain.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import clock, episodes, guardrails, identity
from receiver.alertmanager import Alert, Notification
from receiver.calls import Call, call_of
from receiver.durations import format_duration
from receiver.errors import NotificationError, OperationError
from receiver.guardrails import Asking
from receiver.intake import Counts, Intake, Routed, intake_of
from receiver.journal import changes
from receiver.journal.acceptance import record
from receiver.journal.instances import Worker, living_workers
from receiver.journal.journal import Journal
from receiver.journal.past import Past
from receiver.journal.reading import find_rejected
from receiver.journal.requests import Person, note
from receiver.journal.tables import episodes as episode_rows
from receiver.journal.tables import runs as run_rows
from receiver.plugins import Actions, catalogs_of, rules_as_far_as_loaded
from receiver.policies import Rules, runs_alone
from receiver.routing import Catalogs, route
from receiver.settings import Settings
from receiver.subject import target_of

# (alert, action) pairs that are explained within a bounded time.
_MOST_EXPLAINED = 10_000


@dataclass(frozen=True)
class Explained:
    """What one alert would lead to, for one action; `action` empty where it is rejected.

    `episode` is `new`, `seen`, `put back`, `resolved` or `rejected`; `brings` is what would run, if
    anything; `verdict` says what that would meet now.
    """

    alert: Alert
    rule: str
    action: str
    episode: str
    reason: str
    call: Call | None = None
    brings: str = ""
    verdict: str = ""


class Operations:
    """The operations of one receiver, over its journal."""

    def __init__(self, settings: Settings, actions: Actions, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self.rules: Rules = rules_as_far_as_loaded(settings, actions)
        self._catalogs: Catalogs = catalogs_of(settings, actions)

    def knows(self, action: str) -> bool:
        """Whether a name stands for an action, even one that cannot run."""
        return self._catalogs.all_actions.knows(action)

    def explain(
        self,
        notification: Notification,
        source: str = "",
        path_action: str = "",
        seconds: float | None = None,
    ) -> list[Explained]:
        """Return what a notification would lead to now; nothing is run or stored.

        Raises NotificationError where that takes longer than `seconds`, or has too many rows for
        that; None: however long it takes.
        """
        catalog = self._catalogs.for_source(source)
        intake = intake_of(notification, source, path_action, self._settings.action_plugin, catalog)
        ends_at = math.inf if seconds is None else time.monotonic() + seconds
        if seconds is not None and intake.rows > _MOST_EXPLAINED:
            raise NotificationError(
                f"the alerts name more than {_MOST_EXPLAINED} actions, all together; explain fewer"
            )
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
            past = Past(connection, self.rules, now)
            explained: list[Explained] = []
            for routed in intake.alerts:
                if time.monotonic() > ends_at:
                    raise NotificationError(
                        f"to explain these alerts takes longer than {seconds:g} s; explain fewer"
                    )
                explained += self._explain_alert(connection, past, intake, routed, now)
            return explained

    def _explain_alert(
        self, connection: Connection, past: Past, intake: Intake, routed: Routed, now: datetime
    ) -> list[Explained]:
        alert, way = routed.alert, routed.route
        if alert.is_resolved:
            return _explain_resolved(connection, intake.source, alert, now)
        found = [
            Explained(alert, way.rule, "", "rejected", refused.reason) for refused in way.rejections
        ]
        for action in way.actions:
            key = (intake.source, alert.fingerprint, action)
            row = next(iter(_rows(connection, *key)), None)
            has_run = identity.needs_identity(
                row, alert.starts_at, now, self.rules.tolerance
            ) and changes.has_fired_run(connection, key, alert.starts_at)
            decision = identity.decide_firing(
                row, *key, alert.starts_at, intake.receiver, now, self.rules.tolerance, has_run
            )
            policy = self.rules.policy(action)
            target = target_of(policy, intake.source, alert.fingerprint, alert.labels)
            found.append(
                Explained(
                    alert,
                    way.rule,
                    action,
                    decision.kind,
                    decision.reason,
                    call_of(alert, now, self.rules.grafana_value),
                    _what_runs(connection, decision),
                    self._verdict(past, action, target, Asking(), None, alert.annotations, now),
                )
            )
        return found

    def _verdict(
        self,
        past: Past,
        action: str,
        target: str,
        asking: Asking,
        approval: str | None,
        annotations: Mapping[str, str],
        now: datetime,
    ) -> str:
        """Return what a run would meet now; `asking` is about it, but for its approval."""
        policy = self.rules.policy(action)
        verdict = guardrails.decide(
            asking, policy, self.rules.limits, past.history(action, target), now
        )
        is_dry_run = self.rules.is_dry_run(action, annotations)
        said = verdict.reason or "starts at once"
        if verdict.until is not None:
            said = f"{said}; until {verdict.until:%Y-%m-%d %H:%M:%S} UTC"
        if is_dry_run:
            return f"{said}; a dry run: the action only says what it would do"
        if guardrails.needs_approval(policy, asking.kind, approval, False, asking.is_retry):
            return f"waits for a person's approval; then: {said}"
        return said

    def why_each_waits(self, runs: Sequence[dict[str, Any]]) -> list[str]:
        """Return in words why each run does not run now, or how it ended; all in one look."""
        if not any(run["state"] in ("queued", "running") for run in runs):
            return [str(run["reason"]) for run in runs]
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
            workers = living_workers(self._journal, connection)
            past = Past(connection, self.rules, now)
            return [self._why(connection, past, workers, run, now) for run in runs]

    def _why(
        self,
        connection: Connection,
        past: Past,
        workers: Sequence[Worker],
        run: dict[str, Any],
        now: datetime,
    ) -> str:
        if run["state"] not in ("queued", "running"):
            return str(run["reason"])
        if not any(run["action"] in worker.actions for worker in workers):
            return f"no worker that is running has loaded the action {run['action']}"
        if run["state"] == "running":
            return str(run["reason"])
        paused = past.history(run["action"], run["target"]).paused
        if paused is not None:
            return f"paused: {paused}"
        if run["due_at"] > now:
            return f"{run['reason']}; due at {run['due_at']:%Y-%m-%d %H:%M:%S} UTC"
        key = (run["source"], run["fingerprint"], run["episode_action"])
        row = next(iter(_rows(connection, *key)), None)
        policy = self.rules.policy(run["action"])
        staleness = policy.max_staleness
        reports = [row.seen_at, run["retried_at"]] if row else []
        counted = [clock.past(at, now) for at in reports]
        is_fresh = any(at is not None and at >= now - staleness for at in counted)
        if row is not None and run["kind"] != "resolved" and not is_fresh:
            reported_at = max(filter(None, counted), default=row.seen_at)
            waits_since = max(run["due_at"], run["created_at"])
            end = guardrails.stale_since(policy, waits_since, reported_at) + policy.max_delay
            return (
                f"its alert was last reported at {row.seen_at:%Y-%m-%d %H:%M:%S} UTC, longer "
                f"ago than max_staleness ({format_duration(staleness)}): it waits for a report, "
                f"and is skipped at {end:%Y-%m-%d %H:%M:%S} UTC"
            )
        busy = past.running_in_all
        if busy and runs_alone(run["interruptions"]):
            return (
                f"its workers died {run['interruptions']} times during its attempts, so it runs "
                f"alone: it waits until a worker has nothing under way; {busy} runs are running"
            )
        if busy >= self._settings.worker_executors * len(workers):
            return f"waits for a free executor: {busy} runs are running"
        return self._verdict(
            past,
            run["action"],
            run["target"],
            Asking(run["kind"], run["counted"], run["held_since"]),
            run["approval"],
            _annotations_of(connection, run["id"]),
            now,
        )

    def replay(self, person: Person, rejected_id: int) -> Counts:
        """Route a rejected alert again, as if Alertmanager had just sent it.

        Raises OperationError when there is no such rejected alert, or it has been closed.
        """
        found = find_rejected(self._journal, rejected_id)
        if found["closed_at"] is not None:
            raise OperationError(
                f"the rejected alert {rejected_id} is closed: {found['closed_by']}"
            )
        alert = Alert.from_json(found["alert"])
        path_action = found["name"] if found["rule"] == "path" else ""
        catalog = self._catalogs.for_source(found["source"])
        way = route(alert, path_action, self._settings.action_plugin, catalog)
        intake = Intake(
            found["source"], found["receiver"], found["external_url"], (Routed(alert, way),)
        )
        # First what was asked for: nothing is done that nobody can look up.
        note(self._journal, person, "replay", f"rejected alert {rejected_id}")
        (counts,) = record(self._journal, [intake], self.rules)
        return counts


def _annotations_of(connection: Connection, run_id: int) -> Mapping[str, str]:
    """Return the annotations of a run's alert where one of them can decide, else none."""
    query = sa.select(run_rows.c.alert).where(
        run_rows.c.id == run_id, run_rows.c.alert.contains("action_dry_run", autoescape=True)
    )
    alert = connection.execute(query).scalar()
    return {} if alert is None else Alert.from_json(alert).annotations


def _what_runs(connection: Connection, decision: identity.Decision) -> str:
    """Return what a firing alert would let run: a new run, or one that a resolved cancelled."""
    if decision.kind == "new":
        return "a new run"
    if decision.kind != "put back" or decision.row is None:
        return ""
    _, back = episodes.when_put_back(changes.runs_of(connection, decision.row), decision.row)
    for one in back:
        if isinstance(one, episodes.PutBack):
            return f"run {one.run_id}, put back,"
        if isinstance(one, episodes.Create):
            return "a new run, for the alert's resolved run has begun,"
    return ""


def _explain_resolved(
    connection: Connection, source: str, alert: Alert, now: datetime
) -> list[Explained]:
    """A resolved alert closes what is open, whatever the route by which it comes."""
    found = [
        Explained(
            alert, "", row.action, "resolved",
            identity.decide_resolved(row, alert.ends_at, now).reason,
        )
        for row in _rows(connection, source, alert.fingerprint)
    ]  # fmt: skip
    return found or [Explained(alert, "", "", "resolved", "it was never seen firing")]


def _rows(
    connection: Connection, source: str, fingerprint: str, action: str | None = None
) -> list[identity.Episode]:
    """Return the latest episodes of an alert, one per action."""
    table = episode_rows
    names: Sequence[str] = list(identity.Episode.__dataclass_fields__)
    query = sa.select(*(table.c[name] for name in names)).where(
        table.c.source == source,
        table.c.fingerprint == fingerprint,
        table.c.starts_at.is_not(None),
        *([table.c.action == action] if action is not None else []),
    )
    found = connection.execute(query.order_by(table.c.action))
    return [identity.Episode(*one) for one in found]
