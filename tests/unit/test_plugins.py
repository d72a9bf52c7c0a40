"""Finding, loading, validating, listing and calling plugins, from real files and packages."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

import pytest

from receiver import hookspecs
from receiver.errors import PermanentError, PluginError, SettingsError
from receiver.plugins import (
    HOOKS,
    Actions,
    Plugin,
    catalog_of,
    load_actions,
    rules_of,
    try_to_load,
)
from receiver.policies import Policy, Rules
from receiver.settings import Settings, load
from tests.support.directories import open_directory

SHOUT = """
    from receiver import hookimpl

    @hookimpl
    def execute(metric_name, value):
        return f"{metric_name} IS {value:g}!"
"""
ARGUMENTS: Mapping[str, Any] = {
    "context": None,
    "metric_name": "queue_depth",
    "value": 90.0,
    "threshold": "> 80",
    "duration": timedelta(minutes=5),
}
TAKES = "it may take context, metric_name, value, threshold, duration"
Write = Callable[..., Path]


pytestmark = pytest.mark.usefixtures("fresh_imports")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "plugins"
    path.mkdir()
    return path


@pytest.fixture
def write(directory: Path) -> Write:
    """Writes a file of the plugin directory; the import of `hookimpl` comes with `body`."""

    def write_it(name: str, source: str = "", *, body: str = "") -> Path:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "from receiver import Setting, hookimpl\n" if body else ""
        path.write_text(head + dedent(source or body))
        return path

    return write_it


def settings_of(directory: Path | None, config: str = "", **environment: str) -> Settings:
    if directory is not None:
        environment["PLUGIN_DIR"] = str(directory)
    path = None
    if config:
        path = Path(environment["PLUGIN_DIR"]).parent / "receiver.toml"
        path.write_text(dedent(config))
    return load(environment, {}, path)


def loaded(directory: Path | None, config: str = "", **environment: str) -> Actions:
    """Load the plugins as a receiver with these settings would."""
    return load_actions(settings_of(directory, config, **environment))


class Refusal(NamedTuple):
    """Why a start was refused, and what is listed all the same."""

    problems: tuple[str, ...]
    actions: Actions


def refused(directory: Path | None, config: str = "", **environment: str) -> Refusal:
    settings = settings_of(directory, config, **environment)
    with pytest.raises(PluginError) as caught:
        load_actions(settings)
    actions, problems = try_to_load(settings)
    assert caught.value.problems == tuple(problems)
    assert str(caught.value) == "; ".join(problems)
    return Refusal(caught.value.problems, actions)


def rules(directory: Path | None, config: str = "", **environment: str) -> Rules:
    settings = settings_of(directory, config, **environment)
    return rules_of(settings, load_actions(settings))


def call(actions: Actions, name: str, hook: str = "execute", **arguments: Any) -> Any:
    return actions.call(name, hook, {**ARGUMENTS, **arguments})


def test_built_ins_are_loaded_unless_something_that_they_need_is_absent() -> None:
    actions = loaded(None)

    assert actions.loaded == {"file_action", "http_plugin", "log_action"}
    efs = actions.plugins["efs_emergency"]
    assert (efs.state, efs.origin) == ("not configured", "action_plugins.efs_emergency")
    for name in ("EFS_FILE_SYSTEM_ID", "EFS_FILE_SYSTEM_PROMETHEUS_LABEL"):
        assert f"{name}: is not set" in efs.reason
    assert all(one.hooks and "execute" in one.hooks for one in actions.plugins.values())


def test_plugin_as_small_as_in_the_readme_works(directory: Path, write: Write) -> None:
    file = write("shout.py", SHOUT)

    actions = loaded(directory)

    assert "shout" in actions
    assert actions.plugins["shout"] == Plugin(
        "shout", str(file), "loaded", hooks=("execute",),
        implementation=actions.plugins["shout"].implementation,
    )  # fmt: skip
    assert call(actions, "shout") == "queue_depth IS 90!"


def test_plugin_takes_any_of_the_arguments_in_any_order(directory: Path, write: Write) -> None:
    write("all_of_them.py", body="""
        @hookimpl
        def execute(duration, threshold, value, metric_name, context):
            return [context, metric_name, value, threshold, duration]

        @hookimpl
        def resolved():
            return "none of them"

        @hookimpl
        def describe(metric_name, value=0.0):
            return f"{metric_name} {value}"
    """)  # fmt: skip

    actions = loaded(directory)

    assert call(actions, "all_of_them") == list(ARGUMENTS.values())
    assert call(actions, "all_of_them", "resolved") == "none of them"
    assert call(actions, "all_of_them", "describe") == "queue_depth 90.0"
    assert actions.plugins["all_of_them"].hooks == ("execute", "resolved", "describe")


def test_package_is_a_plugin_whose_modules_import_each_other(directory: Path, write: Write) -> None:
    write("loud/late.py", "MARK = '!'")
    write("loud/words.py", """
        from dataclasses import dataclass

        @dataclass
        class Word:
            text: str
    """)  # fmt: skip
    write("loud/__init__.py", body="""
        from .words import Word

        @hookimpl
        def execute(metric_name):
            from .late import MARK

            return Word(metric_name).text.upper() + MARK
    """)  # fmt: skip

    assert call(loaded(directory), "loud") == "QUEUE_DEPTH!"


@pytest.mark.parametrize(
    ("at_import", "at_call"),
    [("from . import late", "pass"), ("", "from . import late")],
    ids=["when it is imported", "when it is called"],
)
def test_package_may_import_its_modules_from_itself(
    at_import: str, at_call: str, directory: Path, write: Write
) -> None:
    write("loud/late.py", "MARK = '!'")
    write("loud/__init__.py", body=f"""
        {at_import}

        @hookimpl
        def execute():
            {at_call}
            return late.MARK
    """)  # fmt: skip

    assert call(loaded(directory), "loud") == "!"


def test_mounted_configmap_is_read_through_its_links(directory: Path, write: Write) -> None:
    version = "..2026_01_02_03_04_05.123456789"
    write(f"{version}/shout.py", SHOUT)
    write(f"{version}/whisper.py", SHOUT.replace("IS", "is"))
    (directory / "..data").symlink_to(version)
    for name in ("shout.py", "whisper.py"):
        (directory / name).symlink_to(Path("..data") / name)

    actions = loaded(directory)

    assert {"shout", "whisper"} <= actions.loaded
    assert len(actions.plugins) == len(loaded(None).plugins) + 2
    assert call(actions, "whisper") == "queue_depth is 90!"


def test_linked_package_is_a_plugin(directory: Path, write: Write, tmp_path: Path) -> None:
    write("../elsewhere/__init__.py", SHOUT)
    (directory / "linked").symlink_to(tmp_path / "elsewhere")

    assert call(loaded(directory), "linked") == "queue_depth IS 90!"


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.py",
        "_private.py",
        "__init__.py",
        "__pycache__/shout.cpython-311.pyc",
        "_package/__init__.py",
        ".package/__init__.py",
        "..data/shout.py",
        "no_package/shout.py",
        "README.md",
        "shout.txt",
        "shout.pyc",
        "shout.py.bak",
        "shout.py~",
    ],
)
def test_what_is_no_plugin_is_ignored(name: str, directory: Path, write: Write) -> None:
    write(name, "raise RuntimeError('was imported')")

    assert loaded(directory).plugins.keys() == loaded(None).plugins.keys()


def test_link_that_leads_nowhere_is_ignored(directory: Path) -> None:
    (directory / "gone.py").symlink_to("nowhere.py")

    assert loaded(directory).plugins.keys() == loaded(None).plugins.keys()


@pytest.fixture
def directory_for_others() -> Iterator[Path]:
    with open_directory("plugins-") as name:
        yield Path(name)


def test_entry_that_may_not_be_looked_into_is_ignored(directory_for_others: Path) -> None:
    # Such as `lost+found` of a volume. Root may look everywhere: hence another user.
    directory = directory_for_others
    (directory / "shout.py").write_text(dedent(SHOUT))
    (directory / "lost+found").mkdir(mode=0)
    directory.chmod(0o755)
    code = (
        "import os, action_plugins.log_action\n"
        "from receiver.plugins import load_actions\n"
        "from receiver.settings import load\n"
        f"settings = load({{'PLUGIN_DIR': {str(directory)!r}, 'HOME': '/', "
        "'RECEIVER_ACTIONS': 'log_action,shout'}, {})\n"
        "os.getuid() or os.setuid(54321)\n"
        "print(sorted(load_actions(settings).loaded))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip

    assert (done.stdout, done.stderr) == ("['log_action', 'shout']\n", "")


def test_nothing_is_written_into_the_directory(directory: Path, write: Write) -> None:
    write("shout.py", SHOUT)
    write("broken.py", "raise RuntimeError")
    write("loud/late.py", "MARK = '!'")
    write("loud/__init__.py", body="""
        @hookimpl
        def execute():
            from .late import MARK

            return MARK
    """)  # fmt: skip

    def listed() -> list[tuple[str, int]]:
        return sorted((str(path), path.stat().st_mtime_ns) for path in directory.rglob("*"))

    before = listed()
    for path in (directory, directory / "loud"):
        path.chmod(0o555)

    try:
        refused(directory)
        actions = loaded(directory, RECEIVER_ACTIONS="shout,loud")
        assert (call(actions, "shout"), call(actions, "loud")) == ("queue_depth IS 90!", "!")
        assert listed() == before
    finally:
        for path in (directory, directory / "loud"):
            path.chmod(0o755)


def test_read_only_file_system_is_enough(directory: Path, write: Write) -> None:
    write("..2026/shout.py", SHOUT)
    (directory / "..data").symlink_to("..2026")
    (directory / "shout.py").symlink_to("..data/shout.py")
    write("loud/__init__.py", SHOUT)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    within = [
        [*unshare, "sh", "-c", mount, str(directory)]
        for unshare in (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount"))
        if shutil.which("unshare")
    ]
    within = [one for one in within if not subprocess.run([*one, "true"], check=False).returncode]
    if not within:  # Where nobody may mount, the rights keep at least the others out.
        directory.chmod(0o555)

    done = subprocess.run(
        [*(within or [[]])[0], sys.executable, "-c",
         "import os, sys\n"
         "from receiver.plugins import load_actions\n"
         "from receiver.settings import load\n"
         "print(os.statvfs(sys.argv[1]).f_flag & os.ST_RDONLY)\n"
         "actions = load_actions(load({'PLUGIN_DIR': sys.argv[1]}, {}))\n"
         "print(sorted({'shout', 'loud'} & actions.loaded))\n",
         str(directory)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    directory.chmod(0o755)

    assert done.stderr == ""
    assert done.stdout == f"{int(bool(within))}\n['loud', 'shout']\n"
    assert not list(directory.rglob("__pycache__"))


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_directory_that_cannot_be_read_stops_the_start(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "plugins"
    if kind == "file":
        path.touch()

    cause = {"missing": "No such file or directory", "file": "Not a directory"}[kind]
    assert refused(path).problems == (f"PLUGIN_DIR: {path} cannot be read: {cause}",)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param("def execute(:", "SyntaxError: .*line 1.*", id="syntax"),
        pytest.param("\0", "(SyntaxError|ValueError): .*null bytes.*", id="binary"),
        pytest.param("raise RuntimeError('no luck')", "RuntimeError: no luck", id="raises"),
        pytest.param(
            "import not_there_at_all",
            "ModuleNotFoundError: No module named 'not_there_at_all'",
            id="import",
        ),
        pytest.param("import sys; sys.exit(3)", "SystemExit: 3", id="exits"),
        pytest.param("raise SystemExit", "SystemExit: ?", id="exits silently"),
        pytest.param(
            "class Mute(Exception):\n    def __str__(self): raise OSError\nraise Mute",
            "Mute: <Mute whose text cannot be had: OSError>",
            id="raises what has no text",
        ),
        pytest.param("", r"it has no execute\(\); mark one with @hookimpl", id="empty"),
        pytest.param(
            "def execute(): pass", r"it has no execute\(\); mark one with @hookimpl", id="unmarked"
        ),
        pytest.param(
            "from receiver import hookimpl\n@hookimpl\ndef resolved(): pass",
            r"it has no execute\(\); mark one with @hookimpl",
            id="resolved only",
        ),
    ],
)
def test_broken_plugin_stops_the_start_with_its_name_and_cause(
    source: str, reason: str, directory: Path, write: Write
) -> None:
    file = write("worse.py", source)

    error = refused(directory)

    (problem,) = error.problems
    assert re.fullmatch(re.escape(f"worse ({file}): ") + reason, problem)
    assert error.actions.plugins["worse"].state == "broken"
    assert re.fullmatch(reason, error.actions.plugins["worse"].reason)


EXECUTE = "@hookimpl\ndef execute(): pass\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "@hookimpl\ndef exekute(): pass",
            "there is no hook exekute (did you mean execute?)",
        ),
        (
            EXECUTE + "@hookimpl\ndef on_resolved(): pass",
            "there is no hook on_resolved (did you mean resolved?)",
        ),
        (EXECUTE + "@hookimpl\ndef zzz(): pass", "there is no hook zzz"),
        (
            "@hookimpl(specname='exec')\ndef execute(): pass",
            "there is no hook exec (did you mean execute?)",
        ),
        (
            "@hookimpl\ndef execute(metric, value): pass",
            f"execute() has no argument metric (did you mean metric_name?); {TAKES}",
        ),
        ("@hookimpl\ndef execute(zzz): pass", f"execute() has no argument zzz; {TAKES}"),
        ("@hookimpl\ndef execute(**more): pass", f"execute() has no argument more; {TAKES}"),
        ("@hookimpl\ndef execute(*more): pass", f"execute() has no argument more; {TAKES}"),
        (
            EXECUTE + "@hookimpl\ndef settings(context): return []",
            "settings() has no argument context; it may take none",
        ),
        (
            EXECUTE + "@hookimpl\ndef validate_config(setings): pass",
            "validate_config() has no argument setings (did you mean settings?); "
            "it may take settings",
        ),
        (
            "@hookimpl\nasync def execute(): pass",
            "execute() is async or has a yield, so that calling it does nothing; make it a plain "
            "function",
        ),
        (
            "@hookimpl\nasync def execute(): yield",
            "execute() is async or has a yield, so that calling it does nothing; make it a plain "
            "function",
        ),
        (
            "@hookimpl\ndef execute(): yield",
            "execute() is async or has a yield, so that calling it does nothing; make it a plain "
            "function, or a wrapper: @hookimpl(wrapper=True)",
        ),
        (
            EXECUTE + "@hookimpl\nasync def resolved(): pass",
            "resolved() is async or has a yield, so that calling it does nothing; make it a plain "
            "function",
        ),
        (
            "@hookimpl\ndef execute(a): pass\n@hookimpl\ndef resolve(): pass",
            f"execute() has no argument a; {TAKES}; "
            "there is no hook resolve (did you mean resolved?)",
        ),
    ],
    ids=lambda text: re.sub(r"\s+", " ", text.replace(EXECUTE, ""))[:40],
)
def test_wrong_hook_or_argument_is_told_with_the_nearest_right_one(
    body: str, reason: str, directory: Path, write: Write
) -> None:
    file = write("wrong.py", body=body)

    assert refused(directory).problems == (f"wrong ({file}): {reason}",)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_when_how_often_and_what_raising_means(hook: str) -> None:
    said = " ".join((inspect.getdoc(getattr(hookspecs, hook)) or "").split())
    assert re.search(r"\bCalled\b.*\b(once|instead of|like)\b", said)
    assert "Raising" in said


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_typed(hook: str) -> None:
    spec = inspect.signature(getattr(hookspecs, hook))
    types = [one.annotation for one in spec.parameters.values()] + [spec.return_annotation]
    assert inspect.Parameter.empty not in types


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_may_be_implemented_with_all_its_arguments(
    hook: str, directory: Path, write: Write
) -> None:
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    other = "" if hook == "execute" else EXECUTE
    write("full.py", body=f"{other}@hookimpl\ndef {hook}({arguments}): return None")

    assert set(loaded(directory).plugins["full"].hooks) == {"execute", hook}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "@hookimpl\ndef name(): return 'other'",
            "its name() says 'other', its place says 'odd'; settings choose by the name, so let "
            "both be the same",
        ),
        ("@hookimpl\ndef name(): raise LookupError('no name')", "LookupError: no name"),
        ("@hookimpl\ndef settings(): raise LookupError('no idea')", "LookupError: no idea"),
        (
            "@hookimpl\ndef settings(): return [Setting('X', 'number')]",
            "ValueError: X: 'number' is not a type of setting",
        ),
        (
            "@hookimpl\ndef settings(): return [Setting('X', 'integer', 5)]",
            "TypeError: X: the default 5 is no text; write it as a user would, in quotes",
        ),
        (
            "@hookimpl\ndef settings(): return ['X']",
            "settings(): 'X' is no Setting; write Setting(name, type, default, help)",
        ),
        (
            "@hookimpl\ndef settings(): return [Setting('x')]",
            "settings(): 'x' is not a name for a setting; use capitals, digits and underscores",
        ),
        (
            "@hookimpl\ndef settings(): return [Setting('RECEIVER_X')]",
            "settings(): 'RECEIVER_X' is not a name for a setting; use capitals, digits and "
            "underscores, and leave RECEIVER_ to the receiver's own",
        ),
        (
            "@hookimpl\ndef settings(): return [Setting('X'), Setting('X')]",
            "settings(): X is declared twice",
        ),
        (
            "@hookimpl\ndef validate_config(): raise ValueError('X: is odd; make it even')",
            "ValueError: X: is odd; make it even",
        ),
        ("@hookimpl\ndef validate_config(): raise SystemExit('odd')", "SystemExit: odd"),
    ],
    ids=[
        "other name",
        "no name",
        "no settings",
        "bad settings",
        "default that is no text",
        "text for a setting",
        "small letters",
        "name of the receiver's",
        "twice",
        "invalid",
        "exits",
    ],
)
def test_plugin_whose_hooks_fail_at_start_is_broken(
    body: str, reason: str, directory: Path, write: Write
) -> None:
    file = write("odd.py", body=EXECUTE + body)

    (problem,) = refused(directory).problems

    assert problem.startswith(f"odd ({file}): {reason}")


def test_plugin_may_say_its_own_name(directory: Path, write: Write) -> None:
    write("odd.py", body=EXECUTE + "@hookimpl\ndef name(): return 'odd'")

    assert "odd" in loaded(directory)


def test_all_broken_plugins_are_told_at_once_beside_those_that_work(
    directory: Path, write: Write
) -> None:
    write("a_bad.py", "raise RuntimeError('a')")
    write("b_good.py", SHOUT)
    write("c_bad.py", "import sys; sys.exit('c')")
    write("d_bad.py", "def")

    error = refused(directory, ACTION_PLUGIN="nonsense")

    assert [problem.partition(" ")[0] for problem in error.problems] == [
        "ACTION_PLUGIN:",
        "a_bad",
        "c_bad",
        "d_bad",
    ]
    assert "b_good" in error.actions
    assert {one.name for one in error.actions.plugins.values() if one.state == "broken"} == {
        "a_bad",
        "c_bad",
        "d_bad",
    }


@pytest.mark.parametrize(
    "name", ["Shout", "1st", "my plugin", "über", "a.b", "a" * 64], ids=lambda name: name[:9]
)
def test_name_of_another_form_is_refused(name: str, directory: Path, write: Write) -> None:
    file = write(f"{name}.py", SHOUT)

    assert refused(directory).problems == (
        f"{name} ({file}): a plugin's name is made of lower-case letters, digits and underscores; "
        "rename it",
    )


def test_dash_in_a_file_name_becomes_an_underscore(directory: Path, write: Write) -> None:
    write("shout-loud.py", SHOUT)
    write("very-loud/__init__.py", SHOUT)

    assert {"shout_loud", "very_loud"} <= loaded(directory).loaded


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("shout.py", "shout/__init__.py", "shout"),
        ("shout-loud.py", "shout_loud.py", "shout_loud"),
        ("", "log_action.py", "log_action"),
    ],
    ids=["file and package", "dash and underscore", "built-in"],
)
def test_two_plugins_of_one_name_stop_the_start(
    first: str, second: str, name: str, directory: Path, write: Write
) -> None:
    for one in filter(None, (first, second)):
        write(one, SHOUT)

    (problem,) = refused(directory).problems

    assert problem.startswith(f"{name}: two plugins have this name: ")
    assert (str(directory / first) if first else "action_plugins.log_action") in problem
    assert str(directory / second.partition("/")[0]) in problem


NEEDY = """
    @hookimpl
    def settings():
        return [
            Setting("NEEDY_URL", "url", required=True, help="where it is"),
            Setting("NEEDY_SIZE", "size", "1MiB", "how big it is"),
            Setting("NEEDY_TOKEN", help="how to come in", secret=True),
        ]

    @hookimpl
    def execute(context):
        return context
"""


def test_plugin_that_nothing_names_may_lack_a_setting(directory: Path, write: Write) -> None:
    write("needy.py", body=NEEDY)

    needy = loaded(directory).plugins["needy"]

    assert (needy.state, needy.reason) == ("not configured", "NEEDY_URL: is not set; where it is")
    assert [one.name for one in needy.settings] == ["NEEDY_URL", "NEEDY_SIZE", "NEEDY_TOKEN"]
    assert needy.implementation is None


@pytest.mark.parametrize(
    ("config", "environment"),
    [
        ("", {"RECEIVER_ACTIONS": "needy,log_action"}),
        ("", {"ACTION_PLUGIN": "log_action,needy"}),
        ("", {"RECEIVER_ACTION_NEEDY_TIMEOUT": "5s"}),
        ("[actions.needy]\ntimeout = '5s'", {}),
        ("[plugins.needy]\nneedy_size = '1KiB'", {}),
    ],
    ids=["RECEIVER_ACTIONS", "ACTION_PLUGIN", "policy", "[actions]", "[plugins]"],
)
def test_plugin_that_is_named_may_lack_none(
    config: str, environment: dict[str, str], directory: Path, write: Write
) -> None:
    file = write("needy.py", body=NEEDY)

    error = refused(directory, config, **environment)

    assert error.problems == (f"needy ({file}): NEEDY_URL: is not set; where it is",)
    assert error.actions.plugins["needy"].state == "broken"


def test_bad_setting_stops_the_start_even_where_nothing_names_the_plugin(
    directory: Path, write: Write
) -> None:
    file = write("needy.py", body=NEEDY)

    assert refused(directory, NEEDY_SIZE="1 elephant").problems == (
        f"needy ({file}): NEEDY_URL: is not set; where it is; "
        'NEEDY_SIZE: "1 elephant" is not a size; write bytes or 10MiB',
    )


def test_settings_come_from_the_environment_sooner_than_from_the_file(
    directory: Path, write: Write, tmp_path: Path
) -> None:
    write("needy.py", body=NEEDY)
    token = tmp_path / "token"
    token.write_text("hunter2\n")
    config = f"""
        [plugins.needy]
        needy_url = "http://from-the-file/"
        needy_size = "2KiB"
        needy_token_file = "{token}"
    """

    actions = loaded(directory, config, NEEDY_URL="http://from-the-environment/")

    assert actions.plugins["needy"].values == {
        "NEEDY_URL": "http://from-the-environment/",
        "NEEDY_SIZE": 2048,
        "NEEDY_TOKEN": "hunter2",
    }
    assert "hunter2" not in repr(actions.plugins)


def test_validate_config_gets_all_values_parsed_and_its_word_counts(
    directory: Path, write: Write
) -> None:
    file = write("needy.py", body=NEEDY + """
    @hookimpl
    def validate_config(settings):
        raise ValueError(f"{sorted(settings.items(), key=str)}")
    """)  # fmt: skip

    assert refused(directory, NEEDY_URL="http://x/").problems == (
        f"needy ({file}): ValueError: [('NEEDY_SIZE', 1048576), ('NEEDY_TOKEN', None), "
        "('NEEDY_URL', 'http://x/')]",
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("needy_sise", " (did you mean needy_size?)"),
        ("needy_size_file", " (did you mean needy_size?)"),
        ("zzz", ""),
    ],
)
def test_unknown_key_of_a_plugin_is_refused_without_its_value(
    key: str, hint: str, directory: Path, write: Write
) -> None:
    file = write("needy.py", body=NEEDY)

    error = refused(directory, f"[plugins.needy]\n{key} = 'hunter2'", NEEDY_URL="http://x/")

    assert error.problems == (
        f"needy ({file}): receiver.toml: [plugins.needy] {key} is not one of its settings{hint}",
    )


def test_no_problem_tells_a_secret(directory: Path, write: Write) -> None:
    write("needy.py", body=NEEDY.replace('Setting("NEEDY_TOKEN",', 'Setting("NEEDY_TOKEN", "url",'))

    error = refused(directory, NEEDY_TOKEN="hunter2", NEEDY_SIZE="x")

    assert "NEEDY_TOKEN: is not a URL" in error.problems[0]
    assert "hunter2" not in f"{error.problems} {error.actions.plugins}"


@pytest.mark.parametrize(
    ("config", "environment", "where"),
    [
        ("", {"ACTION_PLUGIN": "shuot"}, "ACTION_PLUGIN"),
        ("", {"RECEIVER_ACTIONS": "shuot,log_action,shout"}, "RECEIVER_ACTIONS"),
        ("", {"RECEIVER_ACTION_SHUOT_TIMEOUT": "5s"}, "[actions.shuot]"),
        ("[actions.shuot]", {}, "[actions.shuot]"),
        ("[plugins.shuot]", {}, "[plugins]"),
    ],
    ids=["ACTION_PLUGIN", "RECEIVER_ACTIONS", "policy", "[actions]", "[plugins]"],
)
def test_name_that_stands_for_nothing_is_told_with_its_place_and_the_nearest(
    config: str, environment: dict[str, str], where: str, directory: Path, write: Write
) -> None:
    write("shout.py", SHOUT)

    assert refused(directory, config, **environment).problems == (
        f"{where}: there is no plugin shuot (did you mean shout?)",
    )


def test_plugin_that_is_not_enabled_is_not_even_imported(directory: Path, write: Write) -> None:
    trace = directory.parent / "imported"
    for name in ("shout", "other"):
        leave_trace = f"import pathlib\npathlib.Path({str(trace)!r}).write_text(__name__)\n"
        write(f"{name}.py", leave_trace + dedent(SHOUT))

    actions = loaded(directory, RECEIVER_ACTIONS="shout")

    assert trace.read_text() == "receiver_plugins.shout"
    assert actions.loaded == {"shout"}
    assert {one.state for one in actions.plugins.values() if one.name != "shout"} == {"disabled"}
    assert actions.plugins["other"].reason == "it is not among RECEIVER_ACTIONS"
    assert actions.plugins["log_action"].implementation is None


def test_broken_plugin_that_is_not_enabled_does_no_harm(directory: Path, write: Write) -> None:
    write("broken.py", "raise RuntimeError")

    actions = loaded(directory, RECEIVER_ACTIONS="log_action")

    assert actions.plugins["broken"].state == "disabled"
    assert actions.loaded == {"log_action"}


def test_no_action_at_all_can_be_enabled_by_a_list_of_nothing() -> None:
    assert loaded(None, RECEIVER_ACTIONS=",").loaded == frozenset()


def test_named_plugin_that_is_not_enabled_stops_the_start(directory: Path, write: Write) -> None:
    file = write("shout.py", SHOUT)

    error = refused(directory, RECEIVER_ACTIONS="log_action", ACTION_PLUGIN="shout")

    assert error.problems == (f"shout ({file}): it is not among RECEIVER_ACTIONS",)


def wrapper(name: str, options: str = "") -> str:
    return f"""
        @hookimpl(wrapper=True{options})
        def execute(context):
            context.append("{name} before")
            try:
                return f"<{name}>{{(yield)}}"
            except ValueError as error:
                context.append(f"{name} saw {{error}}")
                raise
            finally:
                context.append("{name} after")
    """


TELL = """
    @hookimpl
    def execute(context):
        context.append("execute")
        return "done"
"""


def test_wrappers_surround_every_action_the_last_outermost(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a"))
    write("between.py", body=TELL)
    write("wrap_b.py", body=wrapper("b"))
    write("zz_last.py", body=TELL)

    actions = loaded(directory)

    for name in ("between", "zz_last"):
        seen: list[str] = []
        assert call(actions, name, context=seen) == "<b><a>done"
        assert seen == ["b before", "a before", "execute", "a after", "b after"]


def test_wrapper_of_an_action_surrounds_all_others_and_the_action_itself(
    directory: Path, write: Write
) -> None:
    both = dedent(TELL) + dedent(wrapper("both", ", specname='execute'")).replace(
        "def execute", "def around"
    )
    write("both.py", body=both)
    write("tell.py", body=TELL)
    actions = loaded(directory)

    for name in ("both", "tell"):
        seen: list[str] = []
        assert call(actions, name, context=seen) == "<both>done"
        assert seen == ["both before", "execute", "both after"]
    assert actions.plugins["both"].state == "loaded"
    assert actions.plugins["both"].hooks == ("execute",)


def test_wrapper_may_ask_for_its_place(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a", ", tryfirst=True"))
    write("wrap_b.py", body=wrapper("b"))
    write("wrap_c.py", body=wrapper("c", ", trylast=True"))
    write("tell.py", body=TELL)

    assert call(loaded(directory), "tell", context=[]) == "<a><b><c>done"


def test_wrapper_sees_errors_and_lets_them_pass(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a"))
    write("fails.py", body="@hookimpl\ndef execute(): raise ValueError('odd')")
    seen: list[str] = []

    with pytest.raises(ValueError, match=r"^odd$"):
        call(loaded(directory), "fails", context=seen)

    assert seen == ["a before", "a saw odd", "a after"]


def test_wrapper_may_turn_an_error_into_another_or_into_a_result(
    directory: Path, write: Write
) -> None:
    write("wrap.py", body="""
        from receiver import PermanentError

        @hookimpl(wrapper=True)
        def execute(metric_name):
            try:
                return (yield)
            except LookupError as error:
                if metric_name == "harmless":
                    return "saved"
                raise PermanentError("not found") from error
    """)  # fmt: skip
    write("fails.py", body="@hookimpl\ndef execute(): raise LookupError('odd')")
    actions = loaded(directory)

    assert call(actions, "fails", metric_name="harmless") == "saved"
    with pytest.raises(PermanentError, match=r"^not found$"):
        call(actions, "fails")


def test_wrapper_surrounds_the_hook_that_it_names_and_no_other(
    directory: Path, write: Write
) -> None:
    write("wrap.py", body="""
        @hookimpl(wrapper=True)
        def resolved():
            return f"<{(yield)}>"
    """)  # fmt: skip
    write("both.py", body="""
        @hookimpl
        def execute():
            return "executed"

        @hookimpl
        def resolved():
            return "resolved"
    """)  # fmt: skip
    actions = loaded(directory)

    assert (call(actions, "both"), call(actions, "both", "resolved")) == ("executed", "<resolved>")


def test_plugin_of_wrappers_alone_is_no_action(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a"))

    actions = loaded(directory)

    assert actions.plugins["wrap_a"].state == "wrapper"
    assert "wrap_a" not in actions.loaded
    assert actions.why_not_loaded("wrap_a") == (
        "wrap_a only wraps other actions; it has no execute of its own"
    )


@pytest.mark.parametrize("hook", ["resolved", "describe", "default_policy"])
def test_plugin_of_wrappers_alone_may_not_answer_for_other_actions(
    hook: str, directory: Path, write: Write
) -> None:
    file = write(
        "wrap_a.py", body=dedent(wrapper("a")) + f"\n@hookimpl\ndef {hook}(): return 'HIJACKED'"
    )
    write("mine.py", body=EXECUTE + "@hookimpl\ndef resolved(): return 'mine'")

    error = refused(directory)

    assert error.problems == (f"wrap_a ({file}): it has {hook}() but no execute()",)
    assert call(error.actions, "mine", "resolved") == "mine"
    assert call(error.actions, "mine", "describe") is None


def test_plugin_of_wrappers_alone_is_not_the_action_of_alerts_that_name_none(
    directory: Path, write: Write
) -> None:
    write("wrap_a.py", body=wrapper("a"))

    assert refused(directory, ACTION_PLUGIN="log_action,wrap_a").problems == (
        "ACTION_PLUGIN: wrap_a only wraps other actions; it has no execute of its own",
    )


def test_wrapper_that_is_not_enabled_surrounds_nothing(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a"))
    write("tell.py", body=TELL)

    assert call(loaded(directory, RECEIVER_ACTIONS="tell"), "tell", context=[]) == "done"
    assert call(loaded(directory, RECEIVER_ACTIONS="tell,wrap_a"), "tell", context=[]) == "<a>done"


def test_call_runs_one_action_and_no_other(directory: Path, write: Write) -> None:
    for name in ("one", "two", "three"):
        write(f"{name}.py", body=f"@hookimpl\ndef execute(context): context.append('{name}')")
    actions = loaded(directory)
    seen: list[str] = []

    for name in ("two", "one", "two"):
        assert call(actions, name, context=seen) is None

    assert seen == ["two", "one", "two"]


def test_hook_that_an_action_does_not_have_is_answered_by_nobody(
    directory: Path, write: Write
) -> None:
    write("shout.py", SHOUT)
    write("other.py", body=EXECUTE + "@hookimpl\ndef describe(): return 'would do'")
    actions = loaded(directory)

    assert call(actions, "shout", "describe") is None
    assert not actions.has_hook("shout", "describe")
    assert actions.has_hook("other", "describe")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a distribution with entry points: a dist-info and a module on the path."""

    def install_it(points: Mapping[str, str], source: str, module: str = "installed_one") -> None:
        site = tmp_path / f"site-{module}"
        info = site / f"{module}-1.2.3.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2.3\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[receiver.actions]", *lines, ""]))
        (site / f"{module}.py").write_text(
            "from receiver import Setting, hookimpl\n" + dedent(source)
        )
        monkeypatch.syspath_prepend(site)

    return install_it


OBJECTS = """
    class Shouter:
        __version__ = "9"

        def __init__(self, mark):
            self.mark = mark

        @hookimpl
        def execute(self, metric_name):
            return metric_name + self.mark

        @hookimpl
        def settings(self):
            return [Setting("SHOUT_LEVEL", "count", "1")]

        def not_a_hook(self, anything):
            raise AssertionError

    loud, silent = Shouter("!"), Shouter("")
"""


def test_installed_package_may_hold_several_plugins(install: Callable[..., None]) -> None:
    install({"loud": "installed_one:loud", "very-silent": "installed_one:silent"}, OBJECTS)

    actions = loaded(None, RECEIVER_ACTIONS="loud,very_silent,log_action", SHOUT_LEVEL="7")

    assert actions.loaded == {"loud", "very_silent", "log_action"}
    assert (call(actions, "loud"), call(actions, "very_silent")) == ("queue_depth!", "queue_depth")
    found = actions.plugins["loud"]
    assert (found.origin, found.version) == ("installed_one:loud in installed_one", "1.2.3")
    assert found.values == {"SHOUT_LEVEL": 7}


def test_installed_plugin_may_be_a_module(install: Callable[..., None]) -> None:
    install({"shout": "installed_one"}, SHOUT)

    assert call(loaded(None, ACTION_PLUGIN="shout"), "shout") == "queue_depth IS 90!"


def test_installed_plugin_that_nothing_names_is_listed_and_not_imported(
    install: Callable[..., None],
) -> None:
    install({"shout": "installed_one"}, "raise RuntimeError('was imported')")

    shout = loaded(None).plugins["shout"]

    assert (shout.state, shout.version) == ("disabled", "1.2.3")
    assert "installed_one" not in sys.modules


@pytest.mark.parametrize("name", ["My.Plugin", "log_action", "9lives"])
def test_installed_plugin_that_nothing_names_may_be_called_anything(
    name: str, install: Callable[..., None]
) -> None:
    install({name: "installed_one"}, "raise RuntimeError('was imported')")

    actions = loaded(None)

    assert actions.plugins.keys() == {
        "efs_emergency", "exec_plugin", "file_action", "http_plugin", "log_action"
    }  # fmt: skip
    assert actions.plugins["log_action"].origin == "action_plugins.log_action"


def test_named_plugin_that_is_both_installed_and_built_in_stops_the_start(
    install: Callable[..., None],
) -> None:
    install({"log_action": "installed_one"}, SHOUT)

    assert refused(None, ACTION_PLUGIN="log_action").problems == (
        "log_action: two plugins have this name: action_plugins.log_action and "
        "installed_one in installed_one",
    )


def test_object_that_is_installed_under_two_names_is_broken_under_the_second(
    install: Callable[..., None],
) -> None:
    install({"aa": "installed_one", "bb": "installed_one"}, EXECUTE)

    error = refused(None, RECEIVER_ACTIONS="aa,bb")

    assert error.actions.loaded == {"aa"}
    assert error.actions.plugins["bb"].state == "broken"
    (problem,) = error.problems
    assert problem.startswith("bb (installed_one in installed_one): ")


@pytest.mark.parametrize(
    ("config", "environment"),
    [
        ("", {"RECEIVER_ACTIONS": "shout"}),
        ("", {"ACTION_PLUGIN": "shout"}),
        ("", {"RECEIVER_ACTION_SHOUT_TIMEOUT": "5s"}),
        ("", {"RECEIVER_ACTION_LOG_ACTION_ESCALATE_TO": "shout"}),
        ("[actions.log_action]\nescalate_to = 'shout'", {}),
        ("[plugins.shout]", {}),
    ],
    ids=["RECEIVER_ACTIONS", "ACTION_PLUGIN", "policy", "escalation", "[actions]", "[plugins]"],
)
def test_installed_plugin_is_loaded_once_something_names_it(
    config: str, environment: dict[str, str], install: Callable[..., None], directory: Path
) -> None:
    install({"shout": "installed_one"}, SHOUT)

    assert "shout" in loaded(directory, config, **environment)


@pytest.mark.parametrize(
    ("value", "source", "reason"),
    [
        ("installed_one:loud", "", "AttributeError: "),
        ("installed_nowhere", "", "ModuleNotFoundError: No module named 'installed_nowhere'"),
        ("installed_one", "import sys; sys.exit(1)", "SystemExit: 1"),
        ("installed_one:Shouter", OBJECTS, "it is a class; name an object of it"),
    ],
    ids=["no such object", "no such module", "exits", "a class"],
)
def test_broken_installed_plugin_stops_the_start_when_it_is_named_and_spoils_no_other(
    value: str, source: str, reason: str, install: Callable[..., None]
) -> None:
    install({"bad": value}, source)
    install({"shout": "installed_two"}, SHOUT, "installed_two")

    (problem,) = refused(None, ACTION_PLUGIN="bad,shout").problems

    assert problem.startswith(f"bad ({value} in installed_one): {reason}")
    assert "shout" in loaded(None, ACTION_PLUGIN="shout")


def test_installed_wrapper_surrounds_actions_of_all_sources(
    install: Callable[..., None], directory: Path, write: Write
) -> None:
    install({"wrap": "installed_one"}, wrapper("wrap"))
    install({"tell_installed": "installed_two"}, TELL, "installed_two")
    write("tell_file.py", body=TELL)

    actions = loaded(directory, RECEIVER_ACTIONS="wrap,tell_installed,tell_file")

    for name in ("tell_installed", "tell_file"):
        assert call(actions, name, context=[]) == "<wrap>done"


def test_routing_sees_what_is_loaded_and_why_the_rest_is_not(directory: Path, write: Write) -> None:
    write("needy.py", body=NEEDY)
    write("wrap_a.py", body=wrapper("a"))
    write("shout.py", SHOUT)

    actions = loaded(directory, RECEIVER_ACTIONS="shout,wrap_a")
    catalog = catalog_of(actions)

    assert catalog.loaded == {"shout"}
    assert catalog.not_loaded["needy"] == (
        "the action needy is disabled: it is not among RECEIVER_ACTIONS"
    )
    assert catalog.not_loaded["wrap_a"] == actions.why_not_loaded("wrap_a")
    assert actions.why_not_loaded("nonsense") is None
    assert not catalog.knows("nonsense")


def test_rules_know_which_actions_have_a_resolved_hook(directory: Path, write: Write) -> None:
    write("undo.py", body=EXECUTE + "@hookimpl\ndef resolved(): pass")
    write("shout.py", SHOUT)

    found = rules(
        directory,
        RECEIVER_ACTIONS="undo,shout",
        RECEIVER_EPISODE_TOLERANCE="2s",
        RECEIVER_ACTION_UNDO_RESOLVED_AFTER="7s",
    )

    assert found.resolved_hooks == {"undo"}
    assert found.tolerance == timedelta(seconds=2)
    assert found.resolved_after("undo") == timedelta(seconds=7)
    assert found.resolved_after("shout") is None


SUITED = (
    EXECUTE
    + """
@hookimpl
def settings():
    return [Setting("SUITED_TIMEOUT", "text", "20s")]

@hookimpl
def default_policy(settings):
    return {"timeout": settings["SUITED_TIMEOUT"], "on_interrupt": "hold", "max_attempts": 5}
"""
)


@pytest.mark.parametrize(
    ("config", "environment", "seconds"),
    [
        ("", {}, 20),
        ("", {"SUITED_TIMEOUT": "30s"}, 30),
        ("[actions.suited]\ntimeout = '40s'", {"SUITED_TIMEOUT": "30s"}, 40),
        ("[actions.suited]\ntimeout = '40s'", {"RECEIVER_ACTION_SUITED_TIMEOUT": "50s"}, 50),
        ("", {"RECEIVER_ACTION_SUITED_TIMEOUT": "50s"}, 50),
        ("", {"RECEIVER_ACTION_SUITED_TIMEOUT": ""}, 20),
    ],
    ids=["alone", "its setting", "file", "file and environment", "environment", "empty"],
)
def test_default_policy_counts_where_neither_environment_nor_file_says_more(
    config: str, environment: dict[str, str], seconds: int, directory: Path, write: Write
) -> None:
    write("suited.py", body=SUITED)

    found = rules(directory, config, **environment)

    assert found.policy("suited") == Policy(
        timeout=timedelta(seconds=seconds), on_interrupt="hold", max_attempts=5
    )
    assert found.policy("log_action") == Policy()


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (
            {"timeout": "fast"},
            'default_policy(): [actions.suited] timeout: "fast" is not a duration; write 30s, 5m '
            "or 1h30m",
        ),
        ({"timeouts": "1s"}, "default_policy(): timeouts is not a key of a policy"),
        (7, ("TypeError: ", "AttributeError: ")),
        (["timeout"], ("TypeError: ", "AttributeError: ")),
    ],
    ids=["bad value", "unknown key", "no mapping", "a list"],
)
def test_default_policy_that_cannot_be_used_breaks_the_plugin(
    policy: object, reason: str | tuple[str, ...], directory: Path, write: Write
) -> None:
    file = write("suited.py", body=EXECUTE + f"@hookimpl\ndef default_policy(): return {policy!r}")

    (problem,) = refused(directory).problems

    assert problem.removeprefix(f"suited ({file}): ").startswith(reason)


def test_plugin_may_have_no_default_policy_to_offer(directory: Path, write: Write) -> None:
    write("suited.py", body=EXECUTE + "@hookimpl\ndef default_policy(): return None")

    assert rules(directory).policy("suited") == Policy()


def escalating(**to: str) -> str:
    return "\n".join(f"[actions.{name}]\nescalate_to = '{other}'" for name, other in to.items())


@pytest.mark.parametrize(
    ("config", "problems"),
    [
        pytest.param(escalating(a="b"), (), id="one"),
        pytest.param(escalating(a="b", b="c"), (), id="chain"),
        pytest.param(escalating(a="c", b="c"), (), id="two to the same"),
        pytest.param(escalating(a="a"), ("a → a",), id="to itself"),
        pytest.param(escalating(a="b", b="a"), ("a → b → a",), id="there and back"),
        pytest.param(escalating(c="a", a="b", b="c"), ("a → b → c → a",), id="of three"),
        pytest.param(escalating(a="b", b="b"), ("b → b",), id="beside the way"),
        pytest.param(escalating(a="b", b="c", c="b"), ("b → c → b",), id="of two, with a way in"),
        pytest.param(
            escalating(a="b", b="a", c="log_action", log_action="c"),
            ("a → b → a", "c → log_action → c"),
            id="two circles",
        ),
    ],
)
def test_escalation_in_a_circle_stops_the_start_and_is_told_once(
    config: str, problems: tuple[str, ...], directory: Path, write: Write
) -> None:
    for name in "abc":
        write(f"{name}.py", body=EXECUTE)
    settings = settings_of(directory, config)
    actions = load_actions(settings)

    if not problems:
        assert rules_of(settings, actions).policy("a").escalate_to is not None
        return
    with pytest.raises(SettingsError) as caught:
        rules_of(settings, actions)
    assert caught.value.problems == tuple(
        f"escalate_to goes in a circle: {one}" for one in problems
    )


def test_escalation_to_what_only_wraps_stops_the_start(directory: Path, write: Write) -> None:
    write("wrap_a.py", body=wrapper("a"))

    with pytest.raises(SettingsError) as caught:
        rules(directory, escalating(log_action="wrap_a"))

    assert caught.value.problems == ("[actions.log_action] escalate_to: there is no action wrap_a",)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ("[limits]\nrate_limit = '9/1h, 9/31d'", "[limits] rate_limit"),
        ("[actions.log_action]\nrate_limit = '3/31d'", "[actions.log_action]"),
        ("[actions.log_action]\noverall_rate_limit = '1/1h, 3/31d'", "[actions.log_action]"),
        ("[actions.log_action]\ncooldown = '31d'", "[actions.log_action]"),
    ],
    ids=["of all", "rate", "overall", "cooldown"],
)
def test_limit_that_looks_back_further_than_runs_are_kept_stops_the_start(
    config: str, place: str, directory: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        rules(directory, config)

    assert caught.value.problems == (
        f"{place}: a limit looks back further than RECEIVER_RETENTION keeps runs",
    )
    assert rules(directory, config, RECEIVER_RETENTION="31d")


def test_environment_of_the_process_is_not_read(
    directory: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("needy.py", body=NEEDY)
    monkeypatch.setenv("NEEDY_URL", "http://x/")

    assert "NEEDY_URL" in os.environ
    assert loaded(directory).plugins["needy"].state == "not configured"
