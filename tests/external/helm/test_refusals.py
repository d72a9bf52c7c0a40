"""What the chart refuses: the unsafe by its templates, the unknown and malformed by its schema."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import CHART, NAMESPACE, Helm, find_helm, written
from tests.support.made import BUILT_INS

THRESHOLD = {"name": "A", "metric": "m", "operator": ">", "soft": 1, "action": "log_action"}
NEEDS_1_33 = "1.32.0"


def threshold(**changes: Any) -> dict[str, Any]:
    """Return values with one threshold that differs so from one that is right; None takes away."""
    one = {key: value for key, value in {**THRESHOLD, **changes}.items() if value is not None}
    return {"thresholds": [one]}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "replicas on SQLite": (
        {"replicaCount": 2},
        "replicaCount: 2 pods cannot share one SQLite journal; keep 1, or put the journal into",
    ),
    "workers on SQLite": ({"worker": {"replicaCount": 2}}, "worker.replicaCount: SQLite has no"),
    "shared volume": (
        {"persistence": {"accessModes": ["ReadWriteMany"]}},
        "persistence.accessModes: what is ReadWriteMany is a network file system",
    ),
    "SQLite on EFS": (
        {"persistence": {"storageClass": "efs-sc"}},
        "persistence.storageClass: efs-sc is a network file system by its name",
    ),
    "no credentials": ({"auth": {"generate": False}}, "auth: there are no credentials"),
    "none for Alertmanager": (
        {"auth": {"keys": {"submitToken": ""}}},
        "auth.keys: Alertmanager has no credentials",
    ),
    "generated logins": (
        {"auth": {"keys": {"submitBasicAuth": "login"}}},
        "auth.keys: only tokens are generated",
    ),
    "one token for all": (
        {"auth": {"keys": {"submitToken": "token", "operateToken": "token"}}},
        "auth.keys: two of the tokens have one key",
    ),
    "operator without token": (
        {
            "auth": {"existingSecret": "s", "keys": {"submitToken": "", "submitBasicAuth": "b"}},
            "alertmanagerConfig": {"enabled": True},
        },
        "alertmanagerConfig: routes with a token, not with a login",
    ),
    "operator without client certificate": (
        {
            "tls": {"existingSecret": "s", "clientCertificates": True},
            "alertmanagerConfig": {"enabled": True},
        },
        "alertmanagerConfig: Alertmanager has no client certificate to show",
    ),
    "client certificates and nothing": (
        {"tls": {"existingSecret": "s", "clientCertificates": True}, "auth": {"none": True}},
        "auth.none: client certificates are credentials",
    ),
    "Prometheus without token": (
        {"auth": {"keys": {"readToken": ""}}, "serviceMonitor": {"enabled": True}},
        "serviceMonitor: Prometheus has no token to read with",
    ),
    "client certificates without TLS": (
        {"tls": {"clientCertificates": True}},
        "tls.clientCertificates: needs tls.existingSecret",
    ),
    "plugins from two places": (
        {"plugins": {"files": {"a.py": "pass"}, "existingConfigMap": "b"}},
        "plugins: there is one directory of plugins; keep one of files, existingConfigMap",
    ),
    "image volume on an old cluster": (
        {"plugins": {"imageVolume": {"reference": "a:1"}}},
        "plugins.imageVolume: Kubernetes v1.32.0 has no image volumes",
    ),
    "set twice": (
        {"settings": {"LOG_LEVEL": "debug"}, "extraEnv": [{"name": "LOG_LEVEL", "value": "info"}]},
        "extraEnv: LOG_LEVEL stands in settings, too; keep one",
    ),
    "value of the chart replaced": (
        {"extraEnv": [{"name": "RECEIVER_BIND", "value": "127.0.0.1:8080"}]},
        "extraEnv: RECEIVER_BIND is set already, by the chart or twice",
    ),
    "policy replaced": (
        {
            "policies": {"log_action": {"cooldown": "5m"}},
            "extraEnv": [{"name": "RECEIVER_ACTION_LOG_ACTION_COOLDOWN", "value": "0s"}],
        },
        "extraEnv: RECEIVER_ACTION_LOG_ACTION_COOLDOWN is set already",
    ),
    "variable twice": (
        {"extraEnv": [{"name": "TICKETS", "value": "a"}, {"name": "TICKETS", "value": "b"}]},
        "extraEnv: TICKETS is set already",
    ),
    "unknown action": (
        threshold(action="log_actoin"),
        'thresholds, A: there is no action "log_actoin"; known are efs_emergency, '
        "exec_plugin, file_action, http_plugin, log_action",
    ),
    "unknown action of a level": (
        threshold(soft={"threshold": 1, "action": "log_action, nope"}),
        'thresholds, A: there is no action "nope"',
    ),
    "unknown default": ({"actionPlugin": "nope"}, 'actionPlugin: there is no action "nope"'),
    "policy of an unknown action": (
        {"policies": {"nope": {}}},
        'policies: there is no action "nope"',
    ),
    "escalation to an unknown action": (
        {"policies": {"log_action": {"escalate_to": "nope"}}},
        'policies.log_action.escalate_to: there is no action "nope"',
    ),
    "action that is not enabled": (
        {**threshold(), "settings": {"RECEIVER_ACTIONS": "http_plugin, file_action"}},
        'thresholds, A: there is no action "log_action"; known are file_action, http_plugin;',
    ),
    "unknown action that is enabled": (
        {**threshold(action="log_actoin"), "settings": {"RECEIVER_ACTIONS": ["log_actoin"]}},
        'settings.RECEIVER_ACTIONS: there is no action "log_actoin"',
    ),
    "no action": (threshold(action=None), "thresholds, A: soft names no action"),
    "nothing to compare": (threshold(metric=None), "thresholds, A: has neither metric nor expr"),
    "no threshold": (threshold(soft=None), "thresholds, A: has neither soft nor hard"),
    "hard without soft": (
        threshold(hard=2, soft=None, hardRequiresSoft=True),
        "thresholds, A: hardRequiresSoft needs both soft and hard",
    ),
    "exchanged": (
        threshold(soft=2, hard=1.5),
        "thresholds, A: hard (1.5) is crossed before soft (2); exchange them",
    ),
    "exchanged downwards": (
        threshold(operator="<=", soft=0, hard=1),
        "thresholds, A: hard (1) is crossed before soft (0); exchange them",
    ),
    "same name": (
        {"thresholds": [THRESHOLD, THRESHOLD]},
        "thresholds, A: stands there twice; names must differ",
    ),
}  # fmt: skip


def refusal(helm: Helm, values: Path) -> str:
    """Return the words with which Helm refuses these values."""
    done = helm.call(
        "template", "x", CHART, "--namespace", NAMESPACE, "--kube-version", NEEDS_1_33,
        values=values,
    )  # fmt: skip
    assert done.returncode != 0, "it was rendered"
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize(("values", "words"), REFUSED.values(), ids=REFUSED)
def test_unsafe_values_are_refused_with_the_cure(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    assert words in refusal(find_helm("helm4"), written(tmp_path, values))


def test_every_refusal_of_the_templates_has_a_test() -> None:
    said = "\n".join(words for _, words in REFUSED.values())
    messages = [
        text
        for file in (CHART / "templates").glob("*.tpl")
        for text in re.findall(
            r'append \$wrong \(?(?:printf )?"((?:[^"\\]|\\.)*)"', file.read_text()
        )
    ]
    assert len(messages) >= 20
    for message in messages:
        # Of what stands between the verbs of a format, the first that is more than a word or two.
        known = next(part for part in re.split(r"%[sdq]", message) if len(part) > 8)[:15].strip()
        assert known in said, message


def test_all_reasons_are_given_at_once(helm: Helm, tmp_path: Path) -> None:
    values = {"replicaCount": 2, "auth": {"generate": False}, **threshold(action="nope")}
    text = refusal(helm, written(tmp_path, values))
    for words in (
        "- replicaCount: 2 pods",
        "- auth: there are no",
        '- thresholds, A: there is no action "nope"',
    ):
        assert words in text


def test_credentials_can_be_renounced_in_so_many_words(tmp_path: Path) -> None:
    values = {"auth": {"none": True, "generate": False, "keys": {"submitToken": ""}}}
    resources = find_helm("helm4").template(written(tmp_path, values))
    assert not [one for one in resources if one["kind"] == "Secret"]


def test_threshold_of_zero_is_one(tmp_path: Path) -> None:
    values = threshold(soft=None, hard={"threshold": 0}, operator="<=")
    resources = find_helm("helm4").template(written(tmp_path, values))
    (rule,) = [one for one in resources if one["kind"] == "PrometheusRule"]
    assert [one["expr"] for one in rule["spec"]["groups"][0]["rules"]] == ["m <= 0"]


def test_built_ins_that_the_chart_knows_are_those_of_the_receiver() -> None:
    text = (CHART / "templates" / "_thresholds.tpl").read_text()
    (names,) = re.findall(r"\$known := concat \(list ([^)]*)\)", text)
    assert names.replace('"', "").split() == sorted(
        one.__name__.rpartition(".")[2] for one in BUILT_INS
    )


# The schema

MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replicas": 2}, "replicas"),
    "unknown inside": ({"auth": {"token": "secret"}}, "token"),
    "unknown of a threshold": (threshold(warning=3), "warning"),
    "unknown setting": ({"settings": {"RECEIVER_RETENTOIN": "1d"}}, "RECEIVER_RETENTOIN"),
    "setting with a value of its own": ({"settings": {"RECEIVER_BIND": "x:1"}}, "RECEIVER_BIND"),
    "unknown policy": ({"policies": {"log_action": {"cooldwon": "1m"}}}, "cooldwon"),
    "operator": (threshold(operator="=>"), "operator"),
    "missing": (threshold(missing="crash"), "missing"),
    "for": (threshold(**{"for": "5 minutes"}), "for"),
    "for in disorder": (threshold(**{"for": "5m1h"}), "for"),
    "for twice": (threshold(soft={"threshold": 1, "for": "1h1h"}), "for"),
    "interval in disorder": ({"prometheusRule": {"interval": "1s1m"}}, "interval"),
    "no look back": (threshold(missing="last_value", lastValueFor="0s"), "lastValueFor"),
    "group interval of nothing": (
        {"alertmanagerConfig": {"groupInterval": "0s"}},
        "groupInterval",
    ),
    "grouped by the same twice": ({"alertmanagerConfig": {"groupBy": ["a", "a"]}}, "groupBy"),
    "label that is the metric": (threshold(labels={"__name__": "x"}), "__name__"),
    "label of the chart": (
        {"commonLabels": {"app.kubernetes.io/name": "x"}},
        "app.kubernetes.io/name",
    ),
    "label that selects": (
        {"podLabels": {"app.kubernetes.io/component": "x"}},
        "app.kubernetes.io/component",
    ),
    "init container of no image": ({"plugins": {"initContainer": {"args": []}}}, "initContainer"),
    "volume of no image": ({"plugins": {"imageVolume": {"pullPolicy": "Never"}}}, "imageVolume"),
    "no name of a Service": ({"fullnameOverride": "Alerts.Main"}, "fullnameOverride"),
    "label of the receiver": (threshold(labels={"action_plugin": "x"}), "action_plugin"),
    "annotation of the receiver": (threshold(annotations={"value": "1"}), "value"),
    "text for a number": ({"replicaCount": "2"}, "replicaCount"),
    "none at all": ({"replicaCount": 0}, "replicaCount"),
}


@pytest.mark.parametrize(("values", "words"), MALFORMED.values(), ids=MALFORMED)
def test_unknown_and_malformed_values_are_refused_by_name(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    text = refusal(find_helm("helm4"), written(tmp_path, values))
    assert "schema" in text
    assert words in text


def test_helm_3_refuses_by_the_same_schema(tmp_path: Path) -> None:
    assert "replicas" in refusal(find_helm("helm3"), written(tmp_path, {"replicas": 2}))


SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every part of the schema that lists properties, and where."""
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object":
            yield path, schema
        for key, part in schema.items():
            yield from objects(part, f"{path}/{key}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from objects(part, f"{path}/{number}")


def test_schema_refuses_the_unknown_wherever_it_lists_the_known() -> None:
    found = dict(objects(SCHEMA))
    assert len(found) > 15
    assert [
        path for path, one in found.items() if one.get("additionalProperties") is not False
    ] == []


def test_schema_and_values_name_the_same() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        allowed = schema["properties"].keys() - {"global"}
        if path.endswith((".initContainer", ".imageVolume")):
            assert values == {}
            return
        assert values.keys() == allowed, path
        for key, part in schema["properties"].items():
            if "properties" in part:
                compare(part, values[key], f"{path}.{key}")

    compare(SCHEMA, VALUES, "")
