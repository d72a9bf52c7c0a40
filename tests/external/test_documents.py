"""The documents: each of their examples is carried out, and each of their links leads somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from receiver import settings as receiver_settings
from receiver.migration.predecessor import NAMES
from receiver.migration.translation import alertmanager, as_yaml
from receiver.plugins import load_actions, rules_of
from receiver.replicas import ReplicaLabel
from tests.support.documents import ROOT, anchors, blocks_by_heading
from tests.support.receivers import Receiver
from tests.support.stack import requires
from tests.support.waiting import wait_until

TOKEN = "only-for-this-test"
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
# The pages of tables are test_readme.py's.
TABLES = ("docs/metrics.md", "docs/security.md", "docs/settings.md")
BLOCKS = {
    (document, *where): text
    for document in DOCUMENTS
    if document not in TABLES
    for where, text in blocks_by_heading(document).items()
}


def block(document: str, heading: str, language: str = "sh", nth: int = 0) -> str:
    return BLOCKS[f"docs/{document}.md", heading, language, nth]


def shell(script: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run a block as somebody who pastes it; an environment of its own, with `receiver` in it."""
    return subprocess.run(
        ["sh", "-e"], input=script, cwd=cwd, text=True, timeout=90, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(cwd), **environment,
        },
    )  # fmt: skip


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Receiver]:
    """A receiver whose journal is in `receiver-data`, as `make run` starts it."""
    receiver = Receiver("serve", environment_of(tmp_path), tmp_path / "log")
    try:
        yield receiver.wait_ready()
    finally:
        receiver.kill()


def environment_of(directory: Path) -> dict[str, str]:
    return {"RECEIVER_DATA_DIR": str(directory / "receiver-data"), "RECEIVER_SUBMIT_TOKEN": TOKEN}


def at(receiver: Receiver, directory: Path) -> dict[str, str]:
    """Return the environment that leads a command to it."""
    return environment_of(directory) | {"RECEIVER_BIND": f"127.0.0.1:{receiver.port}"}


# Concepts


def test_commands_of_the_concepts_show_a_run_and_explain_an_alert(
    running: Receiver, tmp_path: Path
) -> None:
    done = shell(block("concepts", "Run and attempt"), tmp_path, **at(running, tmp_path))
    assert done.returncode == 0, done.stdout
    assert '"accepted":1' in done.stdout
    assert "log_action" in done.stdout.partition('"accepted":1')[2]


# Operations


def test_doctor_finds_all_well(running: Receiver, tmp_path: Path) -> None:
    config = as_yaml(alertmanager(running.url))
    token_file = tmp_path / "token"
    token_file.write_text(TOKEN)
    (tmp_path / "alertmanager.yml").write_text(
        config.replace("/etc/alertmanager/alert-receiver.token", str(token_file))
    )
    made = shell("receiver rule new --metric m --above 1 --action log_action > rules.yml", tmp_path)
    assert made.returncode == 0, made.stdout
    done = shell(block("operations", "Is all well?"), tmp_path, **at(running, tmp_path))
    assert done.returncode == 0, done.stdout


def test_receiver_is_stopped_before_a_backup_is_restored() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    before = text[: text.index(block("operations", "Backup", nth=1))]
    assert "\nStop the receiver first" in before.rpartition("\n## ")[2]


def test_backup_of_a_running_receiver_is_restored_and_paused(
    running: Receiver, tmp_path: Path
) -> None:
    environment = at(running, tmp_path)
    assert shell("receiver send firing", tmp_path, **environment).returncode == 0
    # Its end is in the journal by then, and so in the backup.
    wait_until(lambda: running.lines("attempt ended"), what="the run before it")
    # A user's usual umask: nobody else may read a copy all the same.
    backup = shell(f"umask 022\n{block('operations', 'Backup')}", tmp_path)
    assert backup.returncode == 0, backup.stdout
    assert (tmp_path / "backup.db").stat().st_mode & 0o077 == 0
    (tmp_path / "backup.db").chmod(0o644)
    assert shell("receiver send group", tmp_path, **environment).returncode == 0
    running.stop()

    restored = shell(f"umask 022\n{block('operations', 'Backup', nth=1)}", tmp_path)
    assert restored.returncode == 0, restored.stdout
    assert (tmp_path / "receiver-data" / "journal.db").stat().st_mode & 0o077 == 0
    runs = shell("receiver runs --json", tmp_path, **environment)
    assert runs.stdout.count('"action": "log_action"') == 1
    before = len(running.lines("threshold action executed"))
    running.start()
    running.wait_ready()
    assert shell("receiver send firing", tmp_path, **environment).returncode == 0
    waiting = shell("receiver runs", tmp_path, **environment)
    assert "paused" in waiting.stdout
    assert len(running.lines("threshold action executed")) == before
    assert shell("receiver resume", tmp_path, **environment).returncode == 0
    wait_until(
        lambda: len(running.lines("threshold action executed")) == before + 1,
        what="the run that waited",
    )


def test_pauses_are_set_and_taken_away(running: Receiver, tmp_path: Path) -> None:
    for document, heading in (
        ("operations", "Draining"),
        ("guardrails", "When something goes wrong"),
    ):
        done = shell(block(document, heading), tmp_path, **at(running, tmp_path))
        assert done.returncode == 0, done.stdout
    assert shell("receiver send firing", tmp_path, **at(running, tmp_path)).returncode == 0
    wait_until(lambda: running.lines("threshold action executed"), what="nothing is paused")


# Guardrails


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("1. Watch only", {"dry_run": True}),
        ("2. Let a person decide", {"approval": "required", "escalate_to": "log_action"}),
        ("3. Let it act, within limits", {"target_labels": ("host",)}),
        ("4. See whether it helped", {"max_repeats": 3, "escalate_to": "log_action"}),
    ],
)
def test_policy_of_the_guide_is_accepted(
    tmp_path: Path, heading: str, expected: dict[str, Any]
) -> None:
    file = tmp_path / "receiver.toml"
    file.write_text(block("guardrails", heading, "toml"))
    settings = receiver_settings.load({}, {}, file)
    policy = rules_of(settings, load_actions(settings)).policy("http_plugin")
    assert {name: getattr(policy, name) for name in expected} == expected


# Migration


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    """Where somebody has carried out the first block."""
    requires("promtool", "amtool")
    (tmp_path / "config.toml").write_text(
        'metric_name = "m"\nthreshold_operator = "less_than"\n'
        '[soft]\nthreshold = 1\nplugin = "log_action"\n'
    )
    done = shell(block("migration", "The configuration"), tmp_path)
    assert done.returncode == 0, done.stdout
    written = {one.name for one in (tmp_path / "migrated").iterdir()}
    named = re.findall(r"^\| `(\S+?)` \|", (ROOT / "docs/migration.md").read_text(), re.MULTILINE)
    assert written == {one for one in named if "." in one}
    return tmp_path


def test_migrated_receiver_runs_side_by_side_and_only_watches(migrated: Path) -> None:
    (command,) = block("migration", "Side by side").splitlines()
    variable, *words = command.split()
    assert words[:2] == ["receiver", "serve"]
    name, _, text = variable.partition("=")
    receiver = Receiver(
        "serve",
        {**environment_of(migrated), name: text,
         "RECEIVER_CONFIG": str(migrated / words[words.index("--config") + 1])},
        migrated / "log",
    )  # fmt: skip
    try:
        receiver.wait_ready()
        environment = at(receiver, migrated)
        assert shell("receiver send firing", migrated, **environment).returncode == 0
        wait_until(
            lambda: "succeeded" in shell("receiver runs", migrated, **environment).stdout,
            what="the dry run",
        )
        run = shell("receiver run 1", migrated, **environment).stdout
    finally:
        receiver.kill()
    assert "would log" in run
    assert receiver.lines("threshold action executed") == []


def test_prometheus_takes_what_drops_a_replica_label(tmp_path: Path) -> None:
    (promtool,) = requires("promtool")
    file = tmp_path / "prometheus.yml"
    for text in (
        block("operations", "A pair of Prometheus", "yaml"),
        ReplicaLabel("prometheus_replica", "Test").cure,
    ):
        file.write_text(text)
        checked = [promtool, "check", "config", str(file)]
        assert subprocess.run(checked, capture_output=True, check=False).returncode == 0


# All of them

CARRIED_OUT: dict[tuple[str, str, str, int], Callable[..., Any]] = {
    ("docs/concepts.md", "Run and attempt", "sh", 0): (
        test_commands_of_the_concepts_show_a_run_and_explain_an_alert
    ),
    ("docs/guardrails.md", "1. Watch only", "toml", 0): test_policy_of_the_guide_is_accepted,
    ("docs/guardrails.md", "2. Let a person decide", "toml", 0): (
        test_policy_of_the_guide_is_accepted
    ),
    ("docs/guardrails.md", "3. Let it act, within limits", "toml", 0): (
        test_policy_of_the_guide_is_accepted
    ),
    ("docs/guardrails.md", "4. See whether it helped", "toml", 0): (
        test_policy_of_the_guide_is_accepted
    ),
    ("docs/guardrails.md", "When something goes wrong", "sh", 0): (
        test_pauses_are_set_and_taken_away
    ),
    ("docs/migration.md", "The configuration", "sh", 0): migrated,
    ("docs/migration.md", "Side by side", "sh", 0): (
        test_migrated_receiver_runs_side_by_side_and_only_watches
    ),
    ("docs/operations.md", "Is all well?", "sh", 0): test_doctor_finds_all_well,
    ("docs/operations.md", "A pair of Prometheus", "yaml", 0): (
        test_prometheus_takes_what_drops_a_replica_label
    ),
    ("docs/operations.md", "Backup", "sh", 0): (
        test_backup_of_a_running_receiver_is_restored_and_paused
    ),
    ("docs/operations.md", "Backup", "sh", 1): (
        test_backup_of_a_running_receiver_is_restored_and_paused
    ),
    ("docs/operations.md", "Draining", "sh", 0): test_pauses_are_set_and_taken_away,
}


def test_every_block_is_carried_out_by_a_test() -> None:
    assert list(BLOCKS) == list(CARRIED_OUT)


EVERY_DOCUMENT = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md", "docs/**/*.md", "action_plugins/**/*.md", "helm/**/*.md", "receiver/**/*.md",
        "tests/benchmarks/*.md", "tests/restart_service/*.md",
    )
    for path in ROOT.glob(pattern)
)  # fmt: skip


@pytest.mark.parametrize("document", EVERY_DOCUMENT)
def test_every_link_leads_somewhere(document: str) -> None:
    file = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = file.parent / path if path else file
        assert target.exists(), f"{link} leads to no file"
        assert not anchor or anchor in anchors(target), f"{link} leads to no heading"


def test_every_page_is_found_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {one for one in DOCUMENTS if f"]({one})" not in readme} == set()


def test_table_of_the_migration_names_every_setting_of_metric_reader() -> None:
    text = (ROOT / "docs/migration.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"[A-Z]+_[A-Z_]+|THRESHOLD", text))
    older = {"LOG_LEVEL", "SOFT_THRESHOLD_PLUGIN", "HARD_THRESHOLD_PLUGIN", "NO_METRIC_BEHAVIOR"}
    unnamed = {one for one in NAMES if one not in shown and not one.startswith("LEADER_")}
    assert unnamed <= older
