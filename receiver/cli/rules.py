"""`receiver rule`: alert rules from a threshold, and those on the receiver itself."""

import re
from importlib import resources

import click

from receiver.errors import SettingsError
from receiver.migration.translation import GROUP, as_yaml, resource
from receiver.rules import Level, Missing, Threshold, rules_of

_FILES = resources.files("receiver") / "monitoring"
_DURATION = re.compile(r"(\d+(ms|[smhdwy]))+|0")


@click.group
def rule() -> None:
    """Print alert rules."""


@rule.command("self")
@click.option("--runbook", metavar="NAME", help="Print what to do about this alert instead.")
@click.option("--dashboard", is_flag=True, help="Print the Grafana dashboard instead.")
def self_(runbook: str | None, dashboard: bool) -> None:
    """Print the alert rules on the receiver itself, as a rule file for Prometheus."""
    if dashboard:
        text = _read("dashboard.json")
    elif runbook is not None:
        sections = dict(
            re.findall(r"^## (\w+)\n\n(.*?)(?=^## |\Z)", _read("runbooks.md"), re.M | re.S)
        )
        if runbook not in sections:
            raise click.UsageError(
                f"there is no runbook {runbook}; there are {', '.join(sections)}"
            )
        text = sections[runbook].rstrip() + "\n"
    else:
        text = _read("rules.yml")
    click.echo(text, nl=False)


@rule.command("new")
@click.option("--metric", help="The metric: queue_depth.")
@click.option("--expr", help="An expression instead: rate(errors_total[5m]).")
@click.option("--above", type=float, metavar="NUMBER", help="The alert fires above this.")
@click.option("--below", type=float, metavar="NUMBER", help="The alert fires below this.")
@click.option("--for", "pending", default="0s", show_default=True, help="For so long: 5m.")
@click.option("--action", required=True, help="The action to run; a list runs several.")
@click.option("--name", help="The alert's name.  [default: from the metric's name]")
@click.option("--severity", default="warning", show_default=True)
@click.option(
    "--missing",
    type=click.Choice(["ignore", "zero", "breached", "last_value"]),
    default="ignore",
    show_default=True,
    help="What it means that there is no series at all.",
)
@click.option("--operator", is_flag=True, help="Print a PrometheusRule for the operator.")
def new(
    metric: str | None,
    expr: str | None,
    above: float | None,
    below: float | None,
    pending: str,
    action: str,
    name: str | None,
    severity: str,
    missing: Missing,
    operator: bool,
) -> None:
    """Print an alert rule for one threshold, with all that the receiver reads.

    receiver rule new --metric queue_depth --above 80 --for 5m --action log_action
    """
    if (above is None) == (below is None):
        raise click.UsageError("give one of --above and --below")
    if metric is None and (expr is None or name is None):
        raise click.UsageError("give --metric, or --expr with a --name for the alert")
    if not _DURATION.fullmatch(pending):
        raise click.UsageError(f"--for: {pending} is not a duration; write 5m or 1h30m")
    crossed = ("<", below) if above is None else (">", above)
    side = "Low" if above is None else "High"
    alert = name or "".join(word.title() for word in re.split("[_:]+", metric or "")) + side
    threshold = Threshold(
        alert,
        crossed[0],
        metric=metric or "",
        expression=expr or "",
        soft=Level(crossed[1] or 0.0, action, severity, pending),
        missing=missing,
    )
    if problems := threshold.problems():
        raise SettingsError(problems)
    (made,) = rules_of(threshold)
    rules = {"groups": [{"name": GROUP, "rules": [{**made, "alert": alert}]}]}
    click.echo(as_yaml(resource(rules) if operator else rules), nl=False)


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
