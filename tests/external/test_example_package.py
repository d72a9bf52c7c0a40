"""The example package in a running receiver: an alert restarts a service, its end gives word."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_manager import FakeManager

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.documents import ROOT
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with FakeManager("t0ken") as running:
        yield running


def test_alert_restarts_its_service_and_its_end_gives_the_all_clear(
    start_receiver: Callable[..., Receiver], manager: FakeManager, tmp_path: Path
) -> None:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    (plugins / "restart_service.py").symlink_to(ROOT / "tests/restart_service/restart_service.py")
    (tmp_path / "token").write_text("t0ken\n")
    receiver = start_receiver(
        PLUGIN_DIR=str(plugins),
        RESTART_URL=manager.url,
        RESTART_TOKEN_FILE=str(tmp_path / "token"),
        RESTART_SERVICES="web,mail",
        RECEIVER_ACTION_RESTART_SERVICE_RESOLVED_AFTER="0s",
    ).wait_ready()
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")

    def post(status: str, service: str, **annotations: str) -> None:
        one = alert(service, status, labels={"service": service}, annotations=annotations)
        answer = receiver.post(notification(one), "/webhook/restart_service")
        assert answer.status_code == 200

    def finished(service: str, kind: str = "fired") -> dict[str, object]:
        (run,) = wait_until(
            lambda: reading.list_runs(journal, state="finished", fingerprint=service, kind=kind),
            60, f"{kind} for {service}",
        )  # fmt: skip
        return run

    post("firing", "web", metric_name="error_ratio", value="0.3")
    assert json.loads(finished("web")["result"]) == {"service": "web", "restart": 1}
    assert finished("web")["target"] == "service=web"

    post("firing", "mail", metric_name="error_ratio", value="0.3", action_dry_run="true")
    assert json.loads(finished("mail")["result"]) == {
        "dry_run": "would restart mail because 'error_ratio' is 0.3"
    }
    post("firing", "database")
    assert finished("database")["outcome"] == "failed"
    assert list(manager.restarts.values()) == ["web"]
    assert manager.all_clears == {}

    post("resolved", "web")
    assert finished("web", "resolved")["outcome"] == "succeeded"
    assert list(manager.all_clears.values()) == ["web"]
    assert manager.restarts.keys() & manager.all_clears.keys() == set()
    assert "t0ken" not in receiver.text()
    journal.close()
