"""Which region is called: the first that answers, and never one that only alert text knows."""

import logging

import botocore.session
import pytest

from action_plugins.efs_emergency.options import read_options
from action_plugins.efs_emergency.regions import (
    choose_region,
    metadata_endpoint,
    region_of_this_instance,
)
from action_plugins.efs_emergency.targets import find_target
from receiver import PermanentError, TemporaryError

ONE = "fs-0123456789abcdef0"
ARN = f"arn:aws:elasticfilesystem:eu-west-1:111122223333:file-system/{ONE}"


def choose(labels, **settings):
    """Return the region for these labels, from a new session."""
    options = read_options({"EFS_FILE_SYSTEM_PROMETHEUS_LABEL": ("fs",), **settings})
    log = logging.LoggerAdapter(logging.getLogger("test"), {})
    return choose_region(find_target(labels, options), options, botocore.session.Session(), log)


@pytest.fixture
def profile(monkeypatch, tmp_path):
    """A profile that names a region."""
    (tmp_path / "config").write_text("[profile ops]\nregion = ap-south-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "ops")


@pytest.fixture
def metadata(monkeypatch, fakes):
    """Instance metadata that names a region."""
    with fakes.FakeMetadata("eu-west-3") as server:
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        yield server


@pytest.mark.parametrize(
    ("labels", "settings", "region"),
    [
        pytest.param(
            {"fs": ARN, "region": "us-east-1"},
            {"AWS_REGION": "us-west-1", "AWS_DEFAULT_REGION": "us-west-2"},
            "eu-west-1",
            id="arn",
        ),
        pytest.param(
            {"fs": ONE, "region": "us-east-1"},
            {"AWS_REGION": "us-west-1", "AWS_DEFAULT_REGION": "us-west-2"},
            "us-east-1",
            id="label",
        ),
        pytest.param(
            {"fs": ONE},
            {"AWS_REGION": "us-west-1", "AWS_DEFAULT_REGION": "us-west-2"},
            "us-west-1",
            id="AWS_REGION",
        ),
        pytest.param(
            {"fs": ONE}, {"AWS_DEFAULT_REGION": "us-west-2"}, "us-west-2", id="AWS_DEFAULT_REGION"
        ),
        pytest.param({"fs": ONE}, {}, "ap-south-1", id="profile"),
    ],
)
def test_the_first_source_that_has_one_decides(profile, metadata, labels, settings, region):
    assert choose(labels, **settings) == region
    assert metadata.requests == 0


def test_the_instance_metadata_is_asked_last_and_with_its_token(metadata):
    assert choose({"fs": ONE}) == "eu-west-3"
    assert metadata.requests == 2


def test_metadata_without_version_2_is_not_used(monkeypatch, fakes):
    with fakes.FakeMetadata(status=404) as server:
        assert region_of_this_instance(server.url) is None
    with fakes.FakeMetadata(region="<html>") as server:
        assert region_of_this_instance(server.url) is None


def test_no_region_at_all_fails_with_the_cure(monkeypatch):
    with pytest.raises(PermanentError, match=r"nothing names the region .*set AWS_REGION"):
        choose({"fs": ONE})


def test_no_region_because_the_metadata_do_not_answer_is_tried_again(monkeypatch):
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    with pytest.raises(TemporaryError, match=r"IMDSv2.*set AWS_REGION"):
        choose({"fs": ONE})


def test_an_arn_in_a_region_that_nobody_knows_is_not_called():
    with pytest.raises(PermanentError, match="not known to this version of boto3"):
        choose({"fs": ARN.replace("eu-west-1", "eu-nowhere-7")}, AWS_REGION="us-east-1")


def test_the_operator_can_name_a_region_that_boto3_does_not_know_yet():
    arn = ARN.replace("eu-west-1", "eu-nowhere-7")
    assert choose({"fs": arn}, AWS_REGION="eu-nowhere-7") == "eu-nowhere-7"
    assert choose({"fs": ONE}, AWS_REGION="eu-nowhere-7") == "eu-nowhere-7"
    assert choose({"fs": ONE}, EFS_ALLOWED_FILE_SYSTEM_IDS=(arn,)) == "eu-nowhere-7"


def test_a_label_region_that_is_none_of_aws_is_ignored_with_a_warning(caplog):
    labels = {"fs": ONE, "region": "eu-nowhere-7"}
    assert choose(labels, AWS_REGION="us-east-1") == "us-east-1"
    assert [record.getMessage() for record in caplog.records] == [
        "the alert's region label is not an aws region: ignored"
    ]


def test_regions_of_every_partition_are_known():
    assert choose({"fs": ONE, "region": "cn-north-1"}) == "cn-north-1"
    assert choose({"fs": ONE, "region": "us-gov-west-1"}) == "us-gov-west-1"


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        pytest.param({}, "http://169.254.169.254", id="default"),
        pytest.param(
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE": "IPv6"}, "http://[fd00:ec2::254]", id="ipv6"
        ),
        pytest.param(
            {"AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1338"},
            "http://127.0.0.1:1338",
            id="set",
        ),
    ],
)
def test_the_metadata_are_looked_for_where_the_sdk_looks(monkeypatch, environment, endpoint):
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert metadata_endpoint(botocore.session.Session()) == endpoint
