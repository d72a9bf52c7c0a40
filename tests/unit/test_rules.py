"""Alert rules from thresholds: expressions, labels and annotations, and what makes none."""

from dataclasses import replace
from typing import Any

import pytest

from receiver.rules import Level, Missing, Threshold, rules_of

SOFT = Level(80, "log_action", "warning", "5m")
HARD = Level(95, "file_action", "critical", "1m")
QUEUE = Threshold("QueueTooLong", ">", metric="queue_depth", soft=SOFT)


def expressions(threshold: Threshold, namespace: str = "") -> list[str]:
    return [rule["expr"] for rule in rules_of(threshold, namespace)]


def test_rule_says_all_that_the_receiver_reads() -> None:
    assert rules_of(QUEUE) == [
        {
            "alert": "QueueTooLongSoft",
            "expr": "queue_depth > 80",
            "for": "5m",
            "labels": {"severity": "warning", "action_plugin": "log_action"},
            "annotations": {
                "metric_name": "queue_depth",
                "value": "{{ $value }}",
                "threshold": "> 80",
                "for": "5m",
            },
        }
    ]


def test_hard_rule_stands_after_the_soft_one() -> None:
    rules = rules_of(replace(QUEUE, hard=HARD))
    assert [rule["alert"] for rule in rules] == ["QueueTooLongSoft", "QueueTooLongHard"]
    assert rules[1]["labels"] == {"severity": "critical", "action_plugin": "file_action"}
    assert rules[1]["for"] == rules[1]["annotations"]["for"] == "1m"


@pytest.mark.parametrize(
    ("missing", "expression"),
    [
        ("ignore", "queue_depth > 80"),
        ("zero", "(queue_depth or on () vector(0)) > 80"),
        ("breached", "queue_depth > 80 or absent(queue_depth) * NaN"),
        ("last_value", "last_over_time(queue_depth[1h]) > 80"),
    ],
)
def test_missing_metric_means_what_the_threshold_says(missing: Missing, expression: str) -> None:
    assert expressions(replace(QUEUE, missing=missing)) == [expression]


@pytest.mark.parametrize(
    ("missing", "expression"),
    [
        ("ignore", "(a / b) > 80"),
        ("breached", "(a / b) > 80 or absent((a / b)) * NaN"),
        ("last_value", "last_over_time((a / b)[15m:]) > 80"),
    ],
)
def test_expression_stands_in_brackets(missing: Missing, expression: str) -> None:
    threshold = replace(QUEUE, expression=" a / b\n", missing=missing, last_value_for="15m")
    assert expressions(threshold) == [expression]
    assert rules_of(threshold)[0]["annotations"]["metric_name"] == "queue_depth"
    unnamed = replace(threshold, metric="")
    assert "metric_name" not in rules_of(unnamed)[0]["annotations"]


def test_comment_in_an_expression_ends_before_the_bracket_closes() -> None:
    threshold = replace(QUEUE, expression="a # of b\n", missing="breached")
    assert expressions(threshold) == ["(a # of b\n) > 80 or absent((a # of b\n)) * NaN"]


def test_hard_can_require_soft() -> None:
    threshold = replace(QUEUE, hard=HARD, hard_requires_soft=True, labels={"team": "orders"})
    assert expressions(threshold) == [
        "queue_depth > 80",
        "(queue_depth > 95) and ignoring (alertname, alertstate, severity, action_plugin, team) "
        'ALERTS{alertname="QueueTooLongSoft",alertstate="firing"}',
    ]


def test_hard_can_go_on_until_soft_ends() -> None:
    (_, hard) = expressions(replace(QUEUE, hard=HARD, hard_until_soft_ends=True))
    assert hard == (
        "(queue_depth > 95) or (queue_depth > 80) "
        "and ignoring (alertname, alertstate, severity, action_plugin) "
        'ALERTS{alertname="QueueTooLongHard",alertstate="firing"}'
    )


def test_namespace_of_the_operator_keeps_the_metric_s_own() -> None:
    threshold = replace(QUEUE, hard=HARD, hard_requires_soft=True)
    rules = rules_of(threshold, "monitoring")
    for rule in rules:
        assert rule["labels"]["namespace"] == "monitoring"
        assert rule["labels"]["origin_namespace"] == "{{ $labels.namespace }}"
    assert rules[1]["expr"].endswith(
        'label_replace(ALERTS{alertname="QueueTooLongSoft",alertstate="firing"}, '
        '"namespace", "$1", "origin_namespace", "(?:[{].*)?(.*)")'
    )


def test_labels_and_annotations_of_ones_own_never_replace_those_that_matter() -> None:
    own = {"severity": "x", "action_plugin": "x", "threshold": "x", "value": "x", "summary": "x"}
    (rule,) = rules_of(replace(QUEUE, labels=own, annotations=own))
    assert rule["labels"]["action_plugin"] == "log_action"
    assert rule["annotations"]["threshold"] == "> 80"
    assert rule["annotations"]["summary"] == "x"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (80, "80"), (-1.5, "-1.5"), (0.1, "0.1"), (1e9, "1000000000"),
        (214748364800, "214748364800"), (1e-6, "0.000001"), (1.5e-7, "1.5e-7"),
        (1e16, "10000000000000000"), (1e21, "1e+21"), (-2.5e300, "-2.5e+300"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_do(number: float, text: str) -> None:
    (rule,) = rules_of(replace(QUEUE, soft=replace(SOFT, threshold=number)))
    assert rule["annotations"]["threshold"] == f"> {text}"
    assert float(text) == number


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"metric": ""}, "has neither metric nor expr"),
        ({"operator": "=>"}, "'=>' is not an operator; use >, >=, <, <=, ==, !="),
        ({"soft": None}, "has neither soft nor hard"),
        ({"hard_requires_soft": True}, "hardRequiresSoft needs both"),
        ({"hard_until_soft_ends": True}, "hardUntilSoftEnds needs both"),
        ({"hard": replace(HARD, threshold=70)}, "hard (70) is crossed before soft (80)"),
        ({"operator": "<=", "hard": HARD}, "hard (95) is crossed before soft (80)"),
    ],
)
def test_threshold_that_makes_no_sense_says_why(changes: dict[str, Any], problem: str) -> None:
    (said,) = replace(QUEUE, **changes).problems()
    assert said.startswith(f"QueueTooLong: {problem}")


@pytest.mark.parametrize("operator", ["==", "!="])
def test_equality_has_no_order_of_soft_and_hard(operator: str) -> None:
    assert replace(QUEUE, operator=operator, hard=replace(HARD, threshold=1)).problems() == []
