"""The files in examples/: the programs accept them, and they agree with each other and the code."""

import configparser
import os
import re
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from receiver import settings as receiver_settings
from receiver.plugins import load_actions, rules_of
from tests.support.stack import requires

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PROMETHEUS = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text())
ALERTMANAGER = yaml.safe_load((EXAMPLES / "alertmanager.yml").read_text())
# What the supervisor gives its children beyond the grace period, and a reserve.
STOP_MARGIN = timedelta(seconds=10)


def unit() -> dict[str, list[str]]:
    """Return the [Service] section of the systemd unit: directive -> every value of it."""
    directives: dict[str, list[str]] = {}
    section = ""
    for line in (EXAMPLES / "alert-receiver.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            directives.setdefault(name, []).append(value)
    return directives


def unit_environment() -> dict[str, str]:
    """Return the environment that the systemd unit sets, with its specifiers."""
    pairs = (value.partition("=") for value in unit()["Environment"])
    return {name: value for name, _, value in pairs}


def commands_of(file: str) -> list[str]:
    """Return the commands in the comment at the top of an example: they are indented."""
    text = (EXAMPLES / file).read_text()
    return re.findall(r"^#     (.+)$", text, re.MULTILINE)


def seconds(text: str) -> timedelta:
    return timedelta(seconds=int(text.removesuffix("s")))


def mounts_of(service: str) -> list[tuple[str, str]]:
    """Return (source, path in the container) of every mount of a service."""
    pairs = (volume.split(":") for volume in SERVICES[service].get("volumes", []))
    return [(source, path) for source, path, *_ in pairs]


def setting_names() -> set[str]:
    table = receiver_settings.table().values()
    with_file = {f"{setting.name}_FILE" for setting in table if setting.secret}
    return {setting.name for setting in table} | with_file | {"RECEIVER_CONFIG"}


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A copy of the examples, with the secrets that the command of compose.yaml makes.

    The paths of the secrets, which are those of a container, lead to the copies.
    """
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("secrets"))
    make_secrets, *_ = commands_of("compose.yaml")
    subprocess.run(["sh", "-euc", make_secrets], cwd=copy, check=True, timeout=60)
    for file in copy.glob("*.yml"):
        file.write_text(file.read_text().replace("/run/secrets/", f"{copy}/secrets/"))
    return copy


def checked_by(program: str, *arguments: str | Path) -> str:
    """Run a program that checks a file; fail with its output unless it accepts the file."""
    (binary,) = requires(program)
    done = subprocess.run(
        [binary, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# What Prometheus and Alertmanager say


def test_promtool_accepts_the_configuration_with_its_rules(examples: Path) -> None:
    output = checked_by("promtool", "check", "config", examples / "prometheus.yml")
    assert "1 rules found" in output


def test_amtool_accepts_the_configuration(examples: Path) -> None:
    output = checked_by("amtool", "check-config", examples / "alertmanager.yml")
    assert "2 receivers" in output


def test_amtool_routes_the_alert_of_the_rules_to_the_receiver(examples: Path) -> None:
    file = examples / "alertmanager.yml"
    (group,) = yaml.safe_load((examples / "rules.yml").read_text())["groups"]
    for rule in group["rules"]:
        labels = {"alertname": rule["alert"], **rule["labels"]}
        pairs = [f"{name}={value}" for name, value in labels.items()]
        output = checked_by("amtool", "config", "routes", "test", f"--config.file={file}", *pairs)
        assert output.splitlines()[-1].strip() == "alert-receiver"


# What the receiver says


def test_receiver_accepts_its_settings_and_secrets(examples: Path) -> None:
    environment = {
        name: value.replace("/run/secrets/", f"{examples}/secrets/")
        for name, value in SERVICES["receiver"]["environment"].items()
        if name != "RECEIVER_CONFIG"
    }
    settings = receiver_settings.load(environment, {}, examples / "receiver.toml")
    assert settings.submit_token
    assert settings.read_token
    assert settings.operate_basic_auth
    policy = rules_of(settings, load_actions(settings)).policy("log_action")
    assert policy.target_labels == ("job", "instance")


def test_secrets_are_readable_by_the_users_of_containers_and_hidden_on_the_host(
    examples: Path,
) -> None:
    directory = examples / "secrets"
    assert directory.stat().st_mode & 0o777 == 0o700
    for file in directory.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
        assert len(file.read_text().strip()) >= 32


def test_secrets_are_not_in_the_repository() -> None:
    assert "/secrets/" in (EXAMPLES / ".gitignore").read_text().splitlines()
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


@pytest.mark.parametrize("where", ["compose", "unit"])
def test_every_variable_is_a_setting(where: str) -> None:
    environment = SERVICES["receiver"]["environment"] if where == "compose" else unit_environment()
    assert environment
    assert environment.keys() <= setting_names()


# compose.yaml


def test_every_image_is_built_here_or_has_a_version() -> None:
    for name, service in SERVICES.items():
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
    assert (EXAMPLES / SERVICES["receiver"]["build"] / "Dockerfile").is_file()


def test_image_of_the_receiver_has_the_version_of_the_project() -> None:
    project = configparser.ConfigParser()
    project.read(ROOT / "setup.cfg")
    _, _, tag = SERVICES["receiver"]["image"].partition(":")
    assert tag == project["metadata"]["version"]


def test_every_port_is_on_loopback() -> None:
    for name, service in SERVICES.items():
        assert service["ports"], name
        for port in service["ports"]:
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), f"{name}: {port}"


@pytest.mark.parametrize("service", SERVICES)
def test_everything_that_is_mounted_exists(service: str) -> None:
    assert mounts_of(service)
    for source, path in mounts_of(service):
        if source.startswith("."):
            assert (EXAMPLES / source).is_file()
            assert Path(path).name == Path(source).name
        else:
            assert source in COMPOSE["volumes"]
    for secret in SERVICES[service].get("secrets", []):
        assert secret in COMPOSE["secrets"]


def test_every_secret_that_a_file_names_is_given_to_its_service() -> None:
    for service, file in (
        ("receiver", "compose.yaml"),
        ("prometheus", "prometheus.yml"),
        ("alertmanager", "alertmanager.yml"),
    ):
        text = (EXAMPLES / file).read_text()
        assert set(re.findall(r"/run/secrets/(\w+)", text)) == set(SERVICES[service]["secrets"])


def test_settings_file_is_where_the_receiver_looks_for_it() -> None:
    config = SERVICES["receiver"]["environment"]["RECEIVER_CONFIG"]
    assert config in {path for _, path in mounts_of("receiver")}


def address_in_the_image() -> tuple[str, int]:
    """Return the name of the receiver's service and the port that its image listens on."""
    (port,) = re.findall(r"RECEIVER_BIND=0\.0\.0\.0:(\d+)", (ROOT / "Dockerfile").read_text())
    return "receiver", int(port)


def test_journal_of_the_receiver_is_on_a_volume() -> None:
    (directory,) = re.findall(r"RECEIVER_DATA_DIR=(\S+)", (ROOT / "Dockerfile").read_text())
    assert ("journal", directory) in mounts_of("receiver")


def test_alertmanager_posts_to_the_service_of_the_receiver() -> None:
    urls = [
        webhook["url"]
        for receiver in ALERTMANAGER["receivers"]
        for webhook in receiver.get("webhook_configs", [])
    ]
    assert len(urls) == 1
    parts = urlsplit(urls[0])
    assert (parts.scheme, parts.path) == ("http", "/webhook")
    assert (parts.hostname, parts.port) == address_in_the_image()


def test_prometheus_finds_the_services() -> None:
    (alertmanagers,) = PROMETHEUS["alerting"]["alertmanagers"]
    assert alertmanagers["static_configs"] == [{"targets": ["alertmanager:9093"]}]
    assert "127.0.0.1:9093:9093" in SERVICES["alertmanager"]["ports"]
    jobs = {job["job_name"]: job for job in PROMETHEUS["scrape_configs"]}
    name, port = address_in_the_image()
    assert jobs["alert-receiver"]["static_configs"] == [{"targets": [f"{name}:{port}"]}]
    assert f"127.0.0.1:{port}:{port}" in SERVICES[name]["ports"]


def test_container_may_drain_for_longer_than_the_grace_period() -> None:
    grace = receiver_settings.load({}, {}).grace_period
    assert seconds(SERVICES["receiver"]["stop_grace_period"]) >= grace + STOP_MARGIN


# The systemd unit


def test_unit_may_drain_for_longer_than_the_grace_period() -> None:
    (timeout,) = unit()["TimeoutStopSec"]
    assert seconds(timeout) >= receiver_settings.load({}, {}).grace_period + STOP_MARGIN


def test_unit_stops_the_supervisor_alone_and_is_hardened() -> None:
    directives = unit()
    expected = {
        "KillMode": "mixed",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "CapabilityBoundingSet": "",
    }
    assert {name: directives[name] for name in expected} == {
        name: [value] for name, value in expected.items()
    }
    assert directives["User"] not in ([], ["root"])


def test_unit_keeps_the_journal_where_it_may_write() -> None:
    (name,) = unit()["StateDirectory"]
    assert unit_environment()["RECEIVER_DATA_DIR"] == f"%S/{name}"


def test_unit_reads_every_secret_as_a_credential() -> None:
    loaded = dict(value.split(":") for value in unit()["LoadCredential"])
    named = [
        value.removeprefix("%d/") for value in unit_environment().values() if value.startswith("%d")
    ]
    assert sorted(named) == sorted(loaded)
    (make_secrets,) = [line for line in commands_of("alert-receiver.service") if "umask" in line]
    for path in loaded.values():
        assert f">{Path(path).name}" in make_secrets


def test_command_of_the_unit_makes_secrets_that_the_receiver_accepts(tmp_path: Path) -> None:
    (make_secrets,) = [line for line in commands_of("alert-receiver.service") if "umask" in line]
    script = make_secrets.replace("/etc/alert-receiver", str(tmp_path / "etc"))
    subprocess.run(["sh", "-euc", script], check=True, timeout=60)
    environment = {
        name: value.replace("%d", str(tmp_path / "etc")).replace("%S", str(tmp_path / "state"))
        for name, value in unit_environment().items()
    }
    settings = receiver_settings.load(environment, {})
    assert settings.submit_token != settings.read_token
    assert settings.operate_basic_auth
    assert os.stat(tmp_path / "etc" / "submit_token").st_mode & 0o777 == 0o600


def test_commands_of_the_unit_name_files_of_the_repository() -> None:
    text = "\n".join(commands_of("alert-receiver.service"))
    assert os.access(ROOT / "image" / "install", os.X_OK)
    assert "image/install . /opt/alert-receiver" in text
    (start,) = unit()["ExecStart"]
    assert start == "/opt/alert-receiver/bin/receiver serve"
    assert "examples/alert-receiver.service" in text
