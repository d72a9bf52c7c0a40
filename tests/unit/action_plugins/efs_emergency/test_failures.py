"""What every failure of AWS means for the run; a walk over the live model finds what is missing."""

import json
from datetime import UTC, datetime, timedelta

import boto3.session
import botocore.loaders
import pytest
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from botocore.model import ServiceModel
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber

from action_plugins.efs_emergency.failures import (
    CREDENTIALS,
    MODE_CHANGED_TOO_SOON,
    PERMANENT,
    TEMPORARY,
    explain,
    is_about_credentials,
    wait_until,
)
from receiver import PermanentError, TemporaryError

NOW = datetime(2026, 11, 22, 3, 0, 0, tzinfo=UTC)
MODEL = ServiceModel(botocore.loaders.create_loader().load_service_model("efs", "service-2"), "efs")
ERRORS = {
    (operation, shape.error_code): shape.metadata["error"]["httpStatusCode"]
    for operation in ("DescribeFileSystems", "UpdateFileSystem")
    for shape in MODEL.operation_model(operation).error_shapes
}
TOO_SOON = (
    "You have reached the maximum number of throughput mode changes or provisioned throughput value"
    " decreases. Wait until {} UTC and try again."
)


@pytest.fixture(scope="module")
def client():
    """A client that is never let onto the network."""
    made = boto3.session.Session().client(
        "efs",
        region_name="us-east-1",
        aws_access_key_id="FAKEKEY",
        aws_secret_access_key="fake-secret",
    )
    yield made
    made.close()


@pytest.fixture
def answered(client):
    """Return the exception that boto3 raises when EFS answers with an error."""

    def raise_and_catch(operation, code, message="because", status=400):
        method = {
            "DescribeFileSystems": "describe_file_systems",
            "UpdateFileSystem": "update_file_system",
        }[operation]
        with Stubber(client) as stubber:
            stubber.add_client_error(
                method, code, message, status, response_meta={"RequestId": "fake-request"}
            )
            with pytest.raises(ClientError) as caught:
                getattr(client, method)(FileSystemId="fs-0123456789abcdef0")
        return caught.value

    return raise_and_catch


def test_every_error_of_the_model_is_mapped():
    listed = {*PERMANENT, *TEMPORARY, *CREDENTIALS, MODE_CHANGED_TOO_SOON}
    assert {code for _, code in ERRORS} <= listed


def test_no_error_is_mapped_twice():
    listed = [*PERMANENT, *TEMPORARY, *CREDENTIALS, MODE_CHANGED_TOO_SOON]
    assert len(listed) == len(set(listed))


EXPECTED = {
    "BadRequest": PermanentError,
    "FileSystemNotFound": PermanentError,
    "IncorrectFileSystemLifeCycleState": TemporaryError,
    "InsufficientThroughputCapacity": TemporaryError,
    "InternalServerError": TemporaryError,
    "ThroughputLimitExceeded": PermanentError,
    "TooManyRequests": PermanentError,
}


@pytest.mark.parametrize(("operation", "code"), sorted(ERRORS))
def test_an_error_of_the_model_ends_the_run_or_is_tried_again(answered, operation, code):
    failure = explain(answered(operation, code, status=ERRORS[operation, code]), "")
    assert type(failure) is EXPECTED[code]
    assert str(failure).startswith(f"{operation}: {code}: because (request id fake-request)")


@pytest.mark.parametrize(("operation", "code"), sorted(ERRORS))
def test_an_error_of_the_model_means_the_same_over_http(efs, run, operation, code):
    # Three times: boto3 itself tries 5xx again.
    efs.fail(operation, code, times=3)
    if ERRORS[operation, code] >= 500:
        # No time for boto3's own retries and their pauses: one request is enough to see it.
        with pytest.raises(EXPECTED[code], match=f"{code}|did not answer well"):
            run(remaining_seconds=2.9)
    else:
        with pytest.raises(EXPECTED[code], match=code):
            run()
    assert efs.file_systems["fs-0123456789abcdef0"].throughput_mode == "bursting"


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("AccessDeniedException", 403, PermanentError),
        ("ValidationException", 400, PermanentError),
        ("ThrottlingException", 400, TemporaryError),
        ("RequestLimitExceeded", 503, TemporaryError),
        ("ExpiredTokenException", 403, TemporaryError),
        ("UnrecognizedClientException", 403, TemporaryError),
        ("InvalidSignatureException", 403, TemporaryError),
        ("SomethingNew", 400, PermanentError),
        ("SomethingNew", 429, TemporaryError),
        ("SomethingNew", 500, TemporaryError),
        ("502", 502, TemporaryError),
    ],
)
def test_an_error_that_any_service_can_answer_is_mapped(answered, code, status, expected):
    assert type(explain(answered("UpdateFileSystem", code, status=status), "")) is expected


def test_an_error_without_code_and_status_is_tried_again():
    assert type(explain(ClientError({}, "UpdateFileSystem"), "")) is TemporaryError


def test_a_state_that_is_in_the_way_is_given_half_a_minute(answered):
    failure = explain(answered("UpdateFileSystem", "IncorrectFileSystemLifeCycleState"), "")
    assert failure.retry_after == timedelta(seconds=30)


def test_a_role_that_may_not_be_assumed_points_to_its_trust_policy():
    error = ClientError({"Error": {"Code": "AccessDenied"}}, "AssumeRoleWithWebIdentity")
    assert "trust policy" in str(explain(error, ""))


@pytest.mark.parametrize(
    ("message", "until"),
    [
        pytest.param(TOO_SOON.format("2026-11-22T03:30:00Z"), NOW + timedelta(minutes=30), id="z"),
        pytest.param(
            TOO_SOON.format("2026-11-22T03:30:00.123Z"), NOW + timedelta(minutes=30), id="fraction"
        ),
        pytest.param("wait until 2026-11-22 03:30:00", NOW + timedelta(minutes=30), id="blank"),
        pytest.param("Wait until 2026-13-45T99:99:99Z UTC", None, id="no-such-time"),
        pytest.param("Wait until tomorrow", None, id="in-words"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_the_time_to_wait_until_is_read_from_the_message(message, until):
    assert wait_until(message) == until


@pytest.mark.parametrize(
    ("until", "retry_at"),
    [
        pytest.param("2026-11-22T03:30:00Z", "2026-11-22T03:30:00+00:00", id="soon"),
        pytest.param("2026-11-22T04:00:00Z", "2026-11-22T04:00:00+00:00", id="just-soon-enough"),
        pytest.param("2026-11-22T04:00:01Z", None, id="a-second-too-late"),
        pytest.param("2026-11-22T02:00:00Z", "2026-11-22T03:00:30+00:00", id="past"),
    ],
)
def test_that_time_becomes_the_next_attempt_when_it_is_near_enough(answered, until, retry_at):
    error = answered("UpdateFileSystem", "TooManyRequests", TOO_SOON.format(until), 429)
    failure = explain(error, "", now=NOW, longest_wait=timedelta(hours=1))
    if retry_at is None:
        assert type(failure) is PermanentError
        assert "2026-11-22T04:00:01+00:00" in str(failure)
    else:
        assert failure.retry_at == datetime.fromisoformat(retry_at)


def test_too_many_requests_without_a_time_ends_the_run(answered):
    failure = explain(answered("UpdateFileSystem", "TooManyRequests", "no", 429), "", now=NOW)
    assert type(failure) is PermanentError
    assert "changed in the last 24 hours" in str(failure)


@pytest.mark.parametrize(
    ("error", "expected", "about_credentials"),
    [
        (boto.EndpointConnectionError(endpoint_url="x"), TemporaryError, False),
        (boto.ConnectTimeoutError(endpoint_url="x"), TemporaryError, False),
        (boto.ReadTimeoutError(endpoint_url="x"), TemporaryError, False),
        (boto.ConnectionClosedError(endpoint_url="x"), TemporaryError, False),
        (boto.SSLError(endpoint_url="x", error="y"), TemporaryError, False),
        (ResponseParserError("x"), TemporaryError, False),
        (boto.NoCredentialsError(), TemporaryError, True),
        (boto.CredentialRetrievalError(provider="x", error_msg="y"), TemporaryError, True),
        (boto.TokenRetrievalError(provider="x", error_msg="y"), TemporaryError, True),
        (FileNotFoundError(2, "No such file", "/var/run/token"), TemporaryError, True),
        (boto.PartialCredentialsError(provider="x", cred_var="y"), PermanentError, False),
        (boto.ProfileNotFound(profile="x"), PermanentError, False),
        (boto.NoRegionError(), PermanentError, False),
        (boto.InvalidRegionError(region_name="x"), PermanentError, False),
        (boto.ParamValidationError(report="x"), PermanentError, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_on_the_way_is_mapped(error, expected, about_credentials):
    assert type(explain(error, "describe_file_systems")) is expected
    assert is_about_credentials(error) is about_credentials


def test_messages_of_aws_are_shortened_and_kept_on_one_line(answered):
    failure = explain(answered("UpdateFileSystem", "BadRequest", "a\nb" * 2000), "")
    assert len(str(failure)) < 800
    assert json.dumps(str(failure)).count("\\n") == 0
