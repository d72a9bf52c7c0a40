"""Logs that a threshold was crossed and does nothing else: for trying out routes and rules.

The call's values travel as fields of the log line, never inside its text: what an alert says can
neither break the line nor pass for another.
"""

import math
from datetime import timedelta

from receiver import ActionContext, hookimpl


@hookimpl
def execute(
    context: ActionContext, metric_name: str, value: float, threshold: str, duration: timedelta
) -> str:
    """Log one line at level warning, and say so.

    The line is all that this action does: at level info, LOG_LEVEL=warning would leave a run that
    succeeded without any effect.
    """
    context.raise_if_cancelled()
    context.log.warning(
        "threshold action executed",
        extra={
            "metric_name": metric_name,
            "value": _as_json_value(value),
            "threshold": threshold,
            "duration_seconds": duration.total_seconds(),
            "alert_labels": dict(context.alert.labels),
        },
    )
    return "logged at level warning"


@hookimpl
def describe(metric_name: str, value: float, threshold: str) -> str:
    """Say what would be logged; the alert's texts quoted and cut."""
    crossed = f", threshold {threshold!r:.100}" if threshold else ""
    return f"would log at level warning that {metric_name!r:.200} is {value:g}{crossed}"


def _as_json_value(value: float) -> float | str:
    """Return the number, as text where JSON has no number for it: the line would be no JSON."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
