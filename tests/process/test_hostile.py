"""Hostile strings in every text of a notification, through every place that shows or uses them.

A new sink is a function in `SINKS`, with the check that suits it.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from click.testing import CliRunner

from receiver.cli import cli
from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.fuzz import HOSTILE
from tests.support.log_lines import assert_collectable
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.stack import QuietServer
from tests.support.waiting import wait_until

ACTIONS = ("log_action", "file_action", "http_plugin", "efs_emergency")
# What no database stores is replaced at the edge.
STORED = {name: re.sub("[\0\ud800-\udfff]", "\ufffd", text) for name, text in HOSTILE.items()}

LARGE = "\x1b\u2028" * 50_000


@dataclass
class Endpoint:
    """Where http_plugin posts, and where the AWS client would: notes all that arrives."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        noted = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                noted.append((self.command, self.path, body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_GET = do_POST  # noqa: N815 - names that http.server calls

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                del format, args

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@dataclass
class Site:
    """A receiver that was told every hostile string in every place, and has acted on all."""

    receiver: Receiver
    environment: dict[str, str]
    endpoint: Endpoint
    directory: Path
    log_format: str

    def command(self, *words: str) -> str:
        """Return what a command writes."""
        done = CliRunner(env=self.environment).invoke(cli, words)
        assert done.exit_code in (0, 1), done.output
        return done.output

    @cache  # noqa: B019 - one site for the module
    def runs(self) -> list[dict[str, Any]]:
        """Return all runs."""
        journal = Journal(f"sqlite:///{self.directory / 'data' / 'journal.db'}")
        try:
            return reading.list_runs(journal, limit=1000)
        finally:
            journal.close()

    def __hash__(self) -> int:
        return id(self)


def hostile_alert(name: str, text: str) -> dict[str, Any]:
    """Return an alert that says the text wherever there is room for one."""
    keys = ("metric_name", "value", "threshold", "for", "duration", "summary", "note")
    one = alert(
        f"{name} {text}"[:100],
        labels={"alertname": text, "target": text, "region": text, text: text},
        annotations={**dict.fromkeys(keys, text), text: text},
    )
    return {**one, "generatorURL": f"http://p/graph?g0.expr={quote(text, errors='replace')}"}


def large_alert() -> dict[str, Any]:
    """Return an alert with labels that are named as fields of a log line, and long ones."""
    names = ("time", "level", "logger", "message", "run_id", "exc_info", "LogRecord")
    labels = {**dict.fromkeys(names, "forged"), "long": LARGE, LARGE[:5_000]: "long name"}
    return alert("large", labels={"alertname": LARGE, **labels}, annotations={"summary": LARGE})


def body_of(name: str, **labels: str) -> bytes:
    text = HOSTILE[name]
    one = hostile_alert(name, text)
    one["labels"] |= labels
    return notification(one, receiver=text, groupKey=text, externalURL=text)


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("hostile")
    endpoint = Endpoint()
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "RECEIVER_LOG_FORMAT": request.param,
        "LOG_LEVEL": "debug",
        "FILE_ACTION_DIR": str(directory / "files"),
        "FILE_ACTION_SIZE": "1",
        "HTTP_PLUGIN_ENDPOINT": f"{endpoint.url}/hook?fixed=1",
        "EFS_FILE_SYSTEM_PROMETHEUS_LABEL": "target",
        "RECEIVER_ACTION_EFS_EMERGENCY_BREAKER": "none",
        "AWS_ENDPOINT_URL_EFS": endpoint.url,
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    receiver = Receiver("serve", environment, directory / "receiver.log")
    journal = None
    try:
        receiver.wait_ready()
        for name in HOSTILE:
            body = body_of(name, action_plugin=",".join(ACTIONS))
            assert receiver.post(body, f"/webhook?source={name.replace(' ', '_')}").json() == {
                "accepted": len(ACTIONS), "duplicate": 0, "resolved": 0, "rejected": 0,
            }  # fmt: skip
            assert receiver.post(body_of(name, action_plugin=HOSTILE[name])).status_code == 200
        large = notification(large_alert(), receiver=LARGE, groupKey=LARGE, externalURL=LARGE)
        assert receiver.post(large, "/webhook/log_action").json()["accepted"] == 1
        journal = Journal(f"sqlite:///{directory / 'data' / 'journal.db'}")

        def is_over() -> bool:
            runs = reading.list_runs(journal, limit=1000)
            # Its last words come after the commit; a reader may see the first half of a line.
            lines, _, _ = receiver.text().rpartition("\n")
            attempts = sum(one["attempts"] for one in runs)
            has_finished = all(one["state"] == "finished" for one in runs)
            return has_finished and lines.count("attempt ended") == attempts

        wait_until(is_over, 60, "all runs finished, and the log says so")
        yield Site(receiver, environment, endpoint, directory, request.param)
    finally:
        if journal:
            journal.close()
        receiver.kill()
        endpoint.server.shutdown()
        endpoint.server.server_close()


def assert_printable(text: str) -> None:
    """Nothing in it acts on a terminal, or breaks its lines."""
    assert {char for char in text if not char.isprintable()} <= {"\n"}
    assert not re.search(r"^(forged|receiver:)", text, re.MULTILINE)


def assert_json(text: str) -> None:
    """It is one JSON value, in ASCII."""
    assert text.isascii()
    json.loads(text, parse_constant=pytest.fail)


def logs(site: Site) -> None:
    """Each line is one record, of a message that the receiver has."""
    # The last line may be half written.
    text = "".join(site.receiver.log.read_bytes().decode().rpartition("\n")[:2])
    assert_printable(text)
    assert_collectable(text, site.log_format)
    messages = set()
    for line in text.splitlines():
        if site.log_format == "json":
            messages.add(json.loads(line)["message"])
    assert "forged" not in messages
    assert "Traceback" not in text


def lists(site: Site) -> None:
    """Tables of runs and rejected alerts."""
    for command in ("runs", "rejected"):
        assert_printable(site.command(command, "--limit", "1000"))
        assert_json(site.command(command, "--limit", "1000", "--json"))


def one_run(site: Site) -> None:
    """All about one run, for each string: one that succeeded and one that says why it failed."""
    for run in site.runs():
        if run["action"] not in ("file_action", "efs_emergency"):
            continue
        assert_printable(site.command("run", str(run["id"])))
        assert_json(site.command("run", str(run["id"]), "--json"))
        assert_printable(site.command("explain", str(run["id"])))


def explained(site: Site) -> None:
    """What a file would lead to."""
    file = site.directory / "body.json"
    for name in HOSTILE:
        for action in (*ACTIONS, HOSTILE[name]):
            file.write_bytes(body_of(name, action_plugin=action))
            assert_printable(site.command("explain", str(file)))
            assert_json(site.command("explain", str(file), "--json"))


def problems(site: Site) -> None:
    """Answers that refuse: by path, query, header, and the names of wrong fields."""
    for text in HOSTILE.values():
        encoded = quote(text.encode("utf-8", "surrogatepass"), safe="")
        wrong = json.dumps({"version": text, "status": text, "alerts": [{text: text}]}).encode()
        for answer in (
            site.receiver.post(notification(), f"/webhook/{encoded}"),
            site.receiver.post(notification(), f"/webhook?source={encoded}"),
            site.receiver.post(wrong),
            requests.get(f"{site.receiver.url}/{encoded}", timeout=10, allow_redirects=False),
        ):
            assert answer.status_code in (200, 400, 404, 405, 414)
            if answer.status_code == 200:
                continue  # An empty source, an empty name.
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert len(answer.content) < 4096
            assert_json(answer.text)


def api(site: Site) -> None:
    """Every list of the API, whole, and each run."""
    lists = [f"{name}?limit=200" for name in ("runs", "episodes", "rejected", "audit")]
    for path in (*lists, "actions", *[f"runs/{run['id']}" for run in site.runs()]):
        answer = requests.get(f"{site.receiver.url}/api/v1/{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        assert_json(answer.text)


class Markup(HTMLParser):
    """Notes all that a browser would take for more than text."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the element, and attributes that act or lead elsewhere."""
        self.found.add(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.found.add(f"@{name}")
            if name in ("href", "src", "action", "formaction"):
                scheme = re.match(r"\s*([\w+.-]*):", value or "")
                self.found.add(f"{name} {scheme[1].lower() if scheme else 'here'}")

    handle_startendtag = handle_starttag


def markup_of(site: Site, path: str) -> set[str]:
    answer = requests.get(f"{site.receiver.url}{path}", timeout=30)
    assert answer.status_code == 200
    parser = Markup()
    parser.feed(answer.text)
    parser.close()
    return parser.found


def page(site: Site) -> None:
    """Every page: the elements of a page about harmless things, and no others."""
    body = notification(alert("harmless", labels={"action_plugin": "log_action, nobody"}))
    site.receiver.post(body, "/webhook?source=harmless")
    harmless = {"href here", "src here", "action here", "href http", "href https"}
    for path in ("/", "/runs", "/rejected", "/actions", "/audit", "/settings"):
        harmless |= {one for one in markup_of(site, path) if one.isalnum()}
    harmless |= {one for one in markup_of(site, f"/runs/{site.runs()[0]['id']}") if one.isalnum()}
    assert not harmless & {"iframe", "object", "embed", "base", "img"}
    scripts = requests.get(f"{site.receiver.url}/", timeout=30).text.count("<script")
    for run in site.runs():
        path = f"/runs/{run['id']}"
        assert markup_of(site, path) <= harmless | {"pre", "code", "ul", "li", "dl", "dt", "dd"}
        text = requests.get(f"{site.receiver.url}{path}", timeout=30).text
        assert text.count("<script") == scripts


def metrics(site: Site) -> None:
    """Labels say only what the receiver knows, however many alerts say otherwise."""
    text = requests.get(f"{site.receiver.url}/metrics", timeout=30).text
    assert_printable(text)
    actions = set(re.findall(r'action="([^"]*)"', text))
    known = {"exec_plugin", "all", "(not loaded)", "", *ACTIONS}
    assert actions <= known, actions - known
    for text_of_alert in STORED.values():
        if len(text_of_alert) > 8:
            assert text_of_alert not in text


def action_file(site: Site) -> None:
    """Files of its own directory, with names of its own making."""
    files = [path for path in site.directory.rglob("*") if path.is_file()]
    made = [path for path in files if path.parent == site.directory / "files"]
    assert len(made) == len([one for one in site.runs() if one["action"] == "file_action"])
    for path in made:
        assert re.fullmatch(r"metric_[\w:.-]{1,200}", path.name, re.ASCII), path.name
    known = {"journal.db", "journal.db-wal", "journal.db-shm", "receiver.log", "body.json"}
    others = {path.name for path in files if path not in made and path.parent.name != "instances"}
    assert {one for one in others if not one.endswith(".lock")} <= known


def action_http(site: Site) -> None:
    """The endpoint that is set, no other, and the texts as they were."""
    assert {(method, path) for method, path, _ in site.endpoint.requests} == {
        ("POST", "/hook?fixed=1")
    }
    bodies = [json.loads(body) for _, _, body in site.endpoint.requests]
    sent = {one["alert"]["labels"]["alertname"] for one in bodies}
    assert sent >= {text for text in STORED.values() if text}


def action_efs(site: Site) -> None:
    """No request at all for what is no file system."""
    ended = [one for one in site.runs() if one["action"] == "efs_emergency"]
    assert len(ended) == len(HOSTILE)
    assert {one["outcome"] for one in ended} == {"failed"}
    assert {one["attempts"] for one in ended} == {1}


def action_log(site: Site) -> None:
    """A line of its own for each, with the text in a field, which is cut if it is long."""
    ended = [one for one in site.runs() if one["action"] == "log_action"]
    assert {one["outcome"] for one in ended} == {"succeeded"}
    if site.log_format == "json":
        lines = site.receiver.lines("threshold action executed")
        shown = {one["alert_labels"]["alertname"] for one in lines}
        assert shown >= {text for text in STORED.values() if 0 < len(text) < 1_000}
        for name, text in {"long": STORED["long"], "large": LARGE}.items():
            (cut,) = (one for one in shown if one.startswith(text[:20]))
            assert re.search(r"… \(cut: \d+ characters more\)$", cut), name


SINKS: tuple[Callable[[Site], None], ...] = (
    logs, lists, one_run, explained, problems, api, page, metrics,
    action_file, action_http, action_efs, action_log,
)  # fmt: skip


@pytest.mark.parametrize("site", ["json"], indirect=True)
@pytest.mark.parametrize("sink", SINKS, ids=lambda sink: sink.__name__)
def test_hostile_text_is_data_and_nothing_else(
    site: Site, sink: Callable[[Site], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    sink(site)


@pytest.mark.parametrize("site", ["text"], indirect=True)
def test_hostile_text_is_data_in_logs_for_people_too(site: Site) -> None:
    logs(site)
