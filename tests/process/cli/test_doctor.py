"""`receiver doctor`: looks at a receiver that runs, says what is wrong, and changes nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.cli.rules import as_yaml
from receiver.migration.translation import alertmanager
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver

TOKEN = "only-for-this-test"
RULE = {
    "alert": "QueueTooLong",
    "expr": "queue_depth > 80",
    "labels": {"action_plugin": "log_action, file_action"},
    "annotations": {"value": "{{ $value }}"},
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    directory = tmp_path_factory.mktemp("doctor")
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "FILE_ACTION_DIR": str(directory / "files"),
    }
    receiver = Receiver("serve", environment, directory / "log")
    try:
        yield receiver.wait_ready()
    finally:
        receiver.kill()


@pytest.fixture
def config(running: Receiver, tmp_path: Path) -> dict[str, Any]:
    """An Alertmanager configuration that leads to it."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    made = alertmanager(running.url)
    webhook_of(made)["http_config"]["authorization"]["credentials_file"] = "token"
    return made


def webhook_of(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["receivers"][1]["webhook_configs"][0]
    return found


def doctor(
    running: Receiver, tmp_path: Path, *options: str | Path, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "receiver", "doctor", *options],
        cwd=tmp_path, text=True, timeout=60, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            "PATH": os.environ["PATH"], "HOME": str(tmp_path),
            "RECEIVER_BIND": f"127.0.0.1:{running.port}",
            "RECEIVER_DATA_DIR": str(running.log.parent / "data"),
            **environment,
        },
    )  # fmt: skip


def examined(
    running: Receiver, tmp_path: Path, config: dict[str, Any]
) -> "subprocess.CompletedProcess[str]":
    (tmp_path / "alertmanager.yml").write_text(as_yaml(config))
    return doctor(running, tmp_path, "--alertmanager-config", "alertmanager.yml")


def test_pair_that_keeps_its_replica_label_is_found(running: Receiver, tmp_path: Path) -> None:
    def post(status: str) -> None:
        pair = [
            alert(name, status, labels={"alertname": "Paired", "replica": name})
            for name in ("a", "b")
        ]
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert running.post(notification(*pair), "/webhook/log_action", **token).ok

    post("firing")
    ended = doctor(running, tmp_path)
    assert "look   journal   alerts Paired differ only in the label replica" in ended.stdout
    assert '{alert_relabel_configs: [{action: labeldrop, regex: "replica"}]}' in ended.stdout
    post("resolved")
    assert "Paired" not in doctor(running, tmp_path).stdout


def test_all_is_well(running: Receiver, tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "alertmanager.yml").write_text(as_yaml(config))
    groups = {"groups": [{"name": "a", "rules": [RULE, {"record": "x", "expr": "1"}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(groups))
    (tmp_path / "resource.yml").write_text(yaml.safe_dump({"items": [{"spec": groups}]}))
    done = doctor(
        running, tmp_path, "--alertmanager-config", "alertmanager.yml",
        "--rules", "rules.yml", "--rules", "resource.yml", "--clock-of", running.url,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} == {"ok"}
    for text in ("workers that run: 1", "is ready", "is reached and let in",
                 "rules.yml: 2 times", "resource.yml: 2 times", "agrees to 30 s"):  # fmt: skip
        assert text in done.stdout, text
    assert TOKEN not in done.stdout


def test_receiver_that_does_not_run_is_named(running: Receiver, tmp_path: Path) -> None:
    done = doctor(
        running, tmp_path, RECEIVER_BIND="127.0.0.1:1", RECEIVER_DATA_DIR=str(tmp_path / "none")
    )
    assert done.returncode == 1
    assert "http://127.0.0.1:1/-/ready does not answer" in done.stdout
    assert f"there is none in {tmp_path / 'none'}" in done.stdout


def test_journal_without_a_worker_is_wrong(running: Receiver, tmp_path: Path) -> None:
    web = Receiver("web", {"RECEIVER_DATA_DIR": str(tmp_path / "data")}, tmp_path / "log")
    try:
        web.wait_ready()
        done = doctor(web, tmp_path, RECEIVER_DATA_DIR=str(tmp_path / "data"))
    finally:
        web.kill()
    assert done.returncode == 1
    assert "no worker runs, so no action does" in done.stdout


def test_settings_that_would_not_start_are_wrong(running: Receiver, tmp_path: Path) -> None:
    done = doctor(running, tmp_path, ACTION_PLUGIN="log_acton")
    assert done.returncode == 1
    assert "there is no plugin log_acton (did you mean log_action?)" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            lambda config: webhook_of(config)["http_config"].update(
                {"authorization": {"credentials": "wrong"}}
            ),
            "alert-receiver, {url}/webhook answers 401: its credentials",
            id="wrong token",
        ),
        pytest.param(
            lambda config: webhook_of(config)["http_config"].update(
                {"authorization": {"credentials_file": "none"}}
            ),
            "none: credentials_file of the Alertmanager configuration cannot be read",
            id="no such file",
        ),
        pytest.param(
            lambda config: webhook_of(config).update(url="http://127.0.0.1:1/webhook"),
            "http://127.0.0.1:1/webhook cannot be reached from here",
            id="wrong address",
        ),
        pytest.param(
            lambda config: webhook_of(config).update(
                url=webhook_of(config)["url"] + "?sources=one"
            ),
            "{url}/webhook?sources=one has the unknown parameter sources; use only source",
            id="misspelt source",
        ),
        pytest.param(
            lambda config: webhook_of(config).update(url=webhook_of(config)["url"] + "/drain"),
            "{url}/webhook/drain answers 404: there is no such action",
            id="no such action",
        ),
        pytest.param(
            lambda config: config["route"].pop("routes"),
            "no route leads to its receiver; add one",
            id="no route",
        ),
        pytest.param(
            lambda config: config.update(receivers=[]),
            "has no webhook with the path /webhook",
            id="no webhook",
        ),
    ],
)
def test_way_of_alertmanager_that_does_not_lead_there_is_wrong(
    running: Receiver, tmp_path: Path, config: dict[str, Any], change: Any, said: str
) -> None:
    change(config)
    done = examined(running, tmp_path, config)
    assert done.returncode == 1, done.stdout
    assert said.format(url=running.url) in done.stdout


def test_what_is_only_doubtful_is_no_failure(
    running: Receiver, tmp_path: Path, config: dict[str, Any]
) -> None:
    webhook_of(config).update(send_resolved=False, max_alerts=5)
    done = examined(running, tmp_path, config)
    assert done.returncode == 0, done.stdout
    assert "send_resolved is false" in done.stdout
    assert "max_alerts leaves alerts out" in done.stdout


@pytest.mark.parametrize(
    ("labels", "code", "said"),
    [
        ({"action_plugin": "drain"}, 1, "QueueTooLong: there is no action drain; see"),
        ({"action_plugin": "efs_emergency"}, 1, "the action efs_emergency is not configured"),
        ({"action_plugin": "{{ $labels.a }}"}, 0, "chooses its action by a template"),
        ({}, 0, "no rule has the label action_plugin"),
    ],
)
def test_actions_that_rules_name_are_looked_up(
    running: Receiver, tmp_path: Path, labels: dict[str, str], code: int, said: str
) -> None:
    rules = {"groups": [{"name": "a", "rules": [{**RULE, "labels": labels}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    done = doctor(running, tmp_path, "--rules", "rules.yml")
    assert done.returncode == code, done.stdout
    assert said in done.stdout


def test_file_that_is_no_yaml_is_named(running: Receiver, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text("a: [")
    done = doctor(running, tmp_path, "--rules", "rules.yml")
    assert done.returncode == 1
    assert "rules.yml cannot be read as YAML" in done.stdout


def test_clock_that_goes_wrong_is_found(running: Receiver, tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Late(BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return "Fri, 02 Jan 2026 03:04:05 GMT"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Late) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = doctor(running, tmp_path, "--clock-of", url)
        server.shutdown()
    assert done.returncode == 1
    assert f"{url} is -" in done.stdout
    assert "synchronize the clocks" in done.stdout
