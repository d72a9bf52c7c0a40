"""Where it may listen: fails closed, and says each cause."""

from pathlib import Path

import pytest

from receiver.errors import SettingsError
from receiver.settings import load
from receiver.web.binding import check_bind
from tests.support.certificates import Authority

EVERYWHERE = {"RECEIVER_BIND": "0.0.0.0:8080"}
TOKEN = {"RECEIVER_SUBMIT_TOKEN": "hunter2"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"), "authority")


@pytest.fixture(scope="module")
def tls(authority: Authority) -> dict[str, str]:
    cert, key = authority.issue("server")
    return {
        "RECEIVER_TLS_CERT": str(cert),
        "RECEIVER_TLS_KEY": str(key),
        "RECEIVER_TLS_CLIENT_CA": str(authority.file),
    }


def problems_of(environment: dict[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        check_bind(load(environment, {}))
    assert "hunter2" not in str(caught.value)
    return caught.value.problems


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RECEIVER_BIND": "[::1]:8080"},
        {"RECEIVER_BIND": "localhost:8080"},
        EVERYWHERE | {"RECEIVER_AUTH": "none"},
        EVERYWHERE | TOKEN,
        EVERYWHERE | {"RECEIVER_SUBMIT_BASIC_AUTH": "am:hunter2"},
        TOKEN | {"RECEIVER_OPERATE_TOKEN": "x"},
    ],
)
def test_what_is_closed_or_meant_to_be_open_may_listen(environment: dict[str, str]) -> None:
    check_bind(load(environment, {}))


@pytest.mark.parametrize("bind", ["0.0.0.0:8080", "[::]:8080", "10.1.2.3:1", "receiver.example:1"])
@pytest.mark.parametrize("also", [{}, {"RECEIVER_METRICS_OPEN": "true"}])
def test_without_credentials_nothing_listens_beyond_this_machine(
    bind: str, also: dict[str, str]
) -> None:
    (problem,) = problems_of({"RECEIVER_BIND": bind, **also})
    assert problem.startswith(f"RECEIVER_BIND: {bind} can be reached by others")
    assert "RECEIVER_SUBMIT_TOKEN_FILE" in problem


@pytest.mark.parametrize("name", ["RECEIVER_READ_TOKEN", "RECEIVER_OPERATE_TOKEN"])
@pytest.mark.parametrize("bind", ["127.0.0.1:8080", "0.0.0.0:8080"])
def test_credentials_that_lock_alertmanager_out_are_refused(name: str, bind: str) -> None:
    (problem,) = problems_of({"RECEIVER_BIND": bind, name: "hunter2"})
    assert problem.startswith("RECEIVER_SUBMIT_TOKEN: is not set while other credentials are")


def test_certificates_of_clients_are_credentials(tls: dict[str, str]) -> None:
    check_bind(load(EVERYWHERE | tls, {}))
    check_bind(load(EVERYWHERE | tls | {"RECEIVER_READ_TOKEN": "x"}, {}))


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ("RECEIVER_TLS_CERT", "RECEIVER_TLS_CERT: is not set, though RECEIVER_TLS_KEY is"),
        ("RECEIVER_TLS_KEY", "RECEIVER_TLS_KEY: is not set, though RECEIVER_TLS_CERT is"),
    ],
)
def test_half_of_a_certificate_is_refused(tls: dict[str, str], missing: str, problem: str) -> None:
    environment = {name: text for name, text in tls.items() if name != missing}
    assert problems_of(environment)[0].startswith(problem)


def test_certificates_of_clients_need_tls(tls: dict[str, str]) -> None:
    ca = tls["RECEIVER_TLS_CLIENT_CA"]
    (problem,) = problems_of({"RECEIVER_TLS_CLIENT_CA": ca})
    assert problem.startswith("RECEIVER_TLS_CERT: is not set, though RECEIVER_TLS_CLIENT_CA is")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("RECEIVER_TLS_CERT", None, "No such file or directory"),
        ("RECEIVER_TLS_KEY", None, "No such file or directory"),
        ("RECEIVER_TLS_CLIENT_CA", None, "No such file or directory"),
        ("RECEIVER_TLS_CERT", "hunter2", "no pem|pem|not PEM"),
        ("RECEIVER_TLS_KEY", "hunter2", "pem|PEM"),
        ("RECEIVER_TLS_CLIENT_CA", "hunter2", "no certificate or crl found"),
        ("RECEIVER_TLS_CLIENT_CA", "", "no certificate or crl found"),
    ],
)
def test_file_that_is_no_certificate_is_named_with_the_cause(
    tls: dict[str, str], name: str, text: str | None, why: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    (problem,) = problems_of(tls | {name: str(file)})
    shown = "RECEIVER_TLS_CERT" if name == "RECEIVER_TLS_KEY" else name
    assert problem.startswith(f"{shown}: ")
    assert str(file) in problem
    assert any(one in problem for one in why.split("|"))


def test_key_of_another_certificate_is_refused(tls: dict[str, str], authority: Authority) -> None:
    _, key = authority.issue("other")
    (problem,) = problems_of(tls | {"RECEIVER_TLS_KEY": str(key)})
    assert "key values mismatch" in problem
