"""What happens seldom is counted as well, and its log lines say which run they are about."""

import os
import signal
from collections.abc import Iterator, Mapping

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.notifications import alert, notification
from tests.support.receivers import Receiver
from tests.support.waiting import wait_until

_QUICK = "    pass\n"
_HANGS = "    time.sleep(600)\n"
_CRASHES = "    os._exit(7)\n"
_VICTIM = "    if context.attempt == 1:\n        time.sleep(600)\n"
PLUGINS = {
    "cooled": (_QUICK, {"COOLDOWN": "1h", "WHEN_LIMITED": "skip", "TARGET_LABELS": "host"}),
    "asked": (_QUICK, {"APPROVAL": "required", "APPROVAL_TIMEOUT": "1s"}),
    "verified": (_QUICK, {"VERIFY_AFTER": "5s"}),
    "killed": (_HANGS, {"TIMEOUT": "1s", "MAX_ATTEMPTS": "1"}),
    "crashed": (_CRASHES, {"MAX_ATTEMPTS": "1"}),
    "victim": (_VICTIM, {"TIMEOUT": "10m"}),
}
Counted = Mapping[tuple[str, ...], float]


def scrape(receiver: Receiver) -> Counted:
    """Return (name, *label values by the labels' names) -> value of what is not 0."""
    text = requests.get(f"{receiver.url}/metrics", timeout=10).text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.value
    }


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    directory = tmp_path_factory.mktemp("seldom")
    (directory / "plugins").mkdir()
    environment = {
        "RECEIVER_DATA_DIR": str(directory / "data"), "PLUGIN_DIR": str(directory / "plugins")
    }  # fmt: skip
    for name, (body, policy) in PLUGINS.items():
        head = "import os\nimport time\n\nfrom receiver import hookimpl\n\n\n@hookimpl\n"
        (directory / "plugins" / f"{name}.py").write_text(
            f"{head}def execute(context):\n{body}"
        )  # fmt: skip
        environment |= {
            f"RECEIVER_ACTION_{name.upper()}_{key}": text for key, text in policy.items()
        }
    one = Receiver("serve", environment, directory / "receiver.log")
    try:
        yield act(one.wait_ready())
    finally:
        one.kill()


def act(receiver: Receiver) -> Receiver:
    """Bring everything about, and wait until it is counted."""

    def fires(action: str, fingerprint: str = "", **labels: str) -> bytes:
        labels = {"action_plugin": action, **labels}
        return notification(alert(fingerprint or action, labels=labels))

    # Before the others, and resolved at once: its effect is looked at soon after its success.
    assert receiver.post(fires("verified")).json()["accepted"] == 1
    wait_until(lambda: ("receiver_runs_total", "verified", "succeeded") in scrape(receiver), 60)
    assert receiver.post(notification(alert("verified", "resolved"))).ok
    for action in PLUGINS.keys() - {"verified"}:
        assert receiver.post(fires(action, host="a")).json()["accepted"] == 1
    wait_until(lambda: ("receiver_runs_total", "cooled", "succeeded") in scrape(receiver), 60)
    assert receiver.post(fires("cooled", "another", host="a")).json()["accepted"] == 1
    for expected in (
        ("receiver_runs_total", "cooled", "skipped"),
        ("receiver_runs_total", "asked", "skipped"),
        # Counted after the effect itself.
        ("receiver_time_to_resolve_seconds_count", "verified"),
        ("receiver_runs_total", "killed", "failed"),
        ("receiver_runs_total", "crashed", "failed"),
        # It has begun, and may be interrupted.
        ("receiver_reaction_seconds_count", "victim"),
    ):
        wait_until(lambda expected=expected: expected in scrape(receiver), 60, str(expected))
    os.kill(receiver.children()["worker"], signal.SIGKILL)
    wait_until(lambda: ("receiver_runs_total", "victim", "succeeded") in scrape(receiver), 60)
    return receiver


@pytest.mark.parametrize(
    "name",
    [
        ("receiver_guardrail_decisions_total", "cooled", "skip", "cooldown"),
        ("receiver_guardrail_decisions_total", "asked", "skip", "approval"),
        ("receiver_runs_total", "cooled", "skipped"),
        ("receiver_runs_total", "asked", "skipped"),
        ("receiver_effects_total", "verified", "effective"),
        ("receiver_time_to_resolve_seconds_count", "verified"),
        ("receiver_attempts_total", "killed", "killed"),
        ("receiver_attempts_total", "crashed", "crashed"),
        ("receiver_attempts_total", "victim", "interrupted"),
        ("receiver_attempts_total", "victim", "succeeded"),
        ("receiver_run_wait_seconds_count", "victim"),
        ("receiver_reaction_seconds_count", "victim"),
    ],
    ids=" ".join,
)
def test_event_is_counted_once(receiver: Receiver, name: tuple[str, ...]) -> None:
    assert scrape(receiver)[name] == 1


@pytest.mark.parametrize(
    ("message", "action", "fingerprint"),
    [
        ("run held back", "cooled", "another"),
        ("approval expired", "asked", "asked"),
        ("effect verified", "verified", "verified"),
        ("attempt is past its deadline and is killed", "killed", "killed"),
        ("interrupted attempt found", "victim", "victim"),
    ],
)
def test_line_about_a_run_says_which(
    receiver: Receiver, message: str, action: str, fingerprint: str
) -> None:
    lines = [one for one in receiver.lines(message) if one["action"] == action]
    assert [one["fingerprint"] for one in lines] == [fingerprint]
    assert isinstance(lines[0]["run_id"], int)
