"""What actions did, by their own word, and what the journal says about them."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Takes the seconds that an annotation says, or those of each attempt, the last for all that follow.
# One write per line, in append mode: neither a crash nor a neighbour tears it.
PLUGIN = """
import os
import time

from receiver import hookimpl


def note(event, context):
    line = f"{event} {context.run_id} {context.idempotency_key} {context.attempt}\\n"
    file = os.open(os.environ["WITNESS_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode())
    os.close(file)


@hookimpl
def execute(context):
    note("begins", context)
    seconds = context.alert.annotations.get("seconds", "0.03").split()
    time.sleep(float(seconds[min(context.attempt, len(seconds)) - 1]))
    note("ends", context)
"""


@dataclass(frozen=True)
class Seen:
    """A line of the witness: an attempt `begins` or `ends`."""

    event: str
    run_id: int
    key: str
    attempt: int


class Witness:
    """An action called `witness` in a PLUGIN_DIR of its own, and the file that it writes."""

    def __init__(self, directory: Path) -> None:
        self.plugins = directory / "plugins"
        self.plugins.mkdir()
        (self.plugins / "witness.py").write_text(PLUGIN)
        self._file = directory / "witnessed"

    @property
    def environment(self) -> dict[str, str]:
        """What a receiver needs in order to run it."""
        return {"PLUGIN_DIR": str(self.plugins), "WITNESS_FILE": str(self._file)}

    def seen(self, event: str = "") -> list[Seen]:
        """Return the lines written so far, those of one event or all."""
        if not self._file.exists():
            return []
        # A reader may see the first half of what is being written.
        whole, _, _ = self._file.read_text().rpartition("\n")
        lines = [line.split(" ") for line in whole.splitlines()]
        found = [Seen(word, int(run), key, int(attempt)) for word, run, key, attempt in lines]
        return [one for one in found if event in ("", one.event)]


class Record:
    """The journal of a receiver, read from outside and without its own code."""

    def __init__(self, data: Path) -> None:
        self.file = data / "journal.db"

    def rows(self, query: str, *values: object) -> list[dict[str, Any]]:
        """Return what a query finds."""
        with closing(sqlite3.connect(f"file:{self.file}?mode=ro", uri=True, timeout=10)) as found:
            found.row_factory = sqlite3.Row
            return [dict(one) for one in found.execute(query, values)]

    def runs(self, action: str = "witness") -> list[dict[str, Any]]:
        """Return all runs of an action, the first one first."""
        return self.rows("SELECT * FROM runs WHERE action = ? ORDER BY id", action)

    def attempts(self, run_id: int) -> list[dict[str, Any]]:
        """Return the attempts of a run, the first one first."""
        return self.rows("SELECT * FROM attempts WHERE run_id = ? ORDER BY number", run_id)

    def unfinished(self) -> int:
        """Return how many runs have no outcome yet."""
        (found,) = self.rows("SELECT count(*) AS runs FROM runs WHERE state != 'finished'")
        return int(found["runs"])
