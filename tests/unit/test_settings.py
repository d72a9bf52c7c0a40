"""The settings: which source decides, what is refused, and that no secret is told."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.declarations import Address, Backoff, Setting, declared
from receiver.errors import SettingsError
from receiver.policies import Policy
from receiver.policy_settings import policy_of
from receiver.settings import Settings, load, table, toml_key
from tests.support.every import every

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
TABLE = table()
# A good value that is not the default, for each type.
OTHER_VALUES = {
    "address": "127.0.0.1:9",
    "boolean": "true",
    "count": "3",
    "duration": "7m",
    "integer": "3",
    "list": "log_action,file_action",
    "logins": "user:hunter2",
    "path": "/elsewhere",
    "rates": "3/1h,7/1d",
    "size": "7KiB",
    "text": "hunter2",
    "tokens": "hunter2",
    "url": "http://elsewhere:9/",
}
WriteToml = Callable[[str], Path]


@pytest.fixture
def toml(tmp_path: Path) -> WriteToml:
    """Writes `receiver.toml` and returns its path."""

    def write(text: str) -> Path:
        path = tmp_path / "receiver.toml"
        path.write_text(text)
        return path

    return write


def problems_of(
    environment: Mapping[str, str],
    config: Path | None = None,
    flags: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        load(environment, flags or {}, config)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def policy(found: Settings, action: str) -> Policy:
    """Return what the settings alone make of an action's policy."""
    read, problems = policy_of(action, found.policies.get(action, ()))
    assert problems == []
    return read


def other_value(one: Setting) -> str:
    if one.choices:
        return next(choice for choice in one.choices if choice != one.default)
    return "false" if one.default == "true" else OTHER_VALUES[one.type]


def test_without_any_source_all_is_default() -> None:
    found = load({}, {})

    assert found.bind == Address("127.0.0.1", 8080)
    assert found.max_body == 32 * 2**20
    assert (found.episode_tolerance, found.grace_period) == (timedelta(0), 25 * SECOND)
    assert (found.actions, found.action_plugin, found.plugin_dir) == (None, (), None)
    assert (found.auth, found.submit_token, found.database_url) == ("token", None, None)
    assert (found.log_level, found.log_format) == ("info", "json")
    assert (found.policies, found.plugin_settings, found.environment) == ({}, {}, {})


def test_default_of_the_table_is_the_default_of_the_field() -> None:
    with every() as each:
        for name, one in TABLE.items():
            with each(name):
                assert getattr(Settings(), name) == one.default_value()
                assert getattr(load({}, {}), name) == one.default_value()


def test_setting_has_help_and_a_name_that_can_be_told_from_others() -> None:
    names = [one.name for one in TABLE.values()]
    keys = [toml_key(one) for one in TABLE.values()]

    with every() as each:
        for name, one in TABLE.items():
            with each(name):
                assert re.fullmatch("[A-Z]+(_[A-Z]+)*", one.name)
                assert one.help
                assert names.count(one.name) == 1
                assert keys.count(toml_key(one)) == 1


@pytest.mark.parametrize(
    "name",
    ["LOG_LEVEL", "PLUGIN_DIR", "ACTION_PLUGIN"],
)
def test_names_of_the_predecessor_are_kept(name: str) -> None:
    assert name in {one.name for one in TABLE.values()}


def test_flag_beats_environment_beats_file_beats_default(toml: WriteToml) -> None:
    with every() as each:
        for name, one in TABLE.items():
            with each(name):
                text = other_value(one)
                value = one.parse(text)
                neutral = one.default if one.default else text
                beaten = one.parse(neutral)
                config = toml(f"{toml_key(one)} = '{text}'")

                assert value != one.default_value()
                assert getattr(load({}, {}, config), name) == value
                assert getattr(load({one.name: text}, {}), name) == value
                assert getattr(load({}, {one.name: text}), name) == value
                assert getattr(load({one.name: neutral}, {}, config), name) == beaten
                assert getattr(load({one.name: text}, {one.name: neutral}, config), name) == beaten


def test_four_sources_one_after_the_other(toml: WriteToml) -> None:
    config = toml("web_threads = 2")
    environment, flags = {"RECEIVER_WEB_THREADS": "3"}, {"RECEIVER_WEB_THREADS": "4"}

    assert load({}, {}).web_threads == 16
    assert load({}, {}, config).web_threads == 2
    assert load(environment, {}, config).web_threads == 3
    assert load(environment, flags, config).web_threads == 4


def test_empty_variable_counts_as_not_set() -> None:
    with every() as each:
        for name, one in TABLE.items():
            with each(name):
                assert getattr(load({one.name: ""}, {one.name: ""}), name) == one.default_value()


def test_file_may_use_the_types_of_toml(toml: WriteToml) -> None:
    config = toml("""
        web_threads = 2
        max_body = 1048576
        action_plugin = ["log_action", "file_action"]
        log_level = "debug"
    """)

    found = load({}, {}, config)

    assert (found.web_threads, found.max_body, found.log_level) == (2, 2**20, "debug")
    assert found.action_plugin == ("log_action", "file_action")


def test_file_is_found_by_the_environment_and_sooner_by_the_flag(
    tmp_path: Path, toml: WriteToml
) -> None:
    other = tmp_path / "other.toml"
    other.write_text("web_threads = 5")
    environment = {"RECEIVER_CONFIG": str(other)}

    assert load(environment, {}).web_threads == 5
    assert load(environment, {}, toml("web_threads = 2")).web_threads == 2


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: None, r"RECEIVER_CONFIG: \S+ cannot be read: No such file or directory"),
        (lambda path: path.mkdir(), r"RECEIVER_CONFIG: \S+ cannot be read: Is a directory"),
        (
            lambda path: path.write_text("web_threads = \n"),
            r"RECEIVER_CONFIG: \S+ is not TOML: .*line 1.*",
        ),
        (lambda path: path.write_text("a: 1"), r"RECEIVER_CONFIG: \S+ is not TOML: .*line 1.*"),
        (lambda path: path.write_bytes(b"a = '\xff'"), r"RECEIVER_CONFIG: \S+ is not TOML: .*"),
        (
            lambda path: path.write_text("web_threads = 1\nweb_threads = 2"),
            r"RECEIVER_CONFIG: \S+ is not TOML: .*overwrite.*",
        ),
    ],
    ids=["missing", "directory", "no value", "YAML", "not UTF-8", "twice the same key"],
)
@pytest.mark.parametrize("by", ["environment", "flag"])
def test_file_that_cannot_be_used_is_named_with_the_cause(
    by: str, make: Callable[[Path], Any], problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "receiver.toml"
    make(path)

    (found,) = (
        problems_of({}, path) if by == "flag" else problems_of({"RECEIVER_CONFIG": str(path)})
    )

    assert re.fullmatch(problem, found)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "web_thread = 2",
            "receiver.toml: web_thread is not a setting (did you mean web_threads?)",
        ),
        ("zzz = 2", "receiver.toml: zzz is not a setting"),
        ("bind_file = 'x'", "receiver.toml: bind_file is not a setting (did you mean bind?)"),
        ("limits = 7", "receiver.toml: limits is not a setting"),
        ("[limits]\nmax = 7", "receiver.toml: limits_max is not a setting"),
        ("[action.log_action]", "receiver.toml: action is not a setting (did you mean actions?)"),
        ("plugins = 7", "receiver.toml: plugins must be tables, [plugins.<action>]"),
        ("[plugins]\na = 7", "receiver.toml: plugins must be tables, [plugins.<action>]"),
        ("[actions]\na = 7", "receiver.toml: actions must be tables, [actions.<action>]"),
        ("[[actions]]\na = 7", "receiver.toml: actions must be tables, [actions.<action>]"),
        (
            "actions = ['log_action']",
            "receiver.toml: actions must be tables, [actions.<action>]; RECEIVER_ACTIONS is "
            "enabled_actions there",
        ),
    ],
)
def test_unknown_or_misplaced_key_of_the_file_stops_the_start(
    text: str, problem: str, toml: WriteToml
) -> None:
    (found,) = problems_of({}, toml(text))

    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("RECEIVER_BINDING", "is not a setting (did you mean RECEIVER_BIND?); unset it"),
        ("RECEIVER_WEB_THREAD", "is not a setting (did you mean RECEIVER_WEB_THREADS?); unset it"),
        ("RECEIVER_QWERTZUIOPASDFGHJKLYXCVBNM", "is not a setting; unset it"),
        ("RECEIVER_MAX_BODY_FILE", "is not a setting (did you mean RECEIVER_MAX_BODY?); unset it"),
        ("RECEIVER_bind", "is not a setting (did you mean RECEIVER_BIND?); unset it"),
        ("RECEIVER_LOG_LEVEL", "is not a setting (did you mean LOG_LEVEL?); unset it"),
        ("RECEIVER_PLUGIN_DIR", "is not a setting (did you mean PLUGIN_DIR?); unset it"),
        ("RECEIVER_Z", "is not a setting; unset it"),
    ],
)
@pytest.mark.parametrize("value", ["", "hunter2"])
def test_unknown_name_in_the_environment_stops_the_start(
    name: str, problem: str, value: str
) -> None:
    assert problems_of({name: value}) == (f"{name}: {problem}",)


KUBERNETES_NAMES = (
    "RECEIVER_PORT",
    "RECEIVER_PORT_8080_TCP",
    "RECEIVER_PORT_8080_TCP_ADDR",
    "RECEIVER_PORT_8080_TCP_PORT",
    "RECEIVER_PORT_8080_TCP_PROTO",
    "RECEIVER_PORT_53_UDP_ADDR",
    "RECEIVER_SERVICE_HOST",
    "RECEIVER_SERVICE_PORT",
    "RECEIVER_SERVICE_PORT_HTTP",
    "RECEIVER_SERVICE_PORT_HTTP_METRICS",
    "RECEIVER_ALERT_RECEIVER_SERVICE_HOST",
    "RECEIVER_ALERT_RECEIVER_PORT_8080_TCP_ADDR",
    "RECEIVER_POSTGRESQL_SERVICE_PORT",
    "RECEIVER_POSTGRESQL_PORT",
    "RECEIVER_ACTION_X_SERVICE_HOST",
    "RECEIVER_ACTION_X_PORT_80_TCP",
)


def test_what_kubernetes_adds_for_a_service_called_receiver_something_is_ignored() -> None:
    with every() as each:
        for name in KUBERNETES_NAMES:
            with each(name):
                variables = {name: "tcp://10.0.0.1:8080"}
                assert load(variables, {}) == Settings(environment=variables)


@pytest.mark.parametrize("name", ["RECEIVER_PORTS", "RECEIVER_SERVICE", "RECEIVER_SERVICE_NAME"])
def test_what_only_looks_like_it_is_not_ignored(name: str) -> None:
    (problem,) = problems_of({name: "x"})

    assert problem.startswith(f"{name}: is not a setting")


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "RECEIVER", "ALERT_RECEIVER_X", "MY_RECEIVER_BIND", "LOG_LEVELS"]
)
def test_names_of_others_are_left_alone(name: str) -> None:
    load({name: "x"}, {})


def test_all_problems_of_all_sources_are_told_at_once(toml: WriteToml, tmp_path: Path) -> None:
    config = toml("""
        web_treads = 2
        worker_executors = 0
        [actions.log_action]
        timeout = "fast"
        timeouts = "1s"
    """)
    environment = {
        "RECEIVER_MAX_BODY": "1 elephant",
        "RECEIVER_AUTH": "maybe",
        "RECEIVER_TOKEN": "hunter2",
        "RECEIVER_SUBMIT_TOKEN_FILE": str(tmp_path / "none"),
        "RECEIVER_ACTION_LOG_ACTION_TIMEOUTS": "1s",
    }

    found = problems_of(environment, config, {"LOG_LEVEL": "loud"})

    assert sorted(problem.partition(":")[0] for problem in found) == sorted(
        [
            "LOG_LEVEL",
            "RECEIVER_ACTION_LOG_ACTION_TIMEOUTS",
            "RECEIVER_AUTH",
            "RECEIVER_MAX_BODY",
            "RECEIVER_SUBMIT_TOKEN_FILE",
            "RECEIVER_TOKEN",
            "RECEIVER_WORKER_EXECUTORS",
            "[actions.log_action] timeout",
            "receiver.toml",
            "receiver.toml",
        ]
    )
    assert 'RECEIVER_MAX_BODY: "1 elephant" is not a size; write bytes or 10MiB' in found
    assert "receiver.toml: web_treads is not a setting (did you mean web_threads?)" in found
    assert (
        "receiver.toml: [actions.log_action] timeouts is not a key of a policy"
        " (did you mean timeout?)"
    ) in found
    assert "hunter2" not in "".join(found)


@pytest.mark.parametrize(
    ("environment", "in_file", "shown"),
    [
        ("fast", "1s", "RECEIVER_ACTION_A_TIMEOUT"),
        ("fast", "fast", "RECEIVER_ACTION_A_TIMEOUT"),
        (None, "fast", "[actions.a] timeout"),
        ("", "fast", "[actions.a] timeout"),
    ],
    ids=["environment", "both", "file", "file behind an empty variable"],
)
def test_problem_of_a_policy_names_the_place_that_decides(
    environment: str | None, in_file: str, shown: str, toml: WriteToml
) -> None:
    variables = {} if environment is None else {"RECEIVER_ACTION_A_TIMEOUT": environment}

    assert problems_of(variables, toml(f"[actions.a]\ntimeout = '{in_file}'")) == (
        f'{shown}: "fast" is not a duration; write 30s, 5m or 1h30m',
    )


def test_bad_file_hides_no_problem_of_the_environment(toml: WriteToml) -> None:
    found = problems_of({"RECEIVER_WEB_THREADS": "0", "RECEIVER_X": "1"}, toml("= ="))

    assert len(found) == 3


SECRETS = {name: one for name, one in TABLE.items() if one.secret}
OPEN = {name: one for name, one in TABLE.items() if not one.secret}


def test_tokens_and_the_database_are_secrets() -> None:
    assert {"submit_token", "database_url"} <= SECRETS.keys()


@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_read_from_a_file_that_any_source_names(
    name: str, toml: WriteToml, tmp_path: Path
) -> None:
    one, file = SECRETS[name], tmp_path / "secret"
    file.write_text(f"{other_value(one)}\n")
    config = toml(f"{toml_key(one)}_file = '{file}'")

    for found in (
        load({f"{one.name}_FILE": str(file)}, {}),
        load({}, {f"{one.name}_FILE": str(file)}),
        load({}, {}, config),
    ):
        assert getattr(found, name) == one.parse(other_value(one))
        assert found.secret_files == {one.name: file}


@pytest.mark.parametrize("name", SECRETS)
def test_file_is_not_remembered_where_a_sooner_source_decides(
    name: str, toml: WriteToml, tmp_path: Path
) -> None:
    one, file = SECRETS[name], tmp_path / "secret"
    file.write_text(other_value(one))
    config = toml(f"{toml_key(one)}_file = '{file}'")

    assert load({one.name: other_value(one)}, {}, config).secret_files == {}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("case", ["missing", "empty", "both", "both in the file"])
def test_file_of_a_secret_that_cannot_be_used_stops_the_start(
    name: str, case: str, toml: WriteToml, tmp_path: Path
) -> None:
    one, file = SECRETS[name], tmp_path / "secret"
    if case != "missing":
        file.write_text("" if case == "empty" else "hunter2")
    environment, config = {f"{one.name}_FILE": str(file)}, None
    if case == "both":
        environment[one.name] = "hunter2"
    elif case == "both in the file":
        environment = {}
        config = toml(f"{toml_key(one)}_file = '{file}'\n{toml_key(one)} = 'hunter2'")

    (problem,) = problems_of(environment, config)

    assert problem == {
        "missing": f"{one.name}_FILE: cannot be read: No such file or directory: {file}",
        "empty": f"{one.name}: is empty in the file that {one.name}_FILE names",
    }.get(case, f"{one.name}: is set together with {one.name}_FILE; keep one of them")


def test_what_is_no_secret_is_not_read_from_a_file(toml: WriteToml) -> None:
    with every() as each:
        for name, one in OPEN.items():
            if not one.name.startswith("RECEIVER"):
                continue
            with each(name):
                (in_environment,) = problems_of({f"{one.name}_FILE": "/dev/null"})
                (in_file,) = problems_of({}, toml(f"{toml_key(one)}_file = '/dev/null'"))

                assert in_environment.startswith(f"{one.name}_FILE: is not a setting")
                assert in_file.startswith(f"receiver.toml: {toml_key(one)}_file is not a setting")


def test_environment_is_kept_for_plugins_and_not_shown() -> None:
    environment = {"MY_PLUGIN_TOKEN": "hunter2"}

    found = load(environment, {})

    assert found.environment == environment
    assert found.environment is not environment
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize("name", SECRETS)
def test_no_error_tells_a_secret(name: str, toml: WriteToml) -> None:
    one = SECRETS[name]
    config = toml(f"{toml_key(one)} = 'hunter2'\nzzz = 'hunter2'\n[plugins.x]\ntoken = 'hunter2'")
    environment = {one.name: "hunter2", f"{one.name}S": "hunter2", "RECEIVER_WEB_THREADS": "x"}

    assert "hunter2" not in "".join(problems_of(environment, config, {"LOG_LEVEL": "x"}))


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_is_shown_with_the_settings(name: str, toml: WriteToml) -> None:
    config = toml("[plugins.http_plugin]\nhttp_plugin_endpoint = 'http://user:hunter2@host'")

    found = load({SECRETS[name].name: other_value(SECRETS[name])}, {}, config)

    assert "hunter2" in str(getattr(found, name))
    assert "hunter2" not in repr(found)


POLICY = {one.name: one for one in declared(Policy).values()}


ACTION_NAMES = (
    "LOG_ACTION", "X", "MY_TIMEOUT", "RETRY_MAX_ATTEMPTS", "PAGE_ESCALATE_TO", "TIMEOUT", "ACTION",
    "A1_2B",
)  # fmt: skip


def test_policy_is_read_from_the_environment_whatever_the_action_is_called() -> None:
    with every() as each:
        for name, (key, one) in itertools.product(ACTION_NAMES, POLICY.items()):
            with each(f"{name} {key}"):
                action, text = name.lower(), one.default or OTHER_VALUES[one.type]

                found = load({f"RECEIVER_ACTION_{name}_{key.upper()}": text}, {})

                assert list(found.policies) == [action]
                assert getattr(policy(found, action), key) == one.parse(text)


def test_policy_is_put_together_from_environment_and_file(toml: WriteToml) -> None:
    config = toml("""
        [actions.log_action]
        timeout = "10s"
        max_attempts = 7
        backoff = "2s..1m"
        [actions.efs_emergency]
        on_interrupt = "hold"
        repeat_after = "1h"
    """)
    environment = {
        "RECEIVER_ACTION_LOG_ACTION_TIMEOUT": "20s",
        "RECEIVER_ACTION_LOG_ACTION_MAX_ATTEMPTS": "",
        "RECEIVER_ACTION_FILE_ACTION_RESOLVED_AFTER": "0s",
    }

    found = load(environment, {}, config)

    assert {action: policy(found, action) for action in found.policies} == {
        "log_action": Policy(
            timeout=20 * SECOND, max_attempts=7, backoff=Backoff(2 * SECOND, MINUTE)
        ),
        "efs_emergency": Policy(on_interrupt="hold", repeat_after=60 * MINUTE),
        "file_action": Policy(resolved_after=timedelta(0)),
    }
    assert policy(found, "another") == Policy()


@pytest.mark.parametrize(
    "name",
    [
        "RECEIVER_ACTION_LOG_ACTION_TIMEOUTS",
        "RECEIVER_ACTION_LOG_ACTION",
        "RECEIVER_ACTION_TIMEOUT",
        "RECEIVER_ACTION_PLUGIN",
        "RECEIVER_ACTION_",
        "RECEIVER_ACTION_LOG_ACTION_TIMEOUT_FILE",
    ],
)
def test_variable_that_ends_in_no_key_is_refused_with_the_keys(name: str) -> None:
    keys = ", ".join(sorted(key.upper() for key in POLICY))

    assert problems_of({name: "5s"}) == (
        f"{name}: is not RECEIVER_ACTION_<NAME>_<KEY>; the keys are {keys}",
    )


@pytest.mark.parametrize(
    ("key", "text", "cure"),
    [
        ("timeout", "60", "is not a duration; write 30s, 5m or 1h30m"),
        ("max_attempts", "0", "is not a whole number of at least 1"),
        ("backoff", "5m..1s", "starts with a pause longer than its longest; write 1s..5m"),
        ("on_interrupt", "ask", "is not one of retry, hold"),
        ("max_staleness", "never", "is not a duration; write 30s, 5m or 1h30m"),
        ("max_repeats", "-1", "is not a whole number of at least 1"),
    ],
)
def test_bad_value_of_a_policy_is_refused_with_its_cure(
    key: str, text: str, cure: str, toml: WriteToml
) -> None:
    (in_environment,) = problems_of({f"RECEIVER_ACTION_LOG_ACTION_{key.upper()}": text})
    (in_file,) = problems_of({}, toml(f"[actions.log_action]\n{key} = '{text}'"))

    assert in_file == f'[actions.log_action] {key}: "{text}" {cure}'
    assert in_environment == f'RECEIVER_ACTION_LOG_ACTION_{key.upper()}: "{text}" {cure}'


def test_number_without_a_unit_is_no_duration_in_the_file_either(toml: WriteToml) -> None:
    assert problems_of({}, toml("[actions.a]\ntimeout = 60")) == (
        '[actions.a] timeout: "60" is not a duration; write 30s, 5m or 1h30m',
    )


def test_settings_of_plugins_are_kept_as_they_stand_in_the_file(toml: WriteToml) -> None:
    config = toml("""
        [plugins.efs_emergency]
        efs_file_system_id = "fs-0123456789abcdef0"
        [plugins.my_plugin]
        sizes = [1, 2]
        on = true
    """)

    assert load({}, {}, config).plugin_settings == {
        "efs_emergency": {"efs_file_system_id": "fs-0123456789abcdef0"},
        "my_plugin": {"sizes": [1, 2], "on": True},
    }


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({"RECEIVER_DATA_DIR": "/data"}, "sqlite:////data/journal.db"),
        ({"RECEIVER_DATA_DIR": "data"}, "sqlite:///data/journal.db"),
        (
            {"RECEIVER_DATABASE_URL": "postgresql+psycopg://h/n", "RECEIVER_DATA_DIR": "/data"},
            "postgresql+psycopg://h/n",
        ),
    ],
)
def test_journal_is_sqlite_in_the_data_directory_unless_a_database_is_named(
    environment: dict[str, str], url: str
) -> None:
    assert load(environment, {}).journal_url == url


def test_settings_can_be_imported_by_a_user_without_a_home() -> None:
    code = "import os; os.getuid = lambda: 54321\nimport receiver.settings"
    environment = {name: text for name, text in os.environ.items() if name != "HOME"}

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_process_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECEIVER_WEB_THREADS", "3")
    monkeypatch.setenv("RECEIVER_NONSENSE", "3")
    monkeypatch.setenv("LOG_LEVEL", "debug")

    assert load({}, {}) == Settings()


@pytest.mark.parametrize("key", ["cooldown", "rate_limit", "escalate_to", "target_labels"])
def test_none_switches_off_what_a_later_source_switches_on(key: str) -> None:
    by_plugin = {"cooldown": "1h", "rate_limit": "1/1h", "escalate_to": "page",
                 "target_labels": "host", "timeout": "5s"}  # fmt: skip
    found, problems = policy_of("a", [{}, {key: "none"}, by_plugin])
    assert problems == []
    assert getattr(found, key) == getattr(Policy(), key)
    assert found.timeout == timedelta(seconds=5)


OWN_PROCESS = "every attempt has a process of its own now; remove it"


@pytest.mark.parametrize("key", ["isolation", "max_abandoned"])
def test_removed_key_of_a_policy_in_the_file_is_refused_with_the_cure(
    key: str, toml: WriteToml
) -> None:
    config = toml(f'[actions.log_action]\n{key} = "process"')

    with pytest.raises(SettingsError) as refused:
        load({}, {}, config)

    assert refused.value.problems == (
        f"receiver.toml: [actions.log_action] {key} is not a key of a policy: {OWN_PROCESS}",
    )


@pytest.mark.parametrize("key", ["isolation", "max_abandoned"])
def test_removed_key_of_a_policy_in_the_environment_is_refused_with_the_cure(key: str) -> None:
    name = f"RECEIVER_ACTION_LOG_ACTION_{key.upper()}"

    with pytest.raises(SettingsError) as refused:
        load({name: "process"}, {})

    assert refused.value.problems == (f"{name}: {key} is not a key of a policy: {OWN_PROCESS}",)


def test_more_executors_than_a_worker_can_watch_are_refused() -> None:
    assert load({"RECEIVER_WORKER_EXECUTORS": "256"}, {}).worker_executors == 256
    with pytest.raises(SettingsError, match='RECEIVER_WORKER_EXECUTORS: "257" is more than 256'):
        load({"RECEIVER_WORKER_EXECUTORS": "257"}, {})
