"""The EFS README's rule, from a metric to a file system that is elastic: only AWS is not real."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.documents import blocks
from tests.support.fake_efs import FakeEfs
from tests.support.receivers import Receiver
from tests.support.stack import Stack, shortened_alertmanager, shortened_rules

FILE_SYSTEM = "fs-0123456789abcdef0"
OTHER = "fs-0fedcba9876543210"
TOKEN = "only-for-this-test"


def rule_named(name: str) -> str:
    """Return the rules of one PrometheusRule of the README."""
    for block in blocks("action_plugins/efs_emergency/README.md", "yaml"):
        for resource in yaml.safe_load_all(block):
            if resource.get("metadata", {}).get("name") == name:
                return yaml.safe_dump(resource["spec"], sort_keys=False)
    raise AssertionError(f"the README has no PrometheusRule {name}")


@pytest.fixture
def aws() -> Iterator[FakeEfs]:
    """A fake EFS with two bursting file systems."""
    with FakeEfs() as fake:
        fake.add(FILE_SYSTEM, region="eu-west-1")
        fake.add(OTHER, region="eu-west-1")
        yield fake


def test_low_burst_credits_switch_the_file_system_of_the_alert_to_elastic(
    aws: FakeEfs, tmp_path: Path
) -> None:
    environment = {
        "RECEIVER_DATA_DIR": str(tmp_path / "data"),
        "RECEIVER_SUBMIT_TOKEN": TOKEN,
        "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": "dimension_FileSystemId",
        "AWS_ENDPOINT_URL_EFS": aws.url,
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "only-for-this-test",
        "AWS_SECRET_ACCESS_KEY": "only-for-this-test",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    receiver = Receiver("serve", environment, tmp_path / "receiver.log")
    (tmp_path / "stack").mkdir()
    (tmp_path / "token").write_text(TOKEN)
    _, alertmanager = blocks("README.md", "yaml")
    try:
        with Stack(
            tmp_path / "stack",
            rules=shortened_rules(rule_named("efs-burst-credits-yace")),
            alertmanager=shortened_alertmanager(alertmanager),
            webhook_url=receiver.url,
            credentials_file=tmp_path / "token",
        ) as stack:
            receiver.wait_ready()
            metric = "aws_efs_burst_credit_balance_average"
            stack.exporter.set(metric, 3e12, dimension_FileSystemId=OTHER, region="eu-west-1")
            stack.exporter.set(metric, 1e9, dimension_FileSystemId=FILE_SYSTEM, region="eu-west-1")
            stack.wait_until(
                lambda: aws.file_systems[FILE_SYSTEM].throughput_mode == "elastic", 40, "elastic"
            )
            journal = Journal(f"sqlite:///{tmp_path / 'data' / 'journal.db'}")
            (run,) = stack.wait_until(
                lambda: reading.list_runs(journal, outcome="succeeded"), 60, "the run's outcome"
            )
            journal.close()
        assert FILE_SYSTEM in run["result"]
        assert run["target"] == f"dimension_FileSystemId={FILE_SYSTEM}"
        assert aws.file_systems[OTHER].throughput_mode == "bursting"
    finally:
        receiver.kill()
