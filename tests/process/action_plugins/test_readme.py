"""The plugins' README: each of its examples runs, and it names all that there is."""

import configparser
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import fields
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from markdown_it import MarkdownIt

import action_plugins
import receiver
from action_plugins import exec_plugin, file_action, http_plugin, log_action
from action_plugins.http_plugin.body import ALERT_NAMES, NAMES, Template
from receiver import (
    ActionContext,
    DeadlineExceededError,
    PermanentError,
    TemporaryError,
    hookspecs,
    testing,
)
from receiver import settings as receiver_settings
from receiver.calls import Call, call_of
from receiver.cli import cli
from receiver.declarations import TYPES
from receiver.plugins import HOOKS, Actions, load_actions, rules_of
from receiver.routing import Catalog, route
from receiver.testing import make_alert, make_context, run_action
from receiver.testing.conformance import ActionConformance

README = files("action_plugins").joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = [
    (token.info, token.content) for token in MarkdownIt().parse(README) if token.type == "fence"
]
PYTHON = {
    body.partition("\n")[0].removeprefix("# "): body for kind, body in BLOCKS if kind == "python"
}
BUILT_INS = {
    "exec_plugin": exec_plugin,
    "file_action": file_action,
    "http_plugin": http_plugin,
    "log_action": log_action,
}


def block(language: str) -> str:
    """Return the only block of a language."""
    (body,) = [body for kind, body in BLOCKS if kind == language]
    return body


def load(directory: Path, *names: str, **environment: str) -> Actions:
    """Return the actions of a PLUGIN_DIR that holds these files of the README."""
    for name in names:
        (directory / f"{name}.py").write_text(PYTHON[f"{name}.py"], encoding="utf-8")
    enabled = {"PLUGIN_DIR": str(directory), "RECEIVER_ACTIONS": ",".join(names)}
    return load_actions(receiver_settings.load({**enabled, **environment}, {}))


def call(actions: Actions, name: str, hook: str = "execute", **changes: Any) -> Any:
    """Call a loaded action as the worker does."""
    context = make_context(action=name, settings=actions.plugins[name].values, **changes)
    arguments = {
        "context": context,
        "metric_name": "queue_depth",
        "value": 90.0,
        "threshold": "> 80",
        "duration": timedelta(minutes=5),
    }
    return actions.call(name, hook, arguments)


def test_every_python_example_is_run_by_a_test_here() -> None:
    assert set(PYTHON) == {
        "shout.py", "audit.py", "ask_sidecar.py", "run_job.py", "open_ticket.py",
        "tests/test_open_ticket.py",
        "tests/test_open_gate.py, its end",
    }  # fmt: skip
    assert len(PYTHON) == sum(kind == "python" for kind, _ in BLOCKS)


def test_no_other_example_is_left_untested() -> None:
    kinds = [kind for kind, _ in BLOCKS if kind != "python"]
    assert sorted(kinds) == ["ini", "json", "sh", "toml", "yaml"]


def test_the_smallest_plugin_is_an_action(tmp_path: Path) -> None:
    assert call(load(tmp_path, "shout"), "shout") == "queue_depth IS 90!"


def test_a_wrapper_surrounds_the_actions_of_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    actions = load(tmp_path, "shout", "audit")
    assert actions.loaded == {"shout"}
    assert call(actions, "shout") == "queue_depth IS 90!"
    assert caplog.messages == ["audit: action begins", "audit: action succeeded"]


def test_a_wrapper_lets_an_error_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    shared = tmp_path / "shared"
    actions = load(tmp_path, "audit", "ask_sidecar", SIDECAR_DIR=str(shared))
    with pytest.raises(FileNotFoundError):
        call(actions, "ask_sidecar")
    assert caplog.messages == ["audit: action begins", "audit: action failed"]


def test_the_sidecar_is_asked_once_and_waited_for(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    actions = load(tmp_path, "ask_sidecar", SIDECAR_DIR=str(shared))
    with pytest.raises(DeadlineExceededError):
        call(actions, "ask_sidecar", attempt=1, remaining_seconds=0.1)
    (request,) = shared.iterdir()
    request.with_suffix(".done").touch()
    assert call(actions, "ask_sidecar", attempt=2) == "the sidecar is done"
    assert len(list(shared.glob("*.request"))) == 1


def ticket_actions(directory: Path, endpoint: Any) -> Actions:
    return load(
        directory, "open_ticket", TICKET_URL=f"{endpoint.url}/api/", TICKET_TOKEN="t0ken"
    )  # fmt: skip


def test_a_ticket_is_opened_and_closed_for_the_same_episode(tmp_path: Path, endpoint: Any) -> None:
    endpoint.answer = endpoint.reply(201, b'{"number": 7}')
    actions = ticket_actions(tmp_path, endpoint)
    alert = make_alert(labels={"queue": "mail"})
    assert call(actions, "open_ticket", alert=alert) == {"ticket": 7}
    assert call(actions, "open_ticket", "resolved", alert=alert, kind="resolved") == {"ticket": 7}
    opened, closed = endpoint.requests
    assert (opened.path, closed.path) == ("/api/tickets", "/api/tickets/close")
    episode = ["", alert.fingerprint, "2026-01-02T03:04:05+00:00"]
    assert json.loads(opened.body) == {
        "episode": episode,
        "title": "queue_depth is 90",
        "threshold": "> 80",
        "minutes": 5,
        "labels": {"alertname": "QueueTooLong", "queue": "mail"},
    }
    assert json.loads(closed.body) == {"episode": episode}
    assert opened.headers["authorization"] == "Bearer t0ken"
    assert opened.headers["idempotency-key"] == make_context().idempotency_key


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, TemporaryError), (429, TemporaryError), (302, PermanentError), (403, PermanentError)],
)
def test_the_ticket_system_says_whether_to_try_again(
    tmp_path: Path, endpoint: Any, status: int, error: type[Exception]
) -> None:
    endpoint.answer = endpoint.reply(status, Location="/elsewhere")
    with pytest.raises(error, match=f"the ticket system answered {status}"):
        call(ticket_actions(tmp_path, endpoint), "open_ticket")
    assert len(endpoint.requests) == 1


def test_the_ticket_is_described_and_not_opened(tmp_path: Path, endpoint: Any) -> None:
    actions = ticket_actions(tmp_path, endpoint)
    assert call(actions, "open_ticket", "describe") == (
        f"would open a ticket about 'queue_depth' at {endpoint.url}/api/"
    )
    assert endpoint.requests == []


def test_the_tests_of_the_example_pass(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    for name in ("open_ticket.py", "tests/test_open_ticket.py"):
        (tmp_path / name).write_text(PYTHON[name], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f".:{Path(receiver.__file__).parent.parent}"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{PYTHON['tests/test_open_ticket.py'].count('def test_')} passed" in done.stdout
    said = {"TICKET_URL": "http://127.0.0.1:1", "TICKET_TOKEN": "t"}
    settings = receiver_settings.load({"PLUGIN_DIR": str(tmp_path), **said}, {})
    assert "open_ticket" in load_actions(settings).loaded  # As it lies there, tests and all.


def test_the_entry_point_offers_the_action(
    tmp_path: Path, endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = configparser.ConfigParser()
    declared.read_string(block("ini"))
    (line,) = declared["options.entry_points"]["receiver.actions"].split("\n")[1:]
    package, module = line.partition(" = ")[2].split(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text("")
    (tmp_path / package / f"{module}.py").write_text(PYTHON["open_ticket.py"], encoding="utf-8")
    about = tmp_path / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[receiver.actions]\n{line}\n")
    monkeypatch.syspath_prepend(tmp_path)
    environment = {
        "RECEIVER_ACTIONS": "open_ticket",
        "TICKET_URL": endpoint.url,
        "TICKET_TOKEN": "t0ken",
    }
    actions = load_actions(receiver_settings.load(environment, {}))
    assert actions.loaded == {"open_ticket"}
    endpoint.answer = endpoint.reply(200, b'{"number": 7}')
    assert call(actions, "open_ticket") == {"ticket": 7}


def test_the_settings_file_configures_the_example(tmp_path: Path) -> None:
    token = tmp_path / "ticket-token"
    token.write_text("t0ken\n")
    (tmp_path / "open_ticket.py").write_text(PYTHON["open_ticket.py"], encoding="utf-8")
    config = tmp_path / "receiver.toml"
    config.write_text(
        block("toml")
        .replace("/etc/alert-receiver/plugins", str(tmp_path))
        .replace("/run/secrets/ticket-token", str(token))
    )
    settings = receiver_settings.load({"RECEIVER_ACTIONS": "open_ticket"}, {}, config)
    values = load_actions(settings).plugins["open_ticket"].values
    assert values["TICKET_URL"] == "https://tickets.example.org/api"
    assert values["TICKET_TOKEN"] == "t0ken"
    assert rules_of(settings, load_actions(settings)).policy("open_ticket").max_attempts == 5


def test_the_rule_names_an_action_and_gives_every_argument() -> None:
    (rule,) = yaml.safe_load(block("yaml"))["groups"][0]["rules"]
    alert = make_alert(
        labels=rule["labels"], annotations={**rule["annotations"], "value": "93.5"}
    )  # fmt: skip
    chosen = route(alert, "", (), Catalog(frozenset(BUILT_INS)))
    assert chosen.actions == ("file_action",)
    made = call_of(alert, alert.starts_at)
    assert made == Call("queue_depth", 93.5, "> 80", timedelta(minutes=5), ())


def test_the_json_shown_is_what_http_plugin_posts(endpoint: Any) -> None:
    context = make_context(action="http_plugin")
    run_action(
        http_plugin, environment={"HTTP_PLUGIN_ENDPOINT": endpoint.url}, context=context
    )  # fmt: skip
    assert json.loads(endpoint.requests[0].body) == json.loads(block("json"))


def test_the_commands_exist() -> None:
    for line in block("sh").splitlines():
        command, *arguments = line.removeprefix("receiver ").split()
        shown = CliRunner().invoke(cli, [command, "--help"])
        assert shown.exit_code == 0, line
        for flag in re.findall(r"--[a-z-]+", " ".join(arguments)):
            assert flag in shown.output, line


@pytest.mark.parametrize("plugin", BUILT_INS.values(), ids=BUILT_INS)
def test_every_setting_of_a_built_in_stands_there_with_its_default(plugin: ModuleType) -> None:
    for one in plugin.settings() if hasattr(plugin, "settings") else ():
        kind = f"{one.type}, secret" if one.secret else one.type
        default = f"`{one.default}`" if one.default else "none"
        assert f"| `{one.name}` | {kind} | {default} |" in README


def test_every_setting_that_stands_there_is_declared() -> None:
    declared = {
        one.name
        for plugin in BUILT_INS.values()
        if hasattr(plugin, "settings")
        for one in plugin.settings()
    }
    rows = re.findall(r"^\| `([A-Z_]+)` \| [a-z, ]+ \| ", README, re.MULTILINE)
    assert set(rows) == declared


def test_every_plugin_of_the_directory_stands_there() -> None:
    found = {one.name for one in pkgutil.iter_modules(action_plugins.__path__)}
    listed = set(re.findall(r"^\| \[`(\w+)`\]\(", README, re.MULTILINE))
    assert listed == found


def test_every_hook_stands_there_with_its_arguments() -> None:
    for hook in HOOKS:
        arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
        assert f"| `{hook}({arguments})` |" in README


def test_every_member_of_the_context_stands_there() -> None:
    section = README.partition("### Context")[2].partition("### Errors")[0]
    listed = set(re.findall(r"`(\w+)(?:\(\w*\))?`", section))
    members = {one for one in dir(ActionContext) if not one.startswith("_")}
    members |= {one.name for one in fields(ActionContext)} - {"deadline_monotonic", "_store"}
    assert members <= listed


def test_every_type_of_setting_stands_there() -> None:
    section = README.partition("### Settings")[2].partition("## Creating")[0]
    listed = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.MULTILINE)
    assert set(re.findall(r"\w+", " ".join(listed))) == set(TYPES)


def test_every_link_leads_somewhere() -> None:
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in README.splitlines()
        if line.startswith("#")
    }
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in headings
        else:
            assert (Path(action_plugins.__path__[0]) / link).is_file(), link


def test_the_conformance_that_is_shown_is_what_new_plugin_writes(tmp_path: Path) -> None:
    command = ["new-plugin", "open_gate", "--directory", str(tmp_path)]
    assert CliRunner().invoke(cli, command).exit_code == 0
    shown = PYTHON["tests/test_open_gate.py, its end"].partition("\n")[2]
    assert (tmp_path / "tests" / "test_open_gate.py").read_text().endswith(f"\n\n\n{shown}")


def test_every_test_of_the_suite_stands_there() -> None:
    inherited = {name for name in dir(ActionConformance) if name.startswith("test_")}
    assert set(re.findall(r"^\| `(test_\w+)` \|", README, re.MULTILINE)) == inherited


def test_every_function_of_the_kit_stands_there() -> None:
    functions = {
        name
        for name, one in vars(testing).items()
        if inspect.isfunction(one) and one.__module__ == testing.__name__ and name[0] != "_"
    }
    section = README.partition("### The kit")[2].partition("### Conformance")[0]
    assert set(re.findall(r"^\| `(\w+)\(", section, re.MULTILINE)) == functions


def test_every_name_of_a_template_stands_there_and_the_one_shown_is_a_template() -> None:
    section = README.partition("#### The body")[2].partition("### `exec_plugin`")[0]
    listed = set(re.findall(r"`([a-z_]+)`", section.partition("|---|---|")[2]))
    assert listed == {*NAMES, *ALERT_NAMES}
    (shown,) = re.findall(r"`(\{.*?\})`", section)
    call = {"metric_name": "m", "value": 1.5, "alert": {"labels": {"severity": "page"}}}
    assert Template.parse(shown).fill(call) == {"text": "m is 1.5", "severity": "page"}


def test_every_variable_and_status_of_exec_plugin_stands_there(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexec /usr/bin/env > {told}\n")
    program.chmod(0o755)
    run_action(exec_plugin, environment={"EXEC_PLUGIN_COMMAND": str(program)})
    given = set(re.findall(r"^(RECEIVER_\w+)=", told.read_text(), re.MULTILINE))
    section = README.partition("### `exec_plugin`")[2].partition("## Using")[0]
    listed = {one for one in re.findall(r"`(RECEIVER_\w+)`", section) if one != "RECEIVER_"}
    assert listed == {one for one in given if not one.startswith("RECEIVER_LABEL_")}
    assert "RECEIVER_LABEL_alertname" in given
    statuses = exec_plugin.PERMANENT_STATUSES
    names = ", ".join(f"`{one}`" for one in statuses.values())
    assert f"| {', '.join(map(str, statuses))} ({names}) | failed" in section
    for bound in (exec_plugin.KEPT_BYTES, exec_plugin.TOLD_CHARACTERS, exec_plugin.MOST_LABELS):
        assert re.search(rf"\b{bound}\b", section)
