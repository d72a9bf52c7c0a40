"""`receiver explain`: what a notification would lead to, or why a run does not run."""

import math
import re
from pathlib import Path
from typing import Any

import click

from receiver.alertmanager import parse_notification
from receiver.cli.opened import json_option, opened, print_json
from receiver.cli.options import settings_options
from receiver.cli.terminal import safe
from receiver.errors import ReceiverError
from receiver.guardrails import text
from receiver.journal import reading
from receiver.operations import Explained
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
    with opened(settings, or_empty=True) as (journal, operations):
        if re.fullmatch("[0-9]+", what) and not Path(what).exists():
            found = reading.find_run(journal, int(what))
            why = operations.why_waiting(found)
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
        explained = operations.explain(parse_notification(body), source, path_action)
    if as_json:
        print_json([_as_dict(one) for one in explained])
    else:
        for one in explained:
            _show(one)
    if any(one.episode == "rejected" for one in explained):
        raise SystemExit(1)


def _as_dict(one: Explained) -> dict[str, Any]:
    return {
        "alertname": one.alert.name,
        "fingerprint": one.alert.fingerprint,
        "status": one.alert.status,
        "rule": one.rule or None,
        "action": one.action or None,
        "episode": one.episode,
        "reason": one.reason,
        "arguments": None
        if one.call is None
        else {
            "metric_name": one.call.metric_name,
            "value": one.call.value if math.isfinite(one.call.value) else str(one.call.value),
            "threshold": one.call.threshold,
            "duration_seconds": one.call.duration.total_seconds(),
            "warnings": list(one.call.warnings),
        },
        "runs": one.brings.rstrip(",") or None,
        "guardrails": one.verdict or None,
    }


def _show(one: Explained) -> None:
    name = one.alert.name or one.alert.fingerprint
    to = "goes to no action"
    if one.action:
        to = f"goes to {one.action}, by {one.rule}" if one.rule else f"is about {one.action}"
    elif one.alert.is_resolved:
        to = "is about nothing known"
    lines = [f"{name} ({one.alert.status}) {to}", f"  {one.episode}: {one.reason}"]
    if one.call is not None:
        call = one.call
        lines.append(
            f"  execute(metric_name={call.metric_name!r}, value={call.value:g}, "
            f"threshold={call.threshold!r}, duration={text(call.duration)})"
        )
        lines += [f"  warning: {warning}" for warning in call.warnings]
    if one.verdict:
        lines.append(f"  {one.brings} {one.verdict}" if one.brings else "  nothing new runs")
    for line in lines:
        click.echo(safe(line))
