"""The command line: `receiver COMMAND`; one module per group of commands, loaded when used."""

import importlib
import sys
from importlib.metadata import version
from typing import NoReturn

import click

from receiver.cli.terminal import safe
from receiver.declarations import nearest
from receiver.errors import ReceiverError
from receiver.settings import URL

# Command -> the module that has it, and its line in the help.
_COMMANDS = {
    "serve": ("serving", "Accept notifications and run actions: web and worker as one."),
    "web": ("serving", "Accept notifications only."),
    "worker": ("serving", "Run actions only."),
    "demo": ("demo", "Show in a minute what a metric that climbs leads to."),
    "check": ("inspecting", "Check the settings and plugins, and say what is open."),
    "doctor": ("doctor", "Check an installation that runs, and those who should reach it."),
    "plugins": ("inspecting", "List the plugins, or show one."),
    "new-plugin": ("creating", "Write an action of one's own, its test and its packaging."),
    "send": ("sending", "Post a sample notification, or a file, to a receiver."),
    "explain": ("explaining", "Say what a notification would lead to, or why a run waits."),
    "runs": ("looking", "List runs, the newest first."),
    "run": ("looking", "Show all about one run."),
    "rejected": ("looking", "List rejected alerts."),
    "retry": ("operating", "Let a run that ended without success run again."),
    "cancel": ("operating", "Cancel a run."),
    "approve": ("operating", "Let a run that waits for approval run."),
    "reject": ("operating", "Cancel a run that waits for approval."),
    "pause": ("operating", "Start no run of an action, or of any."),
    "resume": ("operating", "Take a pause away, and reset a breaker."),
    "replay": ("operating", "Route a rejected alert again."),
    "rule": ("rules", "Print alert rules: on a threshold, or on the receiver itself."),
    "migrate": ("migrating", "Turn metric-reader's configuration into what replaces it."),
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
        module = importlib.import_module(f"receiver.cli.{_COMMANDS[cmd_name][0]}")
        found: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with; one that is misspelt is refused."""
        if not ctx.resilient_parsing and args[0] not in _COMMANDS:
            ctx.fail(f"there is no command {args[0]}{nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("alert-receiver"), prog_name="alert-receiver")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.option(
    "--url", envvar=URL.name, help=f"For what looks and operates: {URL.help}.  ({URL.name})"
)
@click.pass_context
def cli(context: click.Context, debug: bool, url: str | None) -> None:
    """Run an action once per episode of a firing Prometheus alert."""
    del debug
    try:
        context.obj = URL.parse(url) if url else None
    except ValueError as error:
        raise click.BadParameter(f"{url!r} {error}", param_hint="--url") from None


def main() -> NoReturn:
    """Run the command line; exit code 1 for what failed, 2 for wrong usage."""
    try:
        sys.exit(cli(standalone_mode=False) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx:
            click.echo(error.ctx.get_usage(), err=True)
            click.echo(f"Try '{error.ctx.command_path} --help' for help.\n", err=True)
        click.echo(f"Error: {safe(error.format_message())}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(1)
    except ReceiverError as error:
        if "--debug" in sys.argv[1:2]:
            raise
        problems = getattr(error, "problems", (str(error),))
        click.echo(f"receiver: {len(problems)} problem{'s'[: len(problems) > 1]}:", err=True)
        for one in problems:
            click.echo(f"  {safe(one)}", err=True)
        cause = error.__cause__
        if cause is not None and str(cause) not in str(error):
            click.echo(f"  caused by: {safe(str(cause).partition(chr(10))[0])}", err=True)
        sys.exit(1)
