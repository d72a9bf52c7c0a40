"""Workers in a process of their own: only another process's lock can be seen from here."""

import subprocess
import sys
from typing import Any

_SCRIPT = """
import sys
from receiver.journal.journal import Journal
from receiver.worker.leases import Instance

entered = {}
for line in sys.stdin:
    verb, name, *more = line.split()
    if verb == "enter":
        entered[name] = Instance(Journal(more[0]), more[1], more[2:])
    else:
        entered.pop(name).close()
    print("done", flush=True)
"""


class Elsewhere:
    """A process that enters itself into journals, as a worker does, and works at nothing."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        self._number = 0

    def enter(self, journal: Any, *actions: str, role: str = "worker") -> str:
        """Enter a journal as a worker that has loaded these actions; return its name here."""
        self._number += 1
        url = journal.engine.url.render_as_string(hide_password=False)
        self._tell("enter", str(self._number), url, role, *actions)
        return str(self._number)

    def leave(self, name: str) -> None:
        """Leave in good order."""
        self._tell("leave", name)

    def kill(self) -> None:
        """Die without a word."""
        with self._process as process:
            process.kill()

    def _tell(self, *words: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(*words, file=self._process.stdin, flush=True)
        assert self._process.stdout.readline() == "done\n"
