"""How much one notification may make of itself."""

import pytest

from receiver.alertmanager import Alert, Notification
from receiver.errors import NotificationError
from receiver.intake import Intake, intake_of
from receiver.routing import Catalog
from tests.support.notifications import T0

CATALOG = Catalog(frozenset({"one", "two"}))


def routed(alerts: int, names: str) -> Intake:
    one = Alert("firing", {"action_plugin": names}, {}, T0, None, "", "f1")
    notification = Notification("r", "firing", (one,) * alerts, "", "", 0)
    return intake_of(notification, "", "", (), CATALOG)


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        pytest.param("one,two", 2, id="actions"),
        pytest.param("no,such", 2, id="no actions"),
        pytest.param("one,no", 2, id="both"),
        pytest.param(",".join(map(str, range(1000))), 21, id="as many as an alert may name"),
    ],
)
def test_alerts_that_name_more_actions_than_can_be_recorded_in_time_are_refused(
    names: str, rows: int
) -> None:
    most = 100_000 // rows
    assert routed(most, names).rows == most * rows
    with pytest.raises(NotificationError, match="name more than 100000 actions, all together"):
        routed(most + 1, names)
