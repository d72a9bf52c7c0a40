"""`receiver explain`: what a notification would lead to, or why a run does not run."""

import re
from datetime import timedelta
from pathlib import Path

import click

from receiver.cli.opened import json_option, opened, print_json
from receiver.cli.options import settings_options
from receiver.cli.terminal import safe
from receiver.durations import format_duration
from receiver.errors import ReceiverError
from receiver.journal.reading import Row
from receiver.settings import Settings


@click.command
@click.argument("what")
@click.option("--action", "path_action", default="", help="As if posted to /webhook/ACTION.")
@click.option("--source", default="", help="As if posted with ?source=SOURCE.")
@json_option
@settings_options
def explain(settings: Settings, what: str, path_action: str, source: str, as_json: bool) -> None:
    """Say what the notification in the file WHAT would lead to, or why run WHAT waits.

    Which alert goes to which action with which arguments, by which rule, and what would hold it
    back now. Nothing is run or stored. Exit code 1 when an alert would be rejected.
    """
    with opened(settings, or_empty=True) as desk:
        if re.fullmatch("[0-9]+", what) and not Path(what).exists():
            found = desk.run(int(what))
            why = found["why"]
            state = found["outcome"] or found["state"]
            if as_json:
                print_json({"run": found["id"], "state": state, "why": why})
            else:
                click.echo(safe(f"run {found['id']} is {state}: {why}"))
            return
        try:
            body = Path(what).read_bytes()
        except OSError as error:
            raise ReceiverError(
                f"{what} is neither a run nor a file that can be read: {error.strerror}"
            ) from error
        explained = desk.explain(body, source, path_action)
    if as_json:
        print_json(explained)
    else:
        for one in explained:
            _show(one)
    if any(one["episode"] == "rejected" for one in explained):
        raise SystemExit(1)


def _show(one: Row) -> None:
    name = one["alertname"] or one["fingerprint"]
    to = "goes to no action"
    if one["action"]:
        by = one["rule"]
        to = f"goes to {one['action']}, by {by}" if by else f"is about {one['action']}"
    elif one["status"] == "resolved":
        to = "is about nothing known"
    lines = [f"{name} ({one['status']}) {to}", f"  {one['episode']}: {one['reason']}"]
    call = one["arguments"]
    if call is not None:
        lasted = format_duration(timedelta(seconds=call["duration_seconds"]))
        lines.append(
            f"  execute(metric_name={call['metric_name']!r}, value={float(call['value']):g}, "
            f"threshold={call['threshold']!r}, duration={lasted})"
        )
        lines += [f"  warning: {warning}" for warning in call["warnings"]]
    if one["guardrails"]:
        runs = one["runs"]
        # What has to be said of a run stands between commas.
        runs = f"{runs}," if runs and "," in runs else runs
        lines.append(f"  {runs} {one['guardrails']}" if runs else "  nothing new runs")
    for line in lines:
        click.echo(safe(line))
