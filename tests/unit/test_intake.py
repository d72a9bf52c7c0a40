"""How much one notification may make of itself."""

from collections.abc import Iterator

import pytest

from receiver.alertmanager import Alert, Notification
from receiver.errors import NotificationError
from receiver.intake import Intake, intake_of
from receiver.routing import Catalog, Suggestions
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
            ",".join(map(str, range(30))),
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


def test_alerts_are_routed_no_further_than_the_limit() -> None:
    names = ",".join(f"unknown_{number}" for number in range(20))
    counted = CountedAlerts([Alert("firing", {"action_plugin": names}, {}, T0, None, "", "f1")])
    notification = Notification("r", "firing", counted, "", "", 0)

    with pytest.raises(NotificationError, match="name more than 100000 actions"):
        intake_of(notification, "", "", (), Catalog(frozenset(MOST_NAMES)))

    assert counted.given == 5_001


class CountedAlerts(tuple[Alert, ...]):
    """The same alert 50,000 times, and how often it was looked at."""

    given = 0

    def __iter__(self) -> Iterator[Alert]:
        for _ in range(50_000):
            self.given += 1
            yield self[0]


def test_alerts_that_take_too_much_once_for_each_action_are_refused() -> None:
    text = "x" * 16_000
    fat = Alert("firing", {"action_plugin": "a,b,c,d"}, {"text": text}, T0, None, "", "f1")

    def routed_with(number: int) -> Intake:
        notification = Notification("r", "firing", (fat,) * number, "", "", 0)
        return intake_of(notification, "", "", (), Catalog(frozenset("ab")))

    assert routed_with(1_000).rows == 4_000
    with pytest.raises(NotificationError, match="take more than 67108864 bytes"):
        routed_with(1_100)


def test_only_the_first_unknown_names_are_compared_with_the_known_ones() -> None:
    compared = Compared({"log_action"})
    suggest = Suggestions(compared, most=3)

    assert suggest("log_acton") == " (did you mean log_action?)"
    assert suggest("log_acton") == " (did you mean log_action?)"
    assert [suggest(f"other_{number}") for number in range(5)] == [""] * 5
    assert suggest("log_acton") == " (did you mean log_action?)"
    assert compared.times == 3


class Compared(set[str]):
    """Names, and how often they were gone through."""

    times = 0

    def __iter__(self) -> Iterator[str]:
        self.times += 1
        return super().__iter__()
