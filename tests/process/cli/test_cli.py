"""The command line as an operator meets it: every command in a process of its own."""

import io
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import click
import pytest

from receiver.alertmanager import Notification, parse_notification
from receiver.cli import cli, main
from receiver.cli.sending import SAMPLES
from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.settings import table
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver, free_port
from tests.support.waiting import wait_until

TOKEN = "only-for-this-test"
ACCEPTED = '200 {"accepted":1,"duplicate":0,"resolved":0,"rejected":0}\n'


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


def process(*arguments: str | Path, **environment: str) -> Ended:
    """Run a command in a process of its own, with nothing set but what is given."""
    done = subprocess.run(
        [sys.executable, "-m", "receiver", *arguments],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nowhere", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def receiver(*arguments: str | Path, **environment: str) -> Ended:
    """Run a command as `process` does, only in this process: much quicker."""
    out, err = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["receiver", *map(str, arguments)]),
        patch.dict(os.environ, environment),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert isinstance(ended.value.code, int)
    return Ended(ended.value.code, out.getvalue(), err.getvalue())


def lines_of(shown: str) -> dict[str, str]:
    """Return first word -> the rest, of each line."""
    return {
        words[0]: words[1] if len(words) > 1 else ""
        for line in shown.splitlines()
        if (words := line.split(maxsplit=1))
    }


# receiver


def test_help_lists_every_command_with_what_it_does() -> None:
    shown = receiver("--help")
    assert shown.code == 0
    listed = lines_of(shown.out.partition("Commands:\n")[2])
    assert list(listed) == cli.list_commands(click.Context(cli))
    assert all(listed.values())


def test_help_imports_neither_flask_nor_sqlalchemy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "receiver", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert imported.isdisjoint({"flask", "sqlalchemy", "alembic", "boto3", "gunicorn"})


def test_version_is_that_of_the_package() -> None:
    shown = process("--version")
    assert shown.code == 0
    assert shown.out == f"alert-receiver, version {version('alert-receiver')}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["no-such-command"], id="command"),
        pytest.param(["check", "--no-such-option"], id="option"),
        pytest.param(["check", "--bind"], id="option without its value"),
        pytest.param(["send", "firing", "resolved"], id="argument too many"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(arguments: list[str]) -> None:
    done = receiver(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Error: " in done.err
    assert "Traceback" not in done.err


WITHOUT_SETTINGS = ("rule", "new-plugin", "migrate", "demo")
WITH_SETTINGS = [
    name for name in cli.list_commands(click.Context(cli)) if name not in WITHOUT_SETTINGS
]


@pytest.mark.parametrize("command", WITH_SETTINGS)
def test_settings_are_options_of_every_command_with_default_and_variable(command: str) -> None:
    shown = receiver(command, "--help")
    assert shown.code == 0
    entries = re.split(r"\n  (?=-)", shown.out.partition("Options:")[2])[1:]
    options = {one.split()[0]: " ".join(one.split()) for one in entries}
    for one in table().values():
        flag = "--" + one.name.removeprefix("RECEIVER_").lower().replace("_", "-")
        if one.secret:
            # Everybody on the machine can read a command line.
            assert flag not in options
            continue
        entry = options.pop(flag)
        assert entry.startswith(f"{flag} {one.type.upper()} ")
        assert entry.endswith(f" ({one.name})")
        assert one.help.replace("`", "") in entry
        assert (f"[default: {one.default}]" in entry) == bool(one.default)
    if command in ("serve", "web", "worker", "check"):
        assert set(options) == {"--config", "-h,"}


def test_traceback_is_shown_with_debug_only() -> None:
    wrong = {"RECEIVER_MAX_BODY": "1 elephant"}
    assert "Traceback" not in process("check", **wrong).err
    assert "Traceback" in process("--debug", "check", **wrong).err


ESCAPE = "\x1b[31m\x9b31m\r\nreceiver: \u202e"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param([ESCAPE], 2, id="command"),
        pytest.param([f"--{ESCAPE}"], 2, id="option"),
        pytest.param(["check", ESCAPE], 2, id="argument too many"),
        pytest.param(["check", f"--{ESCAPE}"], 2, id="option of a command"),
        pytest.param(["check", f"--bi{ESCAPE}"], 2, id="option nearly right"),
        pytest.param(["run", ESCAPE], 1, id="run"),
        pytest.param(["plugins", ESCAPE], 1, id="plugin"),
        pytest.param(["pause", ESCAPE], 1, id="action"),
        pytest.param(["replay", ESCAPE], 1, id="rejected alert"),
        pytest.param(["explain", ESCAPE], 1, id="file"),
        pytest.param(["send", ESCAPE], 1, id="sample"),
        pytest.param(["send", "firing", "--url", f"http://{ESCAPE}"], 1, id="URL"),
        pytest.param(["check", "--config", ESCAPE], 1, id="settings file"),
        pytest.param(["check", "--bind", ESCAPE], 1, id="setting"),
        pytest.param(["check", "--action-plugin", ESCAPE], 1, id="action of the settings"),
        pytest.param(["check", "--tls-cert", ESCAPE, "--tls-key", ESCAPE], 1, id="certificate"),
    ],
)
def test_nothing_that_was_typed_acts_on_the_terminal(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    done = receiver(*arguments, RECEIVER_DATA_DIR=str(tmp_path))
    assert done.code in (code, 2)
    assert done.err
    assert [char for char in done.err + done.out if not char.isprintable() and char != "\n"] == []
    assert not any(line.startswith("receiver: \u202e") for line in done.err.splitlines())
    assert "Traceback" not in done.err


# receiver check


def test_check_says_what_is_open(tmp_path: Path) -> None:
    bind = f"127.0.0.1:{free_port()}"
    done = process("check", RECEIVER_DATA_DIR=str(tmp_path / "data"), RECEIVER_BIND=bind)
    assert (done.code, done.err) == (0, "")
    assert lines_of(done.out) == {
        "listens": f"on     {bind}",
        "port": "free",
        "webhook": "open to anyone on this machine",
        "read": "open to anyone on this machine",
        "operate": "open to anyone on this machine",
        "/metrics": "open to anyone on this machine",
        "probes": "open to anyone who can connect",
        "journal": f"sqlite:///{tmp_path}/data/journal.db",
        "actions": "file_action, http_plugin, log_action",
        "ACTION_PLUGIN": "not set: an alert names its own",
    }
    assert not (tmp_path / "data").exists()


def test_check_says_that_the_port_is_in_use_and_finds_no_fault_in_that(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        done = process("check", RECEIVER_DATA_DIR=str(tmp_path / "data"), RECEIVER_BIND=bind)
    assert (done.code, done.err) == (0, "")
    assert lines_of(done.out)["port"] == "in use, perhaps by the running receiver"


def test_check_names_an_address_and_a_data_directory_that_a_start_cannot_use(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").touch()
    done = process(
        "check", RECEIVER_DATA_DIR=str(tmp_path / "data"), RECEIVER_BIND="192.0.2.1:8080",
        RECEIVER_AUTH="none",
    )  # fmt: skip
    assert (done.code, done.out) == (1, "")
    assert "RECEIVER_BIND: 192.0.2.1:8080: this machine has no such address" in done.err
    assert f"RECEIVER_DATA_DIR: {tmp_path / 'data'} is a file" in done.err


MACHINE = "anyone on this machine"
ANYONE = "anyone who can connect (RECEIVER_AUTH=none)"


@pytest.mark.parametrize(
    ("environment", "webhook", "read", "operate"),
    [
        pytest.param({}, MACHINE, MACHINE, MACHINE, id="loopback"),
        pytest.param(
            {"RECEIVER_AUTH": "none", "RECEIVER_BIND": "0.0.0.0:8080"},
            ANYONE, ANYONE, ANYONE, id="none",
        ),
        pytest.param(
            {"RECEIVER_SUBMIT_TOKEN": TOKEN},
            "whoever has RECEIVER_SUBMIT_TOKEN",
            "nobody, for want of RECEIVER_READ_TOKEN",
            "nobody, for want of RECEIVER_OPERATE_TOKEN",
            id="one token",
        ),
        pytest.param(
            {
                "RECEIVER_AUTH": "none",
                "RECEIVER_SUBMIT_BASIC_AUTH": "a:b",
                "RECEIVER_READ_TOKEN": TOKEN,
                "RECEIVER_OPERATE_BASIC_AUTH": "c:d",
            },
            "whoever has RECEIVER_SUBMIT_BASIC_AUTH",
            "whoever has RECEIVER_READ_TOKEN or RECEIVER_OPERATE_BASIC_AUTH",
            "whoever has RECEIVER_OPERATE_BASIC_AUTH",
            id="each its own",
        ),
    ],
)  # fmt: skip
def test_check_says_to_whom_it_is_open(
    environment: dict[str, str], webhook: str, read: str, operate: str
) -> None:
    done = receiver("check", **environment)
    assert done.code == 0
    shown = lines_of(done.out)
    assert shown["webhook"] == f"open to {webhook}"
    assert shown["read"] == f"open to {read}"
    assert shown["operate"] == f"open to {operate}"
    assert shown["/metrics"] == f"open to {read}"
    opened = lines_of(receiver("check", RECEIVER_METRICS_OPEN="true", **environment).out)
    assert opened["/metrics"] == "open to anyone who can connect"
    assert TOKEN not in done.out


def test_check_names_every_wrong_setting_at_once(tmp_path: Path) -> None:
    config = tmp_path / "receiver.toml"
    config.write_text('bnd = "x"\n[actions.log_action]\nmax_attempts = 0\n')
    done = process(
        "check", "--config", config, "--web-threads", "none",
        RECEIVER_MAX_BODY="1 elephant", RECEIVER_DATADIR="/x", RECEIVER_ACTION_LOG_ACTION_SPEED="1",
        RECEIVER_SUBMIT_TOKEN_FILE=str(tmp_path / "nowhere"),
    )  # fmt: skip
    assert (done.code, done.out) == (1, "")
    assert "Traceback" not in done.err
    head, *problems = done.err.splitlines()
    assert head == "receiver: 7 problems:"
    assert len(problems) == 7
    for expected in (
        "receiver.toml: bnd is not a setting (did you mean bind?)",
        '[actions.log_action] max_attempts: "0" is not a whole number of at least 1',
        'RECEIVER_WEB_THREADS: "none" is not a whole number of at least 1',
        'RECEIVER_MAX_BODY: "1 elephant" is not a size; write bytes or 10MiB',
        "RECEIVER_DATADIR: is not a setting (did you mean RECEIVER_DATA_DIR?)",
        "RECEIVER_ACTION_LOG_ACTION_SPEED: is not RECEIVER_ACTION_<NAME>_<KEY>",
        "RECEIVER_SUBMIT_TOKEN_FILE: cannot be read: No such file or directory",
    ):
        assert sum(expected in problem for problem in problems) == 1, expected


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        pytest.param(
            {"RECEIVER_BIND": "0.0.0.0:8080"},
            "RECEIVER_BIND: 0.0.0.0:8080 can be reached by others",
            id="open to others without credentials",
        ),
        pytest.param(
            {"ACTION_PLUGIN": "log_acton"},
            "ACTION_PLUGIN: there is no plugin log_acton (did you mean log_action?)",
            id="unknown action",
        ),
        pytest.param(
            {"ACTION_PLUGIN": "efs_emergency"},
            "EFS_FILE_SYSTEM_ID: is not set",
            id="named action that is not configured",
        ),
        pytest.param(
            {"FILE_ACTION_SIZE": "1 elephant"},
            'FILE_ACTION_SIZE: "1 elephant" is not a size; write bytes or 10MiB',
            id="wrong setting of a plugin",
        ),
    ],
)
def test_check_refuses_what_a_start_would_refuse(environment: dict[str, str], problem: str) -> None:
    done = receiver("check", **environment)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("receiver: 1 problem:\n")
    assert problem in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        pytest.param(
            {"RECEIVER_ACTION_LOG_ACTION_ESCALATE_TO": "no_such_action"},
            "[actions.log_action] escalate_to: there is no action no_such_action",
            id="escalation to nothing",
        ),
        pytest.param(
            {"RECEIVER_ACTION_LOG_ACTION_RATE_LIMIT": "3/1d", "RECEIVER_RETENTION": "1h"},
            "RECEIVER_RETENTION",
            id="limit that looks back further than runs are kept",
        ),
    ],
)
def test_check_refuses_policies_that_do_not_fit_together(
    environment: dict[str, str], problem: str
) -> None:
    done = receiver("check", **environment)
    assert (done.code, done.out) == (1, "")
    assert problem in done.err


def test_check_names_a_wrong_address_and_a_wrong_plugin_at_once() -> None:
    done = receiver("check", RECEIVER_BIND="0.0.0.0:8080", ACTION_PLUGIN="log_acton")
    assert done.code == 1
    assert "RECEIVER_BIND" in done.err
    assert "log_acton" in done.err


SECRETS = {
    "RECEIVER_SUBMIT_TOKEN": "s3cret-token",
    "RECEIVER_DATABASE_URL": "postgresql+psycopg://receiver:s3cret-password@db/journal",
}


@pytest.mark.parametrize("wrong", [{}, {"RECEIVER_MAX_BODY": "x"}], ids=["good", "bad"])
@pytest.mark.parametrize("command", ["check", "plugins"])
def test_secrets_are_never_shown(command: str, wrong: dict[str, str]) -> None:
    done = receiver(command, **SECRETS, **wrong)
    assert done.code == len(wrong)
    assert "s3cret" not in done.out + done.err


def test_secrets_are_not_shown_in_a_traceback_either() -> None:
    done = process("--debug", "check", **SECRETS, RECEIVER_MAX_BODY="x")
    assert "Traceback" in done.err
    assert "s3cret" not in done.err


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        pytest.param(
            "postgresql+psycopg://receiver:s3cret@db/journal",
            "postgresql+psycopg://receiver:***@db/journal",
            id="postgresql",
        ),
        pytest.param("sqlite:////data/x.db", "sqlite:////data/x.db", id="sqlite"),
    ],
)
def test_check_says_where_the_journal_is(url: str, shown: str) -> None:
    assert shown in lines_of(receiver("check", RECEIVER_DATABASE_URL=url).out)["journal"]


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("mysql://receiver:s3cret@db/journal", id="another database"),
        pytest.param("s3cret", id="no URL"),
    ],
)
def test_check_refuses_a_journal_that_no_start_can_open(url: str) -> None:
    done = receiver("check", RECEIVER_DATABASE_URL=url)
    assert done.code == 1
    assert "RECEIVER_DATABASE_URL" in done.err
    assert "s3cret" not in done.err


def test_worker_refuses_what_is_no_database_url_without_a_traceback() -> None:
    done = process("worker", RECEIVER_DATABASE_URL="s3cret")
    assert done.code == 1
    (problem,) = json.loads(done.out)["problems"]
    assert "RECEIVER_DATABASE_URL" in problem
    assert done.err == ""


# receiver plugins


@pytest.fixture
def plugin_dir(tmp_path: Path) -> Path:
    """A PLUGIN_DIR with a plugin that has a secret."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "ring.py").write_text(
        "from receiver import Setting, hookimpl\n"
        "__version__ = '1.2'\n"
        "@hookimpl\n"
        "def settings():\n"
        "    return [Setting('RING_TOKEN', help='the token', secret=True, required=True),\n"
        "            Setting('RING_TIMES', 'count', '3', 'how often it rings'),\n"
        "            Setting('RING_TONE', help='how it sounds', choices=('high', 'low'),\n"
        "                    required_unless='RING_TIMES')]\n"
        "@hookimpl\n"
        "def execute(context): ...\n"
    )
    return directory


def test_plugins_lists_each_with_its_state_and_why() -> None:
    done = receiver("plugins")
    assert (done.code, done.err) == (0, "")
    listed = lines_of(done.out)
    for name in ("file_action", "http_plugin", "log_action"):
        assert listed[name] == "loaded"
    assert listed["efs_emergency"] == "not configured"
    assert (
        "exec_plugin  not configured\n"
        "    why       EXEC_PLUGIN_COMMAND: is not set; the program by its full path, and its "
        "arguments, split as a shell would, but run by none\n"
        f"    version   {version('alert-receiver')}\n"
        "    origin    action_plugins.exec_plugin\n"
        "    hooks     settings validate_config execute describe\n"
        "    settings  EXEC_PLUGIN_COMMAND EXEC_PLUGIN_ENVIRONMENT\n"
    ) in done.out
    assert (
        "log_action  loaded\n"
        f"    version   {version('alert-receiver')}\n"
        "    origin    action_plugins.log_action\n"
        "    hooks     execute describe\n"
    ) in done.out


def test_plugins_lists_what_is_not_enabled_as_disabled() -> None:
    done = receiver("plugins", "--json", RECEIVER_ACTIONS="log_action")
    states = {one["name"]: one["state"] for one in json.loads(done.out)}
    assert states == {
        "efs_emergency": "disabled",
        "exec_plugin": "disabled",
        "file_action": "disabled",
        "http_plugin": "disabled",
        "log_action": "loaded",
    }


def test_plugin_is_shown_with_its_settings_but_not_its_secrets(plugin_dir: Path) -> None:
    done = receiver(
        "plugins", "ring", PLUGIN_DIR=str(plugin_dir), RING_TOKEN="s3cret", RING_TIMES="7"
    )
    assert (done.code, done.err) == (0, "")
    assert done.out == (
        "ring  loaded\n"
        "    version   1.2\n"
        f"    origin    {plugin_dir}/ring.py\n"
        "    hooks     settings execute\n"
        "    settings  RING_TOKEN RING_TIMES RING_TONE\n"
        "\nRING_TOKEN = (hidden)\n    the token (text; secret, or RING_TOKEN_FILE; required)\n"
        "\nRING_TIMES = 7\n    how often it rings (count; default 3)\n"
        "\nRING_TONE = not set\n"
        "    how it sounds (text: high, low; required unless RING_TIMES is set)\n"
    )


def test_plugin_is_shown_as_json_with_its_settings_but_not_its_secrets(plugin_dir: Path) -> None:
    done = receiver(
        "plugins", "ring", "--json",
        PLUGIN_DIR=str(plugin_dir), RING_TOKEN="s3cret", RING_TIMES="7",
    )  # fmt: skip
    assert done.code == 0
    assert "s3cret" not in done.out
    (shown,) = json.loads(done.out)
    settings = {one["name"]: one for one in shown.pop("settings")}
    assert shown == {
        "name": "ring",
        "state": "loaded",
        "reason": "",
        "version": "1.2",
        "origin": f"{plugin_dir}/ring.py",
        "hooks": ["settings", "execute"],
    }
    assert settings["RING_TOKEN"]["value"] == "(hidden)"
    assert settings["RING_TOKEN"]["secret"] is True
    assert settings["RING_TIMES"] == {
        "name": "RING_TIMES",
        "type": "count",
        "default": "3",
        "choices": [],
        "required": False,
        "required_unless": None,
        "secret": False,
        "help": "how often it rings",
        "value": "7",
    }
    assert settings["RING_TONE"]["choices"] == ["high", "low"]
    assert settings["RING_TONE"]["required_unless"] == "RING_TIMES"
    assert settings["RING_TONE"]["value"] is None


@pytest.mark.parametrize("more", [[], ["--json"], ["ring"]], ids=["list", "json", "one"])
def test_broken_plugin_is_shown_with_its_reason_and_ends_with_1(
    plugin_dir: Path, more: list[str]
) -> None:
    (plugin_dir / "ring.py").write_text("import no_such_module")
    done = receiver("plugins", *more, PLUGIN_DIR=str(plugin_dir))
    reason = "ModuleNotFoundError: No module named 'no_such_module'"
    assert done.code == 1
    assert done.err == f"problem: ring ({plugin_dir}/ring.py): {reason}\n"
    if "--json" in more:
        shown = {one["name"]: one for one in json.loads(done.out)}
        assert (shown["ring"]["state"], shown["ring"]["reason"]) == ("broken", reason)
        assert shown["log_action"]["state"] == "loaded"
    else:
        assert "broken" in done.out
        assert reason in " ".join(done.out.split())


def test_plugins_of_a_directory_that_is_not_there_end_with_1_and_list_the_others() -> None:
    done = receiver("plugins", PLUGIN_DIR="/no/such/directory")
    assert done.code == 1
    assert "PLUGIN_DIR: /no/such/directory cannot be read: No such file" in done.err
    assert "log_action" in done.out


def test_unknown_plugin_ends_with_1_and_where_to_look() -> None:
    done = receiver("plugins", "zzz")
    assert (done.code, done.out) == (1, "")
    assert "there is no plugin zzz; see `receiver plugins`" in done.err


def test_unknown_plugin_is_told_with_the_nearest_and_with_what_may_have_hidden_it() -> None:
    done = receiver("plugins", "log_acton", PLUGIN_DIR="/no/such/directory")
    assert (done.code, done.out) == (1, "")
    assert "there is no plugin log_acton (did you mean log_action?)" in done.err
    assert "PLUGIN_DIR: /no/such/directory cannot be read" in done.err


# receiver migrate


def test_migrated_files_are_closed_to_other_users(tmp_path: Path) -> None:
    config, output = tmp_path / "config.toml", tmp_path / "migrated"
    config.write_text(
        'metric_name = "m"\nthreshold_operator = "less_than"\n'
        '[soft]\nthreshold = 1\nplugin = "log_action"\n'
    )
    before = os.umask(0o022)
    try:
        done = process("migrate", config, "--output", output)
    finally:
        os.umask(before)
    assert done.code == 0, done.err
    written = [output, *output.iterdir()]
    assert len(written) > 3
    assert not [file for file in written if file.stat().st_mode & 0o077]


# receiver send


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def serving(directory: Path) -> Iterator[Receiver]:
    """A receiver that accepts with the token, and runs nothing."""
    environment = {"RECEIVER_DATA_DIR": str(directory / "data"), "RECEIVER_SUBMIT_TOKEN": TOKEN}
    one = Receiver("web", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
    finally:
        one.kill()


def send(serving: Receiver, *arguments: str | Path) -> Ended:
    bind = f"127.0.0.1:{serving.port}"
    return receiver("send", *arguments, "--bind", bind, RECEIVER_SUBMIT_TOKEN=TOKEN)


def printed(name: str) -> tuple[Notification, datetime, datetime]:
    """Return a printed sample, and the times before and after."""
    before = datetime.now(UTC)
    done = receiver("send", name, "--print")
    assert (done.code, done.err) == (0, "")
    return parse_notification(done.out.encode()), before, datetime.now(UTC)


@pytest.mark.parametrize("arguments", [["--list"], []], ids=["--list", "nothing named"])
def test_send_lists_the_samples(arguments: list[str]) -> None:
    done = receiver("send", *arguments)
    assert done.code == 0
    assert lines_of(done.out) == SAMPLES


def test_samples_are_all_that_lie_in_the_package() -> None:
    files = Path(sys.modules["receiver"].__path__[0], "samples").glob("*.json")
    assert {one.stem for one in files} == set(SAMPLES)


@pytest.mark.parametrize(
    ("name", "status", "statuses"),
    [
        ("firing", "firing", ["firing"]),
        ("resolved", "resolved", ["resolved"]),
        ("group", "firing", ["firing", "firing", "resolved"]),
    ],
    ids=["firing", "resolved", "group"],
)
def test_printed_sample_is_a_notification_that_begins_or_ends_now(
    name: str, status: str, statuses: list[str]
) -> None:
    sample, before, after = printed(name)
    assert sample.status == status
    assert [one.status for one in sample.alerts] == statuses
    assert len({one.fingerprint for one in sample.alerts}) == len(statuses)
    for one in sample.alerts:
        assert before <= (one.ends_at or one.starts_at) <= after
        assert one.ends_at is None or one.ends_at - one.starts_at == timedelta(minutes=5)


def test_samples_are_about_the_same_alert() -> None:
    samples = [printed(name)[0].alerts[0] for name in ("firing", "resolved", "group")]
    assert len({one.fingerprint for one in samples}) == 1
    assert len({tuple(one.labels.items()) for one in samples}) == 1


def test_sample_sent_twice_is_accepted_twice(serving: Receiver) -> None:
    for _ in (1, 2):
        done = send(serving, "firing")
        assert (done.code, done.out, done.err) == (0, ACCEPTED, "")


def test_file_is_sent_as_it_is(serving: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_bytes(notification(alert("of-a-file", labels={"action_plugin": "log_action"})))
    assert send(serving, file).out == ACCEPTED
    again = ACCEPTED.replace('"accepted":1,"duplicate":0', '"accepted":0,"duplicate":1')
    assert send(serving, file).out == again


def test_file_that_is_no_notification_ends_with_1_and_the_answer(
    serving: Receiver, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"version": "4"}')
    done = send(serving, file)
    assert done.code == 1
    assert done.out.startswith("400 ")
    assert "alerts" in done.out


@pytest.mark.parametrize(
    "name", ["fring", "/", "/dev/null/x"], ids=["not there", "directory", "not readable"]
)
def test_what_is_neither_a_sample_nor_a_file_ends_with_1_and_the_samples(name: str) -> None:
    done = receiver("send", name)
    assert (done.code, done.out) == (1, "")
    expected = f"{name} is neither a sample (firing, resolved, group) nor a readable file: "
    assert expected in done.err
    assert "Traceback" not in done.err


def test_action_is_posted_to_by_its_own_path(serving: Receiver, directory: Path) -> None:
    assert send(serving, "firing", "--action", "http_plugin").out == ACCEPTED
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    (run, *_) = reading.list_runs(journal)
    journal.close()
    assert run["action"] == "http_plugin"


def test_unknown_action_ends_with_1_and_the_answer(serving: Receiver) -> None:
    done = send(serving, "firing", "--action", "log_acton")
    assert done.code == 1
    assert done.out.startswith("404 ")
    assert "did you mean log_action?" in done.out


def test_url_names_another_webhook(serving: Receiver, directory: Path) -> None:
    url = f"{serving.url}/webhook?source=elsewhere"
    done = receiver("send", "firing", "--url", url, RECEIVER_SUBMIT_TOKEN=TOKEN)
    assert done.out == ACCEPTED
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    (run,) = reading.list_runs(journal, source="elsewhere")
    journal.close()
    assert run["action"] == "log_action"


@pytest.mark.parametrize("path", ["", "/", "/webhook", "/webhook/"])
def test_url_of_the_receiver_is_completed_to_that_of_its_webhook(
    serving: Receiver, path: str
) -> None:
    done = receiver("send", "firing", "--url", f"{serving.url}{path}", RECEIVER_SUBMIT_TOKEN=TOKEN)
    assert (done.code, done.out) == (0, ACCEPTED)


def test_url_before_the_command_is_where_a_sample_goes(serving: Receiver) -> None:
    elsewhere = {"RECEIVER_SUBMIT_TOKEN": TOKEN, "RECEIVER_BIND": "127.0.0.1:1"}
    assert receiver("--url", serving.url, "send", "firing", **elsewhere).out == ACCEPTED
    assert receiver("send", "firing", RECEIVER_URL=f"{serving.url}/", **elsewhere).out == ACCEPTED


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://user:s3cret@x/", "http://[", "s3cret"])
def test_url_that_is_none_ends_with_1_and_the_form_of_one(url: str) -> None:
    done = receiver("send", "firing", "--url", url, RECEIVER_SUBMIT_TOKEN=TOKEN)
    assert (done.code, done.out) == (1, "")
    assert "--url: the address is not a URL; write http://host:port/path" in done.err
    assert "s3cret" not in done.err


def test_password_in_a_url_is_not_shown() -> None:
    url = f"http://user:s3cret@127.0.0.1:{free_port()}"
    done = receiver("send", "firing", "--url", url)
    assert done.code == 1
    assert "/webhook does not answer" in done.err
    assert "s3cret" not in done.err


@pytest.mark.parametrize(
    ("name", "token"), [("one", "token-of-one"), ("another", TOKEN)], ids=["bound", "not bound"]
)
def test_sample_is_sent_as_a_source_with_the_credentials_of_that_source(
    start_receiver: Callable[..., Receiver], tmp_path: Path, name: str, token: str
) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text('[sources.one]\nsubmit_token = "token-of-one"\n[sources.another]\n')
    shared = {"RECEIVER_CONFIG": str(file), "RECEIVER_SUBMIT_TOKEN": TOKEN}
    web = start_receiver("web", **shared).wait_ready()

    done = receiver("send", "firing", "--source", name, RECEIVER_BIND=web.url[7:], **shared)

    assert (done.code, done.out) == (0, ACCEPTED)
    line = wait_until(lambda: web.lines("notification recorded"))[0]
    assert line["source"] == name


def test_url_with_a_query_and_an_action_go_together(serving: Receiver, directory: Path) -> None:
    url = f"{serving.url}/webhook?source=both"
    done = receiver(
        "send", "firing", "--url", url, "--action", "http_plugin", RECEIVER_SUBMIT_TOKEN=TOKEN
    )
    assert done.out == ACCEPTED
    journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")
    runs = reading.list_runs(journal, source="both")
    journal.close()
    assert [one["action"] for one in runs] == ["http_plugin"]


def test_token_is_read_from_a_file(serving: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    done = receiver(
        "send", "firing", RECEIVER_BIND=f"127.0.0.1:{serving.port}",
        RECEIVER_SUBMIT_TOKEN_FILE=str(file),
    )  # fmt: skip
    assert (done.code, done.out) == (0, ACCEPTED)


@pytest.mark.parametrize(
    "environment", [{}, {"RECEIVER_SUBMIT_TOKEN": "wr0ng"}], ids=["no token", "wrong token"]
)
def test_refused_token_ends_with_1_and_what_is_needed(
    serving: Receiver, environment: dict[str, str]
) -> None:
    done = receiver("send", "firing", RECEIVER_BIND=f"127.0.0.1:{serving.port}", **environment)
    assert done.code == 1
    assert done.out.startswith("401 ")
    assert "RECEIVER_SUBMIT_TOKEN" in done.out
    assert "wr0ng" not in done.out + done.err


@pytest.mark.parametrize("token", ["one two s3cret", "s3cret-€"], ids=["three", "not Latin"])
def test_token_that_no_header_can_hold_is_refused_without_being_shown(
    serving: Receiver, token: str
) -> None:
    bind = f"127.0.0.1:{serving.port}"
    done = receiver("send", "firing", RECEIVER_BIND=bind, RECEIVER_SUBMIT_TOKEN=token)
    assert done.code == 1
    assert "RECEIVER_SUBMIT_TOKEN" in done.err
    assert "s3cret" not in done.err
    assert "Traceback" not in done.err


def test_nobody_there_ends_with_1_the_address_and_the_cure() -> None:
    port = free_port()
    done = process("send", "firing", RECEIVER_BIND=f"127.0.0.1:{port}")
    assert (done.code, done.out) == (1, "")
    assert f"http://127.0.0.1:{port}/webhook does not answer" in done.err
    assert "is `receiver serve` running there?" in done.err
    assert "Traceback" not in done.err
