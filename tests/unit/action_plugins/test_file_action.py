"""file_action on real file systems, a full one among them."""

import errno
import os
import shutil
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from action_plugins import file_action
from receiver import PermanentError, RunCancelledError, TemporaryError
from receiver.context import Cancellation
from receiver.errors import SettingsError
from receiver.testing import make_alert, make_context, run_action

# Run in a process of its own, for what it needs must not happen to this one.
PROGRAM = textwrap.dedent("""
    import contextlib, os, resource, sys
    from action_plugins import file_action
    from pathlib import Path
    from receiver.testing import make_context

    directory, size, prelude = sys.argv[1:]
    settings = {"FILE_ACTION_DIR": Path(directory), "FILE_ACTION_SIZE": int(size)}
    exec(prelude)
    try:
        file_action.execute(make_context(settings=settings), "queue_depth")
    except Exception as error:
        print(type(error).__name__, error)
    with contextlib.suppress(PermissionError):
        print("left:", *os.listdir(directory))
""")
LIMIT_FILES = "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))"
BECOME_NOBODY = "os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))"


def write(directory: Path, size: str = "3MiB", **call: Any) -> Any:
    environment = {"FILE_ACTION_DIR": str(directory), "FILE_ACTION_SIZE": size}
    return run_action(file_action, environment=environment, **call)


def validate(directory: Path, size: int = 1) -> None:
    file_action.validate_config({"FILE_ACTION_DIR": directory, "FILE_ACTION_SIZE": size})


def write_apart(
    directory: Path, size: int, prelude: str = "", within: tuple[str, ...] = ()
) -> list[str]:
    """Return the lines of PROGRAM: the error, then what was left in the directory."""
    done = subprocess.run(
        [*within, sys.executable, "-c", PROGRAM, str(directory), str(size), prelude],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


def mounted(directory: Path, options: str) -> tuple[str, ...] | None:
    """Return a command that runs another where a tmpfs is mounted, None where nobody may mount."""
    mount = f'mount -t tmpfs -o {options} none "$0" && exec "$@"'
    for unshare in (("--mount",), ("--user", "--map-root-user", "--mount")):
        command = ("unshare", *unshare, "sh", "-c", mount, str(directory))
        if (
            shutil.which("unshare")
            and not subprocess.run(
                [*command, "true"], stderr=subprocess.DEVNULL, check=False
            ).returncode
        ):
            return command
    return None


class StopsAfter(Cancellation):
    """A cancel that comes when the action has looked for it so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks_left = looks

    @property
    def reason(self) -> str | None:
        self._looks_left -= 1
        return "an operator said so" if self._looks_left < 0 else None


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 5])
def test_the_file_has_exactly_the_size_that_is_set(tmp_path: Path, size: int) -> None:
    result = write(tmp_path, str(size))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_size == size
    assert result == {"path": str(file), "bytes": size}


def test_the_file_takes_up_its_size_on_the_disk(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "2MiB")["path"])
    assert path.stat().st_blocks * 512 >= 2 * 2**20


def test_a_file_larger_than_one_sync_is_whole(tmp_path: Path) -> None:
    path = Path(write(tmp_path, "70MiB")["path"])
    assert path.stat().st_size == 70 * 2**20


def test_its_name_holds_the_metric_the_start_of_the_alert_and_a_hash_of_the_run(
    tmp_path: Path,
) -> None:
    alert = make_alert(starts_at=datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=UTC))
    path = write(tmp_path, metric_name="job:errors:rate5m", context=make_context(alert))["path"]
    metric, unix, unique = Path(path).stem.rsplit("_", 2)
    assert (metric, unix) == ("metric_job:errors:rate5m", "1767323045")
    assert len(unique) == 16
    assert int(unique, 16)


def test_the_directory_and_its_parents_are_created_closed_to_others(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "c")
    created = [tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert [oct(one.stat().st_mode & 0o777) for one in created] == ["0o750"] * 3


def test_the_file_is_closed_to_others(tmp_path: Path) -> None:
    assert Path(write(tmp_path)["path"]).stat().st_mode & 0o007 == 0


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir()
    directory.chmod(0o705)
    write(directory)
    assert directory.stat().st_mode & 0o777 == 0o705


def test_a_second_attempt_finds_the_file_of_the_first(tmp_path: Path) -> None:
    first = write(tmp_path, context=make_context(attempt=1))
    before = Path(first["path"]).stat()
    assert write(tmp_path, context=make_context(attempt=2)) == first
    assert Path(first["path"]).stat().st_ino == before.st_ino
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_found_is_reported_with_its_own_size(tmp_path: Path) -> None:
    first = write(tmp_path, "1MiB")
    assert write(tmp_path, "2MiB", context=make_context(attempt=2)) == first


def test_another_run_of_the_same_alert_writes_a_file_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, context=make_context(kind="fired"))
    write(tmp_path, context=make_context(kind="repeat", idempotency_key="f" * 32))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_a_killed_attempt_left_behind_is_cleared_away(tmp_path: Path) -> None:
    name = file_action.file_name("queue_depth", make_context())
    for attempt in (1, 2, 3):
        (tmp_path / f".{name}.{attempt}.tmp").write_bytes(b"half")
    write(tmp_path, context=make_context(attempt=3))
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_an_attempt_that_was_stuck_does_not_disturb_the_next_one(tmp_path: Path) -> None:
    results: list[Any] = []

    class IsStuck(Cancellation):
        @property
        def reason(self) -> str | None:
            if not results and list(tmp_path.glob(".*.1.tmp")):
                results.append(None)
                results[0] = write(tmp_path, context=make_context(attempt=2))
            return None

    with pytest.raises(TemporaryError):
        write(tmp_path, context=make_context(attempt=1, cancellation=IsStuck()))
    (file,) = tmp_path.iterdir()
    assert results == [{"path": str(file), "bytes": file.stat().st_size}]


HOSTILE_NAMES = {
    "parents": "../../../etc/cron.d/x",
    "absolute": "/etc/passwd",
    "dots": "..",
    "nul": "a\0b",
    "empty": "",
    "long": "x" * 10_000,
    "long unicode": "\U0001f4a5" * 10_000,
    "unicode": "größe/дом",
    "line break": "a\nb\r\n",
    "format": "%s{0}$(reboot)`;*?~",
    "surrogate": "\udcff",
}


@pytest.mark.parametrize("metric_name", HOSTILE_NAMES.values(), ids=HOSTILE_NAMES)
def test_no_metric_name_leaves_the_directory_or_grows_too_long(
    tmp_path: Path, metric_name: str
) -> None:
    directory = tmp_path / "files"
    path = Path(write(directory, "10", metric_name=metric_name)["path"])
    assert path.parent == directory
    assert list(tmp_path.iterdir()) == [directory]
    assert list(directory.iterdir()) == [path]
    assert path.name.startswith("metric_")
    assert path.name.isascii()
    assert path.name.isprintable()
    assert len(f".{path.name}.999999.tmp") <= os.pathconf(tmp_path, "PC_NAME_MAX")


def test_names_that_look_alike_once_made_safe_stay_apart(tmp_path: Path) -> None:
    write(tmp_path, "1", metric_name="a/b", context=make_context(idempotency_key="1"))
    write(tmp_path, "1", metric_name="a.b", context=make_context(idempotency_key="2"))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    directory = tmp_path / "files"
    directory.mkdir()
    (directory / file_action.file_name("queue_depth", make_context())).symlink_to(target)
    with pytest.raises(PermanentError, match="is no regular file"):
        write(directory)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize("looks", range(12))
def test_a_cancel_at_any_moment_leaves_no_file_or_a_whole_one(tmp_path: Path, looks: int) -> None:
    context = make_context(cancellation=StopsAfter(looks))
    try:
        write(tmp_path, "3MiB", context=context)
    except RunCancelledError:
        assert list(tmp_path.iterdir()) == []
    else:
        assert [one.stat().st_size for one in tmp_path.iterdir()] == [3 * 2**20]


def test_a_cancel_between_two_blocks_stops_the_writing(tmp_path: Path) -> None:
    with pytest.raises(RunCancelledError, match="an operator said so"):
        write(tmp_path, "100GiB", context=make_context(cancellation=StopsAfter(8)))
    assert list(tmp_path.iterdir()) == []


def test_a_run_out_of_time_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RunCancelledError):
        write(tmp_path / "files", context=make_context(remaining_seconds=0))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    full = mounted(tmp_path, "size=512k")
    if full is None:  # Where nobody may mount, a limit on files cuts the write off as abruptly.
        error, left = write_apart(tmp_path, 2**20, LIMIT_FILES)
        assert error.startswith("PermanentError")
    else:
        error, left = write_apart(tmp_path, 2**20, within=full)
        assert error.startswith("TemporaryError")
        assert "No space left on device; remove files there, or lower FILE_ACTION_SIZE" in error
    assert left == "left:"


def test_a_file_larger_than_the_system_allows_is_permanent_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    error, left = write_apart(tmp_path, 2**20, LIMIT_FILES)
    assert error.startswith("PermanentError")
    assert error.endswith("File too large; lower FILE_ACTION_SIZE")
    assert left == "left:"


def test_a_directory_that_may_not_be_written_to_is_permanent(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    error = write_apart(tmp_path, 1, BECOME_NOBODY)[0]
    assert error.startswith("PermanentError")
    assert "Permission denied; give its user the right to write there" in error
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_directory_is_permanent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PermanentError, match=r"cannot be written: .*; look at FILE_ACTION_DIR"):
        file_action.execute(
            make_context(settings={"FILE_ACTION_DIR": tmp_path / "file", "FILE_ACTION_SIZE": 1}),
            "queue_depth",
        )


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "ESTALE", "EMFILE", "EAGAIN",
                                  "ENOMEM", "ETIMEDOUT", "EBUSY", "ENOENT"])  # fmt: skip
def test_what_may_pass_is_temporary(name: str) -> None:
    number = getattr(errno, name)
    error = file_action.as_action_error(OSError(number, os.strerror(number)), Path("/a"))
    assert isinstance(error, TemporaryError)
    assert f"/a cannot be written: {os.strerror(number)}; " in str(error)


@pytest.mark.parametrize("name", ["EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "ELOOP",
                                  "ENAMETOOLONG", "EFBIG", "EEXIST"])  # fmt: skip
def test_what_needs_a_person_is_permanent(name: str) -> None:
    number = getattr(errno, name)
    error = file_action.as_action_error(OSError(number, os.strerror(number)), Path("/a"))
    assert isinstance(error, PermanentError)


@pytest.mark.parametrize("size", [-1, file_action.LARGEST_SIZE + 1, 10**30])
def test_a_size_out_of_bounds_stops_the_start(tmp_path: Path, size: int) -> None:
    with pytest.raises(ValueError, match=r"FILE_ACTION_SIZE: .* is not a size from 0 to 100GiB"):
        validate(tmp_path, size)


@pytest.mark.parametrize("text", ["-1", "1 elephant", "0.5"])
def test_what_is_no_size_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="FILE_ACTION_SIZE"):
        write(tmp_path, text)


def test_the_largest_size_is_the_one_that_is_stated(tmp_path: Path) -> None:
    validate(tmp_path, file_action.LARGEST_SIZE)
    assert file_action.LARGEST_SIZE == 100 * 1024**3
    assert "at most 100GiB" in file_action.settings()[1].help


def test_a_directory_that_is_none_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"FILE_ACTION_DIR: .*file is not a directory; name one"):
        validate(file)
    with pytest.raises(ValueError, match=r"FILE_ACTION_DIR: .*below cannot be used: Not a direc"):
        validate(file / "below")


def test_a_directory_that_is_not_writable_stops_the_start(tmp_path: Path) -> None:
    # Not through tmp_path: nobody may not even look into it.
    program = f"{PROGRAM.split('directory,')[0]}{BECOME_NOBODY}\n" + textwrap.dedent("""
        try:
            file_action.validate_config({"FILE_ACTION_DIR": Path("/"), "FILE_ACTION_SIZE": 1})
        except ValueError as error:
            print(error)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.startswith("FILE_ACTION_DIR: / is not writable; give this user the right")


def test_checking_a_directory_that_is_missing_creates_nothing(tmp_path: Path) -> None:
    validate(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_describe_says_what_would_be_written_and_writes_nothing(tmp_path: Path) -> None:
    environment = {"FILE_ACTION_DIR": str(tmp_path / "files"), "FILE_ACTION_SIZE": "2KiB"}
    described = run_action(
        file_action, environment=environment, hook="describe", metric_name="../x\n"
    )
    name = file_action.file_name("../x\n", make_context())
    assert described == f"would write 2048 bytes to {tmp_path}/files/{name}"
    assert list(tmp_path.iterdir()) == []


def test_describe_says_that_the_file_is_there_already(tmp_path: Path) -> None:
    path = write(tmp_path)["path"]
    environment = {"FILE_ACTION_DIR": str(tmp_path)}
    described = run_action(file_action, environment=environment, hook="describe")
    assert described == f"would write nothing: {path} is there already"
