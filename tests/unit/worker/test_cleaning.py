"""The clock that cleaning trusts."""

from datetime import UTC, datetime, timedelta

import pytest

from receiver.worker.cleaning import SteadyClock

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND, DAY = timedelta(seconds=1), timedelta(days=1)


def looks(*clock: tuple[float, timedelta]) -> list[bool]:
    """Return whether the clock is steady at each look: seconds gone by, and what it shows."""
    steady = SteadyClock()
    return [steady.is_steady(BEGAN + shown, seconds) for seconds, shown in clock]


def test_clock_that_runs_on_is_steady() -> None:
    assert looks((0.0, 0 * SECOND), (2.0, 2 * SECOND), (900.0, 900 * SECOND)) == [True] * 3


@pytest.mark.parametrize("step", [-30 * SECOND, 30 * SECOND, -365 * DAY])
def test_small_step_and_step_back_hold_nothing_up(step: timedelta) -> None:
    assert looks((0.0, 0 * SECOND), (2.0, 2 * SECOND + step)) == [True, True]


def test_jump_ahead_holds_cleaning_up_for_an_hour() -> None:
    jumped = 365 * DAY
    assert looks(
        (0.0, 0 * SECOND),
        (2.0, jumped),
        (62.0, jumped + 60 * SECOND),
        (3500.0, jumped + 3498 * SECOND),
        (3700.0, jumped + 3698 * SECOND),
    ) == [True, False, False, False, True]


def test_jump_that_is_taken_back_holds_cleaning_up_for_an_hour_too() -> None:
    jumped, back = (2.0, 365 * DAY), (4.0, 4 * SECOND)
    assert looks((0.0, 0 * SECOND), jumped, back, (3700.0, 3700 * SECOND)) == [
        True, False, False, True,
    ]  # fmt: skip
