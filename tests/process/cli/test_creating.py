"""`receiver new-plugin`, as an author uses it: written, tested, installed, found."""

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from receiver import settings as receiver_settings
from receiver.cli import cli
from receiver.plugins import load_actions
from tests.support.documents import ROOT

EXAMPLE = ROOT / "tests" / "restart_service"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def new_plugin(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["new-plugin", *map(str, arguments)])


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new plugin, as the command writes it."""
    directory = tmp_path_factory.mktemp("new") / "open_gate"
    done = new_plugin("open_gate", "--directory", directory)
    assert done.exit_code == 0, done.output
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python in a fresh virtual environment that sees what is installed here."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120)
    python = venv / "bin" / "python"
    (site,) = venv.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    # As a path file would not: the .pth files that stand there count too.
    (site / "here.pth").write_text(f"import site; site.addsitedir({here!r})\n")

    def run_it(*arguments: str | Path, cwd: Path, **environment: str) -> Any:
        return subprocess.run(
            [python, "-W", "error", *arguments], cwd=cwd, text=True, timeout=300, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={"PATH": os.environ["PATH"], "HOME": str(venv), "TMPDIR": str(venv), **environment},
        )  # fmt: skip

    return run_it


@pytest.fixture(scope="module")
def installed(written: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, with the new plugin and the example package installed by pip."""
    example = tmp_path_factory.mktemp("example")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "restart_service.py"):
        (example / name).write_bytes((EXAMPLE / name).read_bytes())  # A build leaves traces.
    # In two steps, and with what is here: nothing is downloaded.
    built = run(
        "-W", "ignore", "-m", "pip", "--disable-pip-version-check", "install", "--no-index",
        "--no-build-isolation", written, example, cwd=written,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout
    return run


def test_files_hold_the_name_and_nothing_of_the_sample(written: Path) -> None:
    found = {str(one.relative_to(written)) for one in written.rglob("*") if one.is_file()}
    assert found >= {
        "README.md", "pyproject.toml", "setup.cfg", "open_gate.py", "tests/test_open_gate.py",
    }  # fmt: skip
    for name in found:
        text = (written / name).read_text(errors="replace")
        assert "sample" not in text.lower(), name
    assert "OPEN_GATE_DIR" in (written / "open_gate.py").read_text()
    assert "name = open-gate\n" in (written / "setup.cfg").read_text()


def test_it_passes_its_own_tests_in_a_fresh_environment(written: Path, run: Run) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=written)
    assert done.returncode == 0, done.stdout
    chosen = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "--co", "-m", "conformance", cwd=written
    )
    assert "test_dry_run_touches_nothing" in chosen.stdout
    assert "test_the_file_holds_the_call" not in chosen.stdout


def test_it_is_clean_for_a_linter(written: Path) -> None:
    for command in (["check", "--select", "A,ARG,B,E,F,UP,W"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--isolated", "--no-cache",
             "--line-length", "100", written / "open_gate.py", written / "tests"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        pytest.param("open_gate", {"OPEN_GATE_DIR": "/data/gate"}, id="new plugin"),
        pytest.param(
            "restart_service",
            {
                "RESTART_URL": "http://127.0.0.1:1",
                "RESTART_TOKEN": "t0ken",
                "RESTART_SERVICES": "web",
            },
            id="example package",
        ),
    ],
)
def test_installed_package_is_found(
    installed: Run, name: str, environment: dict[str, str], tmp_path: Path
) -> None:
    done = installed(
        "-m", "receiver", "plugins", name, "--json", cwd=tmp_path,
        ACTION_PLUGIN=name, **environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(done.stdout)
    assert found["state"] == "loaded"
    assert found["origin"] == f"{name} in {name.replace('_', '-')}"
    assert found["version"] == {"open_gate": "0.1.0", "restart_service": "1.0.0"}[name]


def test_without_installing_it_the_directory_is_a_plugin_dir(written: Path) -> None:
    settings = receiver_settings.load(
        {"PLUGIN_DIR": str(written), "ACTION_PLUGIN": "open_gate", "OPEN_GATE_DIR": "/data"}, {}
    )
    assert "open_gate" in load_actions(settings).loaded


def test_what_to_do_next_is_told(tmp_path: Path) -> None:
    done = new_plugin("ring_bell", "--directory", tmp_path / "deep" / "ring")
    assert f"wrote {tmp_path}/deep/ring/ring_bell.py\n" in done.output
    assert f"cd {tmp_path}/deep/ring && pip install '.[test]' && pytest\n" in done.output
    assert f"PLUGIN_DIR={tmp_path}/deep/ring receiver plugins ring_bell\n" in done.output


def test_what_to_do_next_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    done = new_plugin("ring_bell", "--directory", tmp_path / "my gates")
    assert f"cd '{tmp_path}/my gates' && pip install" in done.output
    assert f"PLUGIN_DIR='{tmp_path}/my gates' receiver plugins" in done.output


def test_directory_is_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert new_plugin("ring_bell").exit_code == 0
    assert (tmp_path / "ring_bell" / "ring_bell.py").is_file()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("Open-Gate", "is not a name for an action", id="capitals"),
        pytest.param("../gate", "is not a name for an action", id="path"),
        pytest.param("9lives", "is not a name for an action", id="digit"),
        pytest.param("import", "is not a name for an action", id="keyword"),
        pytest.param("log_action", "comes with the receiver", id="built-in"),
        pytest.param("json", "is a module that is in use already", id="standard library"),
        pytest.param("requests", "is a module that is in use already", id="installed"),
        pytest.param("tests", "cannot be the name of a package", id="its own tests"),
        pytest.param("setup", "cannot be the name of a package", id="build script"),
        pytest.param("conftest", "cannot be the name of a package", id="of pytest"),
        pytest.param("gate_", "cannot be the name of a package", id="trailing underscore"),
        pytest.param("receiver_gate", "cannot be the name of a package", id="prefix"),
        pytest.param("receiver", "cannot be the name of a package", id="the receiver"),
    ],
)
def test_name_that_cannot_be_used_is_refused(name: str, why: str, tmp_path: Path) -> None:
    done = new_plugin(name, "--directory", tmp_path / "new")
    assert done.exit_code == 2
    assert why in done.output
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "open_gate.py").write_text("mine")
    done = new_plugin("open_gate", "--directory", tmp_path)
    assert done.exit_code == 2
    assert "is there already; choose another --directory" in done.output
    assert [one.name for one in tmp_path.iterdir()] == ["open_gate.py"]


def test_directory_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "receiver", "new-plugin", "open_gate", "--directory",
         tmp_path / "file" / "below"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be written: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr
