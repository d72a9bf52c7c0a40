"""What surrounds the code: make, CI, the installer of tools, the pinned versions, the wheel."""

import configparser
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.support.documents import ROOT
from tests.support.every import every
from tests.support.stack import requires
from tests.support.waiting import wait_until


def run(
    *command: str | Path, env: dict[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        command, cwd=cwd, env=env, text=True, capture_output=True, timeout=300, check=False
    )


def plain_environment() -> dict[str, str]:
    """Return the environment without what a surrounding `make test` has put there."""
    ours = ("MAKE", "MFLAGS", "VENV", "BIND", "PYTEST_FLAGS")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory that, as PATH, holds no program but the shell's."""
    directory = tmp_path / "programs"
    directory.mkdir()
    for name in ("bash", "dirname"):
        found = shutil.which(name)
        assert found
        (directory / name).symlink_to(found)
    return directory


def add_program(directory: Path, name: str, script: str = "") -> None:
    """Add a program that does what a shell script says."""
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


# make


INSTALL = (
    "-m venv VENV",
    "VENV/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "
    "-e '.[postgres,test]'",
)
LINT = ("VENV/bin/ruff check .", "VENV/bin/ruff format --check .", "VENV/bin/mypy")
UNIT = "VENV/bin/python -m pytest -m unit -n 2"
TOOLS_OF_TESTS = ("tests/install-tools", "tests/install-helm", "tests/install-axe")


@pytest.mark.parametrize(
    ("target", "steps"),
    [
        ("unit", (*INSTALL, UNIT)),
        ("check", (*INSTALL, *LINT, UNIT)),
        ("test", (*INSTALL, *LINT, *TOOLS_OF_TESTS, "VENV/bin/python -m pytest -n 4")),
    ],
)
def test_make_installs_what_is_pinned_then_checks_then_tests(
    tmp_path: Path, target: str, steps: tuple[str, ...]
) -> None:
    (make,) = requires("make")
    shown = run(make, "-n", target, f"VENV={tmp_path}/venv", env=plain_environment())
    assert shown.returncode == 0, shown.stderr
    lines = [line for line in shown.stdout.splitlines() if not line.startswith("touch ")]
    assert len(lines) == len(steps)
    for line, step in zip(lines, steps, strict=True):
        assert step.replace("VENV", f"{tmp_path}/venv") in line


def test_unit_tests_are_all_that_make_unit_runs(tmp_path: Path) -> None:
    (make,) = requires("make")
    shown = run(make, "-n", "unit", f"VENV={tmp_path}/venv", env=plain_environment())
    words = shown.stdout.splitlines()[-1].split()
    assert words[words.index("-m", words.index("pytest")) + 1] == "unit"
    assert {word for word in words if word.startswith("tests")} == {
        "tests/unit", "tests/restart_service",
    }  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment, as far as make can tell; its receiver says how it was called."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    add_program(venv / "bin", "pip", "exit 1")
    said = tmp_path / "said"
    add_program(
        venv / "bin",
        "receiver",
        f'echo "$$ $RECEIVER_DATA_DIR $*" >{said}.new && mv {said}.new {said} && exec sleep 60',
    )
    (venv / "run.done").touch()
    return venv


Started = Callable[..., tuple["subprocess.Popen[bytes]", list[str]]]


@pytest.fixture
def make_run(installed: Path, tmp_path: Path) -> Any:
    """Starts `make run`; returns it, and what its receiver says: process id, data, arguments."""
    (make,) = requires("make")
    said = tmp_path / "said"
    started = []

    def start(*arguments: str) -> tuple["subprocess.Popen[bytes]", list[str]]:
        process = subprocess.Popen(
            [make, "run", f"VENV={installed}", *arguments], cwd=ROOT, env=plain_environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        wait_until(said.exists, 60, "the receiver is started")
        return process, said.read_text().split()

    yield start
    for one in started:
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            one.wait(10)


@pytest.mark.parametrize(
    ("arguments", "address"),
    [([], "127.0.0.1:8080"), (["BIND=127.0.0.1:7070"], "127.0.0.1:7070")],
    ids=["by default", "BIND"],
)
def test_make_run_serves_on_its_address_with_a_journal_in_the_clone(
    make_run: Started, arguments: list[str], address: str
) -> None:
    _, said = make_run(*arguments)
    assert said[1:] == ["receiver-data", "serve", "--bind", address]


def test_receiver_ends_with_the_make_that_runs_it(make_run: Started) -> None:
    make, (pid, *_) = make_run()
    make.send_signal(signal.SIGTERM)
    make.wait(20)
    assert not Path("/proc", pid).exists()


# CI


def test_ci_calls_make_test_in_the_root_and_says_that_it_is_ci(programs: Path) -> None:
    add_program(programs, "make", 'echo "$* in $PWD, CI=$CI"')
    done = run(ROOT / ".ci" / "run", env={"PATH": str(programs)}, cwd=Path("/"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"test in {ROOT}, CI=true\n"


def test_ci_fails_with_make_test(programs: Path) -> None:
    add_program(programs, "make", "exit 2")
    assert run(ROOT / ".ci" / "run", env={"PATH": str(programs)}).returncode == 2


# tests/install-tools

TOOLS = {
    "curl": "curl",
    "git": "git",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "faketime": "faketime",
    "wrk": "wrk",
    "webhook": "webhook",
    "npm": "npm",
    "pgbouncer": "pgbouncer",
    "tini": "tini",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "chattr": "e2fsprogs",
}


def install_tools(programs: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "tests" / "install-tools", env={"PATH": str(programs), **environment})


def add_apt(programs: Path, user: int, script: str) -> None:
    """Add an apt-get that does what a shell script says, and be this user."""
    add_program(programs, "apt-get", script)
    add_program(programs, "id", f"echo {user}")


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)], ids=["CI", "laptop"])
def test_missing_tools_are_named_and_fail_in_ci_alone(programs: Path, ci: str, status: int) -> None:
    done = install_tools(programs, CI=ci)
    packages = " ".join(TOOLS.values())
    assert done.returncode == status
    assert f"tests need {packages}; install them" in done.stderr
    assert f"sudo apt-get install {packages}\n" in done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_only_the_missing_tool_is_named(programs: Path, tool: str) -> None:
    for other in TOOLS.keys() - {tool}:
        add_program(programs, other)
    done = install_tools(programs, CI="true")
    assert done.returncode == 1
    assert f"tests need {TOOLS[tool]}; install them" in done.stderr


def test_nothing_is_installed_where_all_tools_are(programs: Path) -> None:
    for tool in TOOLS:
        add_program(programs, tool)
    add_apt(programs, 0, "echo apt-get was called; exit 1")
    done = install_tools(programs, CI="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def root(tmp_path: Path, programs: Path) -> Path:
    """The root below which a service would start, and what is needed to prevent that."""
    directory = tmp_path / "root"
    (directory / "usr" / "sbin").mkdir(parents=True)
    for name in ("chmod", "rm"):
        (programs / name).symlink_to(str(shutil.which(name)))
    return directory


def test_root_gets_what_is_missing_from_apt(programs: Path, root: Path, tmp_path: Path) -> None:
    add_program(programs, "prometheus")
    add_apt(programs, 0, f'echo "$DEBIAN_FRONTEND $*" >>{tmp_path}/called')
    done = install_tools(programs, CI="true", INSTALL_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    update, install = (tmp_path / "called").read_text().splitlines()
    assert update.startswith("noninteractive update")
    assert install.startswith("noninteractive install -y")
    packages = [word for word in install.split()[2:] if not word.startswith("-")]
    assert packages == [package for tool, package in TOOLS.items() if tool != "prometheus"]


def test_no_service_starts_while_apt_installs(programs: Path, root: Path, tmp_path: Path) -> None:
    policy = root / "usr" / "sbin" / "policy-rc.d"
    add_apt(programs, 0, f"{policy}; echo $? >>{tmp_path}/answered")
    done = install_tools(programs, INSTALL_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "answered").read_text().split() == ["101", "101"]
    assert not policy.exists()


def test_policy_of_the_machine_is_kept(programs: Path, root: Path) -> None:
    policy = root / "usr" / "sbin" / "policy-rc.d"
    policy.write_text("of the machine")
    add_apt(programs, 0, "")
    done = install_tools(programs, INSTALL_ROOT=str(root))
    assert done.returncode == 0, done.stderr
    assert policy.read_text() == "of the machine"


def test_apt_that_fails_ends_it(programs: Path, root: Path) -> None:
    add_apt(programs, 0, "exit 100")
    assert install_tools(programs, INSTALL_ROOT=str(root)).returncode == 100
    assert not list((root / "usr" / "sbin").iterdir())


def test_user_who_is_not_root_is_told_and_apt_is_not_called(programs: Path) -> None:
    add_apt(programs, 1000, "echo apt-get was called")
    done = install_tools(programs, CI="true")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"sudo apt-get install {' '.join(TOOLS.values())}\n" in done.stderr


# constraints.txt

PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def requirements() -> list[Requirement]:
    """Return what setup.cfg names: what is always installed, and every extra."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for one in lists for line in one.strip().splitlines()]


def test_every_version_is_pinned_exactly_and_once() -> None:
    pins = [Requirement(line) for line in PINS]
    assert [str(one.specifier)[:2] for one in pins] == ["=="] * len(pins)
    assert not any("*" in str(one.specifier) for one in pins)
    names = [canonicalize_name(one.name) for one in pins]
    assert len(set(names)) == len(names)


def test_every_dependency_is_pinned_within_its_range() -> None:
    pinned = {canonicalize_name(name): text for name, _, text in (p.partition("==") for p in PINS)}
    with every() as each:
        for requirement in requirements():
            with each(requirement):
                version = Version(pinned[canonicalize_name(requirement.name)])
                assert requirement.specifier.contains(version)


# The wheel

IN_THE_WHEEL = (
    "receiver/py.typed",
    "receiver/samples/firing.json",
    "receiver/samples/group.json",
    "receiver/samples/resolved.json",
    "receiver/samples/demo/notifications.json",
    "receiver/samples/new_plugin/plugin.py.txt",
    "receiver/web/static/page.js",
    "receiver/web/templates/now.html",
    "receiver/journal/migrations/env.py",
    "receiver/journal/migrations/script.py.mako",
    "receiver/journal/migrations/versions/0001_initial.py",
    "action_plugins/py.typed",
    "action_plugins/README.md",
    "action_plugins/efs_emergency/README.md",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from a copy: a build leaves traces in its sources."""
    (source, built) = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    for name in ("setup.cfg", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    for name in ("receiver", "action_plugins"):
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps"]
    done = run(*pip, "--wheel-dir", built, source, env=plain_environment(), cwd=source)
    assert done.returncode == 0, done.stderr
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(built / "unpacked")
    return built / "unpacked"


def files_in(directory: Path, *names: str) -> set[str]:
    """Return the files below, without what Python and editors leave there."""
    return {
        str(one.relative_to(directory))
        for name in names
        for one in (directory / name).rglob("*")
        if one.is_file() and "__pycache__" not in one.parts and not one.name.startswith(".")
    }


def test_wheel_holds_every_file_of_both_packages(wheel: Path) -> None:
    held = files_in(wheel, "receiver", "action_plugins")
    assert held == files_in(ROOT, "receiver", "action_plugins")
    assert held >= set(IN_THE_WHEEL)


def test_wheel_holds_nothing_else(wheel: Path) -> None:
    tops = {one.name for one in wheel.iterdir() if one.suffix != ".dist-info"}
    assert tops == {"receiver", "action_plugins"}


def test_wheel_brings_the_command(wheel: Path) -> None:
    (file,) = wheel.glob("*.dist-info/entry_points.txt")
    declared = configparser.ConfigParser()
    declared.read(file)
    assert declared["console_scripts"]["receiver"] == "receiver.cli:main"


def test_samples_and_migrations_are_found_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    script = (
        "import sys, receiver\n"
        "from receiver.cli.sending import SAMPLES, sample\n"
        "from receiver.journal import reading\n"
        "from receiver.journal.journal import Journal\n"
        "from datetime import UTC, datetime\n"
        "assert all(sample(name, datetime.now(UTC)) for name in SAMPLES)\n"
        f"journal = Journal('sqlite:///{tmp_path}/journal.db')\n"
        "assert reading.list_runs(journal) == []\n"
        "journal.close()\n"
        "print(receiver.__file__)\n"
    )
    environment = {**plain_environment(), "PYTHONPATH": str(wheel)}
    done = run(sys.executable, "-W", "error", "-c", script, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(wheel)
