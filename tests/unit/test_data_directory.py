"""The data directory: created closed, and one clear line for each reason why it cannot be used."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.data_directory import check_data_directory, prepare_data_directory
from receiver.errors import SettingsError
from tests.support.directories import open_directory
from tests.support.root import needs_root


def problem_of(directory: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        prepare_data_directory(directory)
    (problem,) = caught.value.problems
    assert problem.startswith("RECEIVER_DATA_DIR: ")
    assert "\n" not in problem
    return problem


def problem_as_nobody(directory: Path) -> str:
    """Return what a user without privileges gets."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from receiver.data_directory import prepare_data_directory\n"
        "from receiver.errors import SettingsError\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    prepare_data_directory(Path(sys.argv[1]))\n"
        "except SettingsError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(name="open_directory")
def _open_directory() -> Iterator[Path]:
    """A directory that other users can reach."""
    with open_directory("data-directory-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def test_missing_directory_is_created_for_its_user_alone(tmp_path: Path) -> None:
    assert check_data_directory(tmp_path / "a" / "b") == []
    prepare_data_directory(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_directory_that_stands_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    prepare_data_directory(tmp_path / "data")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("below", ["", "data"])
def test_file_in_the_place_of_the_directory_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / below
    assert f"{path} is a file, or lies below a file" in problem_of(path)
    assert check_data_directory(path)


@pytest.mark.parametrize("name", ["journal.db", "journal.db-wal", "journal.db.migrate.lock"])
def test_fifo_in_the_place_of_a_file_is_named_and_not_opened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    assert f"{tmp_path / name} is not a regular file; move it away" in problem_of(tmp_path)


def test_journal_that_other_users_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "journal.db").touch(0o644)
    (tmp_path / "journal.db").chmod(0o644)
    tmp_path.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        prepare_data_directory(tmp_path)
    (record,) = caplog.records
    assert record.message == "other users can read the journal"
    caplog.clear()
    tmp_path.chmod(0o700)
    prepare_data_directory(tmp_path)
    assert not caplog.records


def test_directory_that_every_user_can_write_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o777)
    with caplog.at_level(logging.WARNING):
        prepare_data_directory(tmp_path)
    (record,) = caplog.records
    assert record.message == "other users can write the data directory"
    assert vars(record)["hint"] == f"run `chmod o-w {tmp_path}`"


@pytest.mark.parametrize("name", ["journal.db", "wake", "instances"])
def test_other_kind_of_file_in_the_place_of_an_own_one_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/null")
    assert f"{tmp_path / name} is not a " in problem_of(tmp_path)


PLANTED = {
    "journal.db": lambda path: path.touch(0o666),
    "journal.db-wal": lambda path: path.touch(0o666),
    "instances": lambda path: path.mkdir(0o777),
    "wake": lambda path: os.mkfifo(path, 0o666),
}


@needs_root
@pytest.mark.parametrize("name", PLANTED)
def test_file_that_another_user_planted_is_refused(open_directory: Path, name: str) -> None:
    data = open_directory / "data"
    data.mkdir()
    data.chmod(0o1777)
    PLANTED[name](data / name)
    os.chown(data / name, 54321, 54321)
    (data / name).chmod(0o777)
    problem = problem_as_nobody(data)
    assert f"{data / name} belongs to uid 54321, who may have planted it" in problem
    assert f"chmod o-w {data}" in problem
    # The group of a volume, for example: other users cannot write there.
    data.chmod(0o775)
    os.chown(data, 65534, 65534)
    os.chown(data / name, 54321, 65534)
    (data / name).chmod(0o770)
    assert problem_as_nobody(data) == ""


@needs_root
def test_link_that_another_user_made_is_refused(open_directory: Path) -> None:
    data = open_directory / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    (data / "journal.db").symlink_to(open_directory / "elsewhere.db")
    os.chown(data / "journal.db", 54321, 54321, follow_symlinks=False)
    assert "who may have planted it" in problem_as_nobody(data)
    os.chown(data / "journal.db", 65534, 65534, follow_symlinks=False)
    assert problem_as_nobody(data) == ""


@needs_root
def test_directory_of_another_user_is_named_with_its_owner(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir()
    closed.chmod(0o755)
    problem = problem_as_nobody(closed)
    assert f"{closed} belongs to root (uid 0)" in problem
    assert "run the receiver as that user" in problem
    assert "belongs to root (uid 0)" in problem_as_nobody(closed / "below")


@needs_root
def test_directory_that_cannot_be_reached_is_named(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    assert "cannot be used by" in problem_as_nobody(closed / "data")
    assert "Permission denied" in problem_as_nobody(closed / "data")


@needs_root
def test_journal_of_another_user_is_named_with_its_owner(open_directory: Path) -> None:
    data = open_directory / "data"
    data.mkdir()
    os.chown(data, 65534, 65534)
    (data / "journal.db").touch(0o600)
    assert f"{data / 'journal.db'} belongs to root (uid 0)" in problem_as_nobody(data)


@needs_root
def test_own_directory_that_cannot_be_written_is_named(open_directory: Path) -> None:
    data = open_directory / "data"
    data.mkdir(mode=0o500)
    os.chown(data, 65534, 65534)
    problem = problem_as_nobody(data)
    assert "cannot be written by" in problem
    assert f"chmod u+rwX {data}" in problem


@needs_root
def test_read_only_disk_is_named(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from receiver.data_directory import check_data_directory\n"
        "print(*check_data_directory(Path(sys.argv[1])))\n"
    )
    script = 'mount -t tmpfs -o ro none "$0" && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, tmp_path, sys.executable, "-c", code, tmp_path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert f"{tmp_path} is on a read-only disk" in done.stdout, done.stderr
