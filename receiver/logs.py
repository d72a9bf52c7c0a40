"""Logs on standard output: a JSON object a line, or text for people.

Messages are constant, lower-case phrases; everything variable is a field. Whatever is logged while
an attempt runs carries the fields of its run, however the plugin logs it.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from receiver import plainjson

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

# What a line says of itself: nothing else may stand there.
_OF_THE_LINE = ("time", "level", "logger")

_TO_QUOTE = frozenset(" ='\"")

_fields: ContextVar[Mapping[str, object] | None] = ContextVar("receiver_log_fields", default=None)
_log = logging.getLogger(__name__)


@contextmanager
def fields_of_run(fields: Mapping[str, object]) -> Iterator[None]:
    """Add fields to every line that is logged meanwhile, by this thread."""
    token = _fields.set(fields)
    try:
        yield
    finally:
        _fields.reset(token)


def _add_fields(record: logging.LogRecord) -> bool:
    """Add the fields of the run under way; a plugin's own of the same name gets an underscore."""
    for name in _OF_THE_LINE:
        if name in record.__dict__:
            record.__dict__[f"{name}_"] = record.__dict__.pop(name)
    for name, value in (_fields.get() or {}).items():
        own = record.__dict__.get(name, value)
        if own != value:
            record.__dict__[f"{name}_"] = own
        record.__dict__[name] = value
    return True


class _Json(JsonFormatter):
    """One line of JSON: time, level, logger, message, then the fields.

    A fast path, for a line a notification costs as much as to validate it: what any of our lines
    holds is known, so that nothing is renamed or looked up, and nothing made anew for each line.
    """

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        """Put the time first."""
        log_data["time"] = datetime.now(UTC).isoformat(timespec="milliseconds")
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        log_data["message"] = record.message
        for name, value in message_dict.items():
            log_data[f"{name}_" if name in _OF_THE_LINE else name] = value
        own = record.__dict__
        log_data.update({name: own[name] for name in own if name not in _STANDARD})

    def serialize_log_record(self, log_data: dict[str, Any]) -> str:
        """Return strict ASCII: nothing in it is a line break or an escape to whoever reads it."""
        return plainjson.dumps(log_data)


class _Text(logging.Formatter):
    """One line for people: time, level, message, then field=value; then the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters are shown escaped, a traceback's lines indented."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(
            f"{_shown(name)}={_shown(value)}"
            for name, value in record.__dict__.items()
            if name not in _STANDARD
        )
        message = _printable(record.getMessage())
        line = f"{time} {record.levelname.lower():7} {message} {fields}"
        if record.exc_info:
            # What was raised may quote an alert: no line of it passes for one of the log.
            traceback = self.formatException(record.exc_info).split("\n")
            line = "\n".join([line, *(f"    {_printable(one)}" for one in traceback)])
        return line.rstrip()


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _shown(value: object) -> str:
    """Return a field's value, quoted where it could pass for another or act on a terminal."""
    text = str(value)
    return text if text.isprintable() and not set(text) & _TO_QUOTE else repr(text)


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to a stream, as `json` or `text`; default: standard output."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(_Json() if style == "json" else _Text())
    handler.addFilter(_add_fields)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    threading.excepthook = _log_thread_end
    for chatty in ("alembic", "botocore", "boto3", "sqlalchemy.engine"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # Its warnings quote whole URLs, and what it fails with is raised as well.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _log_thread_end(ended: threading.ExceptHookArgs) -> None:
    """Log what a plugin's own thread died of, where else a traceback of many lines would appear."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        _log.error("thread ended by an exception", exc_info=ended.exc_value)
