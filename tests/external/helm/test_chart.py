"""The chart: what it renders is valid, restricted, and made of names that the receiver knows."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from receiver import settings as receiver_settings
from receiver import supervisor
from receiver.cli import cli
from tests.support.charts import (
    CHART,
    POSTGRESQL,
    Helm,
    Resource,
    container_of,
    find_helm,
    pick,
    template,
    workloads,
    written,
)

OPERATORS_OWN = "monitoring.coreos.com/"
# The oldest version the chart allows, one between, and the newest there is a schema for.
VERSIONS = ("1.25", "1.31", "1.35")


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


NAMED = ("123", "true", "null", "0x1f")


@pytest.mark.parametrize("name", NAMED)
def test_names_that_look_like_numbers_stay_text(tmp_path: Path, name: str) -> None:
    secret = {"existingSecret": name}
    values = {
        "nameOverride": name, "fullnameOverride": name, "priorityClassName": name,
        "auth": secret, "tls": secret, "serviceAccount": {"name": name},
        "plugins": {"initContainer": {"image": name}}, "serviceMonitor": {"enabled": True},
        "alertmanagerConfig": {"enabled": True}, "actionPlugin": "log_action",
        "thresholds": [{"name": "A", "metric": "m", "operator": ">", "soft": 1}],
    }  # fmt: skip
    storage = {"persistence": {"storageClass": name}}
    claim = {"persistence": {"existingClaim": name}, "plugins": {"existingConfigMap": name}}
    for more in (storage, claim, {"database": secret, "networkPolicy": {"enabled": True}}):
        text = find_helm("helm4").run(
            "template", name, CHART, "--namespace", name, "--kube-version", "1.35.0",
            values=written(tmp_path, {**values, **more}),
        )  # fmt: skip
        for one in filter(None, yaml.safe_load_all(text)):
            assert texts_named(one)
            assert all(isinstance(text, str) for text in texts_named(one)), one


def texts_named(part: Any) -> list[Any]:
    """Return all that stands where a name, a namespace, an image or a label does."""
    if isinstance(part, list):
        return [text for one in part for text in texts_named(one)]
    if not isinstance(part, dict):
        return []
    found = [
        text for key, text in part.items()
        if key in ("image", "namespace") or key.lower().endswith("name")
    ]  # fmt: skip
    found += [*part.get("labels", {}).values(), *part.get("matchLabels", {}).values()]
    return found + texts_named(list(part.values()))


def test_names_fit_however_the_release_is_called() -> None:
    for release in ("a" * 53, "payments.prod"):
        text = find_helm("helm4").run(
            "template", release, CHART, "--values", CHART / "ci" / "postgresql-values.yaml"
        )
        names = [one["metadata"]["name"] for one in yaml.safe_load_all(text) if one]
        assert len(names) > 5
        assert all(re.fullmatch("[a-z][-a-z0-9]{0,61}[a-z0-9]", name) for name in names)


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


def test_common_labels_are_on_every_resource(tmp_path: Path) -> None:
    resources = template(tmp_path, commonLabels={"team": "platform"})
    assert {one["metadata"]["labels"]["team"] for one in resources} == {"platform"}


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
