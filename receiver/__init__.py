"""Runs an action once per episode of a firing Prometheus alert.

What authors of action plugins import:

    from receiver import hookimpl

    @hookimpl
    def execute(metric_name, value): ...
"""

from receiver.context import ActionContext, call_as_json
from receiver.declarations import Setting
from receiver.errors import (
    DeadlineExceededError,
    PermanentError,
    RunCancelledError,
    StillRunning,
    TemporaryError,
)
from receiver.hookspecs import hookimpl

__all__ = [
    "ActionContext",
    "DeadlineExceededError",
    "PermanentError",
    "RunCancelledError",
    "Setting",
    "StillRunning",
    "TemporaryError",
    "call_as_json",
    "hookimpl",
]
