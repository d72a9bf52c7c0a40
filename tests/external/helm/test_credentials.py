"""Generated credentials: made once, kept on upgrades. The cluster is a fake that knows Secrets."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import CHART, NAMESPACE, RELEASE, Helm, Resource, find_helm, pick, written
from tests.support.pods import secret_texts
from tests.support.stack import QuietHandler, QuietServer

NAME = "alert-receiver-credentials"
# Where the cluster says which kinds it has; it has those of the default values.
KINDS = {
    "/api/v1": ("PersistentVolumeClaim", "Secret", "Service", "ServiceAccount"),
    "/apis/apps/v1": ("Deployment",),
}


class Cluster:
    """The API server of a cluster that has Secrets, at the paths that Helm asks on a dry run."""

    def __init__(self, directory: Path) -> None:
        self.secrets: dict[str, Resource] = {}
        cluster = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802
                status, body = cluster.answer(self.path.partition("?")[0])
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.kubeconfig = directory / "kubeconfig"
        url = f"http://127.0.0.1:{self._server.server_port}"
        context = {"cluster": "fake", "user": "fake", "namespace": NAMESPACE}
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "fake", "cluster": {"server": url}}],
                    "users": [{"name": "fake", "user": {}}],
                    "contexts": [{"name": "fake", "context": context}],
                    "current-context": "fake",
                }
            )
        )

    def answer(self, path: str) -> tuple[int, Any]:
        """Return status and body."""
        secret = re.fullmatch(f"/api/v1/namespaces/{NAMESPACE}/secrets/(.+)", path)
        if path == "/version":
            return 200, {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            apps = {"groupVersion": "apps/v1", "version": "v1"}
            groups = [{"name": "apps", "versions": [apps], "preferredVersion": apps}]
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path in KINDS:
            version = path.split("/", 2)[2]
            found = [{"name": f"{kind.lower()}s", "singularName": kind.lower(), "namespaced": True,
                      "kind": kind, "verbs": ["get"]} for kind in KINDS[path]]  # fmt: skip
            return 200, {"kind": "APIResourceList", "groupVersion": version, "resources": found}
        if secret and secret[1] in self.secrets:
            return 200, self.secrets[secret[1]]
        return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                     "reason": "NotFound", "code": 404, "message": "not found"}  # fmt: skip

    def keep(self, data: dict[str, str]) -> None:
        """Have the Secret of the release, with the marks that Helm leaves on what it installs."""
        self.secrets[NAME] = {
            "apiVersion": "v1",
            "kind": "Secret",
            "data": data,
            "metadata": {
                "name": NAME,
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/managed-by": "Helm"},
                "annotations": {
                    "meta.helm.sh/release-name": RELEASE,
                    "meta.helm.sh/release-namespace": NAMESPACE,
                },
            },
        }

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster that has nothing yet."""
    one = Cluster(tmp_path)
    yield one
    one.close()


def install(helm: Helm, cluster: Cluster, values: Path) -> list[Resource]:
    """Render as an install or upgrade into this cluster would."""
    text = helm.run(
        "template", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=server",
        f"--kubeconfig={cluster.kubeconfig}", "--disable-openapi-validation", values=values,
    )  # fmt: skip
    return [one for one in yaml.safe_load_all(text) if one]


def test_tokens_are_made_once_and_kept_on_upgrades(
    helm: Helm, cluster: Cluster, tmp_path: Path
) -> None:
    values = written(tmp_path, {})
    first = pick(install(helm, cluster, values), "Secret")
    tokens = secret_texts(first)
    assert first["metadata"]["name"] == NAME
    assert tokens.keys() == {"submit-token", "read-token", "operate-token"}
    assert len(set(tokens.values())) == 3
    assert all(re.fullmatch("[A-Za-z0-9]{40}", token) for token in tokens.values())

    assert secret_texts(pick(install(helm, cluster, values), "Secret")) != tokens
    cluster.keep(first["data"])
    assert secret_texts(pick(install(helm, cluster, values), "Secret")) == tokens


def test_token_that_is_new_to_the_chart_is_added_to_those_that_are_there(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.keep({"submit-token": base64.b64encode(b"theirs").decode()})
    resources = install(find_helm("helm4"), cluster, written(tmp_path, {}))
    tokens = secret_texts(pick(resources, "Secret"))
    assert tokens["submit-token"] == "theirs"
    assert len(tokens["read-token"]) == 40


def test_secret_outlives_the_release(tmp_path: Path) -> None:
    secret = pick(find_helm("helm4").template(written(tmp_path, {})), "Secret")
    assert secret["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_secret_of_ones_own_is_left_alone(tmp_path: Path) -> None:
    resources = find_helm("helm4").template(written(tmp_path, {"auth": {"existingSecret": "mine"}}))
    assert not [one for one in resources if one["kind"] == "Secret"]
    pod = pick(resources, "Deployment")["spec"]["template"]["spec"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "credentials"]
    assert volume["secret"]["secretName"] == "mine"
