"""The README and its tables: each example is carried out, and each table says what is so."""

import json
import os
import pkgutil
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest
import requests
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

import action_plugins
from receiver import settings as receiver_settings
from receiver.calls import call_of
from receiver.cli import cli
from receiver.declarations import Setting, declared
from receiver.journal import reading
from receiver.journal.journal import Journal
from receiver.metrics.instruments import INSTRUMENTS
from receiver.plugins import load_actions, rules_of
from receiver.policies import Policy
from receiver.sources import Source
from receiver.subject import target_of
from receiver.testing import make_alert
from receiver.web.auth import Scope
from receiver.web.connections import REQUEST_THREADS
from tests.support.documents import ROOT
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.stack import requires
from tests.support.waiting import wait_until

Start = Callable[..., Receiver]

# The README and the pages of tables that it leads to: here they are one document.
PAGES = ("README.md", "docs/settings.md", "docs/metrics.md", "docs/security.md")
README = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
PROGRAMS = Path(sys.executable).parent  # Where pip puts `receiver`.


@dataclass(frozen=True)
class Section:
    """What stands under one heading: fenced blocks and tables, the latter as lines of Markdown."""

    blocks: tuple[tuple[str, str], ...]
    tables: tuple[tuple[str, ...], ...]

    def block(self, language: str, nth: int = 0) -> str:
        """Return one of the blocks of a language."""
        return [text for kind, text in self.blocks if kind == language][nth]

    def rows(self, nth: int = 0) -> list[list[str]]:
        """Return the cells of a table, without its head."""
        lines = self.tables[nth][2:]
        return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def sections() -> dict[str, Section]:
    """Return heading -> what stands under it."""
    tokens = MarkdownIt().enable("table").parse(README)
    lines = README.splitlines()
    found: dict[str, list[Token]] = {}
    heading = ""
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[number + 1].content
        found.setdefault(heading, []).append(token)
    return {
        heading: Section(
            # What is indented is a block too, one that cannot say its language.
            tuple((one.info, one.content) for one in inside if one.type in ("fence", "code_block")),
            tuple(tuple(lines[slice(*one.map)]) for one in inside if one.type == "table_open"),
        )
        for heading, inside in found.items()
    }


SECTIONS = sections()
FIRST_MINUTE = SECTIONS["The first minute"]
PROMETHEUS = SECTIONS["Prometheus: which alerts, with what"]
ALERTMANAGER = SECTIONS["Alertmanager: where to"]
ANSWERS = SECTIONS["What it answers"]
ACTIONS = SECTIONS["Actions"]
GUARDRAILS = SECTIONS["Guardrails"]
COMMANDS_TABLE = "\n".join(SECTIONS["Commands"].tables[0])
API = SECTIONS["The API"]
SETTINGS = SECTIONS["Settings"]
METRICS = SECTIONS["Metrics"]
OURSELVES = SECTIONS["Alerts on the receiver itself"]
WHO = SECTIONS["Who may do what"]
SOURCES = SECTIONS["Sources"]


def run(*command: str | Path, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; what it wrote is in `stdout`."""
    return subprocess.run(
        command, cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=60, check=False, **more,
    )  # fmt: skip


def with_receiver() -> dict[str, str]:
    """Return an environment in which `receiver` is found."""
    return {**os.environ, "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}"}


# The first minute


def as_a_new_user(directory: Path) -> dict[str, str]:
    """Return the environment without what tests, make and git of this checkout have put there."""
    # A checkout that another user owns can be cloned too.
    (directory / "gitconfig").write_text("[safe]\n    directory = *\n")
    inherited = ("MAKE", "MFLAGS", "GIT_", "VIRTUAL_ENV", "PYTHON", "PYTEST_", "VENV", "BIND")
    return {
        **{name: text for name, text in os.environ.items() if not name.startswith(inherited)},
        "GIT_CONFIG_GLOBAL": str(directory / "gitconfig"),
        "PYTHON": sys.executable,  # Where `python3` is older than 3.11, a user says the same.
    }


def test_fresh_clone_serves_after_make_run_and_acts_on_the_alert_that_curl_posts(
    tmp_path: Path,
) -> None:
    requires("git", "make", "curl")
    clone, environment = tmp_path / "clone", as_a_new_user(tmp_path)
    cloned = run("git", "clone", "--quiet", ROOT, clone, cwd=tmp_path, env=environment)
    assert cloned.returncode == 0, cloned.stdout
    log = tmp_path / "make.log"

    def said(message: str) -> int:
        return log.read_text().count(f'"message": "{message}"')

    def is_ready() -> bool:
        assert make.poll() is None, "`make run` has ended"
        return answers(port) and said("worker started") == 1

    with reserved_port() as port, log.open("wb") as output:
        make = subprocess.Popen(
            [*shlex.split(FIRST_MINUTE.block("sh")), f"BIND=127.0.0.1:{port}"],
            cwd=clone, env=environment, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            wait_until(is_ready, 300, "`make run` serves")
            assert (clone / "receiver-data" / "journal.db").is_file()
            freeze = run(clone / ".venv/bin/pip", "freeze", "--exclude-editable", cwd=clone)
            pinned = (clone / "constraints.txt").read_text().splitlines()
            assert set(freeze.stdout.splitlines()) <= set(pinned)

            assert post_as_pasted(port) == FIRST_ANSWER
            wait_until(lambda: said("threshold action executed") == 1)
            again = post_as_pasted(port)
            assert json.loads(again) == json.loads(FIRST_ANSWER) | {"accepted": 0, "duplicate": 1}
            assert '"duplicate":1' in again

            for times in (1, 2):
                sent = run(
                    clone / COMMAND_IN / "receiver", "send", "firing",
                    "--bind", f"127.0.0.1:{port}", cwd=clone, env=environment,
                )  # fmt: skip
                assert sent.stdout == f"200 {FIRST_ANSWER}\n"
                wait_until(lambda times=times: said("threshold action executed") == 1 + times)

            os.killpg(make.pid, signal.SIGINT)  # As Ctrl-C does.
            make.wait(30)
            wait_until(lambda: not is_left(make.pid), what="all of its processes ended")
        finally:
            # The children of the receiver end with it.
            if is_left(make.pid):
                os.killpg(make.pid, signal.SIGKILL)
                make.wait(10)
            print(log.read_text())
    assert not answers(port)
    assert said("worker stopped") == 1
    assert said("threshold action executed") == 3
    assert "Traceback" not in log.read_text()
    assert '"level": "ERROR"' not in log.read_text()


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keep a port for whoever listens on it with SO_REUSEADDR: nobody else is given it."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", 0))
        yield one.getsockname()[1]


(COMMAND_IN,) = re.findall(r"The command `receiver` is in `(.+?)`", README)
(FIRST_ANSWER,) = re.findall(r"It answers `(\{.*?\})`", README)


def post_as_pasted(port: int) -> str:
    """Run the README's curl command, only the port replaced; return what it shows."""
    block = FIRST_MINUTE.block("sh", 1)
    assert block.count("127.0.0.1:8080") == 1
    command = block.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    done = run("sh", "-e", cwd=Path("/"), input=command)
    assert done.returncode == 0, done.stdout
    return done.stdout.strip()


def answers(port: int) -> bool:
    """Whether a receiver is ready there."""
    try:
        return requests.get(f"http://127.0.0.1:{port}/-/ready", timeout=2).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


def is_left(group: int) -> bool:
    """Whether a process group still has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# Prometheus: which alerts, with what


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The rule file: what stands under `spec` of the resource."""
    file = tmp_path / "rules.yml"
    spec = yaml.safe_load(PROMETHEUS.block("yaml"))["spec"]
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    return file


def test_rules_are_accepted_by_prometheus(rules: Path) -> None:
    (promtool,) = requires("promtool")
    checked = run(promtool, "check", "rules", rules, cwd=rules.parent)
    assert checked.returncode == 0, checked.stdout
    assert "SUCCESS: 4 rules found" in checked.stdout


def test_resource_is_one_that_the_operator_picks_up() -> None:
    resource = yaml.safe_load(PROMETHEUS.block("yaml"))
    assert resource["apiVersion"] == "monitoring.coreos.com/v1"
    assert resource["kind"] == "PrometheusRule"
    # The chart's default: ruleSelector matches the label release.
    assert resource["metadata"]["labels"]["release"] == "kube-prometheus-stack"


Firing = dict[str, dict[str, str]]


def firing(
    severity: str, action: str, metric: str, value: str, threshold: str, pending: str, **more: str
) -> Firing:
    """Return an alert as promtool expects it; `more` are labels."""
    return {
        "exp_labels": {"severity": severity, "action_plugin": action, **more},
        "exp_annotations": {
            "metric_name": metric, "value": value, "threshold": threshold, "for": pending
        },
    }  # fmt: skip


def soft(value: str, queue: str = "orders") -> Firing:
    expected = firing("warning", "log_action", "queue_depth", value, "> 80", "5m", queue=queue)
    expected["exp_annotations"]["summary"] = f"queue {queue} is at {value}"
    return expected


def hard(value: str, queue: str = "orders") -> Firing:
    return firing("critical", "file_action", "queue_depth", value, "> 95", "1m", queue=queue)


EFS = firing(
    "critical", "efs_emergency", "aws_efs_burst_credit_balance_average", "5e+08", "< 1e9", "5m",
    dimension_FileSystemId="fs-0123456789abcdef0",
)  # fmt: skip
MISSING = firing(
    "critical", "log_action", "heartbeat_timestamp_seconds", "1", "absent", "5m", service="billing"
)
ORDERS, MAIL = 'queue_depth{queue="orders"}', 'queue_depth{queue="mail"}'
CREDITS = 'aws_efs_burst_credit_balance_average{dimension_FileSystemId="fs-0123456789abcdef0"}'
HEARTBEAT = "heartbeat_timestamp_seconds"


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        pytest.param(
            {ORDERS: "90x10"},
            [("4m", "QueueTooLong"), ("5m", "QueueTooLong", soft("90"))],
            id="soft fires after 5 minutes",
        ),
        pytest.param(
            {ORDERS: "80x10"}, [("10m", "QueueTooLong")], id="soft does not fire at its threshold"
        ),
        pytest.param(
            {ORDERS: "90x6 95x10"},
            [("15m", "QueueTooLong", soft("95")), ("15m", "QueueFarTooLong")],
            id="hard does not fire while only soft is crossed",
        ),
        pytest.param(
            {ORDERS: "97x10"},
            [
                ("4m", "QueueFarTooLong"),
                ("5m", "QueueTooLong", soft("97")),
                ("5m", "QueueFarTooLong"),
                ("6m", "QueueFarTooLong", hard("97")),
            ],
            id="hard waits for soft and then for its own minute",
        ),
        pytest.param(
            {ORDERS: "90x6 97x5"},
            [("7m", "QueueFarTooLong"), ("8m", "QueueFarTooLong", hard("97"))],
            id="hard fires a minute after its threshold while soft fires",
        ),
        pytest.param(
            {ORDERS: "97x7 70x5"},
            [
                ("7m", "QueueFarTooLong", hard("97")),
                ("8m", "QueueTooLong"),
                ("8m", "QueueFarTooLong"),
            ],
            id="both end with the crossing",
        ),
        pytest.param(
            {ORDERS: "90x9", MAIL: "70x6 97x2"},
            [("9m", "QueueTooLong", soft("90")), ("9m", "QueueFarTooLong")],
            id="soft of one queue lets hard of no other fire",
        ),
        pytest.param(
            {CREDITS: "500000000x6"},
            [("4m", "EfsBurstCreditsLow"), ("5m", "EfsBurstCreditsLow", EFS)],
            id="burst credits are low for 5 minutes",
        ),
        pytest.param(
            {CREDITS: "1000000000x6"}, [("6m", "EfsBurstCreditsLow")], id="burst credits suffice"
        ),
        pytest.param(
            {f'{HEARTBEAT}{{service="search"}}': "1x6"},
            [("4m", "HeartbeatMissing"), ("5m", "HeartbeatMissing", MISSING)],
            id="heartbeat is missing for 5 minutes",
        ),
        pytest.param(
            {f'{HEARTBEAT}{{service="billing",instance="a"}}': "1x6"},
            [("6m", "HeartbeatMissing")],
            id="heartbeat is there",
        ),
    ],
)
def test_rules_fire_when_they_should(
    rules: Path, series: dict[str, str], expected: Sequence[tuple[Any, ...]]
) -> None:
    """`expected`: a time, an alert, and the ones of it that fire then."""
    (promtool,) = requires("promtool")
    unit_tests = {
        "rule_files": [rules.name],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "alert_rule_test": [
                    {"eval_time": time, "alertname": name, "exp_alerts": alerts}
                    for time, name, *alerts in expected
                ],
            }
        ],
    }
    file = rules.with_name("unit-tests.yml")
    file.write_text(yaml.safe_dump(unit_tests))
    tested = run(promtool, "test", "rules", file, cwd=rules.parent)
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize(
    ("annotation", "given", "without"),
    [
        pytest.param(
            {"metric_name": "depth"}, ("metric_name", "depth"), "queue_depth", id="metric_name"
        ),
        pytest.param({"value": "9.5"}, ("value", 9.5), "nan", id="value"),
        pytest.param({"threshold": ">= 7"}, ("threshold", ">= 7"), "> 80", id="threshold"),
        pytest.param({"for": "5m"}, ("duration", timedelta(minutes=7)), "0:02:00", id="for"),
        pytest.param(
            {"duration": "5m"}, ("duration", timedelta(minutes=7)), "0:02:00", id="duration"
        ),
    ],
)
def test_annotation_is_what_the_action_is_told_and_has_the_stand_in_of_the_table(
    annotation: dict[str, str], given: tuple[str, object], without: str
) -> None:
    # The expression of both is queue_depth > 80; received two minutes after startsAt.
    alerts = make_alert(annotations=annotation), make_alert()
    told, untold = (call_of(one, one.starts_at + timedelta(minutes=2)) for one in alerts)
    field, value = given
    assert getattr(told, field) == value
    assert str(getattr(untold, field)) == without


def test_table_of_annotations_names_those_that_are_read() -> None:
    names = [re.findall(r"`(\w+)`", row[0]) for row in PROMETHEUS.rows()]
    assert names == [["metric_name"], ["value"], ["threshold"], ["for", "duration"]]


# Alertmanager: where to


@pytest.fixture
def alertmanager(tmp_path: Path) -> Path:
    """The configuration as a file."""
    file = tmp_path / "alertmanager.yml"
    file.write_text(ALERTMANAGER.block("yaml"))
    return file


def test_configuration_is_accepted_by_alertmanager(alertmanager: Path) -> None:
    (amtool,) = requires("amtool")
    checked = run(amtool, "check-config", alertmanager, cwd=alertmanager.parent)
    assert checked.returncode == 0, checked.stdout
    assert "3 receivers" in checked.stdout


@pytest.mark.parametrize(
    ("labels", "receivers"),
    [
        pytest.param(
            ["alertname=QueueTooLong", "action_plugin=log_action"],
            "alert-receiver",
            id="one that names its action",
        ),
        pytest.param(["alertname=DiskFull"], "alert-receiver-files", id="one that its route maps"),
        pytest.param(
            ["alertname=DiskFull", "action_plugin=log_action"],
            "alert-receiver,alert-receiver-files",
            id="both ways",
        ),
        pytest.param(["alertname=Watchdog", "severity=none"], "nobody", id="any other"),
    ],
)
def test_alert_is_routed_to_the_receiver_that_it_is_meant_for(
    alertmanager: Path, labels: list[str], receivers: str
) -> None:
    (amtool,) = requires("amtool")
    routed = run(
        amtool, "config", "routes", "test", f"--config.file={alertmanager}",
        f"--verify.receivers={receivers}", *labels, cwd=alertmanager.parent,
    )  # fmt: skip
    assert routed.returncode == 0, routed.stdout


# What it answers

TOKEN = "only-for-this-test"
BODY = notification(alert())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("answers")


@pytest.fixture(scope="module")
def web(directory: Path) -> Iterator[Receiver]:
    """A receiver that accepts, and runs nothing."""
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "RECEIVER_READ_TOKEN": f"{TOKEN}-to-read",
        "RECEIVER_MAX_BODY": "4KiB",
    }
    one = Receiver("web", environment, directory / "receiver.log")
    try:
        yield one.wait_ready()
    finally:
        one.kill()


def post(web: Receiver, body: bytes = BODY, path: str = "/webhook", **headers: str) -> int:
    answer = web.post(body, path, **{"Authorization": f"Bearer {TOKEN}", **headers})
    return answer.status_code


@pytest.mark.parametrize(
    ("status", "body", "path", "headers"),
    [
        pytest.param(200, BODY, "/webhook", {}, id="accepted"),
        pytest.param(400, b"{", "/webhook", {}, id="not JSON"),
        pytest.param(400, b"{}", "/webhook", {}, id="not a version-4 notification"),
        pytest.param(400, BODY, "/webhook?sources=one", {}, id="unknown parameter"),
        pytest.param(401, BODY, "/webhook", {"Authorization": "Bearer wrong"}, id="wrong token"),
        pytest.param(401, BODY, "/webhook", {"Authorization": ""}, id="no token"),
        pytest.param(
            403, BODY, "/webhook", {"Authorization": f"Bearer {TOKEN}-to-read"}, id="to read only"
        ),
        pytest.param(404, BODY, "/webhook/no_such_action", {}, id="unknown action"),
        pytest.param(404, BODY, "/webhooks", {}, id="no such path"),
        pytest.param(405, BODY, "/", {}, id="no path"),
        pytest.param(413, b" " * 5000, "/webhook", {}, id="larger than RECEIVER_MAX_BODY"),
        pytest.param(415, BODY, "/webhook", {"Content-Type": "text/plain"}, id="not JSON by type"),
        pytest.param(415, BODY, "/webhook", {"Content-Encoding": "gzip"}, id="compressed"),
    ],
)
def test_answer_is_as_the_table_says(
    web: Receiver, status: int, body: bytes, path: str, headers: dict[str, str]
) -> None:
    assert post(web, body, path, **headers) == status


def test_answer_is_503_while_it_cannot_be_stored(web: Receiver, directory: Path) -> None:
    lock = sqlite3.connect(directory / "data" / "journal.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        assert post(web) == 503
    finally:
        lock.close()
    assert post(web) == 200


def test_table_of_answers_names_those_that_are_given() -> None:
    named = [code for row in ANSWERS.rows() for code in re.findall(r"\d{3}", row[0])]
    assert named == ["200", "400", "401", "403", "404", "405", "413", "415", "503"]


# Actions


@pytest.fixture
def plugin_dir(tmp_path: Path) -> Path:
    """`plugins` with the README's plugin, saved as it says."""
    saved = re.findall(r"Saved as `(.+?)/(.+?)`, it is the action `drain_queue`", README)
    ((directory, name),) = saved
    (tmp_path / directory).mkdir()
    (tmp_path / directory / name).write_text(ACTIONS.block("python"))
    return tmp_path / directory


def test_plugin_of_the_example_runs_and_is_retried_at_the_time_it_names(
    plugin_dir: Path, start_receiver: Start, tmp_path: Path
) -> None:
    receiver = start_receiver(PLUGIN_DIR=str(plugin_dir)).wait_ready()
    labels = {"action_plugin": "drain_queue", "queue": "orders"}
    body = notification(
        alert("good", labels=labels, annotations={"metric_name": "depth", "value": "90"}),
        alert("bad", labels=labels, annotations={"metric_name": "depth", "value": "-1"}),
    )
    assert receiver.post(body).json()["accepted"] == 2
    journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")

    def run_of(fingerprint: str, **equal: object) -> dict[str, Any]:
        (found,) = wait_until(
            lambda: reading.list_runs(journal, fingerprint=fingerprint, **equal)
        )  # fmt: skip
        return found

    good = run_of("good", state="finished")
    assert (good["outcome"], json.loads(good["result"])) == ("succeeded", {"drained": True})
    (line,) = wait_until(lambda: receiver.lines("queue would be drained"))
    assert line["queue"] == "orders"

    bad = run_of("bad", state="queued", attempts=1)
    (attempt,) = reading.attempts_of(journal, bad["id"])
    journal.close()
    assert "depth is not to be believed" in attempt["error"]
    assert bad["due_at"] - attempt["finished_at"] == timedelta(seconds=30)


def test_command_shows_the_plugin_of_the_example(plugin_dir: Path) -> None:
    shown = run("sh", "-e", cwd=plugin_dir.parent, env=with_receiver(), input=ACTIONS.block("sh"))
    assert shown.returncode == 0, shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[:2] == [["drain_queue", "loaded"], ["origin", "plugins/drain_queue.py"]]


def test_table_of_actions_names_the_built_ins() -> None:
    built_ins = {one.name for one in pkgutil.iter_modules(action_plugins.__path__)}
    named = [row[0].strip("`") for row in ACTIONS.rows()]
    assert sorted(named) == sorted(built_ins)


# Guardrails


def test_guardrails_of_the_example_are_accepted_and_count_by_host(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(GUARDRAILS.block("toml"))
    checked = run(
        "receiver", "check", "--config", "receiver.toml", cwd=tmp_path, env=with_receiver()
    )
    assert checked.returncode == 0, checked.stdout
    settings = receiver_settings.load({}, {}, file)
    rules = rules_of(settings, load_actions(settings))
    hour, day = timedelta(hours=1), timedelta(days=1)
    assert rules.limits.rate_limit == ((20, hour),)
    policy = rules.policy("http_plugin")
    assert (policy.cooldown, policy.rate_limit) == (hour / 2, ((3, hour), (7, day)))
    assert (policy.verify_after, policy.escalate_to) == (timedelta(minutes=10), "log_action")
    targets = {
        target_of(policy, "", fingerprint, {"alertname": fingerprint, "host": host})
        for fingerprint, host in (("disk", "a"), ("load", "a"), ("disk", "b"))
    }
    assert targets == {"host=a", "host=b"}


@pytest.mark.parametrize("key", re.findall(r"`([a-z]+_[a-z_]+)`", "".join(GUARDRAILS.tables[0])))
def test_table_of_guardrails_names_keys_that_exist(key: str) -> None:
    annotations = {"action_dry_run"}
    assert key in declared(Policy).keys() | annotations


# Commands


def test_table_of_commands_names_every_command() -> None:
    named = set(re.findall(r"`receiver ([\w-]+)", COMMANDS_TABLE))
    assert named == set(cli.list_commands(click.Context(cli)))


def test_table_of_commands_shows_the_arguments_that_each_takes() -> None:
    for name, usage in re.findall(r"^\| `receiver ([\w-]+)(.*?)` \|", COMMANDS_TABLE, re.MULTILINE):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        arguments = [one for one in command.params if isinstance(one, click.Argument)]
        taken = [one.human_readable_name for one in arguments]
        assert re.findall(r"\b[A-Z_]+\b", usage) == taken, name


# Settings


def row_of(one: Setting, *more: str) -> str:
    """Return the row of a setting as the README writes it."""
    name = f"`{one.name}` (or `{one.file_name}`)" if one.secret else f"`{one.name}`"
    default = f"`{one.default}`" if one.default else "none"
    return f"| {' | '.join([name, *more, default, one.help])} |"


def test_table_of_settings_is_the_one_in_the_code() -> None:
    expected = [
        row_of(one, f"`{receiver_settings.toml_key(one)}`")
        for one in receiver_settings.table().values()
    ]
    assert list(SETTINGS.tables[0][2:]) == expected, as_it_should_be(SETTINGS.tables[0], expected)


def test_table_of_policies_is_the_one_in_the_code() -> None:
    expected = [row_of(one) for one in declared(Policy).values()]
    assert list(SETTINGS.tables[1][2:]) == expected, as_it_should_be(SETTINGS.tables[1], expected)


def test_table_of_sources_is_the_one_in_the_code() -> None:
    expected = [row_of(one) for one in declared(Source).values()]
    assert list(SETTINGS.tables[2][2:]) == expected, as_it_should_be(SETTINGS.tables[2], expected)


def as_it_should_be(table: Sequence[str], rows: Sequence[str]) -> str:
    """Return the whole table with these rows, to be pasted into the README."""
    return "\n".join(["the table should be:", *table[:2], *rows])


def test_settings_file_of_the_example_is_accepted_and_used(tmp_path: Path) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(SETTINGS.block("toml"))
    for more in (["--config", "receiver.toml"], []):
        environment = with_receiver() | ({} if more else {"RECEIVER_CONFIG": "receiver.toml"})
        checked = run("receiver", "check", *more, cwd=tmp_path, env=environment)
        assert checked.returncode == 0, checked.stdout
        assert re.search(r"^ACTION_PLUGIN +log_action$", checked.stdout, re.MULTILINE)
    settings = receiver_settings.load({}, {}, file)
    policy = rules_of(settings, load_actions(settings)).policy("file_action")
    assert (policy.timeout, policy.max_attempts) == (timedelta(seconds=30), 5)
    assert policy.backoff == (timedelta(seconds=2), timedelta(minutes=1))
    shown = run(
        "receiver", "plugins", "file_action", "--config", "receiver.toml",
        cwd=tmp_path, env=with_receiver(),
    )  # fmt: skip
    assert "FILE_ACTION_DIR = /tmp/metric-files\n" in shown.stdout
    assert f"FILE_ACTION_SIZE = {2**20}\n" in shown.stdout


# Metrics


def test_table_of_metrics_is_the_one_in_the_code() -> None:
    expected = [
        f"| `{one.name}` | {one.type} | {labels + ' ' if labels else ''}| {one.help} |"
        for one in INSTRUMENTS
        for labels in [", ".join(f"`{label}`" for label in one.labels)]
    ]
    assert list(METRICS.tables[0][2:]) == expected, as_it_should_be(METRICS.tables[0], expected)


# The API


def test_api_and_commands_do_as_the_block_says(start_receiver: Start, tmp_path: Path) -> None:
    web = start_receiver("web").wait_ready()  # Nobody works: the run waits.
    queue = alert("api", labels={"alertname": "QueueTooLong"}, starts_at=datetime.now(UTC))
    assert web.post(notification(queue), "/webhook/log_action").json()["accepted"] == 1
    block = API.block("sh").replace("127.0.0.1:8080", f"127.0.0.1:{web.port}")
    done = run("sh", "-e", cwd=tmp_path, env=with_receiver(), input=block)
    listed, cancelled, shown = done.stdout.split("\n", 2)
    assert [one["id"] for one in json.loads(listed)["runs"]] == [1]
    assert json.loads(cancelled) == {"done": "run 1 is cancelled"}
    assert "cancelled by anyone: wrong queue" in shown


# Alerts on the receiver itself


def test_rules_on_ourselves_are_printed_as_the_block_says(tmp_path: Path) -> None:
    (promtool,) = requires("promtool")
    done = run("sh", "-e", cwd=tmp_path, env=with_receiver(), input=OURSELVES.block("sh"))
    assert done.stdout.startswith("**Means:**"), done.stdout
    rules, dashboard = re.findall(r"> (\S+)", OURSELVES.block("sh"))
    checked = run(promtool, "check", "rules", tmp_path / rules, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout
    assert json.loads((tmp_path / dashboard).read_text())["title"] == "alert-receiver"
    names = re.findall(r"- alert: (\w+)", (tmp_path / rules).read_text())
    assert [row[0].strip("`") for row in OURSELVES.rows()] == names


# Security


def test_table_of_scopes_names_each_with_the_settings_that_give_it() -> None:
    rows = {re.findall(r"`(\w+)`", row[0])[0]: row for row in WHO.rows()}
    assert list(rows) == [scope.value for scope in Scope]
    for name, row in rows.items():
        credentials = [f"RECEIVER_{name.upper()}_TOKEN", f"RECEIVER_{name.upper()}_BASIC_AUTH"]
        assert re.findall(r"`(\w+)`", row[2])[:2] == credentials
    settings = {one.name for one in receiver_settings.table().values()}
    assert set(re.findall(r"RECEIVER_\w+", "".join("".join(row) for row in WHO.rows()))) <= settings


def test_number_of_connections_is_the_one_in_the_code() -> None:
    assert f"More than {REQUEST_THREADS} at a time" in README


# All of it

# Sources


def test_sources_of_the_example_are_accepted_and_have_their_tokens(tmp_path: Path) -> None:
    (tmp_path / "receiver.toml").write_text(SOURCES.block("toml"))
    for name in ("cluster-one", "cluster-two"):
        (tmp_path / f"{name}.token").write_text(f"token-of-{name}")
    checked = run(
        "receiver", "check", "--config", "receiver.toml", cwd=tmp_path, env=with_receiver()
    )
    assert checked.returncode == 0, checked.stdout
    assert "[sources.cluster-one] submit_token" in checked.stdout
    assert "cluster-two: posts with its own credentials; reaches log_action, file_action" in (
        checked.stdout
    )


CARRIED_OUT: dict[tuple[str, str, int], Callable[..., None]] = {
    ("The first minute", "sh", 0): (
        test_fresh_clone_serves_after_make_run_and_acts_on_the_alert_that_curl_posts
    ),
    ("The first minute", "sh", 1): (
        test_fresh_clone_serves_after_make_run_and_acts_on_the_alert_that_curl_posts
    ),
    ("Prometheus: which alerts, with what", "yaml", 0): test_rules_fire_when_they_should,
    ("Alertmanager: where to", "yaml", 0): (
        test_alert_is_routed_to_the_receiver_that_it_is_meant_for
    ),
    ("Actions", "python", 0): (test_plugin_of_the_example_runs_and_is_retried_at_the_time_it_names),
    ("Actions", "sh", 0): test_command_shows_the_plugin_of_the_example,
    ("Guardrails", "toml", 0): test_guardrails_of_the_example_are_accepted_and_count_by_host,
    ("The API", "sh", 0): test_api_and_commands_do_as_the_block_says,
    ("Settings", "toml", 0): test_settings_file_of_the_example_is_accepted_and_used,
    ("Alerts on the receiver itself", "sh", 0): (
        test_rules_on_ourselves_are_printed_as_the_block_says
    ),
    ("Sources", "toml", 0): test_sources_of_the_example_are_accepted_and_have_their_tokens,
}


def test_every_block_is_carried_out_by_a_test() -> None:
    blocks = [
        (heading, language, [kind for kind, _ in section.blocks[:number]].count(language))
        for heading, section in SECTIONS.items()
        for number, (language, _) in enumerate(section.blocks)
    ]
    assert blocks == list(CARRIED_OUT)
