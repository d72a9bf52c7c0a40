"""Alert rules from thresholds: the one generator. The chart's templates render the same.

A threshold says about a metric where it is crossed, softly, hard or both; each level becomes an
alert rule whose labels and annotations are those that the receiver reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

Missing = Literal["ignore", "zero", "breached", "last_value"]
Rule = dict[str, Any]

_UPWARD, _DOWNWARD = (">", ">="), ("<", "<=")
OPERATORS = (*_UPWARD, *_DOWNWARD, "==", "!=")
# Where the metric has no namespace, ALERTS shows the template that the label is made from.
_OWN_NAMESPACE = "(?:[{].*)?(.*)"


@dataclass(frozen=True)
class Level:
    """Where a threshold is crossed, and what happens `pending` (`5m`) later."""

    threshold: float
    action: str
    severity: str
    pending: str = "0s"


@dataclass(frozen=True)
class Threshold:
    """A metric, or an `expression` with a metric to name it by, and where it is crossed.

    `missing` says what it means that there is no series at all: nothing; 0; that each level is
    crossed, by the value NaN; or what was last seen, for up to `last_value_for`, each series by
    itself. With `hard_requires_soft` the hard rule fires only while the soft one does; with
    `hard_until_soft_ends`, once it fires, for as long as soft is crossed.
    """

    name: str
    operator: str
    metric: str = ""
    expression: str = ""
    soft: Level | None = None
    hard: Level | None = None
    hard_requires_soft: bool = False
    hard_until_soft_ends: bool = False
    missing: Missing = "ignore"
    last_value_for: str = "1h"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Return why no rules can be made of it, each with its cure."""
        problems = []
        if not self.metric and not self.expression:
            problems.append("has neither metric nor expr; say what is compared")
        if self.operator not in OPERATORS:
            problems.append(f"{self.operator!r} is not an operator; use {', '.join(OPERATORS)}")
        if self.soft is None and self.hard is None:
            problems.append("has neither soft nor hard; set a threshold")
        elif self.soft is None or self.hard is None:
            if self.hard_requires_soft:
                problems.append("hardRequiresSoft needs both soft and hard")
            if self.hard_until_soft_ends:
                problems.append("hardUntilSoftEnds needs both soft and hard")
        elif (self.operator in _UPWARD and self.hard.threshold < self.soft.threshold) or (
            self.operator in _DOWNWARD and self.hard.threshold > self.soft.threshold
        ):
            soft, hard = _text(self.soft.threshold), _text(self.hard.threshold)
            problems.append(f"hard ({hard}) is crossed before soft ({soft}); exchange them")
        return [f"{self.name}: {problem}" for problem in problems]


def rules_of(threshold: Threshold, namespace: str = "") -> list[Rule]:
    """Return the alert rules, as a rule file or a PrometheusRule has them: soft, then hard.

    With a `namespace` every alert carries it, as the Prometheus operator demands of what an
    AlertmanagerConfig routes; the metric's own is kept as `origin_namespace`.
    """
    levels = {"Soft": threshold.soft, "Hard": threshold.hard}
    return [
        _rule(threshold, suffix, level, namespace)
        for suffix, level in levels.items()
        if level is not None
    ]


def _rule(threshold: Threshold, suffix: str, level: Level, namespace: str) -> Rule:
    value = _text(level.threshold)
    expression = _condition(threshold, value)
    if suffix == "Hard" and threshold.hard_requires_soft:
        expression = f"({expression}) and {_fires(threshold, 'Soft', namespace)}"
    if suffix == "Hard" and threshold.hard_until_soft_ends and threshold.soft:
        soft = _condition(threshold, _text(threshold.soft.threshold))
        expression = f"({expression}) or ({soft}) and {_fires(threshold, 'Hard', namespace)}"
    labels = dict(threshold.labels)
    if namespace:
        labels |= {"namespace": namespace, "origin_namespace": "{{ $labels.namespace }}"}
    labels |= {"severity": level.severity, "action_plugin": level.action}
    annotations = dict(threshold.annotations)
    if threshold.metric:
        annotations["metric_name"] = threshold.metric
    annotations |= {
        "value": "{{ $value }}",
        "threshold": f"{threshold.operator} {value}",
        "for": level.pending,
    }
    return {
        "alert": f"{threshold.name}{suffix}",
        "expr": expression,
        "for": level.pending,
        "labels": labels,
        "annotations": annotations,
    }


def _condition(threshold: Threshold, value: str) -> str:
    subject, history = threshold.metric, f"{threshold.metric}[{threshold.last_value_for}]"
    if threshold.expression:
        # A comment would take the bracket with it.
        end = "\n" if "#" in threshold.expression else ""
        subject = f"({threshold.expression.strip()}{end})"
        history = f"{subject}[{threshold.last_value_for}:]"
    crossed = f"{threshold.operator} {value}"
    if threshold.missing == "zero":
        # Without `on ()` the zero would always be there, beside every series that has labels.
        return f"({subject} or on () vector(0)) {crossed}"
    if threshold.missing == "breached":
        # NaN, for the 1 of absent() would be taken for the metric's value.
        return f"{subject} {crossed} or absent({subject}) * NaN"
    if threshold.missing == "last_value":
        return f"last_over_time({history}) {crossed}"
    return f"{subject} {crossed}"


def _fires(threshold: Threshold, suffix: str, namespace: str) -> str:
    alert = f'ALERTS{{alertname="{threshold.name}{suffix}",alertstate="firing"}}'
    added = ["alertname", "alertstate", "severity", "action_plugin", *sorted(threshold.labels)]
    if namespace:
        # The metric has its own namespace back, lest soft in one let hard fire in another.
        added.append("origin_namespace")
        alert = f'label_replace({alert}, "namespace", "$1", "origin_namespace", "{_OWN_NAMESPACE}")'
    return f"ignoring ({', '.join(added)}) {alert}"


def _text(number: float) -> str:
    """Return a number as Helm's `toJson` writes it: no exponent where people write none."""
    text = repr(float(number))
    if number == 0 or 1e-6 <= abs(number) < 1e21:
        plain = format(Decimal(text), "f")
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    mantissa, _, exponent = text.partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+d}"
