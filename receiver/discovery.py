"""Finds plugins without importing them: built-ins, entry points, and files in `PLUGIN_DIR`."""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import action_plugins

ENTRY_POINT_GROUP = "receiver.actions"
_VERSION = importlib.metadata.version("alert-receiver")
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


@dataclass(frozen=True)
class Candidate:
    """A plugin that was found but not imported."""

    name: str
    origin: str
    source: str
    import_it: Callable[[], object]
    version: str = ""


def find_candidates(
    directory: Path | None, is_named: Callable[[str], bool]
) -> tuple[dict[str, Candidate], list[str]]:
    """Return every plugin that is there, by name, and what is wrong with the rest.

    An installed package that nothing names can have any name: it is nobody's concern.
    """
    found: dict[str, Candidate] = {}
    problems: list[str] = []
    for candidate in (
        *_built_ins(),
        *_entry_points(),
        *_in_directory(directory, problems),
    ):
        unusable = candidate.name in found or not NAME.fullmatch(candidate.name)
        if unusable and candidate.source == "entry point" and not is_named(candidate.name):
            continue
        if not NAME.fullmatch(candidate.name):
            problems.append(
                f"{candidate.name} ({candidate.origin}): a plugin's name is made of lower-case "
                "letters, digits and underscores; rename it"
            )
        elif candidate.name in found:
            other = found[candidate.name].origin
            problems.append(
                f"{candidate.name}: two plugins have this name: {other} and {candidate.origin}"
            )
        else:
            found[candidate.name] = candidate
    return found, problems


def built_in_names() -> list[str]:
    """Return the names of the actions that come with the receiver."""
    return [module.name for module in pkgutil.iter_modules(action_plugins.__path__)]


def _built_ins() -> Iterator[Candidate]:
    for name in built_in_names():
        path = f"action_plugins.{name}"
        load = partial(importlib.import_module, path)
        yield Candidate(name, path, "built-in", load, _VERSION)


def _entry_points() -> Iterator[Candidate]:
    for point in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)):
        package, version = (point.dist.name, point.dist.version) if point.dist else ("?", "")
        yield Candidate(
            point.name.replace("-", "_"), f"{point.value} in {package}", "entry point",
            point.load, version,
        )  # fmt: skip


def _in_directory(directory: Path | None, problems: list[str]) -> Iterator[Candidate]:
    if directory is None:
        return
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        problems.append(f"PLUGIN_DIR: {directory} cannot be read: {error.strerror}")
        return
    for path in entries:
        if path.name.startswith((".", "_")):
            continue
        try:
            file = path / "__init__.py" if path.is_dir() else path
            is_plugin = file.suffix == ".py" and file.is_file()
        except PermissionError:
            continue  # Such as `lost+found` in a mounted volume.
        if is_plugin:
            name = path.stem.replace("-", "_")
            yield Candidate(name, str(path), "directory", partial(_import_file, name, file))


def _import_file(name: str, file: Path) -> object:
    sys.dont_write_bytecode = True  # Nothing is written into PLUGIN_DIR, now or later.
    # The package that all of them are in, so that `from . import …` works in a plugin's own.
    package = sys.modules.setdefault("receiver_plugins", types.ModuleType("receiver_plugins"))
    package.__path__ = []
    full_name = f"receiver_plugins.{name}"
    search = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(
        full_name, file, submodule_search_locations=search
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module
