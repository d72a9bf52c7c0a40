"""How much one notification may make of itself."""

import pytest

from receiver.alertmanager import Alert, Notification
from receiver.errors import NotificationError
from receiver.intake import Intake, intake_of
from receiver.routing import Catalog
from tests.support.notifications import T0

MOST_NAMES = [f"a{number}" for number in range(20)]


def routed(alerts: int, names: str, loaded: frozenset[str]) -> Intake:
    one = Alert("firing", {"action_plugin": names}, {}, T0, None, "", "f1")
    notification = Notification("r", "firing", (one,) * alerts, "", "", 0)
    return intake_of(notification, "", "", (), Catalog(loaded))


@pytest.mark.parametrize(
    ("names", "loaded", "rows"),
    [
        pytest.param(",".join(MOST_NAMES), frozenset(MOST_NAMES), 20, id="actions"),
        pytest.param(",".join(MOST_NAMES), frozenset(MOST_NAMES[1:]), 20, id="both"),
        pytest.param(
            ",".join(map(str, range(1000))),
            frozenset(),
            21,
            id="no actions, as many as an alert may name",
        ),
    ],
)
def test_alerts_that_name_more_actions_than_can_be_recorded_in_time_are_refused(
    names: str, loaded: frozenset[str], rows: int
) -> None:
    most = 100_000 // rows
    assert routed(most, names, loaded).rows == most * rows
    with pytest.raises(NotificationError, match="name more than 100000 actions, all together"):
        routed(most + 1, names, loaded)
