"""`receiver check` and `receiver plugins`: look, and change nothing."""

import json
import sys

import click
from sqlalchemy.exc import DBAPIError

from receiver import tracing
from receiver.cli.options import settings_options
from receiver.data_directory import check_data_directory
from receiver.declarations import Setting, nearest
from receiver.errors import JournalUnusableError, SettingsError
from receiver.journal.dialects import check_url, shown_url
from receiver.journal.durability import find_durability_risks
from receiver.plugins import Actions, Plugin, rules_of, try_to_load
from receiver.settings import Settings
from receiver.sources import Source
from receiver.web.binding import check_bind, who_may
from receiver.web.listener import is_in_use
from receiver.web.workerside import check_metrics_bind


@click.command
@settings_options
def check(settings: Settings) -> None:
    """Check the settings and plugins as a start would; exit 1 with every problem found."""
    actions, problems = problems_of_start(settings)
    if settings.database_url is None:
        problems += check_data_directory(settings.data_dir)
    try:
        is_taken = is_in_use(settings.bind)
    except SettingsError as error:
        problems += error.problems
    if problems:
        raise SettingsError(problems)
    port = "in use, perhaps by the running receiver" if is_taken else "free"
    metrics = "anyone who can connect" if settings.metrics_open else who_may(settings, "read")
    for line in (
        f"listens on     {settings.bind}{' with TLS' * bool(settings.tls_cert)}",
        f"port           {port}",
        f"webhook        open to {who_may(settings, 'submit')}",
        f"read           open to {who_may(settings, 'read')}",
        f"operate        open to {who_may(settings, 'operate')}",
        f"/metrics       open to {metrics}",
        "probes         open to anyone who can connect",
        *(_describe_source(name, source) for name, source in settings.sources.items()),
        f"journal        {shown_url(settings.journal_url)}",
        f"actions        {', '.join(sorted(actions.loaded)) or 'none'}",
        f"ACTION_PLUGIN  {', '.join(settings.action_plugin) or 'not set: an alert names its own'}",
    ):
        click.echo(line)
    for risk in _durability_risks(settings):
        click.echo(f"warning        {risk}")


def _durability_risks(settings: Settings) -> list[str]:
    try:
        return find_durability_risks(settings.journal_url)
    except DBAPIError as error:
        cause = str(error.orig).strip().partition("\n")[0]
        return [f"the journal cannot be reached now, so its durability is unknown: {cause}"]


def _describe_source(name: str, source: Source) -> str:
    credentials = "its own credentials" if source.has_credentials else "those of RECEIVER_SUBMIT_…"
    reach = "all actions" if source.actions is None else ", ".join(source.actions)
    return f"source         {name}: posts with {credentials}; reaches {reach}"


def problems_of_start(settings: Settings) -> tuple[Actions, list[str]]:
    """Return the actions, and every problem for which a start would end."""
    actions, problems = try_to_load(settings)
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
    return actions, problems


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
            close = nearest(name, actions.plugins)
            missing = f"there is no plugin {name}{close}; see `receiver plugins`"
            raise SettingsError([missing, *problems])
    if as_json:
        click.echo(json.dumps([_as_dict(one) for one in shown], indent=2))
    else:
        for one in shown:
            _show(one)
    if name is not None and not as_json:
        for setting in shown[0].settings:
            _show_setting(shown[0], setting)
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
                "choices": list(one.choices),
                "required": one.required,
                "required_unless": one.required_unless or None,
                "secret": one.secret,
                "help": one.help,
                "value": _value(plugin, one),
            }
            for one in plugin.settings
        ],
    }


def _value(plugin: Plugin, setting: Setting) -> str | None:
    value = plugin.values.get(setting.name)
    if value is None:
        return setting.default  # Nothing was read, but what would be used is known.
    if setting.secret:
        return "(hidden)"
    return ", ".join(map(str, value)) if type(value) is tuple else str(value)


def _show(plugin: Plugin) -> None:
    """Print one plugin; of its settings only the names."""
    click.echo(f"{plugin.name}  {plugin.state}")
    for label, value in (
        ("why", plugin.reason),
        ("version", plugin.version),
        ("origin", plugin.origin),
        ("hooks", " ".join(plugin.hooks)),
        ("settings", " ".join(one.name for one in plugin.settings)),
    ):
        if value:
            click.echo(f"    {label:8}  {value}")


def _show_setting(plugin: Plugin, setting: Setting) -> None:
    value = _value(plugin, setting)
    about = [setting.type]
    if setting.choices:
        about[0] += f": {', '.join(setting.choices)}"
    if setting.secret:
        about.append(f"secret, or {setting.name}_FILE")
    if setting.required:
        about.append("required")
    if setting.required_unless:
        about.append(f"required unless {setting.required_unless} is set")
    if setting.default not in (None, "", value):
        about.append(f"default {setting.default}")
    click.echo(f"\n{setting.name} = {'not set' if value in (None, '') else value}")
    click.echo(f"    {setting.help} ({'; '.join(about)})")
