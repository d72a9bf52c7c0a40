"""`POST /webhook` and `POST /webhook/<action>`: where Alertmanager delivers."""

import logging
import re
import time
from collections.abc import Callable

from flask import Blueprint, Response, request
from werkzeug.exceptions import BadRequest, NotFound

from receiver.alertmanager import parse_notification
from receiver.declarations import nearest
from receiver.intake import Counts, Intake, intake_of
from receiver.routing import Catalog
from receiver.settings import Settings
from receiver.web.bodies import check_content, read_body
from receiver.web.problems import unavailable

_SOURCE = re.compile(r"[\w.:@/-]{0,128}", re.ASCII)
_ANSWER = '{"accepted":%d,"duplicate":%d,"resolved":%d,"rejected":%d}\n'
_log = logging.getLogger(__name__)


def create_webhook(
    settings: Settings,
    catalog: Catalog,
    record: Callable[[Intake], Counts],
    is_draining: Callable[[], bool],
    recorded: Callable[[Counts, int, float], None],
) -> Blueprint:
    """Return the blueprint; `record` returns once the notification is durable.

    `recorded` is told what became of it, how many alerts were left out, and how long it took.
    """
    webhook = Blueprint("webhook", __name__)

    # A trailing slash is accepted: a redirect would lose the alert.
    @webhook.post("/webhook", strict_slashes=False, provide_automatic_options=False)
    @webhook.post("/webhook/<action>", strict_slashes=False, provide_automatic_options=False)
    def receive(action: str = "") -> Response:
        started = time.monotonic()
        if is_draining():
            return unavailable("the receiver is stopping; send it again")
        if action and not catalog.knows(action):
            close = nearest(action, catalog.loaded)
            raise NotFound(f"no action is called {action[:64]!r}{close}; see `receiver plugins`")
        check_content()
        source = request.args.get("source", "")
        if not _SOURCE.fullmatch(source):
            raise BadRequest("source: at most 128 letters, digits and . : @ / _ - are allowed")
        notification = parse_notification(read_body(settings.max_body))
        intake = intake_of(notification, source, action, settings.action_plugin, catalog)
        counts = record(intake)
        seconds = time.monotonic() - started
        recorded(counts, notification.truncated_alerts, seconds)
        _log.info(
            "notification recorded",
            extra={
                "source": source,
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
        body = _ANSWER % (counts.accepted, counts.duplicate, counts.resolved, counts.rejected)
        return Response(body, 200, mimetype="application/json")

    return webhook


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
    if counts.ahead:
        _log.warning(
            "startsAt lies in the future: the sender's clock is ahead",
            extra={"alerts": counts.ahead, "receiver": intake.receiver},
        )
