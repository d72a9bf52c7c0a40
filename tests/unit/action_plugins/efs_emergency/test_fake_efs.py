"""The fake itself: as strict as the model of the service, and a program of its own."""

import json
import re
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

from tests.support.documents import ROOT

FILE_SYSTEM = "fs-0123456789abcdef0"


@pytest.fixture
def client(client_for):
    return client_for("us-east-1")


def code_of(call, **parameters):
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    return caught.value.response["Error"]["Code"]


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        pytest.param({"FileSystemId": "vol-1"}, "BadRequest", id="id-against-the-pattern"),
        pytest.param({"ThroughputMode": "turbo"}, "BadRequest", id="mode-against-the-enum"),
        pytest.param({"ThroughputMode": "provisioned"}, "BadRequest", id="no-amount"),
        pytest.param(
            {"ThroughputMode": "provisioned", "ProvisionedThroughputInMibps": 2000.0},
            "ThroughputLimitExceeded",
            id="too-much",
        ),
        pytest.param({"FileSystemId": "fs-00000000"}, "FileSystemNotFound", id="unknown"),
    ],
)
def test_it_refuses_what_efs_refuses(client, parameters, code):
    parameters = {"FileSystemId": FILE_SYSTEM, "ThroughputMode": "elastic", **parameters}
    assert code_of(client.update_file_system, **parameters) == code


def test_it_answers_what_boto3_parses(client):
    (described,) = client.describe_file_systems(FileSystemId=FILE_SYSTEM)["FileSystems"]
    assert described["CreationTime"] == datetime(2025, 1, 1, tzinfo=UTC)
    assert described["FileSystemArn"].endswith(f":111122223333:file-system/{FILE_SYSTEM}")
    assert len(client.describe_file_systems()["FileSystems"]) == 1


def test_an_update_passes_through_the_state_updating(client, efs):
    efs.add(FILE_SYSTEM, updating_for=1)
    states = [client.update_file_system(FileSystemId=FILE_SYSTEM, ThroughputMode="elastic")]
    states += [
        client.describe_file_systems(FileSystemId=FILE_SYSTEM)["FileSystems"][0] for _ in "ab"
    ]
    assert [(one["LifeCycleState"], one["ThroughputMode"]) for one in states] == [
        ("updating", "bursting"),
        ("updating", "bursting"),
        ("available", "elastic"),
    ]


def test_a_mode_can_be_changed_once_in_24_hours(client, efs):
    client.update_file_system(FileSystemId=FILE_SYSTEM, ThroughputMode="elastic")
    client.describe_file_systems(FileSystemId=FILE_SYSTEM)
    back = {"FileSystemId": FILE_SYSTEM, "ThroughputMode": "bursting"}
    assert code_of(client.update_file_system, **back) == "TooManyRequests"
    efs.file_systems[FILE_SYSTEM].mode_changed_at -= timedelta(hours=24)
    client.update_file_system(**back)


def test_max_io_cannot_be_elastic(client, efs):
    efs.add(FILE_SYSTEM, performance_mode="maxIO")
    code = code_of(client.update_file_system, FileSystemId=FILE_SYSTEM, ThroughputMode="elastic")
    assert code == "BadRequest"


def test_it_cannot_be_told_to_answer_an_error_that_efs_does_not_have(efs):
    with pytest.raises(AssertionError, match="cannot answer NoSuchBucket"):
        efs.fail("UpdateFileSystem", "NoSuchBucket")
    with pytest.raises(AssertionError, match="cannot answer TooManyRequests"):
        efs.fail("DescribeFileSystems", "TooManyRequests")


def test_it_runs_as_a_program_and_shows_its_state():
    program = ROOT / "tests" / "support" / "fake_efs.py"
    with subprocess.Popen(
        [sys.executable, str(program), "--file-system", FILE_SYSTEM], stdout=subprocess.PIPE
    ) as process:
        try:
            line = process.stdout.readline().decode()
            url = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", line)[1]
            with urllib.request.urlopen(f"{url}/fake/state", timeout=10) as answer:
                state = json.load(answer)
        finally:
            process.terminate()
        assert process.wait(timeout=10) == 0
    assert state["file_systems"][FILE_SYSTEM]["throughput_mode"] == "bursting"
