"""`receiver demo`: from a metric to an action, with the real ones and without, and nothing left."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from receiver.cli.demo import recording
from tests.support.documents import ROOT
from tests.support.stack import requires
from tests.support.waiting import wait_until

DEMO = [sys.executable, "-m", "receiver", "demo"]


def environment(directory: Path, path: str) -> dict[str, str]:
    """Return one in which every file goes below the directory; settings around must not matter."""
    return {
        "PATH": path, "HOME": str(directory), "TMPDIR": str(directory), "TERM": "xterm",
        "RECEIVER_SUBMIT_TOKEN": "of-another-receiver", "ACTION_PLUGIN": "none-of-these",
    }  # fmt: skip


def left_by(directory: Path) -> list[str]:
    """Return the processes that have to do with the directory, by a file or their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # It has ended meanwhile.
            said = [(process / "cmdline").read_text(errors="replace")]
            said += [os.readlink(one) for one in (process / "cwd", *(process / "fd").iterdir())]
            if any(str(directory / "receiver-demo-") in one for one in said):
                found.append(process.name)
    return found


def test_real_prometheus_and_alertmanager_lead_to_both_actions(tmp_path: Path) -> None:
    requires("prometheus", "prometheus-alertmanager")
    done = subprocess.run(
        DEMO, env=environment(tmp_path, os.environ["PATH"]), cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "Prometheus and Alertmanager are real ones" in done.stdout
    runs = re.findall(r"run: (\w+) ran for (\w+): (\w+)", done.stdout)
    assert runs == [
        ("log_action", "QueueTooLongSoft", "succeeded"),
        ("file_action", "QueueTooLongHard", "succeeded"),
    ]
    assert re.search(r"2 alerts were new, [1-9]\d* came again, 2 resolved; 2 runs", done.stdout)
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    assert left_by(tmp_path) == []


@contextmanager
def on_a_terminal(directory: Path) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    """Start it on a terminal, without a Prometheus; what it writes comes into a file."""
    ours, its = pty.openpty()
    screen = directory.parent / f"{directory.name}.screen"
    with screen.open("wb") as written:
        copier = subprocess.Popen(["cat"], stdin=ours, stdout=written, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(
        DEMO, env=environment(directory, "/nowhere"), cwd=directory,
        stdin=its, stdout=its, stderr=its, start_new_session=True,
    )  # fmt: skip
    os.close(its)
    try:
        yield process, screen
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        copier.kill()
        copier.wait()


def words(screen: Path) -> str:
    """Return what was written so far, with a space wherever a line is wrapped."""
    return " ".join(screen.read_text(errors="replace").split())


def test_terminal_shows_recorded_notifications_and_the_page_until_ctrl_c(tmp_path: Path) -> None:
    with on_a_terminal(tmp_path) as (process, screen):
        said = wait_until(
            lambda: re.search(r"its page: (http://127\.0\.0\.1:\d+/)", words(screen)),
            90,
            "the address of the page",
        )
        page = requests.get(said[1], timeout=10)
        assert page.status_code == 200
        assert "QueueTooLongHard" in page.text
        assert left_by(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        # What it wrote last may be on its way to the file.
        last = "2 alerts were new, 4 came again, 2 resolved; 2 runs"
        text = wait_until(lambda: last in (said := words(screen)) and said, what=last)
    assert "Prometheus and Alertmanager are not both installed" in text
    assert "█" in text
    assert list(tmp_path.iterdir()) == []
    assert left_by(tmp_path) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_demo_that_is_stopped_in_the_middle_leaves_no_process(
    tmp_path: Path, how: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*DEMO, "--recorded"], env=environment(tmp_path, os.environ["PATH"]), cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_until(lambda: list(tmp_path.glob("*/data/journal.db")), 60, "the receiver starts")
        assert left_by(tmp_path)
        process.send_signal(how)
        process.wait(30)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: left_by(tmp_path) == [], 60, "all processes ended")
    if how != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


def test_recording_is_played_as_if_it_happened_now() -> None:
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    notifications = recording(now)
    assert [seconds for seconds, _ in notifications] == sorted(one for one, _ in notifications)
    alerts = [alert for _, body in notifications for alert in json.loads(body)["alerts"]]
    for alert in alerts:
        began = datetime.fromisoformat(alert["startsAt"])
        assert 0 < (began - now).total_seconds() < notifications[-1][0]
        assert alert["endsAt"].startswith("0001") == (alert["status"] == "firing")
    assert len({(one["fingerprint"], one["startsAt"]) for one in alerts}) == 2


def test_make_demo_runs_it() -> None:
    (make,) = requires("make")
    done = subprocess.run(
        [make, "-n", "demo", "VENV=somewhere"], cwd=ROOT, text=True, timeout=30, check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert "exec somewhere/bin/receiver demo" in done.stdout
