"""Who may scrape, and which answers are counted: asked of the application itself."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from receiver.journal.journal import Journal
from receiver.plugins import load_actions
from receiver.settings import load
from receiver.web.app import create_app

Ask = Callable[..., FlaskClient]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Ask]:
    """Makes clients of a receiver with these settings."""
    opened: list[Journal] = []

    def make(**environment: str) -> FlaskClient:
        settings = load({"RECEIVER_DATA_DIR": str(tmp_path), **environment}, {})
        journal = Journal(settings.journal_url)
        opened.append(journal)
        return create_app(settings, load_actions(settings), journal).test_client()

    yield make
    for one in opened:
        one.close()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_scrape_needs_a_credential_that_may_read(client: Ask) -> None:
    asked = client(
        RECEIVER_SUBMIT_TOKEN="submits", RECEIVER_READ_TOKEN="reads", RECEIVER_OPERATE_TOKEN="acts"
    )
    assert asked.get("/metrics").status_code == 401
    assert asked.get("/metrics", headers=bearer("submits")).status_code == 403
    assert asked.get("/metrics", headers=bearer("reads")).status_code == 200
    assert asked.get("/metrics", headers=bearer("acts")).status_code == 200


def test_scrape_needs_none_where_metrics_are_open(client: Ask) -> None:
    asked = client(RECEIVER_SUBMIT_TOKEN="submits", RECEIVER_METRICS_OPEN="true")
    assert asked.get("/metrics").status_code == 200
    assert asked.post("/webhook").status_code == 401


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text; version=hidden",
        "application/openmetrics-text;version=1..0",
        "text/plain;version=1.0.0x;escaping=values",
        "text/plain;q=;;,;escaping",
        "\xff" * 3000,
        "",
    ],
)
def test_scrape_that_asks_for_no_format_there_is_gets_the_text(
    client: Ask, accept: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = client().get("/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.mimetype == "text/plain"
    assert "hidden" not in caplog.text


def test_refused_credentials_are_counted_wherever_they_were_tried(client: Ask) -> None:
    asked = client(RECEIVER_SUBMIT_TOKEN="submits", RECEIVER_METRICS_OPEN="true")
    for _ in range(2):
        asked.post("/webhook", headers=bearer("wrong"))
    asked.put("/webhook")
    asked.post("/webhook/", headers=bearer("submits"), data="x")
    asked.get("/webhooks")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(asked.get("/metrics").text)
        for sample in family.samples
        if sample.value and "answer" in sample.labels
    }
    assert found == {
        ("receiver_notifications_total", "401"): 2,
        ("receiver_notifications_total", "405"): 1,
        ("receiver_notifications_total", "415"): 1,
        ("receiver_auth_failures_total", "401"): 2,
    }
