"""JSON of anything that a plugin returns or logs: always valid, always ASCII, never raises."""

import json
import math
import re
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

_DEEPEST = 20
_LONGEST_INTEGER = 1024  # Bits; Python refuses to write far longer ones.
_STRICT = json.JSONEncoder(allow_nan=False)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def dumps(value: Any) -> str:
    """Return a value as strict JSON; what JSON does not know, NaN included, becomes its text."""
    try:
        return _STRICT.encode(value)
    except BaseException:  # noqa: BLE001 - a plugin's object
        return json.dumps(_plain(value, _DEEPEST))


def _plain(value: Any, levels: int) -> Any:
    try:
        return _read(value, levels)
    except BaseException as error:  # noqa: BLE001 - a plugin's object
        return f"<{type(value).__name__} that cannot be read: {type(error).__name__}>"


def _read(value: Any, levels: int) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= _LONGEST_INTEGER else text_of(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, date):
        return value.isoformat()
    if levels == 0:
        return "…"
    if isinstance(value, Mapping):
        return {text_of(key): _plain(one, levels - 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one, levels - 1) for one in value]
    return text_of(value)


def text_of(value: object) -> str:
    """Return the text of any object: never raises, and holds nothing that a database refuses."""
    try:
        text = str(value)
    except BaseException as error:  # noqa: BLE001 - a plugin's object
        return f"<{type(value).__name__} whose text cannot be had: {type(error).__name__}>"
    return _UNSTORABLE.sub("\ufffd", text)


def number(value: float) -> float | str:
    """Return a number, as text where JSON has no number for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
