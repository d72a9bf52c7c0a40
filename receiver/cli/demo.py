"""`receiver demo`: from a metric to an action in under a minute, before one's eyes."""

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from receiver.cli.stage import HARD, METRIC, SOFT, Stage, find_prometheus
from receiver.cli.terminal import safe

# The gauge, a value every half second: over soft, over hard, and back.
CLIMB = (60.0, 66.0, 72.0, 78.0, 82.0, 84.0, 86.0, 88.0, 90.0, 92.0, 94.0, 97.0, *[99.0] * 10)
VALUES = (*CLIMB, 70.0, 50.0)
_STEP_SECONDS = 0.5
_LONGEST_SECONDS = 20  # For what the last value leads to.
_SHOWN = 12
_BAR = 40


@dataclass
class Scene:
    """What has happened, read from the receiver's log."""

    log: Path
    value: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    events: list[tuple[str, str]] = field(default_factory=list)
    _position: int = 0

    def read_on(self) -> list[tuple[str, str]]:
        """Return what is new, as (what, in words); half a line is left for the next time."""
        with self.log.open("rb") as log:
            log.seek(self._position)
            text = log.read()
        lines = text[: text.rfind(b"\n") + 1]
        self._position += len(lines)
        new = []
        for line in lines.splitlines():
            if line.startswith(b"{"):
                new += list(self._events_of(json.loads(line)))
        self.events += new
        return new

    def _events_of(self, line: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if line["message"] == "notification recorded":
            told = {name: line[name] for name in ("accepted", "duplicate", "resolved")}
            self.counts.update(notifications=1, **told)
            what = "new" if line["accepted"] else "resolved" if line["resolved"] else "duplicate"
            words = ", ".join(f"{number} {name}" for name, number in told.items() if number)
            yield what, f"a notification came: {words or 'nothing new'}"
        elif line["message"] == "attempt ended":
            self.counts.update(runs=1)
            yield "run", f"{line['action']} ran for {line['alertname']}: {line['outcome']}"

    @property
    def is_over(self) -> bool:
        """Whether both alerts have acted and resolved, and something came twice."""
        needed = {"runs": 2, "resolved": 2, "duplicate": 1}
        return all(self.counts[name] >= number for name, number in needed.items())


@click.command
@click.option("--no-wait", is_flag=True, help="End by itself; without a terminal it always does.")
@click.option("--recorded", is_flag=True, help="Play recorded notifications, whatever is here.")
def demo(no_wait: bool, recorded: bool) -> None:
    """Show a metric that climbs over two thresholds, and what the receiver makes of it.

    With Prometheus and Alertmanager installed these two are real; else recorded notifications are
    played. On a terminal it stays for its page until Ctrl-C; all it wrote is removed at the end.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(highlight=False, markup=False, emoji=False)
    programs = None if recorded else find_prometheus()
    with ExitStack() as stack:
        directory = stack.enter_context(TemporaryDirectory(prefix="receiver-demo-"))
        stage = Stage(Path(directory))
        stack.callback(stage.close)
        with console.status("starting …"):
            stage.start_receiver()
            if programs:
                stage.start_prometheus(programs, f"http://{stage.url}")
        console.print(f"{METRIC} climbs over {SOFT} (log_action) and {HARD} (file_action)")
        console.print(_played_by(is_real=programs is not None, is_asked_for=recorded))
        scene = Scene(stage.log)
        _play(console, stage, scene, [] if programs else recording(datetime.now(UTC)))
        _sum_up(console, stage, scene)
        if console.is_terminal and not no_wait:
            try:
                console.print(f"its page: http://{stage.url}/", soft_wrap=True)
                console.print("Ctrl-C ends it and leaves nothing behind.")
                signal.pause()
            except KeyboardInterrupt:
                console.print()
    if not scene.is_over:
        sys.exit(1)


def _played_by(*, is_real: bool, is_asked_for: bool) -> str:
    if is_real:
        return "Prometheus and Alertmanager are real ones"
    why = "" if is_asked_for else ", for Prometheus and Alertmanager are not both installed"
    return f"notifications are recorded ones{why}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


def _play(
    console: Console, stage: Stage, scene: Scene, recorded: list[tuple[float, bytes]]
) -> None:
    """Move the gauge, post what is recorded, and show what comes of it."""
    began = time.monotonic()
    end = len(VALUES) * _STEP_SECONDS
    with Live(console=console, refresh_per_second=8, transient=False) as live:
        while (passed := time.monotonic() - began) < end + _LONGEST_SECONDS:
            scene.value = stage.gauge.value = VALUES[
                min(int(passed / _STEP_SECONDS), len(VALUES) - 1)
            ]
            while recorded and recorded[0][0] <= passed:
                stage.post(recorded.pop(0)[1])
            new = scene.read_on()
            if console.is_terminal:
                live.update(_view(scene))
            else:
                for what, words in new:
                    console.print(f"{passed:5.1f} s  {METRIC} {scene.value:g}  {what}: {words}")
            if scene.is_over and passed > end:
                return
            time.sleep(0.1)


def _view(scene: Scene) -> Group:
    filled = round(scene.value / 100 * _BAR)
    style = "red" if scene.value > HARD else "yellow" if scene.value > SOFT else "green"
    bar = Text(f"{METRIC}  ") + Text("█" * filled, style) + Text("░" * (_BAR - filled), "dim")
    table = Table(box=None, pad_edge=False, show_header=False)
    styles = {"new": "bold cyan", "duplicate": "dim", "resolved": "green", "run": "bold magenta"}
    for what, words in scene.events[-_SHOWN:]:
        table.add_row(Text(what, styles[what]), Text(safe(words)))
    return Group(bar + Text(f" {scene.value:g}"), table)


def _sum_up(console: Console, stage: Stage, scene: Scene) -> None:
    counts = scene.counts
    console.print(
        f"{counts['notifications']} notifications: {counts['accepted']} alerts were new, "
        f"{counts['duplicate']} came again, {counts['resolved']} resolved; {counts['runs']} runs"
    )
    if not scene.is_over:
        console.print("that is not all that should have happened; its log ends with:")
        console.print("\n".join(stage.log.read_text(errors="replace").splitlines()[-5:]))


def recording(now: datetime) -> list[tuple[float, bytes]]:
    """Return the notifications of a real Alertmanager: seconds from the start, and the body.

    Their times are moved as if it began `now`.
    """
    file = files("receiver").joinpath("samples", "demo", "notifications.json")
    recorded = json.loads(file.read_text(encoding="utf-8"))
    moved = now - datetime.fromisoformat(recorded["began"])
    found = []
    for one in recorded["notifications"]:
        for alert in one["body"]["alerts"]:
            for key in ("startsAt", "endsAt"):
                if not alert[key].startswith("0001"):
                    alert[key] = _moved(alert[key], moved)
        found.append((float(one["seconds"]), json.dumps(one["body"]).encode()))
    return found


def _moved(text: str, by: timedelta) -> str:
    return (datetime.fromisoformat(text) + by).isoformat()
