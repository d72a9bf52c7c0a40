"""Bodies as Alertmanager posts them: recorded ones, and ones made to order."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent
PAYLOADS = sorted((TESTS / "payloads").glob("*.json"))
SEQUENCES = {
    "am_restart.2": 1,
    "flap.1": 2,
    "flap_hidden.1": 2,
    "group.1": 5,
    "ha.1": 2,
    "prom_restart.1": 1,
    "prom_restart.3": 1,
    "repeat.1": 1,
    "silence.1": 2,
    "startsat_moves_back.1": 1,
    "two_routes.1": 1,
    "value_in_label.1": 2,
}
T0 = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sequence(folder: str) -> list[tuple[datetime, bytes]]:
    """Return the bodies of a recorded conversation, each with the time of its arrival."""
    found = []
    for body in sorted((TESTS / "sequences" / folder).glob("*.body")):
        meta = json.loads(body.with_suffix(".meta.json").read_text())
        found.append((datetime.fromtimestamp(meta["time"], UTC), body.read_bytes()))
    return found


def alert(
    fingerprint: str = "f1",
    status: str = "firing",
    starts_at: datetime = T0,
    ends_at: datetime | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Return one element of `alerts`; a resolved one ended a minute after it began."""
    if status == "resolved":
        ends_at = ends_at or starts_at + timedelta(minutes=1)
    return {
        "status": status,
        "labels": {"alertname": "Test", **(labels or {})},
        "annotations": annotations or {},
        "startsAt": starts_at.isoformat(),
        "endsAt": ends_at.isoformat() if ends_at else "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph?g0.expr=queue_depth+%3E+80&g0.tab=1",
        "fingerprint": fingerprint,
    }


def notification(*alerts: dict[str, Any], receiver: str = "alert-receiver", **more: Any) -> bytes:
    """Return a body that holds these alerts."""
    firing = any(one["status"] == "firing" for one in alerts)
    return json.dumps(
        {
            "version": "4",
            "status": "firing" if firing else "resolved",
            "receiver": receiver,
            "groupKey": "{}:{}",
            "groupLabels": {},
            "commonLabels": {},
            "commonAnnotations": {},
            "externalURL": "http://alertmanager:9093",
            "truncatedAlerts": 0,
            "alerts": list(alerts),
            **more,
        }
    ).encode()
