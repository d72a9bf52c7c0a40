"""`POST /webhook` and `POST /webhook/<action>`: where Alertmanager delivers."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from receiver.alertmanager import Alert, Notification, parse_notification
from receiver.declarations import nearest
from receiver.intake import Counts, Intake, intake_of
from receiver.journal.writer import Work
from receiver.replicas import ReplicaWatch
from receiver.routing import Catalogs
from receiver.settings import Settings
from receiver.sources import NAME_RULE, is_source_name
from receiver.web.bodies import (
    SMALL_BYTES,
    WAIT_SECONDS,
    LargeBodies,
    check_content,
    read_body,
)
from receiver.web.problems import QueryError, unavailable
from receiver.web.slots import without_slot

_SHOWN_PARAMETERS = 5
_ANSWER = '{"accepted":%d,"duplicate":%d,"resolved":%d,"rejected":%d}\n'
# About as much as an alert takes.
_ALERT_BYTES = 500
_log = logging.getLogger(__name__)


def is_webhook(path: str) -> bool:
    """Whether a request for this path is one that Alertmanager makes."""
    return path == "/webhook" or path.startswith("/webhook/")


@dataclass(slots=True)
class _Received:
    """A body: the writer works on it, together with others of the same moment."""

    body: bytes
    route: Callable[[Notification], Intake]
    recorded_as: Callable[[Counts, int, float], None]
    replicas_in: Callable[[Intake], None]
    started: float
    notification: Notification | None = None
    intake: Intake | None = None

    @property
    def size(self) -> int:
        """How many alerts it holds, as far as that is known yet."""
        return len(self.intake.alerts) if self.intake else 1 + len(self.body) // _ALERT_BYTES

    def prepare(self) -> Intake:
        """Validate and route it, once; raise NotificationError when it is none."""
        if self.intake is None:
            self.notification = parse_notification(self.body)
            self.body = b""  # It is not needed any more, and may be large.
            self.intake = self.route(self.notification)
        return self.intake

    def recorded(self, counts: Counts) -> None:
        """Count it, and log what became of it."""
        intake, notification = self.intake, self.notification
        if intake is None or notification is None:
            raise AssertionError  # What was recorded was prepared.
        seconds = time.monotonic() - self.started
        self.recorded_as(counts, notification.truncated_alerts, seconds)
        _log.info(
            "notification recorded",
            extra={
                "source": intake.source,
                "receiver": notification.receiver,
                "group": notification.group_key[:500],
                "alerts": len(notification.alerts),
                "accepted": counts.accepted,
                "duplicate": counts.duplicate,
                "resolved": counts.resolved,
                "rejected": counts.rejected,
                "ahead": counts.ahead,
                "seconds": round(seconds, 4),
            },
        )
        _warn(notification.truncated_alerts, intake, counts)
        self.replicas_in(intake)


def create_webhook(
    settings: Settings,
    catalogs: Catalogs,
    source_of: Callable[[str], str],
    record: Callable[[Work], Counts],
    bodies: LargeBodies,
    is_draining: Callable[[], bool],
    recorded: Callable[[Counts, int, float], None],
    found_replicas: Callable[[int], None],
) -> Blueprint:
    """Return the blueprint; `record` returns once the notification is durable.

    `source_of` returns the source of the request under way, given the one that it asks for.
    `recorded` is told what became of it, how many alerts were left out, and how long it took.
    `found_replicas` gets the number of alerts that differ from others in a replica label alone.
    """
    webhook = Blueprint("webhook", __name__)
    replicas = ReplicaWatch()
    # What is large takes a while to parse, in which others are not to wait: one at a time, aside.
    large = threading.Lock()

    def replicas_in(intake: Intake) -> None:
        findings = replicas.look(intake.source, [routed.alert for routed in intake.alerts])
        if findings.alerts:
            found_replicas(findings.alerts)
        for found in findings.new:
            _log.warning(
                "alerts differ only in a replica label, so the action runs for each",
                extra={
                    "label": found.label,
                    "alertname": found.alert_name,
                    "receiver": intake.receiver,
                    "cure": f"drop the label in prometheus.yml: {found.cure}",
                },
            )

    # A trailing slash is accepted: a redirect would lose the alert.
    @webhook.post("/webhook", strict_slashes=False, provide_automatic_options=False)
    @webhook.post("/webhook/<action>", strict_slashes=False, provide_automatic_options=False)
    def receive(action: str = "") -> Response:
        started = time.monotonic()
        if is_draining():
            return unavailable("the receiver is stopping; send it again")
        source = source_of(_asked_source())
        catalog = catalogs.for_source(source)
        if action and not catalog.knows(action):
            close = nearest(action, catalog.loaded)
            raise NotFound(
                f"no action is called {action[:64]!r}{close}; alerts are posted to "
                "/webhook/<action>, or to /webhook; see `receiver plugins`"
            )
        check_content()

        def route(notification: Notification) -> Intake:
            return intake_of(notification, source, action, settings.action_plugin, catalog)

        with bodies.place(settings.max_body):
            body = read_body(settings.max_body)
            received = _Received(body, route, recorded, replicas_in, started)
            if len(body) > SMALL_BYTES:
                with without_slot(request.environ):
                    if not large.acquire(timeout=WAIT_SECONDS):
                        return unavailable("large notifications are being read; send it again")
                    try:
                        received.prepare()
                    finally:
                        large.release()
            counts = record(received)
        answer = _ANSWER % (counts.accepted, counts.duplicate, counts.resolved, counts.rejected)
        return Response(answer, 200, mimetype="application/json")

    return webhook


def _asked_source() -> str:
    """Return the source in the query; raise QueryError for anything else there.

    A parameter that was ignored would lose actions: two clusters would count as one.
    """
    unknown = [name[:64] for name in request.args if name != "source"][:_SHOWN_PARAMETERS]
    if unknown:
        raise QueryError(
            f"the query has the unknown parameter {', '.join(unknown)}; the only one is source",
            dict.fromkeys(unknown, "is not a query parameter; the only one is source"),
        )
    sources = request.args.getlist("source")
    if len(sources) > 1:
        said = "is given more than once"
        raise QueryError(f"the query's source {said}", {"source": said})
    source = sources[0] if sources else ""
    if not is_source_name(source):
        raise QueryError(f"the query's source: {NAME_RULE}", {"source": NAME_RULE})
    return source


def _warn(truncated: int, intake: Intake, counts: Counts) -> None:
    if truncated > 0:
        _log.warning(
            "alerts were left out by alertmanager",
            extra={
                "truncated_alerts": truncated,
                "receiver": intake.receiver,
                "cure": "set max_alerts: 0 in its webhook_configs",
            },
        )
    if counts.rejected:
        first = next(one for routed in intake.alerts for one in routed.route.rejections)
        _log.warning(
            "alerts rejected",
            extra={"rejected": counts.rejected, "first_name": first.name, "reason": first.reason},
        )
    closed = next((one.alert for one in intake.alerts if _is_malformed_end(one.alert)), None)
    if closed is not None:
        _log.warning(
            "resolved alert is malformed",
            extra={"fingerprint": closed.fingerprint, "reason": closed.problem},
        )
    if counts.ahead:
        _log.warning(
            "startsAt lies in the future: the sender's clock is ahead",
            extra={"alerts": counts.ahead, "receiver": intake.receiver},
        )


def _is_malformed_end(alert: Alert) -> bool:
    """Whether an alert closes what its fingerprint finds, and no more of it can be relied upon."""
    return alert.is_resolved and bool(alert.problem)
