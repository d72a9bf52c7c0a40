"""Thresholds in values: the same rules as the receiver's generator, and Prometheus' own verdict."""

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from receiver.rules import OPERATORS, Level, Rule, Threshold, rules_of
from tests.support.charts import CHART, NAMESPACE, Resource, find_helm, pick, written
from tests.support.stack import requires

ACTIONS = {"plugins": {"actions": ["drain_queue"]}, "actionPlugin": "http_plugin"}
NUMBERS = (0, 1, -1, 0.5, -2.25, 1e-7, 1000000, 1e9, 214748364800, 123456789.5, 1e16, 1e21, 3e-300)


def level(said: Any, threshold: dict[str, Any], severity: str) -> Level | None:
    """Return one level of a threshold as its values mean it."""
    if said is None:
        return None
    own = said if isinstance(said, dict) else {"threshold": said}
    merged = {
        "for": "0s", "action": ACTIONS["actionPlugin"], "severity": severity,
        **{key: threshold[key] for key in ("for", "action", "severity") if key in threshold}, **own,
    }  # fmt: skip
    return Level(own["threshold"], merged["action"], merged["severity"], merged["for"])


def meant(values: dict[str, Any]) -> Threshold:
    """Return what a threshold in the chart's values is to the receiver."""
    return Threshold(
        values["name"],
        values["operator"],
        values.get("metric", ""),
        values.get("expr", ""),
        level(values.get("soft"), values, "warning"),
        level(values.get("hard"), values, "critical"),
        values.get("hardRequiresSoft", False),
        values.get("hardUntilSoftEnds", False),
        values.get("missing", "ignore"),
        values.get("lastValueFor", "1h"),
        values.get("labels", {}),
        values.get("annotations", {}),
    )


def table() -> list[dict[str, Any]]:
    """Return thresholds of every kind: each feature with those that it meets in the templates."""
    several = {"threshold": 1, "action": "drain_queue, log_action", "severity": "info"}
    subjects: list[dict[str, Any]] = [
        {"metric": "m"},
        {"expr": ' sum by (a) (rate(x{b="c}"}[5m]))\n'},
        {"metric": "m:n", "expr": "a / b"},
        {"expr": "a  # first\n/ b  # and second"},
    ]
    levels: list[dict[str, Any]] = [
        {"soft": 80},
        {"hard": {"threshold": 0, "for": "1m"}},
        {"soft": 80, "hard": 80, "hardRequiresSoft": True},
        {"soft": 80, "hard": 90, "hardRequiresSoft": True, "hardUntilSoftEnds": True},
        {"soft": several, "hard": 1},
    ]
    missing: list[dict[str, Any]] = [
        {},
        {"missing": "ignore"},
        {"missing": "zero"},
        {"missing": "breached"},
        {"missing": "last_value"},
        {"missing": "last_value", "lastValueFor": "15m"},
    ]
    found = [
        {"operator": ">", **subject, **one, **absence}
        for subject, one, absence in itertools.product(subjects, levels, missing)
    ]
    found += [{"operator": operator, "metric": "m", "soft": 1, "hard": 1} for operator in OPERATORS]
    found += [{"operator": ">", "metric": "m", "soft": number} for number in NUMBERS]
    found += [
        {"operator": ">", "metric": "m", "soft": 1, "hard": 2, "hardRequiresSoft": True,
         "for": "1h30m", "action": "log_action", "severity": "page",
         "labels": {"team": 'a "quoted" one: {{ $value }}', "alpha": "ü"},
         "annotations": {"summary": "{{ $labels.a }}: 'x'\n<b>"}},
    ]  # fmt: skip
    return [{"name": f"T{number}", **one} for number, one in enumerate(found)]


def rendered(resources: list[Resource]) -> list[Rule]:
    """Return the rules of the chart's PrometheusRule."""
    (group,) = pick(resources, "PrometheusRule")["spec"]["groups"]
    return list(group["rules"])


@pytest.mark.parametrize("has_operator", [False, True], ids=["plain", "operator"])
def test_chart_renders_what_the_receiver_generates(tmp_path: Path, has_operator: bool) -> None:
    thresholds = table()
    values = {**ACTIONS, "thresholds": thresholds, "alertmanagerConfig": {"enabled": has_operator}}
    resources = find_helm("helm4").template(written(tmp_path, values))

    namespace = NAMESPACE if has_operator else ""
    assert all(meant(one).problems() == [] for one in thresholds)
    expected = [rule for one in thresholds for rule in rules_of(meant(one), namespace)]
    assert len(expected) > 150
    assert rendered(resources) == expected


def test_operator_that_leaves_namespaces_alone_needs_no_label(tmp_path: Path) -> None:
    config = {"enabled": True, "matcherStrategy": "None"}
    values = {**ACTIONS, "thresholds": table()[:1], "alertmanagerConfig": config}
    (rule,) = rendered(find_helm("helm4").template(written(tmp_path, values)))
    assert "namespace" not in rule["labels"]


def rule_file(directory: Path, resources: list[Resource]) -> Path:
    """Write the spec of the PrometheusRule, which is a rule file."""
    file = directory / "rules.yml"
    file.write_text(json.dumps(pick(resources, "PrometheusRule")["spec"]), encoding="utf-8")
    return file


def promtool(*arguments: str | Path) -> str:
    (binary,) = requires("promtool")
    done = subprocess.run(
        [binary, *arguments], text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_accepts_the_rules_of_every_example(
    resources: list[Resource], example: Path, tmp_path: Path
) -> None:
    thresholds = yaml.safe_load(example.read_text()).get("thresholds", [])
    number = sum(("soft" in one) + ("hard" in one) for one in thresholds)
    found = [one for one in resources if one["kind"] == "PrometheusRule"]
    said = [promtool("check", "rules", rule_file(tmp_path, [one])) for one in found]
    assert sum(f"{number} rules found" in one for one in said) == (1 if thresholds else 0)
    assert all("rules found" in one for one in said)


def test_prometheus_accepts_every_kind_of_threshold(tmp_path: Path) -> None:
    values = {**ACTIONS, "thresholds": table(), "alertmanagerConfig": {"enabled": True}}
    resources = find_helm("helm4").template(written(tmp_path, values))
    assert "rules found" in promtool("check", "rules", rule_file(tmp_path, resources))


def fires(alert: str, at: str, *expected: tuple[dict[str, str], dict[str, str]]) -> dict[str, Any]:
    """Return one expectation of promtool: these alerts and no others."""
    return {
        "eval_time": at,
        "alertname": alert,
        "exp_alerts": [
            {"exp_labels": labels, "exp_annotations": annotations}
            for labels, annotations in expected
        ],
    }


def alert(
    severity: str, action: str, threshold: str, value: str, pending: str, metric: str = "",
    **labels: str,
) -> tuple[dict[str, str], dict[str, str]]:  # fmt: skip
    """Return labels and annotations of an alert as the chart's rules give them."""
    annotations = {"value": value, "threshold": threshold, "for": pending}
    return (
        {"severity": severity, "action_plugin": action, "namespace": NAMESPACE, **labels},
        annotations | ({"metric_name": metric} if metric else {}),
    )


def check_cases(rules: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Have promtool feed each case's series to the rules, and compare what fires."""
    tests = [
        {
            "name": name,
            "interval": "1m",
            "input_series": one["series"],
            "alert_rule_test": one["expected"],
        }
        for name, one in cases.items()
    ]
    unit = rules.with_name("test.yml")
    whole = {"rule_files": [rules.name], "evaluation_interval": "1m", "tests": tests}
    unit.write_text(json.dumps(whole), encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", unit)


def test_rules_fire_when_they_should(tmp_path: Path) -> None:
    example = CHART / "ci" / "thresholds-values.yaml"
    rules = rule_file(tmp_path, find_helm("helm4").template(example))

    def soft(value: str, **labels: str) -> Any:
        return alert(
            "warning", "log_action", "> 80", value, "5m", "queue_depth", team="orders", **labels
        )

    def hard(value: str, **labels: str) -> Any:
        both = "drain_queue, log_action"
        return alert("critical", both, "> 95", value, "1m", "queue_depth", team="orders", **labels)

    queue = {
        # The one in `web` crosses both when the one in `shop` fires softly already.
        "series": [
            {"series": 'queue_depth{namespace="shop",queue="a"}', "values": "90x6 97x20"},
            {"series": 'queue_depth{namespace="web",queue="a"}', "values": "10x6 97x20"},
        ],
        "expected": [
            fires("QueueTooLongSoft", "4m"),
            fires("QueueTooLongSoft", "6m", soft("90", origin_namespace="shop", queue="a")),
            fires("QueueTooLongHard", "10m", hard("97", origin_namespace="shop", queue="a")),
            fires(
                "QueueTooLongHard", "15m",
                hard("97", origin_namespace="shop", queue="a"),
                hard("97", origin_namespace="web", queue="a"),
            ),
        ],
    }  # fmt: skip
    none_written = alert("page", "log_action", "<= 0", "0", "0s", "writes")
    one_idle = alert("page", "log_action", "<= 0", "0", "0s", "writes", origin_namespace="b")
    no_heartbeat = alert("critical", "log_action", ">= 300", "NaN", "0s")
    old_heartbeat = alert("critical", "log_action", ">= 300", "600", "0s", service="billing")
    twenty = alert("warning", "log_action", "!= -1.5", "20", "0s", "disk_celsius", disk="x")
    cases = {
        "hard only while soft fires, each namespace by itself": queue,
        "ignore": {"series": [], "expected": [fires("QueueTooLongSoft", "30m")]},
        "zero, nothing there": {
            "series": [],
            "expected": [fires("NothingWrittenHard", "10m", none_written)],
        },
        "zero, something there": {
            "series": [
                {"series": 'writes_total{namespace="a"}', "values": "0+60x20"},
                {"series": 'writes_total{namespace="b"}', "values": "7x20"},
            ],
            "expected": [fires("NothingWrittenHard", "10m", one_idle)],
        },
        "breached, nothing there": {
            "series": [
                {"series": 'heartbeat_timestamp_seconds{service="other"}', "values": "0x20"}
            ],
            "expected": [fires("HeartbeatOldHard", "10m", no_heartbeat)],
        },
        "breached, crossed": {
            "series": [
                {"series": 'heartbeat_timestamp_seconds{service="billing"}', "values": "0x20"}
            ],
            "expected": [fires("HeartbeatOldHard", "10m", old_heartbeat)],
        },
        "breached, fine": {
            "series": [
                {"series": 'heartbeat_timestamp_seconds{service="billing"}', "values": "0+60x20"}
            ],
            "expected": [fires("HeartbeatOldHard", "10m"), fires("HeartbeatOldSoft", "10m")],
        },
        "last value, for a while": {
            "series": [{"series": 'disk_celsius{disk="x"}', "values": "20 20 _x30"}],
            "expected": [
                fires("DiskTemperatureSoft", "12m", twenty),
                fires("DiskTemperatureSoft", "18m"),
            ],
        },
    }
    check_cases(rules, cases)


@pytest.mark.parametrize(
    ("missing", "series", "value"),
    [
        ("ignore", ["-1x10"], "-1"),
        ("last_value", ["-1 _x9"], "-1"),
        ("zero", [], "0"),
        ("breached", [], "NaN"),
    ],
)
def test_hard_that_requires_soft_fires_though_the_metric_has_no_namespace(
    tmp_path: Path, missing: str, series: list[str], value: str
) -> None:
    one = {"name": "Low", "metric": "m", "operator": "<", "soft": 80, "hard": 10,
           "hardRequiresSoft": True, "missing": missing, "action": "log_action"}  # fmt: skip
    values = {"thresholds": [one], "alertmanagerConfig": {"enabled": True}}
    rules = rule_file(tmp_path, find_helm("helm4").template(written(tmp_path, values)))
    labels = {"disk": "x"} if series else {}
    case = {
        "series": [{"series": 'm{disk="x"}', "values": values} for values in series],
        "expected": [
            fires(
                "LowSoft", "5m", alert("warning", "log_action", "< 80", value, "0s", "m", **labels)
            ),
            fires(
                "LowHard", "5m", alert("critical", "log_action", "< 10", value, "0s", "m", **labels)
            ),
        ],
    }
    check_cases(rules, {missing: case})
