"""How durations are written."""

from datetime import timedelta

import pytest

from receiver.durations import format_duration

SECOND, MINUTE, HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (timedelta(0), "0s"),
        (timedelta(milliseconds=400), "0s"),
        (timedelta(milliseconds=600), "1s"),
        (SECOND, "1s"),
        (90 * MINUTE, "1h30m"),
        (HOUR + SECOND, "1h1s"),
        (24 * HOUR, "1d"),
        (timedelta(days=9, hours=8, minutes=7, seconds=6), "9d8h7m6s"),
    ],
)
def test_duration_is_written_as_a_user_would(duration: timedelta, expected: str) -> None:
    assert format_duration(duration) == expected
