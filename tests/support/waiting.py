"""Waiting for something to come true: by polling, with a deadline."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    look: Callable[[], T | None],
    timeout_seconds: float = 60.0,
    what: str = "",
    explain: Callable[[], str] = lambda: "",
) -> T:
    """Return the first true value of `look`; fail when there is none in time.

    `explain` is called only for the message of the failure.
    """
    for _ in looks(timeout_seconds):
        found = look()
        if found:
            return found
    message = f"not in {timeout_seconds:g} s: {what or look}; last: {found!r}"
    raise AssertionError(f"{message}\n{explain()}".rstrip())


def looks(timeout_seconds: float) -> Iterator[None]:
    """Say each time that it is time to look again, until the time has passed."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        # Whoever was kept waiting, by the machine or by a look, has one more.
        is_last = time.monotonic() > deadline
        yield
        if is_last:
            return
        time.sleep(0.02)
