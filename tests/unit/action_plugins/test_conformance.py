"""Every built-in action keeps what the receiver expects of all actions."""

import json
import logging
import os
import pkgutil
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import action_plugins
from action_plugins import exec_plugin, file_action, http_plugin, log_action
from receiver.testing import make_context
from receiver.testing.conformance import ActionConformance, Subject


class TestLogAction(ActionConformance):
    """A line of the log; the same for the same run."""

    @pytest.fixture
    def subject(self, caplog: pytest.LogCaptureFixture) -> Subject:
        caplog.set_level(logging.INFO, "receiver")

        def lines() -> set[str]:
            return {f"{one.message} {one.alert_labels}" for one in caplog.records}  # type: ignore[attr-defined]

        return Subject(log_action, effects=lines)

    # It calls nothing that could be in trouble.
    test_trouble_says_whether_trying_again_helps = None  # type: ignore[assignment]


class TestFileAction(ActionConformance):
    """Files in a directory, and nothing beside them."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Iterator[Subject]:
        directory = tmp_path / "files"
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)

        def files() -> dict[str, tuple[int, int]]:
            return {
                one.name: (one.stat().st_ino, one.stat().st_size)
                for one in directory.iterdir()
                if one.is_file()
            }

        def let_no_file_be_opened() -> None:
            lowest_free = os.dup(0)
            os.close(lowest_free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))

        def stand_in_the_way() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            context = make_context(subject.alert(1), idempotency_key=f"execute-{1:024x}")
            (directory / file_action.file_name("queue_depth", context)).mkdir()

        directory.mkdir()
        subject = Subject(
            file_action,
            effects=files,
            environment={"FILE_ACTION_DIR": str(directory), "FILE_ACTION_SIZE": "3MiB"},
            temporary_trouble=let_no_file_be_opened,
            permanent_trouble=stand_in_the_way,
        )
        yield subject
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class TestHttpPlugin(ActionConformance):
    """Requests to an endpoint that counts each key once."""

    @pytest.fixture
    def subject(self, endpoint: Any, tmp_path: Path) -> Subject:
        token = tmp_path / "token"
        token.write_text("t0ken-s3cret")
        done: set[tuple[str, str]] = set()

        def do(handler: Any) -> None:
            for one in endpoint.requests:
                done.add((one.headers["idempotency-key"], json.loads(one.body)["host"]))
            endpoint.reply(200)(handler)

        def refuse(status: int) -> None:
            endpoint.requests.clear()
            endpoint.answer = endpoint.reply(status, b"no")

        endpoint.answer = do
        return Subject(
            http_plugin,
            effects=lambda: sorted(done),
            environment={
                "HTTP_PLUGIN_ENDPOINT": f"{endpoint.url}/hook?token=s3cret",
                "HTTP_PLUGIN_HEADERS": "X-Api-Key: s3cret",
                "HTTP_PLUGIN_TOKEN_FILE": str(token),
                "HTTP_PLUGIN_BODY": '{"host": "{{ labels.instance }}"}',
            },
            temporary_trouble=lambda: refuse(503),
            permanent_trouble=lambda: refuse(403),
        )


class TestExecPlugin(ActionConformance):
    """A program that touches a file for each key."""

    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        program = tmp_path / "program"
        done = tmp_path / "done"
        done.mkdir()

        def write(line: str) -> None:
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)

        write(f': > "{done}/$RECEIVER_IDEMPOTENCY_KEY.$RECEIVER_LABEL_instance"')
        return Subject(
            exec_plugin,
            effects=lambda: sorted(one.name for one in done.iterdir()),
            environment={"EXEC_PLUGIN_COMMAND": str(program)},
            temporary_trouble=lambda: write("echo later; exit 75"),
            permanent_trouble=lambda: write("echo never; exit 77"),
        )


def test_every_built_in_is_put_to_the_test() -> None:
    tested = {name.removeprefix("Test") for name in globals() if name.startswith("Test")} | {
        "EfsEmergency"
    }  # In tests/unit/action_plugins/efs_emergency, next to its fake.
    built_in = {one.name for one in pkgutil.iter_modules(action_plugins.__path__)}
    assert tested == {name.title().replace("_", "") for name in built_in}
