"""A secret that may change while the receiver runs: its file is read again when it does."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from receiver.declarations import Setting, read_secret

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Secret(Generic[T]):
    """The value of a setting, turned into what is worked with."""

    def __init__(
        self,
        setting: Setting,
        value: Any,
        file: Path | None,
        turn: Callable[[Any], T],
        section: str = "",
    ) -> None:
        """Begin with the value that was read with the settings, and the file that it came from."""
        self._setting = setting
        self._name = f"{section} {setting.file_name}".lstrip()
        self._file = file
        self._turn = turn
        self._value = turn(value)
        self._seen: object = None
        self._lock = threading.Lock()

    def value(self) -> T:
        """Return the value as it is now.

        A file that is missing or wrong, for a moment or for good, leaves the last good value.
        """
        if self._file is not None and _state_of(self._file) != self._seen:
            with self._lock:
                # Looked at before it is read: what is written in between is read once more.
                self._seen = _state_of(self._file)
                self._read(self._file)
        return self._value

    def _read(self, file: Path) -> None:
        try:
            value = self._turn(self._setting.parse(read_secret(self._setting, file)))
        except (OSError, ValueError) as error:
            _log.error(
                "secret cannot be read again, the last good one stays",
                extra={"setting": self._name, "error": _without_content(error)},
            )
            return
        if value != self._value:
            self._value = value
            _log.info("secret changed", extra={"setting": self._name})


def _state_of(file: Path) -> object:
    """Return what differs once the file, or the link that leads to it, is another."""
    try:
        one = file.stat()
    except OSError as error:
        return error.errno
    return one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns


def _without_content(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return str(error.strerror)
    # A decoder's own words quote the bytes.
    return "is not UTF-8" if isinstance(error, UnicodeError) else str(error)
