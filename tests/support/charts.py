"""Renders the chart with real Helm binaries, and picks from what they render."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from tests.support.documents import ROOT

CHART = ROOT / "helm" / "alert-receiver"
EXAMPLES = sorted((CHART / "ci").glob("*-values.yaml"))
HELMS = ("helm3", "helm4")
# What puts the journal into PostgreSQL.
POSTGRESQL = {"database": {"existingSecret": "database"}, "auth": {"existingSecret": "tokens"}}
RELEASE, NAMESPACE = "alert-receiver", "monitoring"

Resource = dict[str, Any]

# In C where PyYAML was built so: ten times as fast.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_rendered: dict[tuple[Path, str, tuple[str, ...]], str] = {}


@dataclass(frozen=True)
class Helm:
    """One Helm binary; it never looks for a cluster."""

    binary: Path

    def run(self, *arguments: str | Path, values: Path | None = None) -> str:
        """Return what it writes; AssertionError with its words when it fails."""
        done = self.call(*arguments, values=values)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def call(
        self, *arguments: str | Path, values: Path | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, however that is."""
        extra = ["--values", str(values)] if values else []
        # An empty directory as its home, so that it meets no plugins and no repositories.
        with TemporaryDirectory() as home:
            homes = ("HOME", "HELM_CONFIG_HOME", "HELM_CACHE_HOME", "HELM_DATA_HOME")
            return subprocess.run(
                [str(self.binary), *map(str, arguments), *extra],
                text=True, capture_output=True, timeout=120, check=False,
                env={"PATH": os.environ["PATH"], "KUBECONFIG": "/nonexistent",
                     **dict.fromkeys(homes, home)},
            )  # fmt: skip

    def template(self, values: Path | None = None, *arguments: str) -> list[Resource]:
        """Return the rendered resources; the same values are rendered once in each process."""
        key = (self.binary, values.read_text(encoding="utf-8") if values else "", arguments)
        if key not in _rendered:
            _rendered[key] = self.run(
                "template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", "1.35.0",
                *arguments, values=values,
            )  # fmt: skip
        return [one for one in yaml.load_all(_rendered[key], _Loader) if one]


def find_helm(name: str) -> Helm:
    """Return a Helm binary; without it skip the test, or fail it in CI."""
    binary = ROOT / ".cache" / "helm" / name
    if not binary.exists():
        reason = f"{name} is missing; fetch it: tests/install-helm"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Helm(binary)


def written(directory: Path, values: Mapping[str, Any]) -> Path:
    """Return a values file that holds these values."""
    file = directory / "values.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return file


def pick(resources: list[Resource], kind: str, name: str = "") -> Resource:
    """Return the main resource of a kind, or the one whose name ends so."""
    found = [
        one for one in resources if one["kind"] == kind and one["metadata"]["name"].endswith(name)
    ]
    assert found, f"no {kind} {name}"
    # What stands beside the main one has its name and a suffix.
    return min(found, key=lambda one: len(one["metadata"]["name"]))


def container_of(workload: Resource) -> dict[str, Any]:
    """Return the receiver's container of a Deployment."""
    containers = workload["spec"]["template"]["spec"]["containers"]
    (one,) = [container for container in containers if container["name"] == "receiver"]
    return dict(one)


def template(directory: Path, *arguments: str, **values: Any) -> list[Resource]:
    """Return what Helm 4 makes of these values; `directory` is for the file of them."""
    return find_helm("helm4").template(written(directory, values), *arguments)


def workloads(resources: list[Resource]) -> list[Resource]:
    """Return the Deployments."""
    return [one for one in resources if one["kind"] == "Deployment"]
