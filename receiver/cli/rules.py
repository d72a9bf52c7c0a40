"""`receiver rule self`: the alert rules on the receiver itself, their runbooks and a dashboard."""

import re
from importlib import resources

import click

_FILES = resources.files("receiver") / "monitoring"


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


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
