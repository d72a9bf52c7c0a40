"""`receiver retry`, `cancel`, `approve`, `reject`, `pause`, `resume` and `replay`: each audited."""

from datetime import timedelta

import click

from receiver.cli.opened import json_option, opened, print_json, warn_without_workers
from receiver.cli.options import settings_options
from receiver.declarations import TYPES
from receiver.settings import Settings


def _duration(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> timedelta | None:
    """Read a duration as settings do."""
    del context, parameter
    if value is None:
        return None
    try:
        found: timedelta = TYPES["duration"](value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from None
    return found


_reason = click.option("--reason", default="", help="Why; kept with it.")


def _say(done: str, as_json: bool) -> None:
    if as_json:
        print_json({"done": done})
    else:
        click.echo(done)


def _on_run(name: str, help_text: str, takes_reason: bool) -> click.Command:
    def command(settings: Settings, run_id: int, as_json: bool, **more: str) -> None:
        with opened(settings) as desk:
            _say(getattr(desk, name)(run_id, **more), as_json)

    command.__doc__ = help_text
    decorated = json_option(settings_options(command))
    if takes_reason:
        decorated = _reason(decorated)
    decorated = click.argument("run_id", type=int)(decorated)
    return click.command(name, help=help_text)(decorated)


retry = _on_run(
    "retry", "Let a run that ended without success run again, with all its attempts.", False
)
cancel = _on_run("cancel", "Cancel a run: at once while it waits, else ask it to stop.", True)
approve = _on_run("approve", "Let a run that waits for approval run.", False)
reject = _on_run("reject", "Cancel a run that waits for approval.", True)


@click.command
@click.argument("action", required=False)
@click.option("--for", "lasting", callback=_duration, help="How long; until resumed without it.")
@_reason
@json_option
@settings_options
def pause(
    settings: Settings, action: str | None, lasting: timedelta | None, reason: str, as_json: bool
) -> None:
    """Start no run of ACTION, or of any action, until resumed. Alerts are accepted all the same."""
    with opened(settings) as desk:
        _say(desk.pause(action, reason, lasting), as_json)
        warn_without_workers(desk)


@click.command
@click.argument("action", required=False)
@json_option
@settings_options
def resume(settings: Settings, action: str | None, as_json: bool) -> None:
    """Take the pause of ACTION, or of all actions, away; what waited starts.

    With ACTION also reset its breaker: earlier failures do not count any more.
    """
    with opened(settings) as desk:
        _say(desk.resume(action), as_json)


@click.command
@click.argument("rejected_id", type=int)
@json_option
@settings_options
def replay(settings: Settings, rejected_id: int, as_json: bool) -> None:
    """Route a rejected alert again, now that the settings or plugins are mended."""
    with opened(settings) as desk:
        counts = desk.replay(rejected_id)
    if as_json:
        print_json(counts)
    else:
        click.echo(
            ", ".join(f"{name} {counts[name]}" for name in ("accepted", "duplicate", "rejected"))
        )
    if counts["rejected"]:
        raise SystemExit(1)
