"""Fixtures for journals: a clock that a test moves, and an empty journal that uses it."""

from collections.abc import Callable

import pytest

from receiver.journal.journal import Journal
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    """A minute after the time of the recorded alerts."""
    return Clock()


@pytest.fixture
def journal(open_journal: Callable[..., Journal], clock: Clock) -> Journal:
    """An empty journal on each database in turn."""
    return open_journal(clock=clock)
