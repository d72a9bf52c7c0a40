"""What http_plugin sends, as its settings say, and which answers it takes for success."""

import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from action_plugins import http_plugin
from action_plugins.http_plugin.body import Template
from receiver import PermanentError, TemporaryError
from receiver.errors import SettingsError
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.testing import make_alert, make_context, run_action
from tests.support.fuzz import examples

HOSTILE = '"}, {{ run_id }} {{labels.x}} {0} %s ${x} \\ \r\n\u2028</script>'


def call(url: str = "http://127.0.0.1:1", context: Any = None, **named: str) -> Any:
    """Call it with these settings; the names are those of HTTP_PLUGIN_…, in lower case."""
    environment = {f"HTTP_PLUGIN_{name.upper()}": text for name, text in named.items()}
    return run_action(
        http_plugin, environment={"HTTP_PLUGIN_ENDPOINT": url, **environment}, context=context
    )


def refused(**named: str) -> str:
    """Return why a start with these settings is refused."""
    with pytest.raises((ValueError, SettingsError)) as caught:
        call(**named)
    return str(caught.value)


# Method and headers


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_method_with_a_body_sends_the_call(endpoint: Any, method: str) -> None:
    call(endpoint.url, method=method)
    (request,) = endpoint.requests
    assert request.method == method
    assert json.loads(request.body)["metric_name"] == "queue_depth"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_method_without_a_body_sends_the_key_and_nothing_else(endpoint: Any, method: str) -> None:
    call(endpoint.url, method=method)
    (request,) = endpoint.requests
    assert (request.method, request.body) == (method, b"")
    assert "content-type" not in request.headers
    assert request.headers["idempotency-key"] == make_context().idempotency_key


def test_other_method_is_refused() -> None:
    assert "HTTP_PLUGIN_METHOD" in refused(method="BREW")


def test_headers_are_sent_and_come_before_the_general_ones(endpoint: Any) -> None:
    call(
        endpoint.url,
        headers="X-Team: ops, storage\n\n  content-type: application/cloudevents+json\n"
        "User-Agent: pager\nX-Empty:",
    )
    headers = endpoint.requests[0].headers
    assert headers["x-team"] == "ops, storage"
    assert headers["content-type"] == "application/cloudevents+json"
    assert headers["user-agent"] == "pager"
    assert headers["x-empty"] == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("s3cret", "line 1 is not a header", id="no colon"),
        pytest.param("X-A: b\nX B: s3cret", "line 2 is not a header", id="space in a name"),
        pytest.param("X-A: s3crét", "line 1 is not a header", id="not ASCII"),
        pytest.param("X-A: s3cret\0", "line 1 is not a header", id="NUL"),
        pytest.param("Host: s3cret", "Host is set by the exchange itself", id="host"),
        pytest.param("content-LENGTH: 0", "content-LENGTH is set by the", id="length"),
        pytest.param("Idempotency-Key: 1", "Idempotency-Key is set by the", id="key"),
        pytest.param("X-A: 1\nx-a: s3cret", "x-a stands there twice", id="twice"),
    ],
)
def test_header_that_cannot_be_sent_is_refused_without_its_value(text: str, why: str) -> None:
    said = refused(headers=text)
    assert f"HTTP_PLUGIN_HEADERS: {why}" in said
    assert "s3cr" not in said


def test_headers_can_be_read_from_a_file(endpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_text("X-Api-Key: s3cret\n")
    call(endpoint.url, headers_file=str(file))
    assert endpoint.requests[0].headers["x-api-key"] == "s3cret"


# Token


def test_token_is_read_from_its_file_at_every_attempt(endpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("one", "other"):
        file.write_text(f"{token}\n")
        call(endpoint.url, token_file=str(file))
    assert [one.headers["authorization"] for one in endpoint.requests] == [
        "Bearer one",
        "Bearer other",
    ]


@pytest.mark.parametrize("text", ["", "two words", "s3cret\r\nX-Injected: 1", "s3crét"])
def test_file_without_a_token_is_temporary_and_nothing_is_sent(
    endpoint: Any, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(TemporaryError, match="HTTP_PLUGIN_TOKEN_FILE: holds no token") as caught:
        call(endpoint.url, token_file=str(file))
    assert "s3cr" not in str(caught.value)
    assert endpoint.requests == []


def test_token_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    said = refused(token_file=str(tmp_path / "none"), client_cert=str(tmp_path / "nor"))
    assert f"HTTP_PLUGIN_TOKEN_FILE: {tmp_path}/none is not a file" in said
    assert f"HTTP_PLUGIN_CLIENT_CERT: {tmp_path}/nor is not a file" in said


def test_token_file_that_vanishes_is_temporary(endpoint: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    actions = load_actions(
        load({"HTTP_PLUGIN_ENDPOINT": endpoint.url, "HTTP_PLUGIN_TOKEN_FILE": str(file)}, {})
    )
    file.unlink()
    context = make_context(settings=actions.plugins["http_plugin"].values)
    arguments = {"metric_name": "m", "value": 1.0, "threshold": "", "duration": timedelta(0)}
    with pytest.raises(TemporaryError, match="HTTP_PLUGIN_TOKEN_FILE: cannot be read: No such"):
        actions.call("http_plugin", "execute", {"context": context, **arguments})


def test_two_ways_to_say_who_one_is_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t")
    said = refused(token_file=str(file), headers="authorization: Basic s3cret")
    assert "HTTP_PLUGIN_TOKEN_FILE and Authorization in HTTP_PLUGIN_HEADERS are set tog" in said
    assert "s3cret" not in said
    with pytest.raises(ValueError, match="the user in HTTP_PLUGIN_ENDPOINT and HTTP_PLUGIN_TOKEN"):
        call("http://user:s3cret@127.0.0.1:1", token_file=str(file))


# Body


def sent(endpoint: Any, template: object, **changes: Any) -> Any:
    """Return the body that a template makes of a call, as the endpoint reads it."""
    text = template if isinstance(template, str) else json.dumps(template)
    alert = make_alert(
        labels={"queue": HOSTILE, "severity": "page", "k8s.pod.name": "web-0"},
        annotations={"summary": "too long"},
    )
    environment = {"HTTP_PLUGIN_ENDPOINT": endpoint.url, "HTTP_PLUGIN_BODY": text}
    run_action(http_plugin, environment=environment, context=make_context(alert), **changes)
    return json.loads(endpoint.requests[-1].body, parse_constant=lambda one: pytest.fail(one))


def test_template_is_filled_in(endpoint: Any) -> None:
    template = {
        "text": "{{ metric_name }} is {{value}} on {{ labels.severity }}{{ labels.nothing }}!",
        "two": "{{ attempt }} of {{ attempt }}",
        "left": "{{ attempt }} }}, {{{ attempt }}}",
        "count": 3,
        "deep": [{"severity": "{{ labels.severity }}"}, True, None, 1.5],
        "pod": "{{ labels.k8s.pod.name }}",
        "summary": "{{ annotations.summary }}",
        "{{ value }}": "a key stays as it is",
    }
    assert sent(endpoint, template) == {
        "text": "queue_depth is 90.0 on page!",
        "two": "1 of 1",
        "left": "1 }}, {1}",
        "count": 3,
        "deep": [{"severity": "page"}, True, None, 1.5],
        "pod": "web-0",
        "summary": "too long",
        "{{ value }}": "a key stays as it is",
    }


def test_name_alone_in_a_string_keeps_its_type(endpoint: Any) -> None:
    template = {
        "value": "{{ value }}",
        "attempt": "{{attempt}}",
        "labels": "{{ labels }}",
        "nothing": "{{ labels.nothing }}",
        "began": "{{ starts_at }}",
    }
    assert sent(endpoint, template, value=93.5) == {
        "value": 93.5,
        "attempt": 1,
        "labels": {
            "alertname": "QueueTooLong", "queue": HOSTILE, "severity": "page",
            "k8s.pod.name": "web-0",
        },
        "nothing": None,
        "began": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip


def test_every_name_that_the_call_has_can_be_used(endpoint: Any) -> None:
    whole = sent(endpoint, {name: f"{{{{ {name} }}}}" for name in http_plugin.body.NAMES})
    in_alert = sent(endpoint, {name: f"{{{{ {name} }}}}" for name in http_plugin.body.ALERT_NAMES})
    call(endpoint.url, context=make_context(make_alert()))
    posted = json.loads(endpoint.requests[-1].body)
    assert posted["alert"].keys() == in_alert.keys()
    assert posted.keys() - {"alert"} == whole.keys()


def test_alert_text_neither_breaks_out_nor_is_filled_in_again(endpoint: Any) -> None:
    template = '{"a": "{{ labels.queue }}", "b": "<{{ labels.queue }}>", "c": "{{ metric_name }}"}'
    filled = sent(endpoint, template, metric_name="{{ idempotency_key }}")
    assert filled == {"a": HOSTILE, "b": f"<{HOSTILE}>", "c": "{{ idempotency_key }}"}


TEXTS = st.text() | st.sampled_from([HOSTILE, "{{ value }}", '"', "\\", "\ud800", "\0"])


@given(label=TEXTS, metric=TEXTS)
@examples(200)
def test_no_text_changes_the_shape_of_a_document(label: str, metric: str) -> None:
    template = Template.parse('{"a": ["{{ labels.x }}", "<{{ metric_name }}>"], "b": 1}')
    call = {"metric_name": metric, "alert": {"labels": {"x": label}}}
    written = json.dumps(template.fill(call), allow_nan=False)
    assert json.loads(written) == {"a": [label, f"<{metric}>"], "b": 1}
    assert written.isascii()


def test_no_number_is_a_text(endpoint: Any) -> None:
    assert sent(endpoint, '["{{ value }}"]', value=math.nan) == ["NaN"]


@pytest.mark.parametrize("document", ['"{{ value }}"', "[]", "null", "7"])
def test_template_may_be_any_document(endpoint: Any, document: str) -> None:
    expected = 90.0 if "value" in document else json.loads(document)
    assert sent(endpoint, document) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("{{ value }}", "is not JSON: ", id="name outside of a string"),
        pytest.param('{"a": NaN}', "is not JSON: NaN is no number in JSON", id="nan"),
        pytest.param("[" * 100_000, "is longer than 65536 characters", id="long"),
        pytest.param("[" * 20_000, "is not JSON: ", id="deep and open"),
        pytest.param("[" * 60 + "]" * 60, "is nested more than 50 deep", id="deep"),
        pytest.param('["{{ valeu }}"]', "(did you mean value?)", id="misspelt"),
        pytest.param('["{{ }}"]', "{{  }} stands for nothing", id="nothing"),
        pytest.param('["{{ labels. }}"]', "{{ labels. }} stands for nothing", id="no label"),
        pytest.param('["{{ alert.__class__ }}"]', "stands for nothing", id="attribute"),
        pytest.param('["{{ value.real }}"]', "stands for nothing", id="attribute of a number"),
        pytest.param('["{{ value | upper }}"]', "stands for nothing", id="filter"),
        pytest.param('["{{ labels[0] }}"]', "stands for nothing", id="index"),
        pytest.param('["{{ value"]', "has a {{ without its name", id="open"),
        pytest.param("[1e999]", "is not JSON: 1e999 is no number in JSON", id="infinite"),
        pytest.param('["{{ 7 * 7 }}"]', "stands for nothing", id="expression"),
    ],
)
def test_template_that_cannot_be_filled_in_stops_the_start(template: str, why: str) -> None:
    said = refused(body=template)
    assert said.startswith("HTTP_PLUGIN_BODY: ")
    assert why in said


def test_template_for_a_method_without_a_body_is_refused() -> None:
    assert "HTTP_PLUGIN_BODY: GET carries no body" in refused(body="{}", method="GET")


# Answers


@pytest.mark.parametrize(
    ("expected", "status"),
    [("2xx", 204), ("200, 202", 202), ("2XX,409", 409), ("302", 302), ("2xx,503", 503)],
)
def test_expected_status_is_success(endpoint: Any, expected: str, status: int) -> None:
    endpoint.answer = endpoint.reply(status)
    assert call(endpoint.url, expected_status=expected)["status"] == status


def test_success_that_was_not_expected_is_permanent(endpoint: Any) -> None:
    endpoint.answer = endpoint.reply(202, b"later")
    with pytest.raises(PermanentError, match="answered 202: later, which HTTP_PLUGIN_EXPECTED_ST"):
        call(endpoint.url, expected_status="200")


@pytest.mark.parametrize("text", ["ok", "700", "2x", "20", "200-299", "\u0662xx"])
def test_what_is_no_status_is_refused(text: str) -> None:
    assert "is not a status; write 200 or 2xx" in refused(expected_status=text)


def test_no_status_at_all_is_refused() -> None:
    assert "HTTP_PLUGIN_EXPECTED_STATUS: names no status" in refused(expected_status=",")


# Client certificates


@pytest.fixture
def apart(certificate: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """The certificate and its key in two files."""
    key, end, cert = certificate.read_text().partition("-----END PRIVATE KEY-----\n")
    (tmp_path / "key.pem").write_text(key + end)
    (tmp_path / "cert.pem").write_text(cert)
    yield tmp_path / "cert.pem", tmp_path / "key.pem"


def test_certificate_is_shown(
    mutual_tls_endpoint: Any, certificate: Path, apart: tuple[Path, Path]
) -> None:
    cert, key = apart
    url, ca = mutual_tls_endpoint.url, str(certificate)
    with pytest.raises(TemporaryError, match="gave no answer: "):
        call(url, ca_bundle=ca)
    assert call(url, ca_bundle=ca, client_cert=ca)["status"] == 200
    assert call(url, ca_bundle=ca, client_cert=str(cert), client_key=str(key))["status"] == 200


def test_key_without_its_certificate_is_refused(apart: tuple[Path, Path]) -> None:
    said = refused(client_key=str(apart[1]))
    assert "HTTP_PLUGIN_CLIENT_KEY: is set without HTTP_PLUGIN_CLIENT_CERT" in said


def test_certificate_that_is_none_is_temporary_and_names_no_secret(
    tls_endpoint: Any, tmp_path: Path
) -> None:
    file = tmp_path / "cert.pem"
    file.write_text("s3cret")
    with pytest.raises(TemporaryError, match="gave no answer: ") as caught:
        call(tls_endpoint.url, ca_bundle=str(file), client_cert=str(file))
    assert "s3cret" not in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    said = refused(method="GET", body="{}", headers="?", expected_status="x", timeout="0s")
    for name in ("BODY", "HEADERS", "EXPECTED_STATUS", "TIMEOUT"):
        assert f"HTTP_PLUGIN_{name}: " in said


def test_describe_names_the_method(endpoint: Any) -> None:
    environment = {"HTTP_PLUGIN_ENDPOINT": endpoint.url, "HTTP_PLUGIN_METHOD": "PUT"}
    said = run_action(http_plugin, environment=environment, hook="describe")
    assert said.startswith(f"would PUT to {endpoint.url} that 'queue_depth' is 90")
    assert endpoint.requests == []
