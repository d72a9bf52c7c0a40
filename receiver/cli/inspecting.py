"""`receiver check` and `receiver plugins`: look, and change nothing."""

import json
import sys

import click
from rich.console import Console
from rich.table import Table

from receiver import tracing
from receiver.cli.options import settings_options
from receiver.errors import JournalUnusableError, SettingsError
from receiver.journal.dialects import check_url, shown_url
from receiver.plugins import Plugin, rules_of, try_to_load
from receiver.settings import Settings
from receiver.web.binding import check_bind, who_may
from receiver.web.workerside import check_metrics_bind

_WIDTH = 160  # Where nobody looks at a terminal.


@click.command
@settings_options
def check(settings: Settings) -> None:
    """Check the settings and plugins as a start would; exit 1 with every problem found."""
    problems: list[str] = []
    actions, broken = try_to_load(settings)
    problems += broken
    for look in (
        lambda: check_bind(settings),
        lambda: check_metrics_bind(settings),
        lambda: tracing.check(settings),
        lambda: rules_of(settings, actions),
        lambda: check_url(settings.journal_url),
    ):
        try:
            look()
        except SettingsError as error:
            problems += error.problems
        except JournalUnusableError as error:
            problems.append(str(error))
    if problems:
        raise SettingsError(problems)
    metrics = "anyone who can connect" if settings.metrics_open else who_may(settings, "read")
    for line in (
        f"listens on     {settings.bind}{' with TLS' * bool(settings.tls_cert)}",
        f"webhook        open to {who_may(settings, 'submit')}",
        f"read           open to {who_may(settings, 'read')}",
        f"operate        open to {who_may(settings, 'operate')}",
        f"/metrics       open to {metrics}",
        "probes         open to anyone who can connect",
        f"journal        {shown_url(settings.journal_url)}",
        f"actions        {', '.join(sorted(actions.loaded)) or 'none'}",
        f"ACTION_PLUGIN  {', '.join(settings.action_plugin) or 'not set: an alert names its own'}",
    ):
        click.echo(line)


@click.command
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@settings_options
def plugins(settings: Settings, name: str | None, as_json: bool) -> None:
    """List every plugin that is found: its state, hooks, settings and, if broken, why."""
    actions, problems = try_to_load(settings)
    shown = sorted(actions.plugins.values(), key=lambda one: one.name)
    if name is not None:
        shown = [one for one in shown if one.name == name]
        if not shown:
            raise SettingsError([f"there is no plugin {name}; see `receiver plugins`"])
    if as_json:
        click.echo(json.dumps([_as_dict(one) for one in shown], indent=2))
    elif name is not None:
        _show_one(shown[0])
    else:
        _show_all(shown)
    for problem in problems:
        click.echo(f"problem: {problem}", err=True)
    if problems:
        sys.exit(1)


def _as_dict(plugin: Plugin) -> dict[str, object]:
    return {
        "name": plugin.name,
        "state": plugin.state,
        "reason": plugin.reason,
        "version": plugin.version,
        "origin": plugin.origin,
        "hooks": list(plugin.hooks),
        "settings": [
            {
                "name": one.name,
                "type": one.type,
                "default": one.default,
                "required": one.required,
                "secret": one.secret,
                "help": one.help,
                "value": _shown(plugin, one.name, one.secret),
            }
            for one in plugin.settings
        ],
    }


def _shown(plugin: Plugin, name: str, secret: bool) -> str | None:
    value = plugin.values.get(name)
    if value is None:
        # Not configured: nothing was read, but what would be used is known.
        return next(one.default for one in plugin.settings if one.name == name)
    return "(hidden)" if secret else str(value)


def _show_all(shown: list[Plugin]) -> None:
    table = Table("plugin", "state", "origin", "why", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for one in shown:
        table.add_row(one.name, one.state, one.origin, one.reason)
    width = None if sys.stdout.isatty() else _WIDTH
    Console(markup=False, highlight=False, width=width).print(table)


def _show_one(plugin: Plugin) -> None:
    for label, value in (
        ("plugin", plugin.name),
        ("state", plugin.state + (f": {plugin.reason}" if plugin.reason else "")),
        ("version", plugin.version or "-"),
        ("origin", plugin.origin),
        ("hooks", " ".join(plugin.hooks) or "-"),
    ):
        click.echo(f"{label:8} {value}")
    for one in plugin.settings:
        value = _shown(plugin, one.name, one.secret) or "not set"
        click.echo(f"\n{one.name} = {value}\n    {one.help} ({one.type})")
