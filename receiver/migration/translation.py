"""What a metric-reader did, said to Prometheus, Alertmanager, the receiver and the chart."""

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import yaml

from receiver.errors import SettingsError
from receiver.migration.predecessor import Behavior, OldLevel, Predecessor
from receiver.rules import Level, Missing, Threshold, rules_of

_MISSING: dict[Behavior, Missing] = {
    "zero": "zero",
    "last_value": "last_value",
    "assume_breached": "breached",
}
_LOG_LEVELS = {"warn": "warning"}
# What waits on soft alone, where soft had no plugin: hard must have something to wait for.
_STAND_IN = "log_action"
GROUP = "alert-receiver"


@dataclass(frozen=True)
class Translation:
    """File name -> text, and in `notes` what differs or cannot be carried over, with the reason."""

    files: dict[str, str]
    notes: tuple[str, ...]


def translate(old: Predecessor, name: str, url: str, built_in: list[str]) -> Translation:
    """Return what takes the place of a metric-reader; its alerts are called `name`.

    `url` is where Alertmanager reaches the receiver, `built_in` the actions that come with it.
    Raises SettingsError when its thresholds contradict each other.
    """
    threshold = threshold_of(old, name)
    problems = threshold.problems()
    if problems:
        raise SettingsError(problems)
    group: dict[str, Any] = {"name": GROUP}
    if old.polling_interval:
        group["interval"] = as_duration(old.polling_interval)
    rules = {"groups": [{**group, "rules": rules_of(threshold)}]}
    own = sorted(_actions(threshold) - set(built_in))
    return Translation(
        {
            "rules.yml": as_yaml(rules),
            "prometheusrule.yaml": as_yaml(resource(rules)),
            "alertmanager.yml": as_yaml(alertmanager(url)),
            "receiver.toml": _receiver_toml(old, threshold),
            "values.yaml": as_yaml(_values(old, threshold, own)),
        },
        _notes(old, threshold, own),
    )


def threshold_of(old: Predecessor, name: str) -> Threshold:
    """Return the same thresholds as the generator of rules takes them."""
    hard = old.hard if old.hard is not None and old.hard.plugin else None
    return Threshold(
        name,
        old.operator,
        metric=old.metric,
        expression="" if old.query == old.metric else old.query,
        soft=_level(old.soft, "warning"),
        hard=_level(hard, "critical") if hard else None,
        hard_requires_soft=hard is not None,
        # Without a pause hard acted once until soft ended; with one, whenever it was crossed anew.
        hard_until_soft_ends=hard is not None and not hard.backoff,
        missing=_MISSING[old.missing],
    )


def _level(old: OldLevel, severity: str) -> Level:
    return Level(old.threshold, old.plugin or _STAND_IN, severity, as_duration(old.duration))


def _actions(threshold: Threshold) -> set[str]:
    return {one.action for one in (threshold.soft, threshold.hard) if one is not None}


def as_duration(length: timedelta) -> str:
    """Return a duration as Prometheus and the receiver read it: `1m30s`."""
    rest, text = round(length / timedelta(milliseconds=1)), ""
    for unit, size in (("h", 3600000), ("m", 60000), ("s", 1000), ("ms", 1)):
        number, rest = divmod(rest, size)
        text += f"{number}{unit}" if number else ""
    return text or "0s"


def as_yaml(value: object) -> str:
    """Return YAML as people write it: in blocks, and in the order given."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=1000)
    return text


def resource(rules: dict[str, Any], release: str = "kube-prometheus-stack") -> dict[str, Any]:
    """Return a rule file as the Prometheus operator takes it."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": GROUP, "labels": {"release": release}},
        "spec": rules,
    }


def alertmanager(url: str) -> dict[str, Any]:
    """Return an Alertmanager configuration that sends what names an action to the receiver."""
    return {
        "route": {
            "receiver": "nobody",
            "group_by": ["alertname"],
            "group_wait": "10s",
            "group_interval": "1m",
            "repeat_interval": "4h",
            "routes": [{"matchers": ['action_plugin!=""'], "receiver": GROUP, "continue": True}],
        },
        "receivers": [
            {"name": "nobody"},
            {
                "name": GROUP,
                "webhook_configs": [
                    {
                        "url": f"{url.rstrip('/')}/webhook",
                        "send_resolved": True,
                        "max_alerts": 0,
                        "http_config": {
                            "authorization": {
                                "credentials_file": "/etc/alertmanager/alert-receiver.token"
                            }
                        },
                    }
                ],
            },
        ],
    }


def _policies(old: Predecessor) -> dict[str, dict[str, str]]:
    found: dict[str, timedelta] = {}
    for level in old.levels:
        if level.plugin and level.backoff:
            # The single threshold was timed anew after each pause.
            pause = level.backoff + (level.duration if old.is_single else timedelta())
            found[level.plugin] = max(pause, found.get(level.plugin, pause))
    return {
        plugin: {"repeat_after": as_duration(pause), "cooldown": as_duration(pause)}
        for plugin, pause in found.items()
    }


def _receiver_toml(old: Predecessor, threshold: Threshold) -> str:
    lines = [f"enabled_actions = {json.dumps(sorted(_actions(threshold)))}"]
    if old.log_level:
        lines.append(f'log_level = "{_LOG_LEVELS.get(old.log_level, old.log_level)}"')
    tables: dict[str, dict[str, str]] = {
        f"actions.{plugin}": policy for plugin, policy in _policies(old).items()
    }
    for plugin, values in old.plugin_settings.items():
        tables[f"plugins.{plugin}"] = {name.lower(): text for name, text in values.items()}
    for table, keys in tables.items():
        lines += ["", f"[{table}]"]
        lines += [f"{key} = {json.dumps(text, ensure_ascii=False)}" for key, text in keys.items()]
    return "\n".join(lines) + "\n"


def _values(old: Predecessor, threshold: Threshold, own: list[str]) -> dict[str, Any]:
    levels = {"soft": threshold.soft, "hard": threshold.hard}
    settings = {"RECEIVER_ACTIONS": ",".join(sorted(_actions(threshold)))}
    if old.log_level:
        settings["LOG_LEVEL"] = _LOG_LEVELS.get(old.log_level, old.log_level)
    for values in old.plugin_settings.values():
        settings |= values
    return {
        "settings": settings,
        **({"policies": _policies(old)} if _policies(old) else {}),
        **({"plugins": {"actions": own}} if own else {}),
        **(
            {"prometheusRule": {"interval": as_duration(old.polling_interval)}}
            if old.polling_interval
            else {}
        ),
        "thresholds": [
            {
                "name": threshold.name,
                **({"metric": threshold.metric} if threshold.metric else {}),
                **({"expr": threshold.expression} if threshold.expression else {}),
                "operator": threshold.operator,
                **{
                    name: {"threshold": one.threshold, "for": one.pending, "action": one.action}
                    for name, one in levels.items()
                    if one is not None
                },
                **({"hardRequiresSoft": True} if threshold.hard_requires_soft else {}),
                **({"hardUntilSoftEnds": True} if threshold.hard_until_soft_ends else {}),
                "missing": threshold.missing,
            }
        ],
    }


def _notes(old: Predecessor, threshold: Threshold, own: list[str]) -> tuple[str, ...]:
    """Return what a user must know, what needs a hand first."""
    notes = [
        f"{name}: a Go plugin cannot be loaded; write it anew (receiver new-plugin {name}), its "
        "arguments and settings have kept their names"
        for name in own
    ]
    notes += [_LEFT_OUT.get(one) or _about_left_out(one) for one in old.left_out]
    efs = old.plugin_settings.get("efs_emergency", {})
    if {"EFS_FILE_SYSTEM_ID", "EFS_FILE_SYSTEM_PROMETHEUS_LABEL"} <= efs.keys():
        notes.append(
            "EFS_FILE_SYSTEM_ID: is used for an alert without that label only if "
            "EFS_FALLBACK_TO_STATIC is true; otherwise its run fails"
        )
    notes.append(
        "several replicas: instead of electing a leader they share a journal on PostgreSQL; with "
        "one replica SQLite does"
    )
    if not old.soft.plugin:
        notes.append(
            f"soft names no plugin: {_STAND_IN} stands in, so that hard has an alert to wait for"
        )
    if old.hard is not None and not old.hard.plugin:
        notes.append("HARD_THRESHOLD: names no plugin, so nothing followed from it; left out")
    notes += _notes_on_timing(old, threshold)
    notes += _ALWAYS
    return tuple(notes)


def _about_left_out(name: str) -> str:
    if name.startswith("table:"):
        name = name.removeprefix("table:")
        return (
            f"{name}: stood in [plugins], which no plugin was given: until now it had the value "
            "of the environment, or the default; now it has this one"
        )
    return f"{name}: not carried over, for no leader is elected"


_LEFT_OUT = {
    "PROMETHEUS_ENDPOINT": (
        "PROMETHEUS_ENDPOINT: not carried over; load the rules into that Prometheus, and point it "
        "at your Alertmanager"
    ),
    "PLUGIN_DIR": (
        "PLUGIN_DIR: not carried over, for it holds .so files; set it to a directory of Python "
        "plugins if you have any"
    ),
}
_ALWAYS = (
    "metric-reader looked at the first series only, whichever came first; each series has its own "
    "alert here, and its own runs. Narrow the query where that is not meant",
    "a failed action was not tried again; here it is, max_attempts times",
    "the threshold reads `> 80` where it read `greater_than 80.00`",
)


def _notes_on_timing(old: Predecessor, threshold: Threshold) -> list[str]:
    notes = []
    if any(level.backoff for level in old.levels):
        notes.append(
            "BACKOFF_DELAY: is repeat_after and cooldown in receiver.toml; where metric-reader "
            "repeated without end, max_repeats (10) ends it, and soft repeats beside hard, too"
        )
    if len({level.plugin for level in old.levels}) < len(old.levels) and old.soft.backoff != (
        old.hard.backoff if old.hard else old.soft.backoff
    ):
        notes.append(
            f"{old.soft.plugin}: has one policy, so the longer of the two pauses holds for both"
        )
    if old.is_single and not old.soft.backoff:
        notes.append(
            "BACKOFF_DELAY: was 0, so the action ran at every poll; here it runs once per episode. "
            f"To repeat it, set repeat_after under [actions.{old.soft.plugin}]"
        )
    if old.hard is not None and threshold.hard is not None and old.hard.backoff:
        notes.append("hard that comes back while soft fires waits for its duration again")
    if old.missing == "last_value":
        notes.append(
            f"MISSING_VALUE_BEHAVIOR last_value: for {threshold.last_value_for}, where it was for "
            "ever"
        )
    if old.missing == "assume_breached":
        notes.append(
            "MISSING_VALUE_BEHAVIOR assume_breached: acts after the duration, where it acted at "
            "once, and with the value NaN instead of 0"
        )
    if old.missing != "last_value":
        notes.append(
            "a series that vanishes is another alert than the one that was there, for it has lost "
            "its labels: its duration begins anew"
        )
    return notes
