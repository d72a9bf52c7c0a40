"""`receiver migrate`: from metric-reader's configuration to everything that takes its place."""

import os
import re
from pathlib import Path

import click

from receiver.discovery import built_in_names
from receiver.errors import SettingsError
from receiver.migration.predecessor import read
from receiver.migration.translation import translate
from receiver.processes import closed_umask


@click.command
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option(
    "--env-file",
    type=click.Path(path_type=Path),
    help="Its environment, NAME=value a line, as `env` prints it in its pod.",
)
@click.option("--env", "own_environment", is_flag=True, help="Its environment is that of here.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("migrated"),
    show_default=True,
    help="The directory to write.",
)
@click.option("--name", help="What its alerts are called.  [default: from the metric's name]")
@click.option(
    "--url",
    default="http://alert-receiver:8080",
    show_default=True,
    help="Where Alertmanager reaches the receiver.",
)
def migrate(
    config: Path | None,
    env_file: Path | None,
    own_environment: bool,
    output: Path,
    name: str | None,
    url: str,
) -> None:
    """Turn metric-reader's CONFIG, its config.toml, and its environment into what replaces it.

    Writes alert rules, Alertmanager's route, receiver.toml and the chart's values, and lists what
    cannot be carried over. It changes nothing else, and asks nothing of the network.
    """
    if config is None and env_file is None and not own_environment:
        raise click.UsageError("give its config.toml, or --env-file, or --env")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise click.UsageError(f"{output} is there already; choose another --output")
    environment = dict(os.environ) if own_environment else {}
    environment |= _variables(_read(env_file)) if env_file else {}
    old = read(_read(config) if config else "", environment)
    made = translate(old, name or camel_case(old.metric or "Migrated"), url, built_in_names())
    notes = "".join(f"- {note}\n" for note in made.notes)
    try:
        with closed_umask():  # They hold the settings of the old one, a password among them.
            output.mkdir(parents=True, exist_ok=True)
            for file, text in {**made.files, "NOTES.md": notes}.items():
                (output / file).write_text(text, encoding="utf-8")
                click.echo(f"wrote {output / file}")
    except OSError as error:
        raise SettingsError([f"{output} cannot be written: {error.strerror}"]) from error
    click.echo(f"\nwhat differs, or needs a hand:\n{notes}")
    click.echo(
        f"next:\n  promtool check rules {output / 'rules.yml'}\n"
        f"  receiver check --config {output / 'receiver.toml'}"
    )


def camel_case(metric: str) -> str:
    """Return the name of an alert from that of a metric: `QueueDepth`."""
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[_:]+", metric))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{file} cannot be read: {error}"]) from error


def _variables(text: str) -> dict[str, str]:
    """Return NAME -> value; quotes around a whole value are the shell's."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[name.strip()] = value
    return found
