"""The body of a request: the whole call, or a JSON document whose `{{ names }}` are filled in.

The template is parsed as JSON once, and filled in as a document: alert text becomes the value of
a string or a part of it, so that it is escaped by whatever writes the JSON. It knows names and
nothing else: no attributes, no calls, no conditions, no formats. What was filled in is not looked
at again.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self

_PLACE = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_LONGEST_TEMPLATE = 64 * 2**10
_DEEPEST = 50
# The names of a call that stand in the call itself, and those that stand in its alert.
NAMES = (
    "metric_name", "value", "threshold", "duration_seconds", "action", "kind", "run_id", "attempt",
    "idempotency_key", "source", "receiver",
)  # fmt: skip
ALERT_NAMES = ("labels", "annotations", "starts_at", "fingerprint", "generator_url")
# `labels.severity` is the label `severity`: all that follows the first dot is its name.
_MAPPINGS = ("labels", "annotations")


@dataclass(frozen=True)
class Template:
    """A document whose names are known to stand for something."""

    document: Any

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the template; raise ValueError where it is no JSON, or a name is unknown."""
        if len(text) > _LONGEST_TEMPLATE:
            raise ValueError(f"is longer than {_LONGEST_TEMPLATE} characters; post less")
        try:
            document = json.loads(text, parse_constant=_refuse, parse_float=_number)
        except (ValueError, RecursionError) as error:
            said = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
            raise ValueError(
                f"is not JSON: {said}; names stand inside of strings: "
                '{"text": "{{ metric_name }} is {{ value }}"}'
            ) from None
        _check(document, _DEEPEST)
        return cls(document)

    def fill(self, call: Mapping[str, Any]) -> Any:
        """Return the document with what its names stand for in this call.

        A string that is one name and nothing else becomes the value with its own type; a label
        or annotation that the alert lacks becomes null there, and nothing in a longer string.
        """
        return _fill(self.document, call)


def _fill(document: Any, call: Mapping[str, Any]) -> Any:
    if isinstance(document, dict):
        return {key: _fill(one, call) for key, one in document.items()}
    if isinstance(document, list):
        return [_fill(one, call) for one in document]
    if not isinstance(document, str):
        return document
    whole = _PLACE.fullmatch(document)
    if whole:
        return _look_up(whole[1], call)
    return _PLACE.sub(lambda place: _as_text(_look_up(place[1], call)), document)


def _refuse(number: str) -> NoReturn:
    raise ValueError(f"{number:.20} is no number in JSON")


def _number(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _check(document: Any, levels: int) -> None:
    if levels == 0:
        raise ValueError(f"is nested more than {_DEEPEST} deep; post something flatter")
    if isinstance(document, dict | list):
        for one in document.values() if isinstance(document, dict) else document:
            _check(one, levels - 1)
    elif isinstance(document, str):
        for name in _PLACE.findall(document):
            _check_name(name)
        if "{{" in _PLACE.sub("", document):
            raise ValueError(f'"{document:.60}" has a {{{{ without its name; write {{{{ value }}}}')


def _check_name(name: str) -> None:
    mapping, dot, key = name.partition(".")
    if name in NAMES or name in ALERT_NAMES or (mapping in _MAPPINGS and dot and key):
        return
    known = [*NAMES, *ALERT_NAMES, *(f"{one}.<name>" for one in _MAPPINGS)]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"{{{{ {name:.60} }}}} stands for nothing{hint}; there are {', '.join(known)}")


def _look_up(name: str, call: Mapping[str, Any]) -> Any:
    if name in NAMES:
        return call[name]
    mapping, dot, key = name.partition(".")
    return call["alert"][mapping].get(key) if dot else call["alert"][name]


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
