"""Runs the containers of a rendered pod for real, as far as that goes without a cluster.

Each has namespaces of its own: it listens on its real port, but nobody outside can connect; its
root is read-only, and its volumes are directories of the test. It runs as the user that the pod
says, without capabilities.
"""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

Mounts = Mapping[str, tuple[Path, bool]]

_SANDBOX = Path(__file__).with_name("sandbox.py")
_AS_ROOT = os.geteuid() == 0
_NAMESPACES = ["--mount", "--pid", "--fork", "--kill-child"]
_MAPPED = [] if _AS_ROOT else ["--map-root-user"]


def require_namespaces() -> None:
    """Skip the test where the kernel allows no namespaces, or fail it in CI."""
    done = subprocess.run(
        ["unshare", *_NAMESPACES, *_MAPPED, "--net", "true"], capture_output=True, check=False
    )
    if done.returncode:
        reason = f"no namespaces here (be root, or allow user namespaces): {done.stderr.decode()}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


def sandboxed(
    program: Sequence[str], mounts: Mounts, user: int, directory: Path, has_network: bool = False
) -> list[str]:
    """Return the command line that runs a program in a sandbox; only root can be another user.

    The sandbox mounts its root, which nobody outside sees, on a directory below `directory`.
    """
    root = directory / "sandbox-root"
    root.mkdir(exist_ok=True)
    specification = {
        "root": str(root),
        "mounts": {path: [str(source), writes] for path, (source, writes) in mounts.items()},
        "user": user if _AS_ROOT else None,
    }
    network = [] if has_network else ["--net"]
    return [
        "unshare", *_NAMESPACES, *_MAPPED, *network,
        sys.executable, str(_SANDBOX), json.dumps(specification), *program,
    ]  # fmt: skip


def give(path: Path, user: int) -> None:
    """Let a user own what is below a path, where we may say so."""
    if _AS_ROOT:
        for one in (path, *path.rglob("*")):
            os.chown(one, user, user, follow_symlinks=False)


def as_config_map(directory: Path, files: Mapping[str, str]) -> Path:
    """Write files as the kubelet does: links to links into a hidden directory."""
    hidden = directory / "..2026_01_02_03_04_05.678"
    hidden.mkdir(parents=True)
    (directory / "..data").symlink_to(hidden.name)
    for name, text in files.items():
        (hidden / name).write_text(text, encoding="utf-8")
        (directory / name).symlink_to(f"..data/{name}")
    return directory


def secret_texts(secret: Mapping[str, Any]) -> dict[str, str]:
    """Return what a rendered Secret holds."""
    return {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}


@dataclass(frozen=True)
class Image:
    """What an image brings: its entrypoint, its environment, and files."""

    entrypoint: tuple[str, ...]
    environment: Mapping[str, str]
    mounts: Mounts


class Container:
    """A container of a rendered pod, running: its command, environment and mounts as they are."""

    def __init__(
        self,
        pod: Mapping[str, Any],
        name: str,
        volumes: Mapping[str, Path],
        image: Image,
        directory: Path,
    ) -> None:
        """`volumes` maps the pod's volumes to directories."""
        (container,) = [one for one in pod["containers"] if one["name"] == name]
        self.user = int(pod["securityContext"]["runAsUser"])
        mounts = dict(image.mounts)
        for one in container["volumeMounts"]:
            mounts[one["mountPath"]] = (volumes[one["name"]], not one.get("readOnly", False))
        program = [*image.entrypoint, *container["args"]]
        environment = {
            **image.environment,
            **{one["name"]: one["value"] for one in container["env"]},
        }
        self.log = directory / f"{name}-{container['args'][0]}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["env", "-i", *(f"{key}={text}" for key, text in environment.items()),
                 *sandboxed(program, mounts, self.user, directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The process id, seen from here, of what is process 1 in there."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return int(wait_until(lambda: children.read_text().split(), 60)[0])

    def _inside(self, *namespaces: str) -> list[str]:
        users = [] if _AS_ROOT else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.pid), *namespaces, *users]

    def execute(self, *program: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in the container, as `kubectl exec` does."""
        drop = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        environment = Path(f"/proc/{self.pid}/environ").read_bytes().decode().split("\0")
        return subprocess.run(
            [*self._inside("--mount", "--net", "--pid", "--root", "--wd"),
             "env", "-i", *filter(None, environment), *(drop if _AS_ROOT else []), *program],
            text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def states(self) -> list[tuple[str, str]]:
        """Return state (`Z`: ended, and nobody took note) and name of each process in there."""
        shown = self.execute("sh", "-c", "cat /proc/[0-9]*/stat").stdout
        found = re.findall(r"^\d+ \((.*)\) (\S)", shown, re.MULTILINE)
        assert found
        return [(state, name) for name, state in found]

    def curl(self, url: str, *arguments: str) -> tuple[int, str]:
        """Ask it from inside its network; status and body."""
        done = subprocess.run(
            [*self._inside("--net"), "curl", "-sS", "--max-time", "20",
             "--write-out", "\n%{http_code}", url, *arguments],
            text=True, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        body, _, status = done.stdout.rpartition("\n")
        return int(status or 0), body

    def wait_until_logged(self, message: str, times: int = 1) -> None:
        """Return once it has logged a message so often."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.text()
            return len(re.findall(f'"message": "{message}"', self.text())) >= times

        wait_until(is_there, 60, f"{message}; log: {self.log}")

    def text(self) -> str:
        """Return all that it has logged."""
        return self.log.read_text(errors="replace")

    def stop(self, timeout_seconds: float) -> int:
        """Stop it as the kubelet does, with SIGTERM to process 1; return the exit code."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(timeout_seconds)

    def kill(self) -> None:
        """End it with all its processes: its process 1 takes them with it.

        `unshare` would not: what has become another user does not follow it.
        """
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait(20)
