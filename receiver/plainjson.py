"""JSON of anything that a plugin returns or logs: always valid, always ASCII, never raises."""

import json
import math
import re
from collections.abc import Mapping
from datetime import date, timedelta
from itertools import islice
from typing import Any, TypeVar

_DEEPEST = 20
_LONGEST_INTEGER = 1024  # Bits; Python refuses to write far longer ones.
_STRICT = json.JSONEncoder(allow_nan=False)
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_T = TypeVar("_T")
_SURROGATES = re.compile("[\ud800-\udfff]")


def dumps(value: Any) -> str:
    """Return a value as strict JSON; what JSON does not know, NaN included, becomes its text."""
    try:
        return _STRICT.encode(value)
    except BaseException:  # noqa: BLE001 - a plugin's object
        return json.dumps(PlainCopy(_DEEPEST).of(value))


class TooLargeError(Exception):
    """A copy would exceed its bound."""


class PlainCopy:
    """Copies of values that JSON can write: bounded in depth and, if asked for, in size."""

    def __init__(
        self,
        depth: int,
        *,
        name_length: int | None = None,
        text_length: int | None = None,
        items: int | None = None,
        characters: int | None = None,
        integer_bits: int = _LONGEST_INTEGER,
    ) -> None:
        """Bound the nesting, each key, each text, the items of each collection, and the whole.

        Longer texts and collections end with a note of what is missing. A copy of more than
        `characters` raises TooLargeError, as soon as that is known.
        """
        self._depth = depth
        self._name_length = name_length
        self._text_length = text_length
        self._items = items
        self._characters_left = characters
        self._integer_bits = integer_bits

    def of(self, value: Any) -> Any:
        """Return the copy."""
        return self._copy(value, self._depth)

    def _copy(self, value: Any, levels: int) -> Any:
        try:
            return self._read(value, levels)
        except TooLargeError:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin's object
            return f"<{type(value).__name__} that cannot be read: {type(error).__name__}>"

    def _read(self, value: Any, levels: int) -> Any:
        if isinstance(value, str):
            return self._text(value, self._text_length)
        if value is None or isinstance(value, bool):
            return self._counted(value, 4)
        if isinstance(value, int):
            if value.bit_length() <= self._integer_bits:
                return self._counted(value, 4)
            return self._text(text_of(value), self._text_length)
        if isinstance(value, float):
            return self._counted(number(value), 4)
        if isinstance(value, timedelta):
            return self._counted(value.total_seconds(), 4)
        if isinstance(value, date):
            return self._counted(value.isoformat(), 20)
        if levels == 0 and isinstance(value, Mapping | list | tuple | set | frozenset):
            return self._counted("…", 3)
        if isinstance(value, Mapping):
            return self._mapping(value, levels - 1)
        if isinstance(value, list | tuple | set | frozenset):
            items = [self._copy(item, levels - 1) for item in islice(value, self._items)]
            if len(items) < len(value):
                items.append(f"… (cut: {len(value) - len(items)} items more)")
            return items
        return self._text(text_of(value), self._text_length)

    def _mapping(self, value: Mapping[Any, Any], levels: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for key, item in islice(value.items(), self._items):
            name = self._text(key if isinstance(key, str) else text_of(key), self._name_length)
            while name in copied:  # 1 and "1", or two that were cut.
                name = f"{name}_{len(copied)}"
            copied[name] = self._copy(item, levels)
        if len(copied) < len(value):
            copied["…"] = f"(cut: {len(value) - len(copied)} items more)"
        return copied

    def _text(self, text: str, length: int | None) -> str:
        if length is not None:
            text = cut(text, length)
        return self._counted(whole_characters(text), len(text) + 2)

    def _counted(self, value: _T, characters: int) -> _T:
        if self._characters_left is not None:
            self._characters_left -= characters
            if self._characters_left < 0:
                raise TooLargeError
        return value


def whole_characters(text: str) -> str:
    """Return a text in which a replacement stands for each half of a character (a surrogate)."""
    return _SURROGATES.sub("\ufffd", text)


def cut(text: str, length: int) -> str:
    """Return a text with at most so many characters of it, and a note of how many are missing."""
    if len(text) <= length:
        return text
    return f"{text[:length]}… (cut: {len(text) - length} characters more)"


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
