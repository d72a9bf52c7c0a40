"""How a setting is declared and read: one mechanism for the receiver, its policies and plugins.

A `Setting` says name, type, default and help; `resolve` reads a set of them from raw values and
reports every problem at once, each with its cure. Nothing here reads the environment by itself.
"""

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit


class Address(NamedTuple):
    """A host and a port to listen on."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class Backoff(NamedTuple):
    """The first and the longest pause between two attempts."""

    first: timedelta
    longest: timedelta


class Window(NamedTuple):
    """At most `number` in any `period`."""

    number: int
    period: timedelta


class Breaker(NamedTuple):
    """After so many `failures` in a row, nothing for the `pause`."""

    failures: int
    pause: timedelta


@dataclass(frozen=True)
class Setting:
    """One setting: where it is read from, what it may hold, and what it is for.

    `type` is a key of `TYPES`. `default` is written as a user would write it; None means "not
    set". A `secret` is never shown and can also be read from the file named by `<name>_FILE`.
    `required_unless` names another setting of the same table that makes this one optional.
    `minimum` and `maximum` bound the value, written as a user would write them.
    """

    name: str
    type: str = "text"
    default: str | None = None
    help: str = ""
    required: bool = False
    required_unless: str = ""
    secret: bool = False
    choices: tuple[str, ...] = ()
    minimum: str | None = None
    maximum: str | None = None

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            known = ", ".join(sorted(TYPES))
            raise ValueError(f"{self.name}: {self.type!r} is not a type of setting; use {known}")
        if not isinstance(self.default, str | None):
            raise TypeError(
                f"{self.name}: the default {self.default!r:.100} is no text; write it as a user "
                "would, in quotes"
            )

    @property
    def file_name(self) -> str:
        """The name under which the file of a secret is given."""
        return f"{self.name}_file" if self.name.islower() else f"{self.name}_FILE"

    def parse(self, text: str) -> Any:
        """Return the value of `text`; raise ValueError saying what is wrong and the cure."""
        value = TYPES[self.type](text)
        if self.choices:
            for one in value if isinstance(value, tuple) else (value,):
                if one not in self.choices:
                    raise ValueError(f"is not one of {', '.join(self.choices)}")
        if self.minimum is not None and value < TYPES[self.type](self.minimum):
            raise ValueError(f"is less than {self.minimum}")
        if self.maximum is not None and value > TYPES[self.type](self.maximum):
            raise ValueError(f"is more than {self.maximum}")
        return value

    def default_value(self) -> Any:
        """Return the parsed default, None when there is none."""
        return None if self.default is None else self.parse(self.default)


_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,6})?)\s*([A-Za-z]*)", re.ASCII)
_SIZE_UNITS = {
    "": 1, "b": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_DURATION = re.compile(
    r"(?:(?P<w>\d+)w)?(?:(?P<d>\d+)d)?(?:(?P<h>\d+)h)?(?:(?P<m>\d+)m)?(?:(?P<s>\d+)s)?(?:(?P<ms>\d+)ms)?"
)
_LONGEST = timedelta(days=36500)


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    unit = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError("is not a size; write bytes or 10MiB")
    size = Decimal(match[1]) * unit
    if size != int(size):
        raise ValueError("is not a whole number of bytes; write bytes or 10MiB")
    return int(size)


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        raise ValueError("is not a duration; write 30s, 5m or 1h30m")
    parts = {unit: int(number or 0) for unit, number in match.groupdict().items()}
    try:
        duration = timedelta(
            weeks=parts["w"], days=parts["d"], hours=parts["h"],
            minutes=parts["m"], seconds=parts["s"], milliseconds=parts["ms"],
        )  # fmt: skip
    except OverflowError:
        duration = timedelta.max
    if duration > _LONGEST:
        raise ValueError("is longer than 100 years")
    return duration


def _backoff(text: str) -> Backoff:
    first, dots, longest = text.partition("..")
    try:
        backoff = Backoff(_duration(first), _duration(longest if dots else first))
    except ValueError:
        raise ValueError(
            "is not a backoff; write the first and the longest pause: 1s..5m"
        ) from None
    if backoff.first > backoff.longest:
        raise ValueError("starts with a pause longer than its longest; write 1s..5m")
    return backoff


def _rates(text: str) -> tuple[Window, ...]:
    windows = []
    for word in _words(text):
        number, slash, period = word.partition("/")
        try:
            window = Window(_count(number), _duration(period))
        except ValueError:
            window = None
        if window is None or not slash or not window.period:
            raise ValueError("is not a rate; write a number and a time, or several: 3/1h, 7/1d")
        windows.append(window)
    return tuple(windows)


def _breaker(text: str) -> Breaker | None:
    if text.strip() == "none":
        return None
    match = re.fullmatch(r"\s*(\d{1,4})\s+failures\s*,\s*(\S+)\s*", text)
    try:
        return Breaker(_count(match[1]), _duration(match[2])) if match else _no_breaker()
    except ValueError:
        return _no_breaker()


def _no_breaker() -> Breaker:
    raise ValueError("is not a breaker; write 5 failures, 10m, or none")


def _integer(text: str) -> int:
    if not re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        raise ValueError("is not a whole number")
    return int(text)


def _count(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text.strip()) or int(text) < 1:
        raise ValueError("is not a whole number of at least 1")
    return int(text)


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError("is neither true nor false")


def _address(text: str) -> Address:
    host, colon, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError("is not an address; write 127.0.0.1:8080")
    return Address(host, int(port))


def _url(text: str) -> str:
    try:
        parts = urlsplit(text.strip())
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("is not a URL; write http://host:port/path")
    return text.strip()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in re.split(r"[,\n]", text) if word.strip())


def _token(text: str) -> str:
    token = text.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("is not a token; use printable ASCII without spaces")
    return token


def _tokens(text: str) -> tuple[str, ...]:
    return _at_most_two(tuple(_token(one) for one in text.split() or [""]))


def _logins(text: str) -> tuple[str, ...]:
    logins = tuple(text.split())
    if not logins or not all(
        re.fullmatch(r"[^:]+:.+", one) and one.isprintable() for one in logins
    ):
        raise ValueError("is not a login; write user:password, without spaces in either")
    return _at_most_two(logins)


def _at_most_two(credentials: tuple[str, ...]) -> tuple[str, ...]:
    if len(credentials) > 2:
        raise ValueError("holds more than two; write the old one and the new one")
    return credentials


def _path(text: str) -> Path:
    if not text.strip() or "\0" in text:
        raise ValueError("is not a path")
    path = os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser raises RuntimeError
    if path.startswith("~"):
        raise ValueError("begins with a home directory that is not known; write a full path")
    return Path(path)


TYPES: Mapping[str, Callable[[str], Any]] = {
    "address": _address,
    "backoff": _backoff,
    "boolean": _boolean,
    "breaker": _breaker,
    "count": _count,
    "duration": _duration,
    "integer": _integer,
    "list": _words,
    "logins": _logins,
    "path": _path,
    "rates": _rates,
    "size": _size,
    "text": str,
    "token": _token,
    "tokens": _tokens,
    "url": _url,
}

MISSING = "{}: is not set; {}"


def setting(name: str, type: str, default: str | None = None, help: str = "", **more: Any) -> Any:  # noqa: A002
    """Declare a dataclass field as a setting; the field holds the parsed value."""
    declared = Setting(name, type, default, help, **more)
    return field(
        default_factory=declared.default_value,
        repr=not declared.secret,
        metadata={"setting": declared},
    )


def declared(table: type) -> dict[str, Setting]:
    """Return field name -> setting of a dataclass whose fields are made by `setting`."""
    return {one.name: one.metadata["setting"] for one in fields(table) if "setting" in one.metadata}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)` when a known name is close, else an empty string."""
    bare = {one.removeprefix("RECEIVER_").lower(): one for one in known}
    close = difflib.get_close_matches(name[:64].removeprefix("RECEIVER_").lower(), list(bare), n=1)
    return f" (did you mean {bare[close[0]]}?)" if close else ""


def as_text(raw: object) -> str:
    """Return a raw value from a TOML file as a user would write it in the environment."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, list):
        return ",".join(as_text(one) for one in raw)
    return str(raw)


def resolve(
    settings: Iterable[Setting],
    sources: Iterable[Mapping[str, object]],
    shown_as: Callable[[Setting], str] = lambda one: one.name,
) -> tuple[dict[str, Any], list[str]]:
    """Read each setting from the first source that has it; return values by name, and problems.

    An empty text counts as not set (a chart renders an empty variable for "none"), and so falls
    through to the next source. What is wrong is reported, never replaced by the default.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    ordered = list(sources)
    for one in settings:
        shown = shown_as(one)
        try:
            text = _raw(one, ordered)
            if text is None:
                if one.required or (
                    one.required_unless and not _is_set(one.required_unless, ordered)
                ):
                    problems.append(MISSING.format(shown, one.help or "it is required"))
                values[one.name] = one.default_value()
            else:
                values[one.name] = one.parse(text)
        except ValueError as error:
            said = None if one.secret else _raw(one, ordered) or one.default
            problems.append(f"{shown}:" + (f' "{said}"' if said else "") + f" {error}")
        except OSError as error:
            shown = shown.removesuffix(one.name) + one.file_name
            problems.append(f"{shown}: cannot be read: {error.strerror}: {error.filename}")
    return values, problems


def _raw(one: Setting, sources: Iterable[Mapping[str, object]]) -> str | None:
    for source in sources:
        text, file = _text_and_file(one, source)
        if text and file:
            raise ValueError(f"is set together with {one.file_name}; keep one of them")
        if text or file:
            return read_secret(one, Path(file)) if file else text
    return None


def _text_and_file(one: Setting, source: Mapping[str, object]) -> tuple[str, str]:
    file = as_text(source.get(one.file_name, "")) if one.secret else ""
    return as_text(source.get(one.name, "")), file


def secret_file(one: Setting, sources: Iterable[Mapping[str, object]]) -> Path | None:
    """Return the file that a secret is read from, None when it stands in its source."""
    for source in sources:
        text, file = _text_and_file(one, source)
        if text or file:
            return Path(file) if file else None
    return None


def read_secret(one: Setting, file: Path) -> str:
    """Return the text of a secret's file; raise OSError or ValueError when it cannot be used."""
    text = file.read_text(encoding="utf-8").strip()
    if not text:
        raise ValueError(f"is empty in the file that {one.file_name} names")
    return text


def is_missing(problem: str) -> bool:
    """Whether a problem of `resolve` is that a required setting is absent, not that one is bad."""
    return ": is not set; " in problem


def _is_set(name: str, sources: Iterable[Mapping[str, object]]) -> bool:
    return any(source.get(name) or source.get(f"{name}_FILE") for source in sources)
