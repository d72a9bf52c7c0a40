"""Which instants count in a look at the past. Pure.

A clock can be wrong for a moment: a virtual machine resumes, NTP starts late, a battery is empty.
What a wrong clock recorded must not count for as long as the clock was wrong.
"""

from datetime import datetime, timedelta

# An instant that lies further ahead of now was recorded by a wrong clock. Clocks are also
# corrected by seconds, and such a step back must open no limit: less than this counts as now.
AHEAD = timedelta(minutes=1)


def latest_past(now: datetime) -> datetime:
    """Return the latest instant that counts in a look at the past."""
    return now + AHEAD


def past(instant: datetime | None, now: datetime) -> datetime | None:
    """Return a recorded instant as it counts now, None when it does not count.

    The result is never later than `now`.
    """
    if instant is None or instant > latest_past(now):
        return None
    return min(instant, now)
