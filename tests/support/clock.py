"""A clock for journals whose time a test decides."""

from datetime import datetime, timedelta

from tests.support.notifications import T0


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: datetime = T0 + timedelta(minutes=1)) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def move(self, **by: float) -> None:
        self.now += timedelta(**by)
