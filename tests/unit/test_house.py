"""The house: imports run one way, pure modules stay pure, and no file becomes the project."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import receiver
from tests.support.documents import ROOT
from tests.support.every import every

FILES = sorted(
    path.relative_to(ROOT)
    for package in ("receiver", "action_plugins")
    for path in (ROOT / package).rglob("*.py")
)

# From the bottom up: a module imports from its own layer and from those below it. `journal`
# stands for all modules in it.
LAYERS = (
    ("errors", "clock", "declarations", "durations", "fingerprint", "log_bounds", "packing",
     "plainjson", "processes"),
    ("alert", "alertmanager"),
    ("calls", "episodes", "guardrails", "identity", "intake", "policies", "replicas", "routing",
     "rules", "subject"),
    ("context", "data_directory", "discovery", "hookspecs", "plugin_hooks",
     "policy_settings", "settings", "sources"),
    ("journal", "migration", "plugins", "logs", "captured_output", "metrics", "tracing"),
    ("operations",),
    ("desk", "schemas", "written"),
    ("web", "worker"),
    ("supervisor",),
    ("cli", "__main__", "testing"),
)  # fmt: skip
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer}
# What the layers alone would allow.
STRANGERS = (
    ("web", "worker"),
    ("worker", "web"),
    ("journal", "plugins"),
    ("plugins", "journal"),
)
PURE = (
    "alert", "alertmanager", "calls", "clock", "durations", "episodes", "fingerprint",
    "guardrails", "identity", "intake", "packing", "policies", "replicas", "routing", "rules",
    "subject",
)  # fmt: skip
IMPURE = (
    "alembic", "asyncio", "boto3", "botocore", "click", "ctypes", "flask", "glob", "gunicorn",
    "http", "importlib", "io", "logging", "multiprocessing", "os", "pathlib", "pluggy", "psycopg",
    "queue", "random", "requests", "secrets", "select", "shutil", "signal", "socket", "sqlalchemy",
    "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request",
    "uuid", "warnings", "werkzeug",
)  # fmt: skip
IMPURE_CALLS = ("open", "print", "input", "eval", "exec", "now", "utcnow", "today", "getenv")
LONGEST_FILE = 400


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@functools.cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


@functools.cache
def imports_of(file: Path) -> frozenset[str]:
    """Return what a file imports, at its top or in a function; not what only checkers see.

    A name that is a module of ours counts as that module, any other as the module it comes from.
    """
    return frozenset(_imports_of(file))


def _imports_of(file: Path) -> Iterator[str]:
    nodes: list[ast.AST] = [tree_of(file)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            nodes += node.orelse
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_of(file).split(".")
            if file.name != "__init__.py":
                package = package[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield whole if whole in MODULES else origin


def ours(file: Path) -> set[str]:
    return {name for name in imports_of(file) if name.split(".")[0] == "receiver"}


def place_of(module: str) -> str:
    """Return a module's name in LAYERS: `receiver.journal.tables` is `journal` there."""
    return module.split(".")[1]


def is_or_in(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in packages)


RECEIVER_FILES = {
    module: file for module, file in MODULES.items() if module.startswith("receiver.")
}


def test_every_module_has_its_place_in_the_layers() -> None:
    assert {place_of(module) for module in RECEIVER_FILES} - LAYER_OF.keys() == set()


def test_module_imports_from_its_own_layer_and_below() -> None:
    above = [
        f"{module} imports {name}"
        for module, file in RECEIVER_FILES.items()
        for name in sorted(ours(file) - {"receiver"})
        if LAYER_OF[place_of(name)] > LAYER_OF[place_of(module)]
    ]
    assert not above, "\n".join(above)


def test_strangers_do_not_import_each_other() -> None:
    found = [
        f"{module} imports {name}"
        for module, file in RECEIVER_FILES.items()
        for name in sorted(ours(file) - {"receiver"})
        if (place_of(module), place_of(name)) in STRANGERS
    ]
    assert not found, "\n".join(found)


def test_package_itself_is_imported_by_plugins_alone() -> None:
    importers = [module for module, file in RECEIVER_FILES.items() if "receiver" in ours(file)]
    assert not importers, "\n".join(importers)


def test_front_door_offers_what_it_says_and_comes_from_low_layers() -> None:
    imported = ours(Path("receiver/__init__.py"))

    assert all(hasattr(receiver, name) for name in receiver.__all__)
    assert imported
    assert max(LAYER_OF[place_of(name)] for name in imported) < LAYER_OF["journal"]


def test_no_imports_go_in_a_circle() -> None:
    graph = {module: imports_of(file) & MODULES.keys() for module, file in MODULES.items()}

    try:
        order = list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"imports go in a circle: {' ← '.join(error.args[1])}")
    assert set(order) == MODULES.keys()


def test_bottom_imports_nothing_of_ours() -> None:
    found = [
        f"{module} imports {name}"
        for module in ("errors", "declarations", "discovery", "plainjson", "processes")
        for name in sorted(ours(Path(f"receiver/{module}.py")))
    ]
    assert not found, "\n".join(found)


def test_pure_module_imports_nothing_that_acts() -> None:
    found = [
        f"{module} imports {name}"
        for module in PURE
        for name in sorted(imports_of(Path(f"receiver/{module}.py")))
        if is_or_in(name, IMPURE)
    ]
    assert not found, "\n".join(found)


def test_pure_module_asks_neither_the_clock_nor_the_disk() -> None:
    called = [
        (module, node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id)
        for module in PURE
        for node in ast.walk(tree_of(Path(f"receiver/{module}.py")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)
    ]
    found = [f"{module} calls {name}" for module, name in called if name in IMPURE_CALLS]
    assert not found, "\n".join(found)


PLUGIN_FILES = {
    module: file for module, file in MODULES.items() if module.startswith("action_plugins.")
}


def test_built_in_action_uses_only_what_every_author_of_plugins_has() -> None:
    with every() as each:
        for module, file in PLUGIN_FILES.items():
            own = ".".join(module.split(".")[:2])
            names = {
                alias.name
                for node in ast.walk(tree_of(file))
                if isinstance(node, ast.ImportFrom) and node.module == "receiver"
                for alias in node.names
            }
            others = {
                name
                for name in imports_of(file)
                if is_or_in(name, ("action_plugins",)) and not is_or_in(name, (own,))
            }
            with each(module):
                assert ours(file) <= {"receiver"}
                assert names <= set(receiver.__all__)
                assert others == set()


def test_built_in_actions_are_known_to_the_discovery_alone() -> None:
    importers = {
        module
        for module, file in RECEIVER_FILES.items()
        if any(is_or_in(name, ("action_plugins",)) for name in imports_of(file))
    }
    assert importers <= {"receiver.discovery"}


def test_file_is_not_too_long() -> None:
    lines = {file: len((ROOT / file).read_text().splitlines()) for file in FILES}
    found = [f"{file}: {number} lines" for file, number in lines.items() if number > LONGEST_FILE]
    assert not found, "\n".join(found)


HEAVY = "flask sqlalchemy alembic psycopg boto3 botocore gunicorn promql_parser requests click"


NOT_LOADED = {
    "receiver": f"{HEAVY} marshmallow action_plugins",
    "receiver.alertmanager": HEAVY,
    "receiver.calls": HEAVY,
    "receiver.episodes": f"{HEAVY} marshmallow",
    "receiver.settings": f"{HEAVY} marshmallow",
    "receiver.discovery": f"{HEAVY} marshmallow",
    "receiver.plugins": HEAVY,
    "receiver.testing": HEAVY,
}


def test_import_is_light() -> None:
    with every() as each:
        for module, names in NOT_LOADED.items():
            code = (
                f"import sys, {module}; print([n for n in {names.split()!r} if n in sys.modules])"
            )
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", code],
                capture_output=True,
                text=True,
                timeout=60,
                cwd=ROOT,
                check=False,
            )
            with each(module):
                assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
