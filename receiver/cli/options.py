"""The options of the commands that read settings, made from the table of settings."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from receiver.settings import Settings, load, table


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option per setting, and call the command with the loaded `settings`.

    Secrets have no option: everybody on the machine can read a command line.
    """
    settings = {name: one for name, one in table().items() if not one.secret}

    @wraps(command)
    def with_settings(*args: Any, config: Path | None, **options: Any) -> Any:
        flags = {
            one.name: value
            for name, one in settings.items()
            if (value := options.pop(name)) is not None
        }
        return command(*args, settings=read_settings(flags, config), **options)

    for name, one in reversed(settings.items()):
        default = "" if one.default in (None, "") else f"  [default: {one.default}]"
        with_settings = click.option(
            f"--{name.replace('_', '-')}",
            name,
            metavar=one.type.upper(),
            help=f"{one.help.replace('`', '')}{default}  ({one.name})",
        )(with_settings)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        help="the settings file, receiver.toml  (RECEIVER_CONFIG)",
    )(with_settings)


def read_settings(flags: dict[str, str], config: Path | None) -> Settings:
    """Return the settings of this process; the one place that reads its environment."""
    return load(dict(os.environ), flags, config)
