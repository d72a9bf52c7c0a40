"""`receiver new-plugin`: write an action of one's own, its test and its packaging."""

import importlib.util
import keyword
import shlex
from importlib.resources import files
from pathlib import Path

import click

from receiver.discovery import NAME, built_in_names
from receiver.errors import SettingsError
from receiver.plugins import PREFIX

# What is written, and from what; `sample_action` stands for the name, in each of its forms.
_FILES = {
    "README.md": "README.md.txt",
    "pyproject.toml": "pyproject.toml.txt",
    "setup.cfg": "setup.cfg.txt",
    "sample_action.py": "plugin.py.txt",
    "tests/test_sample_action.py": "test_plugin.py.txt",
}
# Modules that pytest or setuptools would take for their own.
_TAKEN = frozenset({"conftest", "setup", "tests"})


@click.command("new-plugin")
@click.argument("name")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Where to write it  [default: a directory of that name, here]",
)
def new_plugin(name: str, directory: Path | None) -> None:
    """Write the action NAME: a plugin that works, its test and its packaging."""
    directory = directory or Path(name)
    _check(name, directory)
    templates = files("receiver").joinpath("samples", "new_plugin")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for target, template in _FILES.items():
            path = directory / _named(target, name)
            path.parent.mkdir(exist_ok=True)
            text = templates.joinpath(template).read_text(encoding="utf-8")
            path.write_text(_named(text, name), encoding="utf-8")
            click.echo(f"wrote {path}")
    except OSError as error:
        raise SettingsError([f"{directory} cannot be written: {error.strerror}"]) from error
    shown = shlex.quote(str(directory))
    click.echo(
        f"\nnext:\n  cd {shown} && pip install '.[test]' && pytest\n"
        f"or, without installing it:\n  PLUGIN_DIR={shown} receiver plugins {name}"
    )


def _check(name: str, directory: Path) -> None:
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise click.UsageError(
            f"{name!r} is not a name for an action; use lower-case letters, digits and underscores"
        )
    if name in built_in_names():
        raise click.UsageError(f"{name} is an action that comes with the receiver; choose another")
    if name.endswith("_") or f"{name}_".upper().startswith(PREFIX) or name in _TAKEN:
        raise click.UsageError(
            f"{name} cannot be the name of a package, its module and its settings; choose another"
        )
    # An empty directory of that name counts as a module too, but one without an origin.
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:
        raise click.UsageError(f"{name} is a module that is in use already; choose another")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise click.UsageError(f"{directory} is there already; choose another --directory")


def _named(text: str, name: str) -> str:
    """Return a text with the name in place of `sample_action`, in each of its forms."""
    return (
        text.replace("sample_action", name)
        .replace("SAMPLE_ACTION", name.upper())
        .replace("sample-action", name.replace("_", "-"))
    )
