"""Where people look at a receiver and ask it for things: the CLI, the API and the page alike.

It gives rows of plain values: the columns of the journal, what was JSON taken apart, and what only
settings and plugins can tell beside them.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Protocol

from receiver.alertmanager import parse_notification
from receiver.declarations import declared
from receiver.errors import NotFoundError
from receiver.journal import activity, reading, requests
from receiver.journal.instances import living_workers
from receiver.journal.journal import Journal
from receiver.journal.reading import Page, Row
from receiver.journal.requests import Person
from receiver.operations import Explained, Operations
from receiver.plugins import Actions
from receiver.policies import Policy
from receiver.written import setting_as_written

STATES = ("queued", "awaiting_approval", "running", "finished")
OUTCOMES = ("succeeded", "failed", "cancelled", "skipped", "unknown")
KINDS = ("fired", "repeat", "resolved", "escalation")
_JSON = ("alert", "call", "result", "saved_state")


class Desk(Protocol):
    """What can be asked, wherever the journal is.

    What asks for something returns in words what was done. Raises NotFoundError for what is not
    there, OperationError for what cannot be done, NotificationError for what is none.
    """

    def page_of_runs(
        self,
        limit: int,
        cursor: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        **equal: object,
    ) -> Page:
        """Return runs, the newest first, each with `why` it waits or how it ended."""

    def run(self, run_id: int) -> Row:
        """Return all about one run: `why`, its attempts as `history`, and its `audit`."""

    def holds(self) -> list[Row]:
        """Return the pauses that hold actions back."""

    def workers(self) -> list[Row]:
        """Return the workers that are running, and the actions that each has loaded."""

    def page_of_rejected(self, limit: int, cursor: str = "") -> Page:
        """Return rejected alerts, the last seen first."""

    def explain(self, body: bytes, source: str = "", path_action: str = "") -> list[Row]:
        """Return what a notification would lead to now; nothing is run or stored."""

    def retry(self, run_id: int) -> str:
        """Let a finished run that did not succeed run again."""

    def cancel(self, run_id: int, reason: str = "") -> str:
        """Cancel a run, or ask its attempt to stop."""

    def approve(self, run_id: int) -> str:
        """Let a run that waits for approval run."""

    def reject(self, run_id: int, reason: str = "") -> str:
        """Cancel a run that waits for approval."""

    def pause(self, action: str | None, reason: str = "", lasting: timedelta | None = None) -> str:
        """Start no run of an action, or of any, until resumed or for a while."""

    def resume(self, action: str | None) -> str:
        """Take a pause away, and reset the breaker of an action that is named."""

    def replay(self, rejected_id: int) -> Mapping[str, int]:
        """Route a rejected alert again; return the counts, as the webhook does."""


class JournalDesk:
    """The desk of one person at a journal that is open here."""

    def __init__(
        self, journal: Journal, operations: Operations, actions: Actions, person: Person
    ) -> None:
        self._journal = journal
        self._operations = operations
        self._actions = actions
        self._person = person

    def page_of_runs(
        self,
        limit: int,
        cursor: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        **equal: object,
    ) -> Page:
        """See Desk."""
        found = reading.page_of_runs(self._journal, limit, cursor, since, until, **equal)
        return Page(self._with_why(found.rows), found.next)

    def run(self, run_id: int) -> Row:
        """See Desk."""
        (found,) = self._with_why([reading.find_run(self._journal, run_id)])
        history = reading.attempts_of(self._journal, run_id)
        return found | {"history": history, "audit": reading.audit_of(self._journal, run_id)}

    def activity(self) -> activity.Activity:
        """Return what is going on, and what went on in the last day."""
        found = activity.look(self._journal)
        found.unfinished[:] = self._with_why(found.unfinished)
        return found

    def holds(self) -> list[Row]:
        """See Desk."""
        return reading.list_holds(self._journal)

    def workers(self) -> list[Row]:
        """See Desk."""
        with self._journal.reading() as connection:
            found = living_workers(self._journal, connection)
        return [{"id": one.id, "actions": sorted(one.actions)} for one in found]

    def page_of_episodes(self, limit: int, cursor: str = "") -> Page:
        """Return the latest episode of each (source, fingerprint, action), the last seen first."""
        return reading.page_of_episodes(self._journal, limit, cursor)

    def page_of_rejected(self, limit: int, cursor: str = "") -> Page:
        """See Desk."""
        found = reading.page_of_rejected(self._journal, limit, cursor)
        return Page([_taken_apart(one) for one in found.rows], found.next)

    def rejected_alert(self, rejected_id: int) -> Row:
        """Return one rejected alert; raises NotFoundError when there is none."""
        return _taken_apart(reading.find_rejected(self._journal, rejected_id))

    def check_action(self, action: str | None) -> None:
        """Raise NotFoundError for a name that stands for no action; None stands for all."""
        if action is not None and not self._operations.knows(action):
            raise NotFoundError(f"there is no action {action}; see `receiver plugins`")

    def page_of_audit(self, limit: int, cursor: str = "") -> Page:
        """Return what people asked for, the latest first."""
        return reading.page_of_audit(self._journal, limit, cursor)

    def actions(self) -> list[Row]:
        """Return every plugin that is found: its state, policy, holds, and what its runs do."""
        seen = self.activity()
        holds = self.holds()
        return [
            {
                "name": one.name,
                "state": one.state,
                "reason": one.reason,
                "origin": one.origin,
                "version": one.version,
                "hooks": list(one.hooks),
                "has_worker": one.name in seen.loaded,
                "unfinished": dict(seen.numbers.get(one.name, {})),
                "ended_last_day": _in_all(seen.ended.get(one.name, {})),
                "policy": self._policy(one.name) if one.state == "loaded" else {},
                "holds": [hold for hold in holds if hold["action"] in (one.name, "*")],
            }
            for one in sorted(self._actions.plugins.values(), key=lambda one: one.name)
        ]

    def explain(
        self, body: bytes, source: str = "", path_action: str = "", seconds: float | None = None
    ) -> list[Row]:
        """See Desk. Raises NotificationError for what takes longer than `seconds`, or too much."""
        found = self._operations.explain(parse_notification(body), source, path_action, seconds)
        return [_explained(one) for one in found]

    def retry(self, run_id: int) -> str:
        """See Desk."""
        return requests.retry(self._journal, self._person, run_id)

    def cancel(self, run_id: int, reason: str = "") -> str:
        """See Desk."""
        return requests.cancel(self._journal, self._person, run_id, reason)

    def approve(self, run_id: int) -> str:
        """See Desk."""
        return requests.approve(self._journal, self._person, run_id)

    def reject(self, run_id: int, reason: str = "") -> str:
        """See Desk."""
        return requests.reject(self._journal, self._person, run_id, reason)

    def pause(self, action: str | None, reason: str = "", lasting: timedelta | None = None) -> str:
        """See Desk."""
        self.check_action(action)
        return requests.pause(self._journal, self._person, action, reason, lasting)

    def resume(self, action: str | None) -> str:
        """See Desk."""
        return requests.resume(self._journal, self._person, action)

    def replay(self, rejected_id: int) -> Mapping[str, int]:
        """See Desk."""
        return asdict(self._operations.replay(self._person, rejected_id))

    def _with_why(self, rows: Sequence[Row]) -> list[Row]:
        whys = self._operations.why_each_waits(rows)
        return [_taken_apart(row) | {"why": why} for row, why in zip(rows, whys, strict=True)]

    def _policy(self, action: str) -> dict[str, str]:
        policy = self._operations.rules.policy(action)
        return {
            one.name: setting_as_written(one, getattr(policy, field))
            for field, one in declared(Policy).items()
        }


# Who opens a desk for whoever sent a request.
DeskOf = Callable[[Person], JournalDesk]


def _taken_apart(row: Row) -> Row:
    """Return a row in which what the journal keeps as JSON is no longer JSON."""
    return row | {name: json.loads(row[name]) for name in _JSON if row.get(name) is not None}


def _in_all(hours: Mapping[int, Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for outcomes in hours.values():
        for outcome, number in outcomes.items():
            found[outcome] = found.get(outcome, 0) + number
    return found


def _explained(one: Explained) -> Row:
    return {
        "alertname": one.alert.name,
        "fingerprint": one.alert.fingerprint,
        "status": one.alert.status,
        "rule": one.rule or None,
        "action": one.action or None,
        "episode": one.episode,
        "reason": one.reason,
        "arguments": None
        if one.call is None
        else {
            "metric_name": one.call.metric_name,
            "value": one.call.value if math.isfinite(one.call.value) else str(one.call.value),
            "threshold": one.call.threshold,
            "duration_seconds": one.call.duration.total_seconds(),
            "warnings": list(one.call.warnings),
        },
        "runs": one.brings.rstrip(",") or None,
        "guardrails": one.verdict or None,
    }
