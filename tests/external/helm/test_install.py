"""`tests/install-helm`: fetches what is missing, and keeps nothing but what it should be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documents import ROOT

# Packs what pretends to be the package: a layer with another binary in it.
FAKE_NPM = f"""#!{sys.executable}
import io, sys, tarfile, zipfile
layer = io.BytesIO()
with zipfile.ZipFile(layer, "w") as archive:
    archive.writestr("helm/helm", "not Helm")
with tarfile.open("package.tgz", "w:gz") as package:
    entry = tarfile.TarInfo("package/lib/layer.zip")
    entry.size = len(layer.getvalue())
    package.addfile(entry, io.BytesIO(layer.getvalue()))
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A directory with the script where it stands in this one, and nothing fetched yet."""
    (tmp_path / "clone" / "tests").mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "install-helm", tmp_path / "clone" / "tests")
    return tmp_path / "clone"


def install(clone: Path, path: str, ci: str = "true") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [clone / "tests" / "install-helm"], env={"PATH": path, "CI": ci}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)], ids=["CI", "laptop"])
def test_missing_npm_is_named_and_fails_in_ci_alone(clone: Path, ci: str, status: int) -> None:
    (clone / "bin").mkdir()
    for name in ("bash", "dirname"):
        (clone / "bin" / name).symlink_to(str(shutil.which(name)))
    done = install(clone, str(clone / "bin"), ci)
    assert done.returncode == status
    assert "sudo apt-get install npm" in done.stderr


def test_what_is_not_the_binary_that_was_seen_before_is_not_kept(clone: Path) -> None:
    (clone / "bin").mkdir()
    (clone / "bin" / "npm").write_text(FAKE_NPM)
    (clone / "bin" / "npm").chmod(0o755)
    done = install(clone, f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode != 0
    assert "helm/helm: FAILED" in done.stdout
    assert not (clone / ".cache" / "helm" / "helm3").exists()


def test_nothing_is_fetched_where_both_are(clone: Path) -> None:
    for name in ("helm3", "helm4"):
        file = clone / ".cache" / "helm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.chmod(0o755)
    (clone / "bin").mkdir()
    for name in ("bash", "dirname"):
        (clone / "bin" / name).symlink_to(str(shutil.which(name)))
    done = install(clone, str(clone / "bin"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
