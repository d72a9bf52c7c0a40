"""A value of a setting or a policy as a person would write it: the way back from parsing."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from receiver.declarations import Backoff, Breaker, Setting, Window
from receiver.durations import format_duration

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def as_written(value: object) -> str:
    """Return a parsed value as it would stand in the environment; `none` for none."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, Backoff):
        return f"{format_duration(value.first)}..{format_duration(value.longest)}"
    if isinstance(value, Breaker):
        return f"{value.failures} failures, {format_duration(value.pause)}"
    if isinstance(value, Window):
        return f"{value.number}/{format_duration(value.period)}"
    # An address is a tuple, too, but one that knows how it is written.
    if isinstance(value, tuple) and type(value).__str__ is tuple.__str__:
        return ", ".join(as_written(one) for one in value)
    return str(value) if isinstance(value, Path) or value != "" else "none"


def setting_as_written(one: Setting, value: Any) -> str:
    """Return the value of a setting, and of a secret only whether there is one."""
    if one.secret:
        return "none" if value is None else "(hidden)"
    if one.type == "size" and isinstance(value, int):
        for unit, size in _UNITS:
            if value and value % size == 0:
                return f"{value // size}{unit}"
    return as_written(value)
