"""Which instants count in a look at the past."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.clock import AHEAD, latest_past, past
from tests.support.notifications import T0

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("recorded", "counts_as"),
    [
        pytest.param(T0 - timedelta(days=365), T0 - timedelta(days=365), id="long ago"),
        pytest.param(T0, T0, id="now"),
        pytest.param(T0 + 2 * SECOND, T0, id="a little ahead counts as now"),
        pytest.param(T0 + timedelta(minutes=1), T0, id="a minute ahead counts as now"),
        pytest.param(T0 + timedelta(minutes=1, microseconds=1), None, id="more does not count"),
        pytest.param(T0 + timedelta(days=365), None, id="a year ahead"),
        pytest.param(None, None, id="never"),
    ],
)
def test_instant_counts_unless_it_lies_more_than_a_minute_ahead(
    recorded: datetime | None, counts_as: datetime | None
) -> None:
    assert past(recorded, T0) == counts_as


@given(st.timedeltas(-timedelta(days=4000), timedelta(days=4000)))
def test_instant_that_counts_is_never_later_than_now(distance: timedelta) -> None:
    recorded = T0 + distance

    found = past(recorded, T0)

    assert (found is None) == (recorded > latest_past(T0)) == (distance > AHEAD)
    assert found is None or found == min(recorded, T0)
