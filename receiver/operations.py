"""What people do with a receiver beyond sending alerts: the API, the page and the CLI call this.

Retry, cancel, approve, reject, pause and resume are in `journal.requests`; here is what needs the
plugins too: to replay what was rejected, and to explain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from receiver import episodes, guardrails
from receiver.alertmanager import Alert, Notification
from receiver.calls import Call, call_of
from receiver.errors import OperationError
from receiver.guardrails import Asking
from receiver.intake import Counts, Intake, Routed, intake_of
from receiver.journal.acceptance import record
from receiver.journal.journal import Journal
from receiver.journal.past import Past
from receiver.journal.requests import Person, note
from receiver.journal.tables import episodes as episode_rows
from receiver.journal.tables import instances, rejected
from receiver.plugins import Actions, catalog_of, rules_of
from receiver.policies import Rules, target_of
from receiver.routing import Catalog, route
from receiver.settings import Settings


@dataclass(frozen=True)
class Explained:
    """What one alert would lead to, for one action; `action` empty where it is rejected.

    `episode` is `new`, `seen`, `put back`, `resolved` or `rejected`; `verdict` says what a new run
    would meet now.
    """

    alert: Alert
    rule: str
    action: str
    episode: str
    reason: str
    call: Call | None = None
    verdict: str = ""


class Operations:
    """The operations of one receiver, over its journal."""

    def __init__(self, settings: Settings, actions: Actions, journal: Journal) -> None:
        self._settings = settings
        self._journal = journal
        self._rules: Rules = rules_of(settings, actions)
        self._catalog: Catalog = catalog_of(actions)

    def knows(self, action: str) -> bool:
        """Whether a name stands for an action, even one that cannot run."""
        return self._catalog.knows(action)

    def explain(
        self, notification: Notification, source: str = "", path_action: str = ""
    ) -> list[Explained]:
        """Return what a notification would lead to now; nothing is run or stored."""
        intake = intake_of(
            notification, source, path_action, self._settings.action_plugin, self._catalog
        )
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
            past = Past(connection, self._rules, now)
            return [
                one
                for routed in intake.alerts
                for one in self._explain_alert(connection, past, intake, routed, now)
            ]

    def _explain_alert(
        self, connection: Connection, past: Past, intake: Intake, routed: Routed, now: datetime
    ) -> list[Explained]:
        alert, way = routed.alert, routed.route
        found = [
            Explained(alert, way.rule, "", "rejected", refused.reason) for refused in way.rejections
        ]
        for action in way.actions:
            row = _row(connection, intake.source, alert.fingerprint, action)
            if alert.is_resolved:
                said = (
                    episodes.decide_resolved(row, alert.ends_at, now).reason
                    if row is not None
                    else "it was never seen firing"
                )
                found.append(Explained(alert, way.rule, action, "resolved", said))
                continue
            decision = episodes.decide_firing(
                row,
                intake.source,
                alert.fingerprint,
                action,
                alert.starts_at,
                intake.receiver,
                now,
                self._rules.tolerance,
                has_run=row is not None and row.starts_at == alert.starts_at,
            )
            policy = self._rules.policy(action)
            target = target_of(policy, intake.source, alert.fingerprint, alert.labels)
            found.append(
                Explained(
                    alert,
                    way.rule,
                    action,
                    decision.kind,
                    decision.reason,
                    call_of(alert, now),
                    self._verdict(past, action, target, Asking(), alert, now),
                )
            )
        return found

    def _verdict(
        self,
        past: Past,
        action: str,
        target: str,
        asking: Asking,
        alert: Alert,
        now: datetime,
    ) -> str:
        policy = self._rules.policy(action)
        verdict = guardrails.decide(
            asking, policy, self._rules.limits, past.history(action, target), now
        )
        is_dry_run = self._rules.is_dry_run(action, alert.annotations)
        said = verdict.reason or "starts at once"
        if verdict.until is not None:
            said = f"{said}; until {verdict.until:%Y-%m-%d %H:%M:%S} UTC"
        if is_dry_run:
            return f"{said}; a dry run: the action only says what it would do"
        if policy.approval == "required" and asking == Asking():
            return f"waits for a person's approval; then: {said}"
        return said

    def why_waiting(self, run: dict[str, Any]) -> str:
        """Return in words why a run does not run now, or how it ended."""
        if run["state"] != "queued":
            return str(run["reason"])
        with self._journal.reading() as connection:
            now = self._journal.now(connection)
            if not _is_loaded_somewhere(connection, run["action"]):
                return f"no worker that is running has loaded the action {run['action']}"
            if run["due_at"] > now:
                return f"{run['reason']}; due at {run['due_at']:%Y-%m-%d %H:%M:%S} UTC"
            row = _row(connection, run["source"], run["fingerprint"], run["episode_action"])
            staleness = self._rules.policy(run["action"]).max_staleness
            if row is not None and run["kind"] != "resolved" and row.seen_at < now - staleness:
                return (
                    f"its alert was last reported at {row.seen_at:%Y-%m-%d %H:%M:%S} UTC, longer "
                    f"ago than max_staleness ({guardrails.text(staleness)}): it waits for a report"
                )
            asking = Asking(run["kind"], run["attempts"] > run["attempts_before"],
                            run["held_since"])  # fmt: skip
            past = Past(connection, self._rules, now)
            alert = Alert.from_json(run["alert"])
            return self._verdict(past, run["action"], run["target"], asking, alert, now)

    def replay(self, person: Person, rejected_id: int) -> Counts:
        """Route a rejected alert again, as if Alertmanager had just sent it.

        Raises OperationError when there is no such rejected alert, or it has been closed.
        """
        with self._journal.reading() as connection:
            query = sa.select(rejected).where(rejected.c.id == rejected_id)
            found = connection.execute(query).first()
        if found is None:
            raise OperationError(f"there is no rejected alert {rejected_id}; see `receiver runs`")
        if found.closed_at is not None:
            raise OperationError(f"the rejected alert {rejected_id} is closed: {found.closed_by}")
        alert = Alert.from_json(found.alert)
        way = route(alert, "", self._settings.action_plugin, self._catalog)
        intake = Intake(found.source, found.receiver, found.external_url, (Routed(alert, way),))
        (counts,) = record(self._journal, [intake], self._rules)
        note(self._journal, person, "replay", f"rejected alert {rejected_id}")
        return counts


def _row(
    connection: Connection, source: str, fingerprint: str, action: str
) -> episodes.Episode | None:
    table = episode_rows
    names: Sequence[str] = list(episodes.Episode.__dataclass_fields__)
    query = sa.select(*(table.c[name] for name in names)).where(
        table.c.source == source,
        table.c.fingerprint == fingerprint,
        table.c.action == action,
        table.c.starts_at.is_not(None),
    )
    found = connection.execute(query).first()
    return None if found is None else episodes.Episode(*found)


def _is_loaded_somewhere(connection: Connection, action: str) -> bool:
    query = sa.select(instances.c.actions).where(instances.c.role == "worker")
    return any(f'"{action}"' in names for (names,) in connection.execute(query))
