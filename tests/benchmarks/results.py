"""From what each round gave to ratios, a table and a file."""

import json
import os
import platform
import sqlite3
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.load import Answers

_REPOSITORY = Path(__file__).parent.parent.parent
_PACKAGES = ("gunicorn", "flask", "marshmallow", "sqlalchemy", "python-json-logger")


@dataclass(frozen=True)
class Round:
    """One load of one contender; `cpu_seconds` are those of all its processes until it rests."""

    answers: Answers
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.answers.answers / self.answers.seconds

    @property
    def cpu_us(self) -> float:
        """Processor time for an answer, in microseconds."""
        return self.cpu_seconds / self.answers.answers * 1e6


@dataclass(frozen=True)
class Ratio:
    """A contender over the bare route: the median of the rounds, and how far they lie apart."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Summary:
    """A contender's medians; the ratios compare each of its rounds with the bare one beside it."""

    throughput: Ratio
    p99: Ratio
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


@dataclass(frozen=True)
class Figure:
    """The answer to one question: the median of its rounds, how far they lie apart, the target."""

    what: str
    target: str
    ratio: Ratio

    def line(self) -> str:
        """Return it as a line of a table."""
        one = self.ratio
        shown = f"{one.median:.2f} ({one.lowest:.2f}-{one.highest:.2f})"
        return f"{self.what:56} {shown:26} {self.target}"


def figure_of(what: str, target: str, found: Sequence[float]) -> Figure:
    """Return the figure of what the rounds gave."""
    return Figure(what, target, Ratio(statistics.median(found), min(found), max(found)))


def summarize(rounds: Sequence[Round], bare: Sequence[Round]) -> Summary:
    """Return the medians of a contender's rounds, and its ratios to the bare route's."""

    def median(figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(one) for one in rounds)

    def ratio(figure: Callable[[Round], float]) -> Ratio:
        found = [figure(one) / figure(limit) for one, limit in zip(rounds, bare, strict=True)]
        return Ratio(statistics.median(found), min(found), max(found))

    return Summary(
        throughput=ratio(lambda one: one.per_second),
        p99=ratio(lambda one: one.answers.p99_ms),
        per_second=median(lambda one: one.per_second),
        p50_ms=median(lambda one: one.answers.p50_ms),
        p99_ms=median(lambda one: one.answers.p99_ms),
        cpu_us=median(lambda one: one.cpu_us),
    )


def table(summaries: Mapping[str, Summary]) -> str:
    """Return the lines to print: ratios first, absolute figures as information beside them."""
    lines = [
        "                 ratio to bare, median (lowest-highest)     for information",
        "contender        requests/s          p99                    "
        "req/s   p50 ms   p99 ms   CPU us/req",
    ]
    for name, one in summaries.items():
        lines.append(
            f"{name:16} {_shown(one.throughput):19} {_shown(one.p99):19} "
            f"{one.per_second:8.0f} {one.p50_ms:8.2f} {one.p99_ms:8.2f} {one.cpu_us:12.0f}"
        )
    return "\n".join(lines)


def _shown(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.lowest:.2f}-{ratio.highest:.2f})"


def machine(directory: Path) -> dict[str, Any]:
    """Return what the figures depend on and the program does not: machine, disk, versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=_REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "commit": commit.stdout.strip() or None,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sync_us": round(_sync_us(directory)),
        **{name: version(name) for name in _PACKAGES},
    }


def _sync_us(directory: Path) -> float:
    """Return the median time that the disk takes for 4 KiB to be durable."""
    found = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(100):
            os.write(file.fileno(), bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1e6


def write(
    directory: Path,
    about: Mapping[str, Any],
    rounds: Mapping[str, Sequence[Round]],
    summaries: Mapping[str, Summary],
    more: Mapping[str, Any],
) -> Path:
    """Write a file of JSON, named by the time; return where."""
    directory.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    content = {
        "time": now.isoformat(timespec="seconds"),
        **about,
        "summary": {name: asdict(one) for name, one in summaries.items()},
        "rounds": {name: [asdict(one) for one in each] for name, each in rounds.items()},
        **more,
    }
    file = directory / f"bench-{now:%Y%m%dT%H%M%S}.json"
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return file
