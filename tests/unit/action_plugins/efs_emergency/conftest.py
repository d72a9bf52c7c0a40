"""What the tests of `efs_emergency` share. None of them can reach AWS."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import boto3.session
import pytest

from action_plugins import efs_emergency
from action_plugins.efs_emergency.clients import CLIENTS
from receiver.testing import make_alert, make_context, run_action
from tests.support import fake_credentials
from tests.support.fake_efs import FakeEfs

FILE_SYSTEM = "fs-0123456789abcdef0"
OTHER_FILE_SYSTEM = "fs-0fedcba9876543210"
LABEL = "dimension_FileSystemId"


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment with obviously fake static keys, in which nothing leads beyond loopback."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # Port 9 is discard: whatever has no fake of its own is refused at once.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKESTATICKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-static-secret")


@pytest.fixture(scope="session")
def efs_server() -> Iterator[Any]:
    """The fake, started once: as the endpoint stays the same, clients can be kept."""
    with FakeEfs() as fake:
        yield fake
    CLIENTS.forget()


@pytest.fixture
def efs(efs_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A running fake with one bursting file system; boto3 finds it."""
    efs_server.reset()
    efs_server.add(FILE_SYSTEM)
    monkeypatch.setenv("AWS_ENDPOINT_URL_EFS", efs_server.url)
    return efs_server


@pytest.fixture
def client_for(efs: Any) -> Iterator[Callable[[str], Any]]:
    """Make clients of one's own, as a person's AWS CLI would be."""
    made = []

    def make(region: str) -> Any:
        made.append(boto3.session.Session().client("efs", region_name=region))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def fresh_clients() -> Iterator[None]:
    """For tests that change where credentials come from: no client is kept from or for others."""
    CLIENTS.forget()
    yield
    CLIENTS.forget()


@pytest.fixture
def fakes() -> ModuleType:
    """The fakes of STS, the Pod Identity agent and the instance metadata."""
    return fake_credentials


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run the action once, as the receiver does, for an alert with these labels."""

    def run_once(
        labels: dict[str, str] | None = None,
        environment: dict[str, str] | None = None,
        hook: str = "execute",
        **context: Any,
    ) -> Any:
        return run_action(
            efs_emergency,
            hook=hook,
            environment={
                "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": LABEL,
                "AWS_REGION": "us-east-1",
                **(environment or {}),
            },
            context=make_context(
                make_alert(
                    "EfsBurstCreditsLow",
                    labels={LABEL: FILE_SYSTEM} if labels is None else labels,
                ),
                **context,
            ),
        )

    return run_once
