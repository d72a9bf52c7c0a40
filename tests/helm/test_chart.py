"""The chart: what it renders is valid, restricted, and made of names that the receiver knows."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml
from charts import CHART, EXAMPLES, Helm, Resource, container_of, find_helm, pick, written
from made import COPIES, documented

from receiver import settings as receiver_settings
from receiver import supervisor
from receiver.cli import cli

OPERATORS_OWN = "monitoring.coreos.com/"
POSTGRESQL = {"database": {"existingSecret": "database"}, "auth": {"existingSecret": "tokens"}}
# The oldest version the chart allows, one between, and the newest there is a schema for.
VERSIONS = ("1.25", "1.31", "1.35")


def template(tmp_path: Path, *arguments: str, **values: Any) -> list[Resource]:
    return find_helm("helm4").template(written(tmp_path, values), *arguments)


def workloads(resources: list[Resource]) -> list[Resource]:
    return [one for one in resources if one["kind"] == "Deployment"]


def pods(resources: list[Resource]) -> list[dict[str, Any]]:
    tests = [one["spec"] for one in resources if one["kind"] == "Pod"]
    return [*(one["spec"]["template"]["spec"] for one in workloads(resources)), *tests]


# What holds for every example


def test_chart_passes_lint(helm: Helm, example: Path) -> None:
    helm.run("lint", "--strict", "--kube-version", "1.35.0", CHART, values=example)


@pytest.mark.parametrize("version", VERSIONS)
def test_resources_satisfy_the_schemas_of_kubernetes(
    resources: list[Resource], example: Path, version: str
) -> None:
    if version == "1.25" and "imageVolume" in example.read_text():
        version = VERSIONS[-1]  # The chart refuses it on the older.
    checked = [one for one in resources if not one["apiVersion"].startswith(OPERATORS_OWN)]
    for one in checked:
        kubernetes_validate.validate(one, version, strict=True)
    assert {"Deployment", "Service", "Pod"} <= {one["kind"] for one in checked}


def test_both_helms_render_the_same(example: Path) -> None:
    three, four = (find_helm(name).template(example) for name in ("helm3", "helm4"))

    def without_random(resources: list[Resource]) -> list[Resource]:
        return [{**one, "data": sorted(one["data"])} if one["kind"] == "Secret" else one
                for one in sorted(resources, key=str)]  # fmt: skip

    assert without_random(three) == without_random(four)


def test_every_resource_has_the_labels_of_the_release(resources: list[Resource]) -> None:
    own = [one for one in resources if one["metadata"]["name"] != "authorities"]
    for one in own:
        if one["metadata"]["name"].endswith("-text"):
            continue
        assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == "alert-receiver"
        assert one["metadata"]["labels"]["helm.sh/chart"].startswith("alert-receiver-")


def test_pods_satisfy_the_restricted_profile(resources: list[Resource]) -> None:
    for pod in pods(resources):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        allowed = {"configMap", "emptyDir", "secret", "persistentVolumeClaim", "image", "name"}
        assert all(volume.keys() <= allowed for volume in pod["volumes"])
        ours = [one for one in [*pod["containers"], *pod.get("initContainers", [])]
                if one["name"] in ("receiver", "webhook", "plugins")]  # fmt: skip
        assert ours
        for one in ours:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_container_can_write_to_tmp_and_mounts_only_volumes_that_exist(
    resources: list[Resource],
) -> None:
    for pod in pods(resources):
        volumes = {one["name"] for one in pod["volumes"]}
        for one in pod["containers"]:
            mounts = one.get("volumeMounts", [])
            assert {mount["name"] for mount in mounts} <= volumes
        mounted = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert not mounted["/tmp"].get("readOnly")


def test_selectors_find_the_pods_they_mean_and_no_others(resources: list[Resource]) -> None:
    templates = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in workloads(resources)
    }
    (test,) = [one["metadata"]["labels"] for one in resources if one["kind"] == "Pod"]

    def selected(selector: dict[str, str]) -> set[str]:
        assert not selector.items() <= test.items()
        return {name for name, labels in templates.items() if selector.items() <= labels.items()}

    for one in workloads(resources):
        assert selected(one["spec"]["selector"]["matchLabels"]) == {one["metadata"]["name"]}
    for one in resources:
        if one["kind"] == "Service":
            (name,) = selected(one["spec"]["selector"])
            assert name == one["metadata"]["name"]
        if one["kind"] == "PodDisruptionBudget":
            assert len(selected(one["spec"]["selector"]["matchLabels"])) == 1
        if one["kind"] == "NetworkPolicy":
            assert selected(one["spec"]["podSelector"]["matchLabels"]) == templates.keys()


def test_environment_is_made_of_settings_that_the_receiver_reads_and_accepts(
    resources: list[Resource], example: Path, tmp_path: Path
) -> None:
    given = yaml.safe_load(example.read_text())
    foreign = {one["name"] for one in given.get("extraEnv", [])} | set(given.get("settings", {}))
    for one in workloads(resources):
        environment = {e["name"]: e["value"] for e in container_of(one)["env"] if "value" in e}
        names = [e["name"] for e in container_of(one)["env"]]
        assert len(names) == len(set(names))
        for name in environment.keys() - foreign:
            assert name.startswith("RECEIVER_") or name in ("ACTION_PLUGIN", "PLUGIN_DIR")
        for name in [name for name in environment if name.endswith("_FILE")]:
            # In here there are no volumes: let each secret be one that can be read.
            (tmp_path / name).write_text("user:password" if "BASIC" in name else "token")
            environment[name] = str(tmp_path / name)
        loaded = receiver_settings.load(environment, {})  # Refuses every name it does not know.
        assert str(loaded.bind) == "0.0.0.0:8080"


def test_arguments_are_commands_of_the_receiver(resources: list[Resource]) -> None:
    for pod in pods(resources):
        command, *options = pod["containers"][0]["args"]
        found = cli.get_command(click.Context(cli), command)
        assert found is not None
        known = {name for one in found.params for name in one.opts}
        given = {one.partition("=")[0] for one in options if one.startswith("-")}
        assert given <= known


def test_probes_ask_paths_that_need_no_credentials(resources: list[Resource]) -> None:
    for one in workloads(resources):
        container = container_of(one)
        probes = {
            name: container.get(f"{name}Probe") for name in ("startup", "liveness", "readiness")
        }
        if container["args"] == ["worker"]:
            assert set(probes.values()) == {None}
            continue
        paths = [probe["httpGet"]["path"] for probe in probes.values()]
        assert paths == ["/-/healthy", "/-/healthy", "/-/ready"]
        assert {probe["httpGet"]["port"] for probe in probes.values()} == {"http"}
        is_tls = any(entry["name"] == "RECEIVER_TLS_CERT" for entry in container["env"])
        assert probes["readiness"]["httpGet"]["scheme"] == ("HTTPS" if is_tls else "HTTP")


def test_grace_period_of_the_pod_covers_pause_and_drain(resources: list[Resource]) -> None:
    for one in workloads(resources):
        container = container_of(one)
        environment = {entry["name"]: entry.get("value") for entry in container["env"]}
        grace = receiver_settings.load(
            {"RECEIVER_GRACE_PERIOD": environment["RECEIVER_GRACE_PERIOD"]}, {}
        )
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        pause = timedelta(seconds=int(hook[1]) if hook else 0)
        whole = grace.grace_period + pause + timedelta(seconds=supervisor._MARGIN_SECONDS)
        given = one["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert timedelta(seconds=given) > whole


# SQLite and PostgreSQL


def test_sqlite_is_one_pod_that_ends_before_its_successor_starts(tmp_path: Path) -> None:
    resources = template(tmp_path)
    deployment = pick(resources, "Deployment")
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert container_of(deployment)["args"] == ["serve"]
    claim = pick(resources, "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    volumes = {one["name"]: one for one in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert not [one for one in resources if one["kind"] == "PodDisruptionBudget"]


def test_postgresql_has_workers_of_their_own_and_is_never_without_a_pod(tmp_path: Path) -> None:
    resources = template(tmp_path, **POSTGRESQL, replicaCount=3, worker={"replicaCount": 2})
    found = {container_of(one)["args"][0]: one["spec"] for one in workloads(resources)}
    assert {role: spec["replicas"] for role, spec in found.items()} == {"web": 3, "worker": 2}
    for spec in found.values():
        assert spec["strategy"]["type"] == "RollingUpdate"
        assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    budgets = [one["spec"] for one in resources if one["kind"] == "PodDisruptionBudget"]
    assert [one["maxUnavailable"] for one in budgets] == [1, 1]
    kinds = {one["kind"] for one in resources}
    assert not kinds & {"PersistentVolumeClaim", "Secret"}


def test_budget_is_not_made_where_it_would_block_a_drain(tmp_path: Path) -> None:
    resources = template(tmp_path, **POSTGRESQL)
    assert not [one for one in resources if one["kind"] == "PodDisruptionBudget"]


def test_volume_can_be_one_that_exists_or_none(tmp_path: Path) -> None:
    def volume_of(**persistence: Any) -> dict[str, Any]:
        resources = template(tmp_path, persistence=persistence)
        assert not [one for one in resources if one["kind"] == "PersistentVolumeClaim"]
        volumes = pick(resources, "Deployment")["spec"]["template"]["spec"]["volumes"]
        (one,) = [volume for volume in volumes if volume["name"] == "data"]
        return dict(one)

    assert volume_of(existingClaim="mine")["persistentVolumeClaim"] == {"claimName": "mine"}
    assert volume_of(enabled=False)["emptyDir"] == {}


# Values that reach the pod


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
