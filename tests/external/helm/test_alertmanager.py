"""Where alerts go: by the AlertmanagerConfig, as the operator reads it, and as the notes say."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import (
    CHART,
    EXAMPLES,
    NAMESPACE,
    RELEASE,
    Resource,
    find_helm,
    pick,
    written,
)
from tests.support.stack import requires

ROUTED = [one for one in EXAMPLES if "alertmanagerConfig:" in one.read_text()]


def amtool(*arguments: str | Path) -> str:
    (binary,) = requires("amtool")
    done = subprocess.run(
        [binary, *arguments], text=True, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def routed_to(config: Path, **labels: str) -> list[str]:
    """Return the receivers that an alert with these labels goes to."""
    # Quoted, because newer versions print a warning with the answer where a value needs quotes.
    words = [f"{name}={json.dumps(text)}" for name, text in labels.items()]
    return amtool("config", "routes", "test", f"--config.file={config}", *words).strip().split(",")


def as_the_operator_does(resource: Resource, has_matcher: bool) -> dict[str, Any]:
    """Return the configuration that the Prometheus operator makes of an AlertmanagerConfig.

    It prefixes names, reads secrets, lets alerts go on to other routes, and by default adds a
    matcher on the resource's own namespace.
    """
    spec, prefix = resource["spec"], f"{NAMESPACE}/{resource['metadata']['name']}/"
    names = {
        "groupBy": "group_by", "groupWait": "group_wait", "groupInterval": "group_interval",
        "repeatInterval": "repeat_interval",
    }  # fmt: skip
    route = {names[key]: spec["route"][key] for key in names}
    matchers = [
        f'{one["name"]}{one["matchType"]}"{one["value"]}"' for one in spec["route"]["matchers"]
    ]
    if has_matcher:
        matchers.append(f'namespace="{NAMESPACE}"')
    receivers = []
    for receiver in spec["receivers"]:
        webhooks = []
        for one in receiver["webhookConfigs"]:
            http: dict[str, Any] = {}
            if "authorization" in one.get("httpConfig", {}):
                assert one["httpConfig"]["authorization"]["credentials"].keys() == {"name", "key"}
                http = {"authorization": {"type": "Bearer", "credentials": "only-for-this-test"}}
            webhooks.append({"url": one["url"], "send_resolved": one["sendResolved"],
                             "max_alerts": one["maxAlerts"], "http_config": http})  # fmt: skip
        receivers.append({"name": prefix + receiver["name"], "webhook_configs": webhooks})
    return {
        "route": {
            "receiver": "null",
            "routes": [{**route, "receiver": prefix + spec["route"]["receiver"],
                        "matchers": matchers, "continue": True}],
        },
        "receivers": [{"name": "null"}, *receivers],
    }  # fmt: skip


@pytest.fixture(params=ROUTED, ids=lambda path: path.name.removesuffix("-values.yaml"))
def routed(request: pytest.FixtureRequest) -> list[Resource]:
    """Each example that has an AlertmanagerConfig, rendered."""
    return find_helm("helm4").template(request.param)


def test_alerts_of_the_thresholds_reach_the_receiver(
    routed: list[Resource], tmp_path: Path
) -> None:
    resource = pick(routed, "AlertmanagerConfig")
    rules = [
        rule
        for group in pick(routed, "PrometheusRule")["spec"]["groups"]
        for rule in group["rules"]
    ]
    has_matcher = "namespace" in rules[0]["labels"]
    file = tmp_path / "alertmanager.yml"
    file.write_text(json.dumps(as_the_operator_does(resource, has_matcher)), encoding="utf-8")
    assert "SUCCESS" in amtool("check-config", file)

    prefix = f"{NAMESPACE}/{resource['metadata']['name']}/alert-receiver"
    for rule in rules:
        labels = {key: text for key, text in rule["labels"].items() if "{{" not in text}
        assert routed_to(file, alertname=rule["alert"], **labels) == [prefix]
        elsewhere = {**labels, "namespace": "elsewhere"}
        went = routed_to(file, alertname=rule["alert"], **elsewhere)
        assert went == (["null"] if has_matcher else [prefix])
    assert routed_to(file, alertname="Other", namespace=NAMESPACE) == ["null"]


def test_operator_sends_everything_with_the_token_of_the_release(routed: list[Resource]) -> None:
    (receiver,) = pick(routed, "AlertmanagerConfig")["spec"]["receivers"]
    (webhook,) = receiver["webhookConfigs"]
    service = pick(routed, "Service")
    host, port = service["metadata"]["name"], service["spec"]["ports"][0]["port"]
    assert webhook["url"].partition("?")[0].endswith(f"://{host}.{NAMESPACE}.svc:{port}/webhook")
    assert (webhook["sendResolved"], webhook["maxAlerts"]) == (True, 0)
    deployment = next(one for one in routed if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (mounted,) = [one["secret"] for one in pod["volumes"] if one["name"] == "credentials"]
    token = webhook["httpConfig"]["authorization"]["credentials"]
    assert token["name"] == mounted["secretName"]
    files = [
        e["value"] for e in pod["containers"][0]["env"] if e["name"] == "RECEIVER_SUBMIT_TOKEN_FILE"
    ]
    assert files == [f"/run/alert-receiver/credentials/{token['key']}"]


def test_operator_shows_a_client_certificate_alone_where_that_suffices(tmp_path: Path) -> None:
    tls = {
        "ca": {"secret": {"name": "receiver", "key": "ca.crt"}},
        "cert": {"secret": {"name": "client", "key": "tls.crt"}},
        "keySecret": {"name": "client", "key": "tls.key"},
    }
    values = {
        "tls": {"existingSecret": "receiver", "clientCertificates": True},
        "auth": {"keys": {"submitToken": ""}},
        "alertmanagerConfig": {"enabled": True, "tlsConfig": tls},
    }
    resources = find_helm("helm4").template(written(tmp_path, values))
    (receiver,) = pick(resources, "AlertmanagerConfig")["spec"]["receivers"]
    assert receiver["webhookConfigs"][0]["httpConfig"] == {"tlsConfig": tls}


def test_route_is_repeated_before_a_run_would_count_as_stale(routed: list[Resource]) -> None:
    route = pick(routed, "AlertmanagerConfig")["spec"]["route"]
    assert route["repeatInterval"] == "4h"  # max_staleness is 5h.


def test_source_tells_clusters_apart(tmp_path: Path) -> None:
    values = {"alertmanagerConfig": {"enabled": True, "source": "eu west/1"}}
    resources = find_helm("helm4").template(written(tmp_path, values))
    (receiver,) = pick(resources, "AlertmanagerConfig")["spec"]["receivers"]
    assert receiver["webhookConfigs"][0]["url"].endswith("/webhook?source=eu+west%2F1")


# The notes


def notes(values: Path) -> str:
    """Return what `helm install` says in the end; Helm 3 would want a cluster for that."""
    text = find_helm("helm4").run(
        "install", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=client", values=values
    )
    return text.partition("\nNOTES:\n")[2]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"auth": {"none": True}},
        {"auth": {"existingSecret": "s", "keys": {"submitToken": "", "submitBasicAuth": "login"}}},
    ],
    ids=["token", "no credentials", "login"],
)
def test_alertmanager_accepts_the_configuration_of_the_notes(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    said = notes(written(tmp_path, values))
    text = said.partition("# alertmanager.yml:")[2].partition("\n")[2]
    file = tmp_path / "alertmanager.yml"
    file.write_text(text.partition("# end of alertmanager.yml")[0], encoding="utf-8")
    assert "SUCCESS" in amtool("check-config", file)
    assert routed_to(file, alertname="A", action_plugin="log_action") == ["alert-receiver"]
    assert routed_to(file, alertname="A") == ["nobody"]
    (webhook,) = yaml.safe_load(file.read_text())["receivers"][1]["webhook_configs"]
    assert webhook["url"] == f"http://alert-receiver.{NAMESPACE}.svc:8080/webhook"
    assert (webhook["send_resolved"], webhook["max_alerts"]) == (True, 0)


def test_notes_of_client_certificates_ask_for_nothing_else(tmp_path: Path) -> None:
    certificates = {"existingSecret": "s", "clientCertificates": True}
    values = {"tls": certificates, "auth": {"keys": {"submitToken": ""}}}
    said = notes(written(tmp_path, values))
    text = said.partition("# alertmanager.yml:")[2].partition("\n")[2]
    (webhook,) = yaml.safe_load(text)["receivers"][1]["webhook_configs"]
    assert webhook["http_config"].keys() == {"tls_config"}
    assert webhook["http_config"]["tls_config"].keys() == {"ca_file", "cert_file", "key_file"}
    assert "helm test" not in said  # There is none.
    assert "helm test" in notes(written(tmp_path, {}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"auth": {"none": True}}, "WARNING: there are no credentials"),
        ({"persistence": {"enabled": False}}, "WARNING: the journal goes with the pod"),
        ({"alertmanagerConfig": {"enabled": True}}, f'only alerts with namespace="{NAMESPACE}"'),
        (
            {"serviceMonitor": {"enabled": True}},
            "only if its Helm release is called kube-prometheus",
        ),
    ],
    ids=["no credentials", "no volume", "namespace", "release"],
)
def test_notes_explain_what_bites(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    assert words in notes(written(tmp_path, values))
    assert words not in notes(written(tmp_path, {}))
