"""A notification -> what to record. Pure; used by the webhook, `explain` and replay."""

from dataclasses import dataclass

from receiver.alertmanager import Alert, Notification
from receiver.errors import NotificationError
from receiver.routing import Catalog, Route, Suggestions, route

# An alert may name many actions. More than this takes the journal longer than Alertmanager waits,
# and all others wait as long.
_MOST_ROWS = 100_000
# The journal keeps an alert once for each action. What a body holds once, it may.
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Routed:
    """One alert and where it goes."""

    alert: Alert
    route: Route

    @property
    def rows(self) -> int:
        """How many (alert, action) pairs it makes."""
        return len(self.route.actions) + len(self.route.rejections)


@dataclass(frozen=True, slots=True)
class Intake:
    """One notification, ready to be recorded in the journal in one transaction."""

    source: str
    receiver: str
    external_url: str
    alerts: tuple[Routed, ...]
    traceparent: str = ""

    @property
    def rows(self) -> int:
        """How many (alert, action) pairs it holds."""
        return sum([one.rows for one in self.alerts])


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
    """Route every alert of a notification; see `routing.route` for the arguments.

    Raises NotificationError as soon as that makes more rows, or more bytes of them, than can be
    recorded in time.
    """
    suggest = Suggestions(catalog.loaded)
    routed, rows, size = [], 0, 0
    for alert in notification.alerts:
        way = route(alert, path_action, default, catalog, suggest)
        routed.append(Routed(alert, way))
        pairs = len(way.actions) + len(way.rejections)
        rows += pairs
        if pairs > 1:
            size += pairs * alert.size
        if rows > _MOST_ROWS:
            raise NotificationError(
                f"the alerts name more than {_MOST_ROWS} actions, all together; group them by more "
                "labels, or let each name fewer"
            )
        if size > _MOST_BYTES:
            raise NotificationError(
                f"the alerts take more than {_MOST_BYTES} bytes, once for each action that they "
                "name; group them by more labels, or let each name fewer"
            )
    return Intake(source, notification.receiver, notification.external_url, tuple(routed))
