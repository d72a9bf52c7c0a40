"""A running receiver to look at: actions that succeed, fail, hang, ask, or are held back."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from receiver.journal import reading
from receiver.journal.journal import Journal
from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

_PLUGINS = {
    "fix_it": 'def execute(metric_name):\n    return {"fixed": metric_name}',
    "gated": 'def execute():\n    return "opened"',
    "broken": 'def execute():\n    raise PermanentError("no way")',
    "slow": "def execute(context):\n    context.sleep(600)",
    "held": 'def execute():\n    return "let go"',
    "hostile": "def execute(context):\n    return dict(context.alert.annotations)",
}
_POLICIES = {
    "RECEIVER_ACTION_GATED_APPROVAL": "required",
    "RECEIVER_ACTION_HELD_TARGET_LABELS": "host",
    "RECEIVER_ACTION_HELD_COOLDOWN": "1h",
    "RECEIVER_ACTION_BROKEN_BREAKER": "none",
    "RECEIVER_ACTION_SLOW_TIMEOUT": "10m",
}


@dataclass(frozen=True)
class Site:
    """A receiver, its journal, and alerts that nobody else posts."""

    serving: Receiver
    journal: Journal
    _numbers: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        """Where it is."""
        return self.serving.url

    def post(self, action: str, name: str = "Test", **labels: str) -> int:
        """Post an alert of this name to an action; return the number of its run."""
        return self.post_alert(action, {"alertname": name, **labels}, {"value": "90", "for": "5m"})

    def post_alert(
        self, action: str, labels: dict[str, str], annotations: dict[str, str], **more: Any
    ) -> int:
        """Post an alert as it is given; return the number of its run."""
        fingerprint = f"page{next(self._numbers)}"
        body = {**alert(fingerprint, labels=labels, annotations=annotations), **more}
        answer = self.serving.post(notification(body), f"/webhook/{action}")
        assert answer.json()["accepted"] == 1, answer.text
        return int(reading.list_runs(self.journal, fingerprint=fingerprint)[0]["id"])

    def reject(self, name: str, wanted: str) -> int:
        """Post an alert whose action nobody knows; return the number under which it is kept."""
        fingerprint = f"page{next(self._numbers)}"
        body = alert(fingerprint, labels={"alertname": name, "action_plugin": wanted})
        assert self.serving.post(notification(body)).json()["rejected"] == 1
        kept = reading.list_rejected(self.journal)
        return next(int(one["id"]) for one in kept if one["fingerprint"] == fingerprint)

    def wait_for(self, run_id: int, **values: object) -> dict[str, Any]:
        """Return the run once it has these values."""

        def found() -> dict[str, Any] | None:
            run = reading.find_run(self.journal, run_id)
            return run if all(run[name] == value for name, value in values.items()) else None

        run = wait_until(found, 60, f"run {run_id}: {values}")
        assert run is not None
        return run

    def close(self) -> None:
        """End it."""
        self.serving.kill()
        self.journal.close()


def start_site(directory: Path, **environment: str) -> Site:
    """Start a receiver whose plugins, journal and log are in the directory."""
    (directory / "plugins").mkdir()
    for name, body in _PLUGINS.items():
        source = f"from receiver import PermanentError, hookimpl\n\n@hookimpl\n{body}\n"
        (directory / "plugins" / f"{name}.py").write_text(source)
    settings = {
        "RECEIVER_DATA_DIR": str(directory / "data"),
        "PLUGIN_DIR": str(directory / "plugins"),
        "RECEIVER_ACTIONS": ", ".join(_PLUGINS),
        **_POLICIES,
        **environment,
    }
    serving = Receiver("serve", settings, directory / "receiver.log")
    try:
        serving.wait_ready()
    except BaseException:
        serving.kill()
        raise
    return Site(serving, Journal(f"sqlite:///{directory / 'data' / 'journal.db'}"))
