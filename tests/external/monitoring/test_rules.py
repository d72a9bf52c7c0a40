"""The alert rules on the receiver itself: each fires when it should, and has its runbook."""

import re
import subprocess
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from receiver.cli import cli
from receiver.metrics.instruments import INSTRUMENTS
from tests.support.stack import requires

FILES = resources.files("receiver") / "monitoring"
RULES = yaml.safe_load((FILES / "rules.yml").read_text())["groups"][0]["rules"]
NAMES = [one["alert"] for one in RULES]
RUNBOOKS = (FILES / "runbooks.md").read_text()

UP = 'up{job="receiver",instance="a"}'
INFO = 'receiver_build_info{job="receiver",instance="a",version="1"}'
FIRING = 'ALERTS{alertname="X",alertstate="firing",action_plugin="log_action"}'
PLAIN = 'ALERTS{alertname="X",alertstate="firing"}'
OK, REFUSED = (f'receiver_notifications_total{{answer="{answer}"}}' for answer in (200, 401))
FAILED, UNKNOWN, SUCCEEDED = (
    f'receiver_runs_total{{action="a",outcome="{outcome}"}}'
    for outcome in ("failed", "unknown", "succeeded")
)
DUE, PAUSED = (
    f'receiver_{name}{{action="a"}}' for name in ("due_run_age_seconds", "action_paused")
)
RUNNING = 'receiver_running_attempt_age_seconds{action="a"}'
INEFFECTIVE, EFFECTIVE = (
    f'receiver_effects_total{{action="a",effect="{effect}"}}'
    for effect in ("ineffective", "effective")
)
WAITING = 'receiver_unfinished_runs{action="a",state="awaiting_approval"}'
QUEUED = 'receiver_unfinished_runs{action="a",state="queued"}'
WORKERS = "receiver_workers"
RESTARTS = 'receiver_process_restarts_total{role="worker"}'
ERRORS = 'receiver_journal_errors_total{process="web"}'
SLOW, ALL = (
    f'receiver_journal_write_duration_seconds_bucket{{process="web",le="{le}"}}'
    for le in ("0.5", "+Inf")
)
FREE, SIZE = "receiver_journal_free_bytes", "receiver_journal_size_bytes"
GIB = 2**30

# Rule, series -> values at every minute, when asked, whether it fires then.
CASES = [
    pytest.param("NoWorker", {WORKERS: "0x10"}, "5m", True, id="no worker runs"),
    pytest.param("NoWorker", {WORKERS: "0x4 1x10"}, "8m", False, id="a worker runs again"),
    pytest.param(
        "NoWorker",
        {f'{WORKERS}{{instance="a"}}': "0x10", f'{WORKERS}{{instance="b"}}': "1x10"},
        "10m",
        False,
        id="a replica has read that a worker runs",
    ),
    pytest.param(
        "ProcessRestarts", {RESTARTS: "0x5 1 2 3 4 5"}, "10m", True, id="a worker keeps ending"
    ),
    pytest.param("ProcessRestarts", {RESTARTS: "0x5 1x10"}, "10m", False, id="it ended once"),
    pytest.param("Down", {"other": "1x20"}, "5m", True, id="no receiver is there"),
    pytest.param("Down", {UP: "1x20", INFO: "1x20"}, "20m", False, id="it is there"),
    pytest.param(
        "Down",
        {UP: "1x5 0x20", INFO: "1x5", INFO.replace('"a"', '"b"'): "1x30"},
        "12m",
        True,
        id="one of two is down",
    ),
    pytest.param(
        "Down",
        {UP: "1x5 0x3000", INFO: "1x5 _x3000", INFO.replace('"a"', '"b"'): "1x3005"},
        "2d",
        True,
        id="one of two is down for days",
    ),
    pytest.param(
        "Down", {'up{job="x"}': "0x20", INFO: "1x20"}, "20m", False, id="something else is down"
    ),
    pytest.param("NoNotifications", {FIRING: "1x400", OK: "0x400"}, "16m", True, id="none comes"),
    pytest.param("NoNotifications", {FIRING: "1x400", OK: "0+1x400"}, "30m", False, id="they come"),
    pytest.param(
        "NoNotifications",
        {FIRING: "1x400", OK: "_x10 1x390"},
        "4h",
        False,
        id="one came to a receiver that has just started, before it was scraped",
    ),
    pytest.param(
        "NoNotifications",
        {FIRING: "1x400", OK: "_x10 1x390"},
        "330m",
        True,
        id="one came when it had just started, and none since",
    ),
    pytest.param("NoNotifications", {PLAIN: "1x400", OK: "7x400"}, "30m", False, id="none is due"),
    pytest.param("NotificationsRefused", {REFUSED: "0+1x40"}, "17m", True, id="401 goes on"),
    pytest.param(
        "NotificationsRefused", {OK: "0+1x40", REFUSED: "3x40"}, "40m", False, id="only 200"
    ),
    pytest.param("AlertsRejected", {"receiver_open_rejected_alerts": "1x9"}, "5m", True, id="one"),
    pytest.param(
        "AlertsRejected", {"receiver_open_rejected_alerts": "0x9"}, "9m", False, id="none"
    ),
    pytest.param(
        "AlertsTruncated", {"receiver_truncated_alerts_total": "0x3 5x5"}, "5m", True, id="5"
    ),
    pytest.param(
        "AlertsTruncated", {"receiver_truncated_alerts_total": "5x9"}, "9m", False, id="long ago"
    ),
    pytest.param("RunsFailing", {FAILED: "0x3 1x5"}, "5m", True, id="one failed"),
    pytest.param("RunsFailing", {UNKNOWN: "0x3 1x5"}, "5m", True, id="one is unknown"),
    pytest.param(
        "RunsFailing", {UNKNOWN: "_x10 1x30"}, "13m", True, id="a start finds one interrupted"
    ),
    pytest.param(
        "RunsFailing", {UNKNOWN: "_x10 1x60"}, "50m", False, id="a start found one long ago"
    ),
    pytest.param(
        "RunsFailing", {FAILED: "3x60 _x60 3x60"}, "125m", False, id="scraped again after an hour"
    ),
    pytest.param("RunsFailing", {FAILED: "0x9", SUCCEEDED: "0+1x9"}, "9m", False, id="all succeed"),
    pytest.param("RunsFailing", {FAILED: "0x3 1x30"}, "25m", False, id="one failed long ago"),
    pytest.param("RunStuck", {DUE: "0+60x30", PAUSED: "0x30"}, "22m", True, id="due for long"),
    pytest.param("RunStuck", {DUE: "0+60x30", PAUSED: "1x30"}, "30m", False, id="due, but paused"),
    pytest.param(
        "RunStuck", {DUE: "0+60x5 0x30", PAUSED: "0x30"}, "30m", False, id="due for a while"
    ),
    pytest.param("RunStuck", {RUNNING: "3000+60x30"}, "20m", True, id="runs for an hour"),
    pytest.param("ActionIneffective", {INEFFECTIVE: "0x3 1x5"}, "5m", True, id="it did not help"),
    pytest.param(
        "ActionIneffective", {INEFFECTIVE: "0x9", EFFECTIVE: "0+1x9"}, "9m", False, id="it helped"
    ),
    pytest.param(
        "BreakerOpen", {'receiver_breaker_open{action="a"}': "1x5"}, "1m", True, id="open"
    ),
    pytest.param(
        "BreakerOpen", {'receiver_breaker_open{action="a"}': "0x5"}, "5m", False, id="closed"
    ),
    pytest.param("ActionPaused", {PAUSED: "1x1500"}, "1d", True, id="for a day"),
    pytest.param(
        "ActionPaused", {PAUSED: "1x1000 0x10 1x500"}, "1d", False, id="resumed in between"
    ),
    pytest.param("ApprovalAwaited", {WAITING: "2x20"}, "10m", True, id="two wait"),
    pytest.param(
        "ApprovalAwaited", {QUEUED: "2x20", WAITING: "0x20"}, "20m", False, id="none waits"
    ),
    pytest.param("JournalFailing", {ERRORS: "0+1x20"}, "7m", True, id="writes fail"),
    pytest.param("JournalFailing", {"receiver_journal_up": "0x20"}, "5m", True, id="unreadable"),
    pytest.param(
        "JournalFailing", {ERRORS: "4x20", "receiver_journal_up": "1x20"}, "20m", False, id="good"
    ),
    pytest.param(
        "JournalSlow",
        {SLOW: "0+80x30", ALL: "0+100x30", ALL.replace("+Inf", "1"): "0+100x30"},
        "13m",
        True,
        id="a fifth takes longer",
    ),
    pytest.param(
        "JournalSlow",
        {SLOW: "0+99x30", ALL: "0+100x30", ALL.replace("+Inf", "1"): "0+100x30"},
        "30m",
        False,
        id="one in a hundred takes longer",
    ),
    pytest.param(
        "JournalNearlyFull", {FREE: f"{GIB // 5}x20", SIZE: "1x20"}, "15m", True, id="bytes"
    ),
    pytest.param(
        "JournalNearlyFull", {FREE: f"{GIB}x20", SIZE: f"{GIB * 20}x20"}, "15m", True, id="share"
    ),
    pytest.param(
        "JournalNearlyFull", {FREE: f"{GIB}x20", SIZE: f"{GIB}x20"}, "20m", False, id="half"
    ),
]


@pytest.mark.parametrize(("name", "series", "at", "fires"), CASES)
def test_rule_fires_when_it_should(
    tmp_path: Path, name: str, series: dict[str, str], at: str, fires: bool
) -> None:
    (promtool,) = requires("promtool")
    (tmp_path / "rules.yml").write_text((FILES / "rules.yml").read_text())
    asked = f'count(ALERTS{{alertname="AlertReceiver{name}",alertstate="firing"}})'
    test = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "promql_expr_test": [
            {
                "expr": asked,
                "eval_time": at,
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }
    unit = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (tmp_path / "unit.yml").write_text(yaml.safe_dump(unit))
    tested = subprocess.run(
        [promtool, "test", "rules", "unit.yml"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_rule_is_seen_to_fire_and_not_to_fire() -> None:
    seen = {(f"AlertReceiver{one.values[0]}", one.values[3]) for one in CASES}
    assert seen == {(name, fires) for name in NAMES for fires in (True, False)}


def test_rules_are_accepted_by_prometheus(tmp_path: Path) -> None:
    (promtool,) = requires("promtool")
    file = tmp_path / "rules.yml"
    file.write_text(CliRunner().invoke(cli, ["rule", "self"]).output)
    checked = subprocess.run(
        [promtool, "check", "rules", file], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert f"{len(RULES)} rules found" in checked.stdout


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_rule_asks_for_metrics_that_exist_and_says_what_it_is(rule: dict[str, Any]) -> None:
    asked = set(re.findall(r"receiver_\w+", rule["expr"]))
    known = {one.name for one in INSTRUMENTS} | {
        f"{one.name}_bucket" for one in INSTRUMENTS if one.type == "histogram"
    }
    assert asked
    assert asked <= known
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_rule_names_a_command_that_prints_its_runbook(rule: dict[str, Any]) -> None:
    program, *command = rule["annotations"]["runbook"].split()
    assert program == "receiver"
    printed = CliRunner().invoke(cli, command)
    assert printed.exit_code == 0, printed.output
    assert printed.output.startswith("**Means:**")
    assert "**Lost:**" in printed.output
    assert "##" not in printed.output


def test_there_is_a_runbook_for_each_rule_and_for_nothing_else() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) == [
        name for name in re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE) if name in NAMES
    ]
    assert set(re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE)) == set(NAMES)


def test_runbook_that_is_not_there_is_said() -> None:
    said = CliRunner().invoke(cli, ["rule", "self", "--runbook", "Nothing"])
    assert said.exit_code == 2
    assert "there is no runbook Nothing" in said.output


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`receiver (\w+[^`]*)`", RUNBOOKS))))
def test_command_of_a_runbook_exists(command: str) -> None:
    name, *options = command.split()
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    known = {text for one in found.params for text in one.opts}
    assert {one for one in options if one.startswith("--")} <= known
    for option, value in pairwise(options):
        chosen = next((one for one in found.params if option in one.opts), None)
        if chosen is not None and isinstance(chosen.type, click.Choice):
            assert value in chosen.type.choices


def test_runbooks_name_metrics_and_alerts_that_exist() -> None:
    known = {one.name for one in INSTRUMENTS}
    assert set(re.findall(r"\breceiver_\w+", RUNBOOKS)) <= known
    assert set(re.findall(r"\bAlertReceiver\w+", RUNBOOKS)) <= set(NAMES)
