"""metric-reader's configuration: its file and its environment, of all its generations.

What it swallowed in silence is a problem here: a threshold without an operator was no threshold,
a size that is no number was one mebibyte, an unknown key was nothing.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from receiver.declarations import as_text, nearest
from receiver.errors import SettingsError

Behavior = Literal["zero", "last_value", "assume_breached"]

_OPERATORS = {"greater_than": ">", "less_than": "<"}
_BEHAVIORS: tuple[Behavior, ...] = ("zero", "last_value", "assume_breached")
_LEVEL_KEYS = ("THRESHOLD", "PLUGIN", "DURATION", "BACKOFF_DELAY")
# Older name -> the one that it was given later.
_ALIASES = {
    "SOFT_THRESHOLD_PLUGIN": "SOFT_PLUGIN",
    "HARD_THRESHOLD_PLUGIN": "HARD_PLUGIN",
    "NO_METRIC_BEHAVIOR": "MISSING_VALUE_BEHAVIOR",
}
NAMES = (
    "LOG_LEVEL", "METRIC_NAME", "LABEL_FILTERS", "PROMETHEUS_QUERY", "THRESHOLD_OPERATOR",
    "THRESHOLD", "ACTION_PLUGIN", "THRESHOLD_DURATION", "BACKOFF_DELAY", "POLLING_INTERVAL",
    "PROMETHEUS_ENDPOINT", "PLUGIN_DIR", "LEADER_ELECTION_ENABLED", "LEADER_ELECTION_LOCK_NAME",
    "LEADER_ELECTION_LOCK_NAMESPACE", "MISSING_VALUE_BEHAVIOR",
    *(f"{level}_{key}" for level in ("SOFT", "HARD") for key in _LEVEL_KEYS),
    *_ALIASES,
)  # fmt: skip
# What stood in `[plugins.*]`, and the variable that its plugin really read.
_TABLES = {
    ("file_action", "dir"): "FILE_ACTION_DIR",
    ("file_action", "size"): "FILE_ACTION_SIZE",
    ("efs_emergency", "file_system_id"): "EFS_FILE_SYSTEM_ID",
    ("efs_emergency", "file_system_prometheus_label"): "EFS_FILE_SYSTEM_PROMETHEUS_LABEL",
    ("efs_emergency", "aws_region"): "AWS_REGION",
}
_SETTINGS_OF = {
    "file_action": ("FILE_ACTION_DIR", "FILE_ACTION_SIZE"),
    "efs_emergency": ("EFS_FILE_SYSTEM_ID", "EFS_FILE_SYSTEM_PROMETHEUS_LABEL", "AWS_REGION"),
}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+|0")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PLAIN_METRIC = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


@dataclass(frozen=True)
class OldLevel:
    """One threshold: what happens once it was crossed for `duration`, and again after `backoff`."""

    threshold: float
    plugin: str
    duration: timedelta
    backoff: timedelta


@dataclass(frozen=True)
class Predecessor:
    """What one metric-reader did.

    The oldest generation knew a single threshold; it stands in `soft`, and `is_single` says so.
    `plugin_settings` maps a plugin to what it read from its environment.
    """

    query: str
    metric: str
    operator: str
    soft: OldLevel
    hard: OldLevel | None
    missing: Behavior
    is_single: bool = False
    log_level: str = ""
    polling_interval: timedelta | None = None
    plugin_settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def levels(self) -> tuple[OldLevel, ...]:
        """Its thresholds, soft first."""
        return (self.soft,) if self.hard is None else (self.soft, self.hard)


class _Reader:
    """Reads each value once, and collects every problem."""

    def __init__(self, file: str, environment: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self.from_tables: list[str] = []
        self.said = self._from_file(file)
        for name, text in environment.items():
            known = name in NAMES or name in _TABLES.values()
            if not known and re.match(r"(SOFT|HARD)_", name):
                self._unknown(name, name)
            elif text:
                self.said[_ALIASES.get(name, name)] = text

    def _from_file(self, file: str) -> dict[str, str]:
        try:
            table = tomllib.loads(file)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError([f"config.toml is not TOML: {error}"]) from error
        found: dict[str, str] = {}
        plugins = table.pop("plugins", {})
        if not isinstance(plugins, dict) or not all(isinstance(v, dict) for v in plugins.values()):
            raise SettingsError(["config.toml: plugins must be tables, [plugins.<name>]"])
        for plugin, values in plugins.items():
            for key, value in values.items():
                self._plugin_setting(plugin.lower(), key.lower(), value, found)
        for key, value in table.items():
            inside = value if isinstance(value, dict) else {"": value}
            for part, one in inside.items():
                name = f"{key}_{part}".rstrip("_").upper()
                where = f"[{key}] {part}" if part else key
                if name not in NAMES and name not in _TABLES.values():
                    self._unknown(where, name)
                    continue
                if isinstance(one, int | float) and name.endswith(
                    ("DURATION", "DELAY", "INTERVAL")
                ):
                    self.problems.append(
                        f"{where}: {one} has no unit, so metric-reader took it for nanoseconds; "
                        f'write "{one}s"'
                    )
                    continue
                found[_ALIASES.get(name, name)] = as_text(one)
        return found

    def _plugin_setting(self, plugin: str, key: str, value: object, found: dict[str, str]) -> None:
        name = _TABLES.get((plugin, key))
        if name is None:
            self.problems.append(
                f"[plugins.{plugin}] {key}: metric-reader ignored it, for no plugin was given it; "
                f"set the variable that {plugin} reads from its environment instead"
            )
            return
        found[name] = as_text(value)
        self.from_tables.append(name)

    def _unknown(self, where: str, name: str) -> None:
        self.problems.append(
            f"{where}: is not a setting of metric-reader{nearest(name, NAMES)}; take it away"
        )

    def text(self, name: str) -> str:
        return self.said.get(name, "")

    def number(self, name: str) -> float | None:
        text = self.text(name)
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            self.problems.append(f'{name}: "{text}" is not a number')
            return None

    def duration(self, name: str, default: timedelta = timedelta()) -> timedelta:
        text = self.text(name)
        if not text:
            return default
        if not _DURATION.fullmatch(text):
            self.problems.append(f'{name}: "{text}" is not a duration; write 30s or 1m30s')
            return default
        parts = _PART.findall(text)
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        text = self.text(name) or default
        if text and text not in choices:
            self.problems.append(f'{name}: "{text}" is not one of {", ".join(choices)}')
        return text


def read(file: str, environment: Mapping[str, str]) -> Predecessor:
    """Return what a metric-reader with this `config.toml` and environment did.

    As with it, a variable wins over the file. Raises SettingsError with every problem.
    """
    reader = _Reader(file, environment)
    query, metric = _query(reader)
    is_single = bool(reader.text("THRESHOLD"))
    if is_single:
        operator, soft, hard = _single(reader)
    else:
        operator, soft, hard = _soft_and_hard(reader)
    missing = reader.choice("MISSING_VALUE_BEHAVIOR", _BEHAVIORS, "zero")
    polling = reader.duration("POLLING_INTERVAL") if reader.text("POLLING_INTERVAL") else None
    log_level = reader.choice("LOG_LEVEL", ("debug", "info", "warn", "error"), "")
    used = {one.plugin for one in (soft, hard) if one is not None and one.plugin}
    settings = _plugin_settings(reader, used)
    if reader.problems or soft is None:
        raise SettingsError(reader.problems)
    return Predecessor(
        query,
        metric,
        operator,
        soft,
        hard,
        next(one for one in _BEHAVIORS if one == missing),
        is_single,
        log_level,
        polling,
        settings,
        _left_out(reader),
    )


def _query(reader: _Reader) -> tuple[str, str]:
    metric, query = reader.text("METRIC_NAME"), reader.text("PROMETHEUS_QUERY")
    if query and metric:
        reader.problems.append(
            "METRIC_NAME and PROMETHEUS_QUERY: are of two generations; keep the one you run"
        )
    if query:
        return query, query if _PLAIN_METRIC.fullmatch(query) else ""
    if not metric:
        reader.problems.append("METRIC_NAME: is not set; name the metric, or set PROMETHEUS_QUERY")
    elif not _PLAIN_METRIC.fullmatch(metric):
        reader.problems.append(
            f'METRIC_NAME: "{metric}" is not the name of a metric; set PROMETHEUS_QUERY instead'
        )
    filters = reader.text("LABEL_FILTERS")
    return (f"{metric}{{{filters}}}" if filters else metric), metric


def _single(reader: _Reader) -> tuple[str, OldLevel | None, None]:
    text, plugin = reader.text("THRESHOLD"), reader.text("ACTION_PLUGIN")
    newer = [name for name in reader.said if re.match(r"(SOFT|HARD)_|THRESHOLD_OPERATOR", name)]
    if newer:
        reader.problems.append(
            f"THRESHOLD and {newer[0]}: are of two generations; keep those you run"
        )
    operator, value = text[:1], text[1:].strip()
    if operator not in (">", "<"):
        reader.problems.append(f'THRESHOLD: "{text}" has no operator; write ">80" or "<80"')
        return "", None, None
    reader.said["THRESHOLD"] = value
    threshold = reader.number("THRESHOLD")
    if not plugin:
        reader.problems.append("ACTION_PLUGIN: is not set; a threshold without one did nothing")
    duration, backoff = reader.duration("THRESHOLD_DURATION"), reader.duration("BACKOFF_DELAY")
    return operator, OldLevel(threshold or 0.0, plugin, duration, backoff), None


def _soft_and_hard(reader: _Reader) -> tuple[str, OldLevel | None, OldLevel | None]:
    text = reader.text("THRESHOLD_OPERATOR")
    if not text:
        reader.problems.append(
            "THRESHOLD_OPERATOR: is not set, and without it metric-reader ignored its thresholds; "
            "set greater_than or less_than"
        )
    elif text not in _OPERATORS:
        reader.problems.append(
            f'THRESHOLD_OPERATOR: "{text}" is not one of {", ".join(_OPERATORS)}'
        )
    if reader.text("ACTION_PLUGIN"):
        reader.problems.append(
            "ACTION_PLUGIN: belongs to THRESHOLD; set SOFT_PLUGIN and HARD_PLUGIN"
        )
    levels = {name: _level(reader, name) for name in ("SOFT", "HARD")}
    if levels["SOFT"] is None and levels["HARD"] is not None:
        reader.problems.append(
            "HARD_THRESHOLD: stands alone, and metric-reader acted on hard only after soft, so "
            "never; set SOFT_THRESHOLD, too"
        )
    elif levels["SOFT"] is None and not reader.problems:
        reader.problems.append("SOFT_THRESHOLD: is not set; without a threshold there is no alert")
    return _OPERATORS.get(text, ""), levels["SOFT"], levels["HARD"]


def _level(reader: _Reader, level: str) -> OldLevel | None:
    threshold, plugin = reader.number(f"{level}_THRESHOLD"), reader.text(f"{level}_PLUGIN")
    if threshold is None:
        if plugin and not reader.text(f"{level}_THRESHOLD"):
            reader.problems.append(
                f"{level}_PLUGIN: {plugin} has no threshold; set {level}_THRESHOLD"
            )
        return None
    return OldLevel(
        threshold,
        plugin,
        reader.duration(f"{level}_DURATION", reader.duration("THRESHOLD_DURATION")),
        reader.duration(f"{level}_BACKOFF_DELAY", reader.duration("BACKOFF_DELAY")),
    )


def _plugin_settings(reader: _Reader, used: set[str]) -> dict[str, dict[str, str]]:
    size = reader.text("FILE_ACTION_SIZE")
    if size and not (size.isdecimal() and int(size) > 0):
        reader.problems.append(
            f'FILE_ACTION_SIZE: "{size}" is not a number of bytes above 0, so file_action wrote '
            "1048576 instead, or did not start; write the number that you mean"
        )
    found = {}
    for plugin in sorted(used):
        # A plugin of one's own read its environment, by custom under its own name.
        own = [name for name in reader.said if name.startswith(f"{plugin.upper()}_")]
        names = _SETTINGS_OF.get(plugin, tuple(own))
        values = {name: reader.text(name) for name in names if reader.text(name)}
        if values:
            found[plugin] = values
    return found


def _left_out(reader: _Reader) -> tuple[str, ...]:
    """Return the names that were set and that nothing here stands for, for the notes."""
    kept = ("PROMETHEUS_ENDPOINT", "PLUGIN_DIR")
    election = [name for name in reader.said if name.startswith("LEADER_ELECTION_")]
    tables = [f"table:{name}" for name in reader.from_tables]
    return (*(name for name in kept if reader.text(name)), *election, *tables)
