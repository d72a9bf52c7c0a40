"""Runs a fixed program: the operator names it, and no alert can change it or its arguments.

No shell is involved. The program gets the call as JSON on its standard input and as variables, in
an environment that is otherwise empty. It is the leader of a process group of its own, which is
killed at the deadline, on a cancel, and whatever is left of it when the program has ended.
"""

import contextlib
import errno
import json
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from receiver import (
    ActionContext,
    PermanentError,
    Setting,
    TemporaryError,
    call_as_json,
    hookimpl,
)

COMMAND = "EXEC_PLUGIN_COMMAND"
ENVIRONMENT = "EXEC_PLUGIN_ENVIRONMENT"

# Of sysexits.h: what a later attempt cannot mend. Every other status is worth another.
PERMANENT_STATUSES = {64: "EX_USAGE", 65: "EX_DATAERR", 77: "EX_NOPERM", 78: "EX_CONFIG"}
KEPT_BYTES = 4096
TOLD_CHARACTERS = 1000
LONGEST_VARIABLE = 4096
MOST_LABELS = 64

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OWN_PREFIX = "RECEIVER_"
_BLOCK = 64 * 2**10
_LAST_READS = 32
_LOOK_SECONDS = 0.02
# A program that has closed its output ends at once, as a rule.
_FIRST_PAUSE_SECONDS = 0.0001
_PERMANENT_ERRNOS = frozenset({
    errno.E2BIG, errno.EACCES, errno.ELIBBAD, errno.ELOOP, errno.ENOENT, errno.ENOEXEC,
    errno.ENOTDIR, errno.EPERM,
})  # fmt: skip


@hookimpl
def settings() -> Sequence[Setting]:
    """Declare the program; without one the plugin is off."""
    return [
        Setting(
            COMMAND,
            "text",
            None,
            "the program by its full path, and its arguments, split as a shell would, but run by "
            "none",
            required=True,
        ),
        Setting(
            ENVIRONMENT,
            "list",
            "",
            "the receiver's own variables that the program gets too, such as `PATH, HOME`",
        ),
    ]


@hookimpl
def validate_config(settings: Mapping[str, Any]) -> None:
    """Refuse a command that is none, a program that is not there, and names of no variables."""
    try:
        program, *_ = shlex.split(settings[COMMAND]) or [""]
    except ValueError as error:
        raise ValueError(f"{COMMAND}: {str(error).lower()}; close what you opened") from None
    if not program.startswith("/"):
        raise ValueError(f"{COMMAND}: {program!r:.200} is not a full path; write /path/of/program")
    if not Path(program).is_file() or not os.access(program, os.X_OK):
        raise ValueError(
            f"{COMMAND}: {program:.200} is not a program that this user may run; make it an "
            "executable file"
        )
    for name in settings[ENVIRONMENT]:
        if not _VARIABLE.fullmatch(name) or name.startswith(_OWN_PREFIX):
            raise ValueError(
                f"{ENVIRONMENT}: {name!r:.100} cannot be handed on; name a variable, and none "
                f"that begins with {_OWN_PREFIX}"
            )


@hookimpl
def execute(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> dict[str, Any]:
    """Run the program to its end; return its status and the end of what it wrote."""
    call = call_as_json(context, metric_name, value, threshold, duration)
    context.raise_if_cancelled()
    program = _words(context.settings[COMMAND])
    process = _start(program, _environment(context, call))
    try:
        output = _Talk(process, json.dumps(call).encode()).until_it_ends(context)
    finally:
        _end(process)
    status = process.returncode
    if status == 0:
        return {"status": 0, "output": output}
    said = f": {output[-TOLD_CHARACTERS:]}" if output else ""
    if status in PERMANENT_STATUSES:
        raise PermanentError(
            f"{program[0]} ended with status {status} ({PERMANENT_STATUSES[status]}){said}"
        )
    if status < 0:
        raise TemporaryError(
            f"{program[0]} was ended by a signal: {signal.strsignal(-status)}{said}"
        )
    raise TemporaryError(f"{program[0]} ended with status {status}{said}")


@hookimpl
def describe(context: ActionContext, metric_name: str, value: float) -> str:
    """Say which program would be run; its arguments are not shown, the alert's texts quoted."""
    program, *arguments = _words(context.settings[COMMAND])
    return (
        f"would run {program} with {len(arguments)} argument{'s'[: len(arguments) != 1]}, saying "
        f"that {metric_name!r:.200} is {value:g}"
    )


@lru_cache(maxsize=64)
def _words(command: str) -> tuple[str, ...]:
    return tuple(shlex.split(command))


def _environment(context: ActionContext, call: Mapping[str, Any]) -> dict[bytes, bytes]:
    """Return all variables that the program gets: bounded, and none named by an alert alone."""
    alert = call["alert"]
    texts = {
        **{name: one for name, one in call.items() if name != "alert"},
        **{name: alert[name] for name in ("starts_at", "fingerprint", "generator_url")},
        "alertname": context.alert.labels.get("alertname", ""),
        "deadline": context.deadline.isoformat(),
    }
    ours = {f"{_OWN_PREFIX}{name.upper()}": str(text) for name, text in texts.items()}
    labels = [(name, text) for name, text in alert["labels"].items() if _VARIABLE.fullmatch(name)]
    for name, text in labels[:MOST_LABELS]:
        ours[f"{_OWN_PREFIX}LABEL_{name[:200]}"] = text
    handed_on = {
        os.fsencode(name): os.fsencode(os.environ[name])
        for name in context.settings[ENVIRONMENT]
        if name in os.environ
    }
    return {**handed_on, **{name.encode(): _as_variable(text) for name, text in ours.items()}}


def _as_variable(text: str) -> bytes:
    """Return a text as a variable can hold it: without NUL, and of bounded size."""
    raw = text.replace("\0", "\ufffd").encode(errors="replace")
    if len(raw) <= LONGEST_VARIABLE:
        return raw
    return raw[:LONGEST_VARIABLE].decode(errors="ignore").encode()


def _start(program: Sequence[str], environment: Mapping[bytes, bytes]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(  # noqa: S603 - the operator's program, and no shell
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
            bufsize=0,
        )
    except OSError as error:
        message = f"{program[0]} cannot be run: {error.strerror}"
        if error.errno in _PERMANENT_ERRNOS:
            raise PermanentError(f"{message}; look at {COMMAND}") from error
        raise TemporaryError(message) from error


class _Talk:
    """Writes a program's input and reads its output, never waiting for longer than a look."""

    def __init__(self, process: "subprocess.Popen[bytes]", text: bytes) -> None:
        assert process.stdin is not None and process.stdout is not None
        self._process = process
        self._input: IO[bytes] = process.stdin
        self._output: IO[bytes] = process.stdout
        self._left = memoryview(text)
        self._kept = b""
        self._bytes = 0

    def until_it_ends(self, context: ActionContext) -> str:
        """Return the end of what was written; raise as the context does when it is time to stop."""
        for pipe in (self._input, self._output):
            os.set_blocking(pipe.fileno(), False)
        pause = _FIRST_PAUSE_SECONDS
        to_write, to_read = [self._input.fileno()], [self._output.fileno()]
        while not _has_ended(self._process):
            context.raise_if_cancelled()
            if not (to_write or to_read):  # It has closed both, and may work on.
                time.sleep(pause)
                pause = min(pause * 2, _LOOK_SECONDS)
                continue
            readable, writable, _ = select.select(to_read, to_write, [], _LOOK_SECONDS)
            if writable and not self._write():
                to_write = []
                self._input.close()
            if readable and not self._read():
                to_read = []
        # What it has started may hold the pipe, and even fill it: nobody waits for that.
        _kill_group(self._process)
        for _ in range(_LAST_READS):
            if not self._read():
                break
        return self._shown()

    def _write(self) -> bool:
        """Hand over what the pipe takes; return whether there is more to write."""
        try:
            self._left = self._left[os.write(self._input.fileno(), self._left[:_BLOCK]) :]
        except BrokenPipeError:  # It does not want to read.
            self._left = self._left[:0]
        return bool(self._left)

    def _read(self) -> bool:
        """Read what is there and keep the end of it; return whether there may be more."""
        try:
            part = os.read(self._output.fileno(), _BLOCK)
        except BlockingIOError:
            return False
        self._bytes += len(part)
        self._kept = (self._kept + part)[-KEPT_BYTES:]
        return bool(part)

    def _shown(self) -> str:
        text = self._kept.decode(errors="replace").strip()
        visible = "".join(
            one if one.isprintable() or one == "\n" else ascii(one)[1:-1] for one in text
        )
        cut = self._bytes - len(self._kept)
        return f"[{cut} bytes before] {visible}" if cut else visible


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether the program is over, without taking note: its number must stay its own."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the group, then take note of the program's end."""
    _kill_group(process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
