"""Memory: what bounds an executor, which process goes first, and what a full receiver takes."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.policies import Policy
from tests.support.documents import ROOT
from tests.support.fake_efs import FakeEfs
from tests.support.notifications import alert, notification
from tests.support.processes import descendants_of
from tests.support.receivers import Receiver
from tests.support.runs import ended
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]
MIB = 2**20
EXECUTORS = 16

HUNGRY = """
import subprocess
import sys

from receiver import hookimpl


def allocate(mib):
    return len(bytearray(mib << 20))


def in_a_program(mib):
    program = f"bytearray({mib} << 20)"
    return subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True).stderr


@hookimpl
def execute(context):
    how, mib = context.alert.annotations["takes"].split()
    return {"itself": allocate, "program": in_a_program}[how](int(mib))
"""
# As `efs_emergency` uses boto3, and then busy until the test has looked.
USES_BOTO3 = """
import os
from pathlib import Path

import boto3.session

from receiver import hookimpl


@hookimpl
def execute(context):
    client = boto3.session.Session().client("efs", region_name="us-east-1")
    client.describe_file_systems(FileSystemId="fs-0123456789abcdef0")
    (Path(os.environ["BUSY_DIRECTORY"]) / str(os.getpid())).touch()
    context.sleep(600)
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "hungry.py").write_text(HUNGRY)
    (directory / "uses_boto3.py").write_text(USES_BOTO3)
    return directory


@pytest.fixture
def efs() -> Iterator[Any]:
    """A fake of EFS that answers on loopback."""
    with FakeEfs() as fake:
        fake.add("fs-0123456789abcdef0")
        yield fake


def fire(receiver: Receiver, action: str, fingerprint: str, **annotations: str) -> None:
    """Let an action run for a new alert."""
    one = alert(fingerprint, annotations={"value": "1", **annotations})
    assert receiver.post(notification(one), f"/webhook/{action}").json()["accepted"] == 1


def test_max_memory_bounds_an_action_and_the_programs_that_it_starts(
    start_receiver: Start, plugins: Path, tmp_path: Path
) -> None:
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins), RECEIVER_ACTION_HUNGRY_MAX_ATTEMPTS="1",
        RECEIVER_ACTION_HUNGRY_BREAKER="none",
    ).wait_ready()  # fmt: skip
    takes = {"much": "itself 300", "much as a program": "program 1000", "little": "itself 100",
             "little as a program": "program 100"}  # fmt: skip
    for fingerprint, what in takes.items():
        fire(receiver, "hungry", fingerprint, takes=what)
        fire(receiver, "log_action", f"beside {fingerprint}")

    much, program, little, small = ended(tmp_path, *takes)
    beside = ended(tmp_path, *(f"beside {one}" for one in takes))

    assert (much["outcome"], much["error"]) == ("failed", "MemoryError")
    assert "MemoryError" in program["result"]
    assert (little["outcome"], little["result"]) == ("succeeded", str(100 * MIB))
    assert small["result"] == '""'
    assert {(run["outcome"], run["attempts"]) for run in beside} == {("succeeded", 1)}
    assert len(receiver.lines("worker started")) == 1


def test_max_memory_of_an_action_is_its_own(
    start_receiver: Start, plugins: Path, tmp_path: Path
) -> None:
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins), RECEIVER_ACTION_HUNGRY_MAX_MEMORY="600MiB",
    ).wait_ready()  # fmt: skip
    fire(receiver, "hungry", "much", takes="itself 500")
    (run,) = ended(tmp_path, "much")
    assert (run["outcome"], run["result"]) == ("succeeded", str(500 * MIB))


@pytest.fixture
def full(start_receiver: Start, plugins: Path, tmp_path: Path, efs: Any) -> Receiver:
    """A receiver as it is set up by default, all of whose executors use boto3 and are busy."""
    busy = tmp_path / "busy"
    busy.mkdir()
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins), BUSY_DIRECTORY=str(busy),
        RECEIVER_ACTION_USES_BOTO3_MAX_CONCURRENT="99",
        RECEIVER_ACTION_USES_BOTO3_TIMEOUT="10m",
        RECEIVER_GRACE_PERIOD="0s",
        # Nothing here leads beyond loopback; the keys are fakes.
        AWS_ENDPOINT_URL_EFS=efs.url, AWS_EC2_METADATA_DISABLED="true",
        AWS_ACCESS_KEY_ID="FAKESTATICKEY", AWS_SECRET_ACCESS_KEY="fake-static-secret",
    ).wait_ready()  # fmt: skip
    for number in range(EXECUTORS + 2):
        fire(receiver, "uses_boto3", f"busy {number}")
    wait_until(lambda: len(list(busy.iterdir())) >= EXECUTORS, 120, "all executors are busy")
    return receiver


def processes_of(receiver: Receiver) -> dict[str, list[int]]:
    """Return the processes of a receiver by their titles."""
    assert receiver.process is not None
    found: dict[str, list[int]] = defaultdict(list)
    for pid in descendants_of(receiver.process.pid):
        found[Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")].append(pid)
    return {"supervisor": [receiver.process.pid], **found}


def test_kernel_that_is_short_of_memory_ends_executors_first(full: Receiver) -> None:
    scores = {
        title: {int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids}
        for title, pids in processes_of(full).items()
    }
    executors = scores.pop("receiver executor uses_boto3")
    assert {"supervisor", "receiver worker", "receiver fork server"} < scores.keys()
    assert any("receiver web" in title for title in scores)
    assert min(executors) > max(max(of_title) for of_title in scores.values())


def measure(pid: int, name: str) -> float:
    """Return a figure of a process's memory in MiB: `Pss`, with its share of what is shared."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{name} is unknown")


def chart_limits() -> list[float]:
    """Return the memory limits of the chart's containers that execute actions, in MiB."""
    values = yaml.safe_load((ROOT / "helm/alert-receiver/values.yaml").read_text())
    units = {"Mi": 1, "Gi": 1024}
    texts = [part["resources"]["limits"]["memory"] for part in (values, values["worker"])]
    return [float(text[:-2]) * units[text[-2:]] for text in texts]


def test_default_number_of_executors_fits_in_the_memory_of_the_chart(full: Receiver) -> None:
    processes = processes_of(full)
    assert len(processes["receiver executor uses_boto3"]) == EXECUTORS
    figures = {
        title: [(round(measure(pid, "Pss"), 1), round(measure(pid, "Rss"), 1)) for pid in pids]
        for title, pids in processes.items()
    }
    total = sum(pss for of_title in figures.values() for pss, _ in of_title)
    # One of them may use all that its action may use.
    most = total + Policy().max_memory / MIB
    assert most < min(chart_limits()), (total, figures)
    print(f"PSS of all processes: {total:.0f} MiB; (PSS, RSS) in MiB: {figures}")
