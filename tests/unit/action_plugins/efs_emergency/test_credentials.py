"""Credentials: IRSA and Pod Identity with a real boto3, their refresh, their absence, no leak."""

import logging

import pytest

from receiver import PermanentError, TemporaryError

FILE_SYSTEM = "fs-0123456789abcdef0"
ROLE = "arn:aws:iam::111122223333:role/alert-receiver"

pytestmark = pytest.mark.usefixtures("fresh_clients")


@pytest.fixture
def no_static_keys(monkeypatch):
    """Static keys would win over IRSA and Pod Identity both."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def irsa(monkeypatch, tmp_path, fakes, no_static_keys):
    """What EKS injects for IRSA, and an STS on loopback."""
    token_file = tmp_path / "token"
    token_file.write_text("fake-web-identity-0")
    with fakes.FakeSts() as sts:
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token_file))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        sts.token_file = token_file
        yield sts


@pytest.fixture
def pod_identity(monkeypatch, tmp_path, fakes, no_static_keys):
    """What EKS injects for Pod Identity, and an agent on loopback."""
    token_file = tmp_path / "eks-pod-identity-token"
    token_file.write_text("fake-pod-token-0")
    with fakes.FakePodIdentityAgent() as agent:
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{agent.url}/v1/credentials")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(token_file))
        agent.token_file = token_file
        yield agent


@pytest.fixture(params=["irsa", "pod_identity"])
def provider(request):
    """Each of the two in turn."""
    return request.getfixturevalue(request.param)


def test_the_role_of_the_pod_is_used(efs, run, provider):
    assert run()["summary"] == "switched to elastic"
    assert provider.tokens[0] in ("fake-web-identity-0", "fake-pod-token-0")
    first = efs.requests[0]
    assert first.access_key_id.startswith("FAKEKEYNUMBER")
    assert first.session_token.startswith("fake-session-token-number-")


def test_credentials_are_refreshed_with_the_token_that_the_file_then_holds(efs, run, provider):
    run()
    provider.token_file.write_text("fake-token-rotated")
    efs.add(FILE_SYSTEM)
    run()
    assert provider.tokens[-1] == "fake-token-rotated"
    keys = [request.access_key_id for request in efs.requests]
    assert keys[-1] != keys[0]
    assert keys == sorted(keys)


def test_static_keys_win_over_the_role_of_the_pod(efs, run, provider, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKESTATICKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-static-secret")
    run()
    assert {request.access_key_id for request in efs.requests} == {"FAKESTATICKEY"}
    assert provider.tokens == []


def test_a_role_that_does_not_trust_the_service_account_fails_with_the_cure(efs, run, irsa):
    irsa.refuses_with = 403, "AccessDenied"
    with pytest.raises(PermanentError, match=r"AssumeRoleWithWebIdentity: AccessDenied.*trust"):
        run()
    assert efs.requests == []


def test_an_expired_web_identity_is_tried_again(efs, run, irsa):
    irsa.refuses_with = 400, "ExpiredTokenException"
    with pytest.raises(TemporaryError, match="ExpiredTokenException"):
        run()
    irsa.refuses_with = None
    assert run()["summary"] == "switched to elastic"


def test_a_token_file_that_is_not_there_yet_is_tried_again(efs, run, provider):
    provider.token_file.unlink()
    with pytest.raises(TemporaryError, match="check the role or keys of this process"):
        run()
    provider.token_file.write_text("fake-token-late")
    assert run()["summary"] == "switched to elastic"
    assert set(provider.tokens) == {"fake-token-late"}


def test_no_credentials_are_tried_again_and_picked_up_when_they_come(
    efs, run, no_static_keys, monkeypatch
):
    with pytest.raises(TemporaryError, match="NoCredentialsError"):
        run()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FAKELATEKEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fake-late-secret")
    assert run()["summary"] == "switched to elastic"


def test_rotated_keys_are_read_afresh_after_aws_refused_the_old_ones(
    efs, run, no_static_keys, monkeypatch, tmp_path
):
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    keys = "[default]\naws_access_key_id = {}\naws_secret_access_key = fake-secret\n"
    file.write_text(keys.format("FAKEOLDKEY"))
    efs.fail("DescribeFileSystems", "UnrecognizedClientException")
    with pytest.raises(TemporaryError, match="UnrecognizedClientException"):
        run()
    file.write_text(keys.format("FAKENEWKEY"))
    run()
    assert [request.access_key_id for request in efs.requests[:2]] == ["FAKEOLDKEY", "FAKENEWKEY"]


def test_a_profile_that_is_missing_fails_with_its_name(efs, run, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    with pytest.raises(PermanentError, match="no-such-profile"):
        run()


def test_an_endpoint_that_is_no_url_fails_with_its_cause(efs, run, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_EFS", "not a url")
    with pytest.raises(PermanentError, match="AWS configuration"):
        run()


def test_no_secret_is_logged_even_when_everything_is_logged(efs, run, provider, caplog):
    # Fresh loggers: the levels that the operator would start with.
    for name in ("boto3", "botocore"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    caplog.set_level(logging.DEBUG)
    run()
    efs.fail("DescribeFileSystems", "AccessDeniedException")
    with pytest.raises(PermanentError):
        run()
    assert caplog.records, "nothing was logged: the test proves nothing"
    for secret in ("fake-secret-number", "fake-session-token", "fake-web-identity", "fake-pod-t"):
        assert secret not in caplog.text
    assert "Signature=" not in caplog.text
