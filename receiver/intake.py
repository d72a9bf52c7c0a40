"""A notification -> what to record. Pure; used by the webhook, `explain` and replay."""

from dataclasses import dataclass

from receiver.alertmanager import Alert, Notification
from receiver.routing import Catalog, Route, route


@dataclass(frozen=True, slots=True)
class Routed:
    """One alert and where it goes."""

    alert: Alert
    route: Route


@dataclass(frozen=True, slots=True)
class Intake:
    """One notification, ready to be recorded in the journal in one transaction."""

    source: str
    receiver: str
    external_url: str
    alerts: tuple[Routed, ...]
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of a notification, counted per (alert, action); `ahead` of them had a startsAt
    from the future."""

    accepted: int = 0
    duplicate: int = 0
    resolved: int = 0
    rejected: int = 0
    ahead: int = 0


def intake_of(
    notification: Notification,
    source: str,
    path_action: str,
    default: tuple[str, ...],
    catalog: Catalog,
) -> Intake:
    """Route every alert of a notification; see `routing.route` for the arguments."""
    return Intake(
        source,
        notification.receiver,
        notification.external_url,
        tuple(
            [Routed(one, route(one, path_action, default, catalog)) for one in notification.alerts]
        ),
    )
