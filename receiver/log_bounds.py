"""The bounds of a log line, so that every collector takes it whole.

Docker and the runtimes of Kubernetes split longer lines than 16 KiB, many paths of syslog longer
ones than 8 KiB. All sizes are those of the JSON, which is ASCII: a letter is a byte.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from receiver.plainjson import (
    PlainCopy,
    TooLargeError,
    cut,
    dumps,
    text_of,
    whole_characters,
)

# A line, with its line feed.
MAX_LINE_BYTES = 16 * 1024
# The value of a field.
MAX_FIELD_BYTES = 8 * 1024
# The name of a field, or a key inside a value.
MAX_NAME_BYTES = 128
# Fields of a line, items of a list or a mapping, and levels of nesting inside a value.
MAX_FIELDS = 64
MAX_ITEMS = 100
MAX_DEPTH = 8

# Most collectors read integers as 64 bits, and fail for longer ones.
_INTEGER_BITS = 63
_LARGEST_INTEGER = 2**_INTEGER_BITS - 1
# Characters of each text and items of each collection, until a nested value fits.
_STEPS = (
    *((length, MAX_ITEMS) for length in (MAX_FIELD_BYTES, 1024, 256, 64)),
    *((32, items) for items in (50, 20, 5, 1)),
)
# Their last lines name the exception.
_CUT_IN_THE_MIDDLE = ("exc_info", "stack_info")


def bounded_json(fields: Mapping[str, Any]) -> str:
    """Return fields as one JSON object within the bounds, without the line feed.

    What is cut ends with a note that says how much is missing.
    """
    if _is_plain(fields):
        line = dumps(fields)
        # A surrogate may stand alone, which strict parsers refuse.
        if len(line) <= MAX_FIELD_BYTES and "\\ud" not in line:
            return line
    return json.dumps(bounded_fields(fields))


def _is_plain(fields: Mapping[str, Any]) -> bool:
    """Whether no bound but the size can be exceeded: the case of nearly all lines, so it is fast.

    What escapes make longer than allowed, the length of the whole line shows.
    """
    if len(fields) > MAX_FIELDS:
        return False
    for name, value in fields.items():
        if type(name) is not str or len(name) > MAX_NAME_BYTES:
            return False
        if isinstance(value, str):
            if len(value) > MAX_FIELD_BYTES:
                return False
        elif isinstance(value, int):
            if not -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER:
                return False
        elif value is not None and not isinstance(value, float):
            return False
    return True


def bounded_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain copies of the fields, which together fit into a line of JSON."""
    named: dict[str, Any] = {}
    for name, value in islice(fields.items(), MAX_FIELDS):
        key = _fit_text(name if isinstance(name, str) else text_of(name), MAX_NAME_BYTES)
        if key in named:  # 1 and "1", or two that were cut.
            key = f"{key}_{len(named)}"
        named[key] = value
    if len(fields) > MAX_FIELDS:
        named["fields_cut"] = len(fields) - MAX_FIELDS
    bounded = {name: _fit(name, value, MAX_FIELD_BYTES) for name, value in named.items()}
    sizes = {name: _size(value) for name, value in bounded.items()}
    around = sum(_size(name) + len(": , ") for name in bounded) + len("{}\n")
    room = MAX_LINE_BYTES - around
    if sum(sizes.values()) > room:
        share = _fair_share(sizes.values(), room)
        for name, size in sizes.items():
            if size > share:
                bounded[name] = _fit(name, named[name], share)
    return bounded


def _fair_share(sizes: Iterable[int], room: int) -> int:
    """Return the size to which the larger ones are cut, so that all fit into the room."""
    left = sorted(sizes)
    while left and left[0] <= room // len(left):
        room -= left.pop(0)
    return room // len(left) if left else room


def _size(value: Any) -> int:
    return len(json.dumps(value))


def _fit(name: str, value: Any, room: int) -> Any:
    """Return a plain copy of a value whose JSON fits."""
    if isinstance(value, str):
        return _fit_text(value, room, is_end_kept=name in _CUT_IN_THE_MIDDLE)
    for text_length, items in _STEPS:
        copier = PlainCopy(
            MAX_DEPTH, name_length=MAX_NAME_BYTES, text_length=text_length, items=items,
            characters=room, integer_bits=_INTEGER_BITS,
        )  # fmt: skip
        try:
            copied = copier.of(value)
        except TooLargeError:
            continue
        if isinstance(copied, str):
            return _fit_text(copied, room)
        if _size(copied) <= room:
            return copied
    if isinstance(value, Mapping):
        return {"…": f"(cut: {len(value)} items)"}
    return ["… (cut: all items)"]


def _fit_text(text: str, room: int, *, is_end_kept: bool = False) -> str:
    """Return a text whose JSON fits; `is_end_kept` cuts it in the middle."""
    text = str.__str__(text)
    if len(text) <= room and _size(whole := whole_characters(text)) <= room:
        return whole
    kept = min(len(text), room)
    while True:
        shorter = whole_characters(_shortened(text, kept, is_end_kept))
        size = _size(shorter)
        if size <= room or kept == 0:
            return shorter
        kept = min(kept - 1, kept * room // size)


def _shortened(text: str, kept: int, is_end_kept: bool) -> str:
    if not is_end_kept:
        return cut(text, kept)
    begin = kept // 4
    end = len(text) - (kept - begin)
    return f"{text[:begin]}… (cut: {end - begin} characters) …{text[end:]}"
