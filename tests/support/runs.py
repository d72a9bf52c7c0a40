"""The runs of a receiver that a test has started, read from its SQLite journal."""

from pathlib import Path
from typing import Any

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.waiting import wait_until


def ended(tmp_path: Path, *fingerprints: str) -> list[dict[str, Any]]:
    """Wait until the runs of these alerts have finished, and return them."""
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")

    def found() -> dict[str, dict[str, Any]]:
        runs = reading.list_runs(journal, state="finished")
        return {run["fingerprint"]: run for run in runs}

    wait_until(lambda: found().keys() >= set(fingerprints), 60, str(fingerprints))
    runs = found()
    journal.close()
    return [runs[fingerprint] for fingerprint in fingerprints]
