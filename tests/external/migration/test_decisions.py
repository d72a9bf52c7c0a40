"""The translated rules decide as metric-reader did on the same series: Prometheus' own verdict."""

import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.discovery import built_in_names
from receiver.migration.predecessor import read
from receiver.migration.translation import translate
from receiver.rules import Rule
from tests.support.stack import requires
from tests.support.threshold_machine import Machine

MINUTES = 40
SERIES = 12


def translated(machine: Machine) -> dict[str, Any]:
    """Return the rule file of a metric-reader that was configured like this."""
    said = {
        "METRIC_NAME": "m",
        "THRESHOLD_OPERATOR": "greater_than" if machine.operator == ">" else "less_than",
        "SOFT_THRESHOLD": str(machine.soft),
        "SOFT_PLUGIN": "log_action",
        "SOFT_DURATION": f"{machine.soft_seconds}s",
        "MISSING_VALUE_BEHAVIOR": machine.missing,
    }
    if machine.hard is not None:
        said |= {
            "HARD_THRESHOLD": str(machine.hard),
            "HARD_PLUGIN": "file_action",
            "HARD_DURATION": f"{machine.hard_seconds}s",
        }
    files = translate(read("", said), "M", "http://x", built_in_names()).files
    rules: dict[str, Any] = yaml.safe_load(files["rules.yml"])
    return rules


def some_values(seed: int, may_miss: bool) -> list[float | None]:
    """Return values that dwell on each side of both thresholds, now and then none at all."""
    dice = random.Random(seed)
    values: list[float | None] = [50.0]
    while len(values) < MINUTES:
        value = dice.choice([10.0, 50.0, 85.0, 97.0, *([None] * may_miss)])
        values += [value] * dice.randint(1, 6)
    return values[:MINUTES]


def verdict(value: float | None) -> str:
    return "NaN" if value is None else f"{value:g}"


def unit_tests(
    machine: Machine, rules: list[Rule], seeds: range
) -> tuple[list[dict[str, Any]], int]:
    """Return promtool's tests, and how many firing alerts they expect."""
    tests, expected_in_all = [], 0
    for seed in seeds:
        values = some_values(seed, may_miss=True)
        checks = []
        for minute, (state, seen) in enumerate(machine.states(values)):
            for rule, states in zip(rules, (("soft", "hard"), ("hard",)), strict=False):
                firing = []
                if state in states:
                    annotations = {**rule["annotations"], "value": verdict(seen)}
                    firing = [{"exp_labels": rule["labels"], "exp_annotations": annotations}]
                expected_in_all += len(firing)
                checks.append(
                    {"eval_time": f"{minute}m30s", "alertname": rule["alert"], "exp_alerts": firing}
                )
        texts = " ".join("stale" if value is None else f"{value:g}" for value in values)
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": "m", "values": texts}],
                "alert_rule_test": checks,
            }
        )
    return tests, expected_in_all


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(Machine(">", 80, 95, 120, 60), id="soft then hard"),
        pytest.param(Machine(">", 80, 95), id="without durations"),
        pytest.param(Machine(">", 80, 95, 60, 300), id="hard takes long"),
        pytest.param(Machine(">", 80, None, 180), id="soft alone"),
        pytest.param(Machine("<", 60, 20, 120, 60), id="less_than, zero when missing"),
        pytest.param(Machine("<", 60, 20, 60, 120, "last_value"), id="less_than, last value"),
        pytest.param(Machine(">", 80, 95, 120, 60, "last_value"), id="last value"),
        pytest.param(Machine(">", 80, 95, 0, 0, "assume_breached"), id="assume_breached"),
    ],
)
def test_rules_fire_when_metric_reader_was_active(machine: Machine, tmp_path: Path) -> None:
    rules = translated(machine)
    tests, expected = unit_tests(machine, rules["groups"][0]["rules"], range(SERIES))
    assert expected > SERIES  # Else nothing was compared.

    ended = said_by_promtool(rules, tests, tmp_path)

    assert ended.returncode == 0, ended.stdout


def test_rules_that_decide_otherwise_are_found_out(tmp_path: Path) -> None:
    machine = Machine(">", 80, 95, 120, 60)
    rules = translated(machine)
    tests, _ = unit_tests(machine, rules["groups"][0]["rules"], range(SERIES))
    (_, hard) = rules["groups"][0]["rules"]
    hard["expr"] = hard["expr"].rpartition(") or (")[0] + ")"  # As if hard did not last.

    ended = said_by_promtool(rules, tests, tmp_path)

    assert ended.returncode == 1
    assert "alertname: MHard" in ended.stdout
    assert "alertname: MSoft" not in ended.stdout


def said_by_promtool(
    rules: dict[str, Any], tests: list[dict[str, Any]], directory: Path
) -> "subprocess.CompletedProcess[str]":
    """Return what promtool says to the rules."""
    (promtool,) = requires("promtool")
    (directory / "rules.yml").write_text(yaml.safe_dump(rules))
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (directory / "tests.yml").write_text(yaml.safe_dump(whole))
    return subprocess.run(
        [promtool, "test", "rules", directory / "tests.yml"],
        cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=120, check=False,
    )  # fmt: skip
