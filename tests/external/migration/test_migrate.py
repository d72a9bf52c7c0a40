"""`receiver migrate` and `receiver rule new`: what they write, the tools that read it accept."""

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.charts import find_helm, pick
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.stack import requires
from tests.support.waiting import wait_until

OLD = """
metric_name = "queue_depth"
label_filters = 'job="a",queue="orders"'
threshold_operator = "greater_than"
polling_interval = "15s"
log_level = "warn"
plugin_dir = "/plugins"
[soft]
threshold = 80
plugin = "log_action"
duration = "1m30s"
[hard]
threshold = 100.5
plugin = "file_action"
[plugins.file_action]
dir = "/tmp/metric-files"
size = 1048576
"""
WITH_EFS = """# As `env` prints it.
METRIC_NAME=aws_efs_burst_credit_balance_average
LABEL_FILTERS='env="live"'
THRESHOLD=<1000000000
THRESHOLD_DURATION=5m
BACKOFF_DELAY=30m
ACTION_PLUGIN=efs_emergency
NO_METRIC_BEHAVIOR=last_value
EFS_FILE_SYSTEM_PROMETHEUS_LABEL=dimension_FileSystemId
AWS_REGION=eu-west-1
HOSTNAME=metric-reader-0
"""


def run(
    *command: str | Path, cwd: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end; `receiver` is the one of here."""
    first = [sys.executable, "-m", "receiver"] if command[0] == "receiver" else [command[0]]
    return subprocess.run(
        [*first, *command[1:]], cwd=cwd, text=True, timeout=60, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), **(environment or {})},
    )  # fmt: skip


@pytest.fixture(params=["soft and hard", "single"])
def migrated(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """What the command has written from one generation or the other."""
    (tmp_path / "config.toml").write_text(OLD)
    (tmp_path / "old.env").write_text(WITH_EFS)
    source = ["config.toml"] if request.param == "soft and hard" else ["--env-file", "old.env"]
    done = run("receiver", "migrate", *source, "--url", "http://127.0.0.1:8080", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    notes = (tmp_path / "migrated" / "NOTES.md").read_text()
    assert notes in done.stdout
    assert "looked at the first series only" in notes
    return tmp_path / "migrated"


def test_what_is_written_is_accepted_by_each_tool(migrated: Path) -> None:
    promtool, amtool = requires("promtool", "amtool")
    for command in (
        (promtool, "check", "rules", "rules.yml"),
        (amtool, "check-config", "alertmanager.yml"),
        ("receiver", "check", "--config", "receiver.toml"),
    ):
        done = run(*command, cwd=migrated)
        assert done.returncode == 0, done.stdout
    spec = yaml.safe_load((migrated / "prometheusrule.yaml").read_text())["spec"]
    assert spec == yaml.safe_load((migrated / "rules.yml").read_text())


def test_alert_is_routed_to_the_receiver(migrated: Path) -> None:
    (amtool,) = requires("amtool")
    for labels, receiver in (("action_plugin=log_action", "alert-receiver"), ("a=b", "nobody")):
        done = run(
            amtool, "config", "routes", "test", "--config.file=alertmanager.yml",
            f"--verify.receivers={receiver}", labels, cwd=migrated,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


def test_chart_renders_the_same_rules_from_the_values(migrated: Path) -> None:
    resources = find_helm("helm4").template(migrated / "values.yaml")
    rules = yaml.safe_load((migrated / "rules.yml").read_text())
    (rendered,) = pick(resources, "PrometheusRule")["spec"]["groups"]
    (written,) = rules["groups"]
    assert rendered["rules"] == written["rules"]
    assert rendered.get("interval") == written.get("interval")


def test_each_setting_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(OLD)
    done = run("receiver", "migrate", "config.toml", "--name", "QueueTooLong", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    files = {one.name: one.read_text() for one in (tmp_path / "migrated").iterdir()}
    soft, hard = yaml.safe_load(files["rules.yml"])["groups"][0]["rules"]
    assert (soft["alert"], hard["alert"]) == ("QueueTooLongSoft", "QueueTooLongHard")
    assert soft["for"] == "1m30s"
    assert 'queue_depth{job="a",queue="orders"}' in soft["expr"]
    assert hard["annotations"]["threshold"] == "> 100.5"
    assert 'log_level = "warning"' in files["receiver.toml"]
    assert 'file_action_size = "1048576"' in files["receiver.toml"]
    for note in ("PLUGIN_DIR: not carried over", "FILE_ACTION_DIR: stood in [plugins]"):
        assert f"- {note}" in files["NOTES.md"]


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ({"SOFT_PLUGIN": ""}, "soft names no plugin: log_action stands in"),
        ({"HARD_PLUGIN": ""}, "HARD_THRESHOLD: names no plugin"),
        ({"HARD_PLUGIN": "drain_queue"}, "drain_queue: a Go plugin cannot be loaded"),
        ({"SOFT_BACKOFF_DELAY": "1m"}, "BACKOFF_DELAY: is repeat_after and cooldown"),
        ({"HARD_BACKOFF_DELAY": "1m"}, "hard that comes back while soft fires waits"),
        (
            {"HARD_BACKOFF_DELAY": "1m", "HARD_PLUGIN": "log_action"},
            "log_action: has one policy, so the longer",
        ),
        ({"LEADER_ELECTION_ENABLED": "true"}, "LEADER_ELECTION_ENABLED: not carried over"),
        ({"LEADER_ELECTION_LOCK_NAMESPACE": "x"}, "LEADER_ELECTION_LOCK_NAMESPACE: not carried"),
        ({"PROMETHEUS_ENDPOINT": "http://x"}, "PROMETHEUS_ENDPOINT: not carried over"),
        ({"MISSING_VALUE_BEHAVIOR": "last_value"}, "MISSING_VALUE_BEHAVIOR last_value: for 1h"),
        ({"MISSING_VALUE_BEHAVIOR": "assume_breached"}, "assume_breached: acts after"),
        (
            {
                "HARD_PLUGIN": "efs_emergency",
                "EFS_FILE_SYSTEM_ID": "fs-0123456789abcdef0",
                "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": "fs",
            },
            "EFS_FILE_SYSTEM_ID: is used for an alert without that label only if",
        ),
        ({}, "a series that vanishes is another alert"),
        ({"LEADER_ELECTION_ENABLED": "false"}, "several replicas: "),
    ],
)
def test_what_cannot_be_carried_over_is_listed(
    tmp_path: Path, said: dict[str, str], note: str
) -> None:
    environment = {
        "METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than", "SOFT_THRESHOLD": "2",
        "SOFT_PLUGIN": "log_action", "HARD_THRESHOLD": "1", "HARD_PLUGIN": "file_action", **said,
    }  # fmt: skip
    done = run("receiver", "migrate", "--env", cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stdout
    assert any(note in line for line in done.stdout.splitlines() if line.startswith("- "))


def test_mistakes_are_reported_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[plugins.drain]\nqueue = "a"\n')
    done = run("receiver", "migrate", "config.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert "[plugins.drain] queue: metric-reader ignored it" in done.stdout
    assert not (tmp_path / "migrated").exists()


def test_thresholds_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    said = {"METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than", "SOFT_THRESHOLD": "2",
            "SOFT_PLUGIN": "log_action", "HARD_THRESHOLD": "3", "HARD_PLUGIN": "x"}  # fmt: skip
    done = run("receiver", "migrate", "--env", cwd=tmp_path, environment=said)
    assert done.returncode == 1
    assert "hard (3) is crossed before soft (2); exchange them" in done.stdout


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(OLD)
    (tmp_path / "mine").write_text("kept")
    for target in (".", "mine"):
        done = run("receiver", "migrate", "config.toml", "--output", target, cwd=tmp_path)
        assert done.returncode == 2
        assert "choose another --output" in done.stdout
    assert (tmp_path / "mine").read_text() == "kept"


def test_backoff_is_a_pause_between_runs_of_one_episode_and_of_two(tmp_path: Path) -> None:
    old = {"METRIC_NAME": "m", "THRESHOLD_OPERATOR": "less_than", "SOFT_THRESHOLD": "2",
           "SOFT_PLUGIN": "log_action", "SOFT_BACKOFF_DELAY": "3s"}  # fmt: skip
    done = run("receiver", "migrate", "--env", cwd=tmp_path, environment=old)
    assert done.returncode == 0, done.stdout
    receiver = Receiver(
        "serve",
        {
            "RECEIVER_CONFIG": str(tmp_path / "migrated" / "receiver.toml"),
            "RECEIVER_DATA_DIR": str(tmp_path / "data"),
        },
        tmp_path / "log",
    )

    try:
        receiver.wait_ready()
        journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")

        def times() -> list[datetime]:
            runs = reading.list_runs(journal, outcome="succeeded")
            return sorted(one["started_at"] for one in runs)

        labels, began = {"action_plugin": "log_action"}, datetime.now(UTC)
        assert receiver.post(notification(alert(labels=labels, starts_at=began))).ok
        wait_until(lambda: len(times()) >= 2, 60, "it repeats while the alert fires")
        again = datetime.now(UTC)
        ended = alert(status="resolved", labels=labels, starts_at=began, ends_at=again)
        assert receiver.post(notification(ended)).ok
        assert receiver.post(notification(alert(labels=labels, starts_at=again))).ok
        wait_until(lambda: len(times()) >= 3, 60, "the next episode has its run, too")
        first, repeated, of_next = times()[:3]
        journal.close()
    finally:
        receiver.kill()
    assert repeated - first >= timedelta(seconds=3)
    assert of_next - repeated >= timedelta(seconds=3)


# receiver rule new


def test_rule_for_one_threshold_fires_when_it_is_crossed(tmp_path: Path) -> None:
    (promtool,) = requires("promtool")
    done = run(
        "receiver", "rule", "new", "--metric", "aws_efs_burst_credit_balance_average",
        "--below", "1e9", "--for", "5m", "--action", "efs_emergency", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (tmp_path / "rules.yml").write_text(done.stdout)
    (rule,) = yaml.safe_load(done.stdout)["groups"][0]["rules"]
    firing = {
        "exp_labels": {**rule["labels"], "fs": "a"},
        "exp_annotations": {**rule["annotations"], "value": "5e+08"},
    }
    test = {
        "interval": "1m",
        "input_series": [
            {"series": 'aws_efs_burst_credit_balance_average{fs="a"}', "values": "500000000x9"},
            {"series": 'aws_efs_burst_credit_balance_average{fs="b"}', "values": "1000000000x9"},
        ],
        "alert_rule_test": [
            {"eval_time": "4m", "alertname": rule["alert"]},
            {"eval_time": "5m", "alertname": rule["alert"], "exp_alerts": [firing]},
        ],
    }
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(whole))
    tested = run(promtool, "test", "rules", "tests.yml", cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert rule["alert"] == "AwsEfsBurstCreditBalanceAverageLow"
    assert rule["labels"]["action_plugin"] == "efs_emergency"


def test_rule_can_be_a_resource_for_the_operator(tmp_path: Path) -> None:
    done = run(
        "receiver", "rule", "new", "--expr", "a / b", "--name", "TooMuch", "--above", "0.5",
        "--action", "log_action", "--operator", cwd=tmp_path,
    )  # fmt: skip
    made = yaml.safe_load(done.stdout)
    assert made["kind"] == "PrometheusRule"
    (rule,) = made["spec"]["groups"][0]["rules"]
    assert (rule["alert"], rule["expr"]) == ("TooMuch", "(a / b) > 0.5")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metric", "m"], "give one of --above and --below"),
        (["--metric", "m", "--above", "1", "--below", "2"], "give one of --above and --below"),
        (["--above", "1"], "give --metric, or --expr with a --name"),
        (["--metric", "m", "--above", "1", "--for", "5 min"], "--for: 5 min is not a duration"),
    ],
)
def test_rule_that_makes_no_sense_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    done = run("receiver", "rule", "new", "--action", "x", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stdout
