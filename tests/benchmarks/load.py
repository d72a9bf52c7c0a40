"""Drives one contender with wrk: distinct notifications over connections that stay open."""

import itertools
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
_RECORDED = _HERE.parent / "payloads" / "01_single_firing.json"
# What distinct.lua replaces, see there; neither can stand in JSON by itself.
_UNIQUE, _STARTS_AT = "\1", "\2"
# wrk counts an answer as broken after this, and may take as long to end.
_ANSWER_SECONDS = 10


class BenchError(Exception):
    """The benchmark cannot give figures that mean anything; the text says why."""


@dataclass(frozen=True)
class Answers:
    """What came back during one load.

    `broken` counts what was never answered: connect, read and write errors, and timeouts.
    """

    seconds: float
    answers: int
    refused: int
    broken: int
    p50_ms: float
    p99_ms: float


def find_program(name: str) -> str:
    """Return where it is; raise BenchError with the package to install, named as it is."""
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"{name} is missing; install it, on Debian with: apt-get install {name}")
    return found


def body_template(alerts: int = 1) -> str:
    """Return a recorded notification with so many alerts, and marks where it shall differ.

    The action's name is left out: no contender has the one that was recorded.
    """
    body: dict[str, Any] = json.loads(_RECORDED.read_text(encoding="utf-8"))
    (alert,) = body["alerts"]
    del alert["labels"]["action_plugin"], body["commonLabels"]["action_plugin"]
    body["alerts"] = [
        alert | {"startsAt": _STARTS_AT, "fingerprint": f"{_UNIQUE}{index:04x}"}
        for index in range(alerts)
    ]
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    # As Go's encoder writes it; and the marks must arrive as they are, not as escapes.
    for written, wanted in (("&", r"\u0026"), (r"\u0001", _UNIQUE), (r"\u0002", _STARTS_AT)):
        text = text.replace(written, wanted)
    return text


def notification(alerts: int, number: int) -> bytes:
    """Return one with so many alerts, unlike that of any other number."""
    body = body_template(alerts).replace(_UNIQUE, f"{number:012x}")
    return body.replace(_STARTS_AT, "2026-01-02T03:04:05Z").encode()


class Load:
    """Sends notifications made from one template; no two that any ever sends are the same."""

    _prefixes = (f"{number:04x}" for number in itertools.count(1))

    def __init__(self, template: Path, connections: int) -> None:
        """Use the template in a file, over so many connections at a time."""
        self._wrk = find_program("wrk")
        self._template = template
        self.connections = connections
        self._last = ("", "")

    def drive(
        self, url: str, headers: Mapping[str, str], seconds: int, again: bool = False
    ) -> Answers:
        """Send as fast as answers come back for so long; return what came back.

        `again`: the same notifications as the last time.
        """
        if not again:
            began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._last = next(self._prefixes), began
        command = [
            self._wrk,
            f"--threads={min(2, self.connections)}",
            f"--connections={self.connections}",
            f"--duration={seconds}s",
            f"--timeout={_ANSWER_SECONDS}s",
            f"--script={_HERE / 'distinct.lua'}",
            *(f"--header={name}: {value}" for name, value in headers.items()),
            url,
            "--",
            str(self._template),
            *self._last,
        ]
        limit = seconds + 3 * _ANSWER_SECONDS
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=limit, check=False
            )
        except subprocess.TimeoutExpired:
            raise BenchError(f"wrk did not end within {limit} s, and was killed") from None
        lines = ended.stdout.splitlines()
        if ended.returncode != 0 or not lines or not lines[-1].startswith("{"):
            raise BenchError(f"wrk failed ({ended.returncode}): {ended.stdout}{ended.stderr}")
        return Answers(**json.loads(lines[-1]))
