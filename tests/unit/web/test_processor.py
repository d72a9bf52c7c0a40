"""A busy web process stays on one processor, an idle one wherever the kernel likes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, for it changes what its threads may run on. It prints, at each stage, the
# different sets of processors that its threads may use.
_PROGRAM = """
import json, os, threading, time
from pathlib import Path
from receiver.web.processor import Processor

def sets():
    tasks = [int(one.name) for one in Path("/proc/self/task").iterdir()]
    return {frozenset(os.sched_getaffinity(task)) for task in tasks}

def work(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

stop = threading.Event()
threading.Thread(target=stop.wait).start()
one = Processor()
time.sleep(0.2)
one.look()
idle = sets()
for _ in range(200):
    work(0.05)
    one.look()
    if sets() != idle:
        break
busy = sets()
for _ in range(200):
    time.sleep(0.05)
    one.look()
    if sets() == idle:
        break
print(json.dumps([sorted(map(sorted, each)) for each in (idle, busy, sets())]))
stop.set()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="there is but one processor")
def test_process_stays_on_one_processor_only_while_it_is_busy(tmp_path: Path) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    file = tmp_path / "program.py"
    file.write_text(_PROGRAM)
    printed = subprocess.run(
        [sys.executable, file], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    idle, busy, idle_again = json.loads(printed)
    assert idle == idle_again == [allowed]
    assert len(busy) == 1
    assert len(busy[0]) == 1
    assert set(busy[0]) <= set(allowed)
