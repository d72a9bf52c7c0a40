"""Fixtures for all tests: journals on every database, and running receivers."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from receiver.journal.journal import Journal
from tests.support.databases import DIALECTS, Databases
from tests.support.directories import open_directory
from tests.support.documents import ROOT
from tests.support.fuzz import SHORT_PROFILE
from tests.support.receivers import Receiver

pytest_plugins = ("tests.support.endpoints",)

# A directory of tests is its marker. The slowest come first, because they end last.
MARKERS = ("soak", "external", "process", "journal", "unit")
# Files that take longer than a minute come before all others. Otherwise the last of them would
# run alone in the end, because all tests of a file run in one process.
LONGEST = (
    "external/benchmarks/test_bench.py",
    "process/test_serving.py",
    "process/cli/test_doctor.py",
    "journal/test_machine.py",
    "journal/web/test_document.py",
    "soak/test_bad_plugins.py",
    "journal/test_guardrails.py",
)
OURS = ("RECEIVER_", "AWS_", "EFS_", "EXEC_PLUGIN_", "FILE_ACTION_", "HTTP_PLUGIN_")


settings.register_profile(SHORT_PROFILE, max_examples=25)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its directory, and order them by it."""

    def marker_of(item: pytest.Item) -> str:
        directory = item.path.relative_to(ROOT / "tests").parts[0]
        return directory if directory in MARKERS else "unit"

    def place_of(item: pytest.Item) -> tuple[int, int]:
        file = str(item.path.relative_to(ROOT / "tests"))
        long = LONGEST.index(file) if file in LONGEST else len(LONGEST)
        return long, MARKERS.index(marker_of(item))

    items.sort(key=place_of)
    for item in items:
        item.add_marker(marker_of(item))


def pytest_configure() -> None:
    """Let programs that are started here end by Ctrl-C, even where this one is to ignore it.

    A shell starts what it does not wait for so, and whatever that starts inherits it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a killed program leaves among the temporary files is below the tests' directory.

    The name of that is short, because the path of a socket is at most 107 bytes long.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
        patch.setattr(tempfile, "tempdir", None)  # What Python has read before.
        yield


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees settings of whoever runs it, nor the cloud."""
    for name in os.environ:
        if name.startswith(OURS) or name in ("ACTION_PLUGIN", "PLUGIN_DIR", "LOG_LEVEL"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def fresh_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No plugin of one test is seen by the next, nor whether bytecode was switched off."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("receiver_plugins.", "installed_")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def databases() -> Iterator[Databases]:
    """Makes empty databases."""
    with open_directory("databases-") as directory:
        made = Databases(Path(directory))
        yield made
        made.close()


@pytest.fixture(params=DIALECTS)
def journal_url(request: pytest.FixtureRequest, databases: Databases) -> str:
    """The URL of an empty database, of each kind in turn."""
    return databases.new(request.param)


@pytest.fixture
def open_journal(journal_url: str) -> Iterator[Callable[..., Journal]]:
    """Opens the journal at `journal_url`, and closes it in the end."""
    opened: list[Journal] = []

    def open_it(**options: object) -> Journal:
        opened.append(Journal(journal_url, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for one in opened:
        one.close()


@pytest.fixture
def start_receiver(tmp_path: Path) -> Iterator[Callable[..., Receiver]]:
    """Starts real receivers, on SQLite in `tmp_path` unless told otherwise; ends them all."""
    started: list[Receiver] = []

    def start(command: str = "serve", **environment: str) -> Receiver:
        settings = {"RECEIVER_DATA_DIR": str(tmp_path / "data"), **environment}
        started.append(Receiver(command, settings, tmp_path / f"receiver-{len(started)}.log"))
        return started[-1]

    yield start
    for one in started:
        one.kill()
