"""The command line: `receiver COMMAND`; one module per group of commands, loaded when used."""

import importlib
import sys
from importlib.metadata import version
from typing import Any

import click

from receiver.errors import PluginError, ReceiverError, SettingsError

_COMMANDS = {
    "serve": "serving",
    "web": "serving",
    "worker": "serving",
    "check": "inspecting",
    "plugins": "inspecting",
    "send": "sending",
    "explain": "explaining",
    "runs": "looking",
    "run": "looking",
    "rejected": "looking",
    "retry": "operating",
    "cancel": "operating",
    "approve": "operating",
    "reject": "operating",
    "pause": "operating",
    "resume": "operating",
    "replay": "operating",
}


class _Lazy(click.Group):
    """Imports a command's module when the command is used: `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which one meets them."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, None when there is none of this name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"receiver.cli.{_COMMANDS[cmd_name]}")
        found: click.Command = getattr(module, cmd_name)
        return found


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("alert-receiver"), prog_name="alert-receiver")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Run an action once per episode of a firing Prometheus alert."""
    context.obj = debug


def main() -> Any:
    """Run the command line; exit code 1 for what failed, 2 for wrong usage."""
    try:
        return cli(standalone_mode=True)
    except ReceiverError as error:
        if "--debug" in sys.argv[1:2]:
            raise
        problems = (
            error.problems if isinstance(error, SettingsError | PluginError) else (str(error),)
        )
        click.echo(f"receiver: {len(problems)} problem{'s'[: len(problems) > 1]}:", err=True)
        for one in problems:
            click.echo(f"  {one}", err=True)
        cause = error.__cause__
        if cause is not None and str(cause) not in str(error):
            click.echo(f"  caused by: {str(cause).partition(chr(10))[0]}", err=True)
        sys.exit(1)
