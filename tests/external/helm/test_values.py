"""What values do: to the pods, and to what stands around them."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import (
    CHART,
    EXAMPLES,
    NAMESPACE,
    POSTGRESQL,
    Resource,
    container_of,
    find_helm,
    pick,
    template,
    workloads,
)
from tests.support.made import COPIES, documented


def test_client_certificates_are_demanded_and_helm_test_has_none(tmp_path: Path) -> None:
    tls = {"existingSecret": "certificate", "clientCertificates": True}
    resources = template(tmp_path, tls=tls)
    container = container_of(pick(resources, "Deployment"))
    authority = {"name": "RECEIVER_TLS_CLIENT_CA", "value": "/run/alert-receiver/tls/ca.crt"}
    assert authority in container["env"]
    assert not [one for one in resources if one["kind"] == "Pod"]


def test_numbers_and_lists_reach_settings_as_people_write_them(tmp_path: Path) -> None:
    resources = template(
        tmp_path,
        settings={"RECEIVER_MAX_BODY": 33554432, "RECEIVER_ACTIONS": ["log_action", "file_action"]},
        policies={"log_action": {"max_repeats": 1000000, "dry_run": True, "backoff": "1s..5m"}},
    )
    environment = {
        e["name"]: e["value"] for e in container_of(pick(resources, "Deployment"))["env"]
    }
    assert environment["RECEIVER_MAX_BODY"] == "33554432"
    assert environment["RECEIVER_ACTIONS"] == "log_action,file_action"
    assert environment["RECEIVER_ACTION_LOG_ACTION_MAX_REPEATS"] == "1000000"
    assert environment["RECEIVER_ACTION_LOG_ACTION_DRY_RUN"] == "true"
    assert environment["RECEIVER_ACTION_LOG_ACTION_BACKOFF"] == "1s..5m"


def test_settings_reach_the_receiver_though_kubernetes_puts_in_variables(tmp_path: Path) -> None:
    said = '{"price": "$$5", "user": "$(RECEIVER_BIND)", "$schema": "$"}'
    resources = template(tmp_path, settings={"HTTP_PLUGIN_BODY": said})
    environment = {
        e["name"]: e["value"] for e in container_of(pick(resources, "Deployment"))["env"]
    }

    def put_in(place: re.Match[str]) -> str:
        return "$" if place[0] == "$$" else environment.get(place[1], place[0])

    # The kubelet's way with `value`.
    assert re.sub(r"\$\$|\$\(([^()]*)\)", put_in, environment["HTTP_PLUGIN_BODY"]) == said


@pytest.mark.parametrize(
    ("plugins", "volume"),
    [
        ({"files": {"a.py": "pass\n"}}, {"configMap": {"name": "alert-receiver-plugins"}}),
        ({"existingConfigMap": "mine"}, {"configMap": {"name": "mine"}}),
        ({"initContainer": {"image": "plugins:1"}}, {"emptyDir": {}}),
        ({"imageVolume": {"reference": "plugins:1"}}, {"image": {"reference": "plugins:1"}}),
    ],
    ids=["files", "existingConfigMap", "initContainer", "imageVolume"],
)
def test_plugins_are_mounted_where_the_receiver_looks(
    tmp_path: Path, plugins: dict[str, Any], volume: dict[str, Any]
) -> None:
    pod = pick(template(tmp_path, plugins=plugins), "Deployment")["spec"]["template"]["spec"]
    (found,) = [one for one in pod["volumes"] if one["name"] == "plugins"]
    assert found == {"name": "plugins", **volume}
    container = pod["containers"][0]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "plugins"]
    assert {"name": "PLUGIN_DIR", "value": mount["mountPath"]} in container["env"]
    assert mount["readOnly"] is True
    for one in pod.get("initContainers", []):
        assert one["volumeMounts"] == [{"name": "plugins", "mountPath": mount["mountPath"]}]


def example_of(name: str) -> list[Resource]:
    (file,) = [one for one in EXAMPLES if one.name == f"{name}-values.yaml"]
    return find_helm("helm4").template(file)


def test_what_is_said_of_pods_reaches_each_of_them() -> None:
    given = yaml.safe_load((CHART / "ci" / "everything-values.yaml").read_text())
    found = workloads(example_of("everything"))
    assert len(found) == 2
    for one in found:
        metadata, pod = one["spec"]["template"]["metadata"], one["spec"]["template"]["spec"]
        assert given["podLabels"].items() <= metadata["labels"].items()
        assert given["podAnnotations"].items() <= metadata["annotations"].items()
        for name in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints",
                     "priorityClassName"):  # fmt: skip
            assert pod[name] == given[name]
        assert pod["imagePullSecrets"] == given["image"]["pullSecrets"]
        assert pod["initContainers"][1:] == given["initContainers"]
        assert pod["containers"][1:] == given["sidecars"]
        assert pod["serviceAccountName"] == "actions"
        assert given["extraVolumes"][0] in pod["volumes"]
        container = container_of(one)
        assert container["image"] == "alert-receiver:1.2.3"
        assert container["imagePullPolicy"] == "Always"
        assert container["envFrom"] == given["envFrom"]
        assert given["extraEnv"][0] in container["env"]
        assert given["extraVolumeMounts"][0] in container["volumeMounts"]
        assert container["resources"]["requests"]
        assert container["resources"]["limits"]["memory"]


def test_image_by_digest_and_role_of_irsa() -> None:
    resources = example_of("eks")
    given = yaml.safe_load((CHART / "ci" / "eks-values.yaml").read_text())
    container = container_of(pick(resources, "Deployment"))
    assert container["image"] == f"registry.example.com/alert-receiver@{given['image']['digest']}"
    account = pick(resources, "ServiceAccount")
    assert account["metadata"]["annotations"] == given["serviceAccount"]["annotations"]
    pod = pick(resources, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]


def test_pods_are_spread_over_nodes_and_zones_as_far_as_it_goes(tmp_path: Path) -> None:
    for one in workloads(template(tmp_path, **POSTGRESQL)):
        spread = one["spec"]["template"]["spec"]["topologySpreadConstraints"]
        keys = [constraint["topologyKey"] for constraint in spread]
        assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        for constraint in spread:
            assert constraint["whenUnsatisfiable"] == "ScheduleAnyway"
            assert constraint["labelSelector"] == one["spec"]["selector"]


def test_pods_are_replaced_when_plugins_change(tmp_path: Path) -> None:
    def annotations(text: str) -> Any:
        resources = template(tmp_path, plugins={"files": {"a.py": text}})
        return pick(resources, "Deployment")["spec"]["template"]["metadata"]["annotations"]

    assert annotations("one") == annotations("one") != annotations("two")


def test_network_policy_opens_what_is_needed_and_nothing_else(tmp_path: Path) -> None:
    opened = template(tmp_path, **POSTGRESQL, networkPolicy={"enabled": True})
    policy = pick(opened, "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all(rule["ports"] == [{"port": "http", "protocol": "TCP"}] for rule in policy["ingress"])
    named = [
        peer["podSelector"]["matchLabels"]["app.kubernetes.io/name"]
        for rule in policy["ingress"] for peer in rule["from"]
    ]  # fmt: skip
    assert named == ["alertmanager", "prometheus", "alert-receiver-test"]
    ports = [[port["port"] for port in rule["ports"]] for rule in policy["egress"]]
    assert ports == [[53, 53], [443], [80], [5432]]
    (agent,) = [rule for rule in policy["egress"] if rule["ports"][0]["port"] == 80]
    assert agent["to"][0]["ipBlock"]["cidr"] == "169.254.170.23/32"

    closed = {"dns": [], "aws": [], "podIdentityAgent": False}
    rules = template(tmp_path, networkPolicy={"enabled": True, "egress": closed})
    assert not pick(rules, "NetworkPolicy")["spec"]["egress"]


def test_what_prometheus_reads_with_may_not_post(tmp_path: Path) -> None:
    resources = template(tmp_path, serviceMonitor={"enabled": True}, prometheusRelease="stack")
    monitor = pick(resources, "ServiceMonitor")
    assert monitor["metadata"]["labels"]["release"] == "stack"
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["authorization"]["credentials"] == {
        "name": pick(resources, "Secret")["metadata"]["name"], "key": "read-token",
    }  # fmt: skip
    service = pick(resources, "Service")
    selector = monitor["spec"]["selector"]["matchLabels"]
    assert selector.items() <= service["metadata"]["labels"].items()
    assert endpoint["port"] in [one["name"] for one in service["spec"]["ports"]]
    opened = template(tmp_path, serviceMonitor={"enabled": True}, openMetrics=True)
    assert "authorization" not in pick(opened, "ServiceMonitor")["spec"]["endpoints"][0]


def test_prometheus_knows_pods_with_a_certificate_by_the_name_of_the_service(
    tmp_path: Path,
) -> None:
    resources = template(
        tmp_path, serviceMonitor={"enabled": True}, tls={"existingSecret": "certificate"}
    )
    (endpoint,) = pick(resources, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    # It asks pods by their addresses, which are in no certificate.
    assert endpoint["tlsConfig"] == {
        "ca": {"secret": {"name": "certificate", "key": "ca.crt"}},
        "serverName": f"{pick(resources, 'Service')['metadata']['name']}.{NAMESPACE}.svc",
    }


def test_every_pod_is_scraped(tmp_path: Path) -> None:
    resources = template(tmp_path, **POSTGRESQL, serviceMonitor={"enabled": True})
    selector = pick(resources, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    services = [
        one["metadata"]["name"]
        for one in resources
        if one["kind"] == "Service" and selector.items() <= one["metadata"]["labels"].items()
    ]
    assert services == [one["metadata"]["name"] for one in workloads(resources)]
    for one in workloads(resources):
        assert {"name": "http", "containerPort": 8080} in container_of(one)["ports"]


def test_alerts_about_the_receiver_and_dashboard_are_its_own(tmp_path: Path) -> None:
    values = {"selfAlerts": {"enabled": True}, "dashboard": {"enabled": True}}
    resources = template(tmp_path, **values, prometheusRelease="stack")
    rule = pick(resources, "PrometheusRule", "-self")
    assert rule["metadata"]["labels"]["release"] == "stack"
    assert rule["spec"] == yaml.safe_load(COPIES["files/rules.yml"].read_text())
    dashboard = pick(resources, "ConfigMap", "-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboard["data"] == {
        "alert-receiver.json": COPIES["files/dashboard.json"].read_text()
    }  # fmt: skip


def test_extra_objects_can_use_the_templates_of_the_chart() -> None:
    resources = example_of("everything")
    maps = {one["metadata"]["name"]: one for one in resources if one["kind"] == "ConfigMap"}
    assert maps["authorities"]["data"]["webhook"] == "https://actions.monitoring.svc:9000/webhook"
    assert "alert-receiver-text" in maps


def test_every_value_has_an_effect() -> None:
    """A value that no template mentions would promise what does not happen."""
    templates = "\n".join(
        file.read_text() for file in (CHART / "templates").rglob("*") if file.is_file()
    )
    for path, _, _ in documented():
        last = path.rsplit(".", 1)[-1]
        whole = {f"Values.{path}", f".{last}", f'"{last}"'}
        assert any(
            re.search(rf"{re.escape(one)}\b|{re.escape(one)}", templates) for one in whole
        ), path
