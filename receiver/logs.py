"""Logs on standard output: a JSON object a line, or text for people.

Messages are constant, lower-case phrases; everything variable is a field. Whatever is logged while
an attempt runs carries the fields of its run, however the plugin logs it. A line and each of its
fields are bounded, see `log_bounds`. Exceptions that end a thread or a process, or that nothing can
catch, are logged too. `captured_output` turns what is written past the logs into lines.
"""

import io
import logging
import os
import select
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from pythonjsonlogger.json import JsonFormatter

from receiver.log_bounds import MAX_LINE_BYTES, bounded_fields, bounded_json
from receiver.plainjson import text_of

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}

# What a line says of itself: nothing else may stand there.
_OF_THE_LINE = ("time", "level", "logger")

_TO_QUOTE = frozenset(" ='\"")

_fields: ContextVar[Mapping[str, object] | None] = ContextVar("receiver_log_fields", default=None)
_log = logging.getLogger(__name__)

# Standard output as it was at the start, see `keep_output`.
_kept_output: int | None = None


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
        if own is not value and text_of(own) != text_of(value):
            record.__dict__[f"{name}_"] = own
        record.__dict__[name] = value
    return True


def _own_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of the run, then those of the caller, of which a bound cuts the last."""
    own = record.__dict__
    fields = {name: own[name] for name in _fields.get() or () if name in own}
    fields.update({name: own[name] for name in own if name not in _STANDARD})
    return fields


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
        own = _own_fields(record)
        for name, value in message_dict.items():
            log_data[f"{name}_" if name in _OF_THE_LINE or name in own else name] = value
        log_data.update(own)

    def serialize_log_record(self, log_data: dict[str, Any]) -> str:
        """Return strict ASCII: nothing in it is a line break or an escape to whoever reads it."""
        return bounded_json(log_data)


class _Text(logging.Formatter):
    """One line for people: time, level, message, then field=value; then the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; control characters are shown escaped, a traceback's lines indented."""
        time = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        parts = {"message": record.getMessage(), **_own_fields(record)}
        if record.exc_info:
            parts["exc_info"] = self.formatException(record.exc_info)
        parts = bounded_fields(parts)
        message, raised = parts.pop("message"), parts.pop("exc_info", "")
        fields = " ".join(f"{_shown(name)}={_shown(value)}" for name, value in parts.items())
        line = f"{time} {record.levelname.lower():7} {_printable(message)} {fields}".rstrip()
        # What was raised may quote an alert: no line of it passes for one of the log.
        lines = [line, *(f"    {_printable(text)}" for text in raised.split("\n") if text)]
        return "\n".join(_within_bound(line) for line in lines)


def _printable(text: str) -> str:
    return text if text.isprintable() else repr(text)


def _shown(value: object) -> str:
    """Return a field's value, quoted where it could pass for another or act on a terminal."""
    text = str(value)
    return text if text.isprintable() and not set(text) & _TO_QUOTE else repr(text)


def _within_bound(line: str) -> str:
    """Cut a line that is too long because of its quotes, which count less as JSON."""
    encoded = line.encode(errors="backslashreplace")
    if len(encoded) < MAX_LINE_BYTES:
        return line
    note = f"... (cut: {len(encoded) - MAX_LINE_BYTES} bytes more)"
    return encoded[: MAX_LINE_BYTES - len(note) - 1].decode(errors="ignore") + note


class _Handler(logging.Handler):
    """Writes each line at once and whole; reports a wrong log call as a line of the log."""

    def __init__(self, output: io.RawIOBase) -> None:
        """Write to an output that has no buffer of its own."""
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line of a record; what cannot be written is lost."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a plugin's format string and objects
            line = self.format(_as_written(record, error))
        left = memoryview(f"{line}\n".encode(errors="backslashreplace"))
        try:
            while left:
                written = self._output.write(left)
                if written is None:  # The output does not block, and is full.
                    select.select([], [self._output], [], 1.0)
                else:
                    left = left[written:]
        except (OSError, ValueError):
            return  # Closed, or its reader has ended: there is nowhere to report that.


def _as_written(record: logging.LogRecord, error: Exception) -> logging.LogRecord:
    """Return a record of a log call that cannot be formatted: its parts, and the reason."""
    written = logging.LogRecord(
        record.name, record.levelno, record.pathname, record.lineno,
        text_of(record.msg), None, None,
    )  # fmt: skip
    written.__dict__.update(_own_fields(record))
    written.__dict__.update(
        log_error=f"{type(error).__name__}: {text_of(error)}",
        log_arguments=record.args,
        log_call=f"{record.pathname}:{record.lineno}",
    )
    if record.exc_info and record.exc_info[0] is not None:
        written.__dict__["exception"] = record.exc_info[0].__name__
    return written


def keep_output() -> None:
    """Let `configure` use the present standard output, whatever becomes of descriptor 1."""
    global _kept_output
    if _kept_output is None:
        _kept_output = os.dup(1)


def kept_descriptors() -> tuple[int, ...]:
    """Return the descriptors that logs need, besides the standard ones."""
    return () if _kept_output is None else (_kept_output,)


def configure(level: str, style: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to a stream, as `json` or `text`; default: standard output.

    To be called again after plugins were loaded, because they may have configured logging too.
    """
    handler = _Handler(_unbuffered(stream))
    handler.setFormatter(_Json() if style == "json" else _Text())
    handler.addFilter(_add_fields)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.disable(logging.NOTSET)
    for name, logger in logging.Logger.manager.loggerDict.items():
        # `dictConfig` disables loggers by default.
        if name.partition(".")[0] == "receiver" and isinstance(logger, logging.Logger):
            logger.disabled = False
    logging.captureWarnings(True)
    sys.excepthook = _log_process_end
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_thread_end
    for chatty in ("alembic", "botocore", "boto3", "sqlalchemy.engine"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    # Its warnings quote whole URLs, and what it fails with is raised as well.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def _unbuffered(stream: TextIO | None) -> io.RawIOBase:
    """Return the output below a stream: a line that is written in parts is mixed with others."""
    if stream is None and _kept_output is not None:
        return io.FileIO(_kept_output, "w", closefd=False)
    below: Any = (stream or sys.stdout).buffer
    raw: io.RawIOBase = getattr(below, "raw", below)
    return raw


def _log_thread_end(ended: threading.ExceptHookArgs) -> None:
    """Log what a plugin's own thread died of, where else a traceback of many lines would appear."""
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        _log.error("thread ended by an exception", exc_info=ended.exc_value)


@contextmanager
def logged_end() -> Iterator[None]:
    """Log an exception that ends this process, and exit with status 1."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the outermost of the process
        _log_process_end(type(error), error, error.__traceback__)
        sys.exit(1)


def _log_process_end(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log what a process died of."""
    _log.critical("process ended by an exception", exc_info=(kind, error, trace))


def _log_unraisable(ignored: "sys.UnraisableHookArgs") -> None:
    """Log an exception in a place that has no caller, such as `__del__`."""
    fields = {"where": text_of(ignored.object), "reason": ignored.err_msg or "in a destructor"}
    _log.error("exception ignored", exc_info=ignored.exc_value or False, extra=fields)
